// On every page: times that stay true, and "/" to search.

const UNITS = [[90, 1, "s"], [5400, 60, "min"], [129600, 3600, "h"], [Infinity, 86400, "days"]];

function refreshTimes() {
  for (const element of document.querySelectorAll("time[data-ago]")) {
    const seconds = Math.max(0, (Date.now() - Date.parse(element.dateTime)) / 1000);
    const [, unit, word] = UNITS.find(([limit]) => seconds < limit);
    element.textContent = `${Math.round(seconds / unit)} ${word} ago`;
  }
}

export function typing(event) {
  return event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, [contenteditable]");
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || typing(event)) return;
  const field = document.querySelector("main input[type=search]") ?? document.querySelector("#top-search");
  event.preventDefault();
  field.focus();
  field.select();
});

const here = document.querySelector(".top nav [aria-current]");
if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 40;
setInterval(refreshTimes, 10_000);
