// Search as you type: the list page is fetched again and its results and facets are put in place. Without script the form submits.

const form = document.querySelector("#search");
const field = form.querySelector("input[type=search]");
const PARTS = ["#results", "#facets"];
let timer = 0;
let latest = 0;

async function show(address, push) {
  const turn = ++latest;
  const response = await fetch(address, { headers: { accept: "text/html" } });
  if (!response.ok || turn !== latest) return;
  // Markup from our own server, already escaped there; DOMParser runs no script.
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  if (turn !== latest) return;
  for (const part of PARTS) document.querySelector(part)?.replaceWith(document.adoptNode(page.querySelector(part)));
  if (push) history.replaceState(null, "", address);
}

function address() {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  return form.getAttribute("action") + (query.size ? `?${query}` : "");
}

field.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(() => show(address(), true), 150);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(timer);
  show(address(), true);
});
