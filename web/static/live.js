// Parts marked with data-live are fetched again when a job or run they show changes: at most every REST_MS, never while hidden.

const REST_MS = 1500;
const part = document.querySelector("[data-live]");
const about = part?.dataset.of;
let waiting = false;
let last = 0;

async function refresh() {
  waiting = false;
  last = Date.now();
  const response = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.querySelector("[data-live]");
  const old = document.querySelector("[data-live]");
  if (!fresh || !old || old.contains(document.activeElement) && document.activeElement.matches("button, input, select")) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const scrolls = [...old.querySelectorAll(".paper, .scroll, .events")].map((element) => [element.scrollTop, element.scrollLeft]);
  old.replaceWith(document.adoptNode(fresh));
  [...fresh.querySelectorAll(".paper, .scroll, .events")].forEach((element, i) => {
    if (scrolls[i]) [element.scrollTop, element.scrollLeft] = scrolls[i];
  });
  if (focused) fresh.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

function changed() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => (document.hidden ? (waiting = false) : refresh()), Math.max(50, last + REST_MS - Date.now()));
}

if (part) {
  const stream = new EventSource(`/api/v1/${about ? `jobs/${encodeURIComponent(about)}/` : ""}events?after=${part.dataset.after}`);
  for (const kind of ["job.state", "job.progress", "run.state", "run.metrics"]) stream.addEventListener(kind, changed);
  stream.addEventListener("end", () => {
    stream.close();
    if (part.querySelector(".pill.live, form[action$='/cancel']")) changed();
  });
  document.addEventListener("visibilitychange", () => document.hidden || changed());
  addEventListener("pagehide", () => stream.close());
}
