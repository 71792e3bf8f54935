// One attempt: j and k walk through the steps, #step-N opens one wherever it is; on the tokens page, numbers of the token pointed at.

import { typing } from "./app.js";

const list = document.querySelector("#steps");

function walk() {
  const steps = [...list.querySelectorAll(".step")];
  const total = Number(list.dataset.total);
  const perPage = Number(list.dataset.perPage);
  const start = Number(list.dataset.start);
  const position = document.querySelector("#position");
  let current = -1;

  function go(index, { focus = true, address = true } = {}) {
    steps[current]?.classList.remove("current");
    current = index;
    const step = steps[index];
    step.classList.add("current");
    position.textContent = step.dataset.verdict === undefined ? `${step.id.replace("step-", "")} of ${total}` : "verdict";
    if (address) history.replaceState(null, "", `#${step.id}`);
    if (focus) {
      step.focus({ preventScroll: true });
      step.scrollIntoView({ block: "nearest" });
    }
  }

  function openHash() {
    const wanted = /^#step-(\d+)$/.exec(location.hash);
    const index = steps.findIndex((step) => `#${step.id}` === location.hash);
    if (index >= 0) {
      go(index, { address: false });
      steps[index].scrollIntoView({ block: "start" });
    } else if (wanted && Number(wanted[1]) >= 1 && Number(wanted[1]) <= total) {
      turn(Math.floor((Number(wanted[1]) - 1) / perPage) * perPage + 1, location.hash);
    }
  }

  function turn(from, hash) {
    location.assign(`${location.pathname}?from=${from}${hash}`);
  }

  document.addEventListener("keydown", (event) => {
    if (typing(event)) return;
    const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
    if (!by || (event.key.startsWith("Arrow") && event.target.closest(".obs"))) return;
    event.preventDefault();
    const next = current + by;
    if (next >= steps.length && start + perPage < total) turn(start + perPage + 1, `#step-${start + perPage + 1}`);
    else if (next < 0 && start > 0 && current === 0) turn(start - perPage + 1, `#step-${start}`);
    else if (steps.length) go(Math.min(Math.max(next, 0), steps.length - 1));
  });
  list.addEventListener("click", (event) => {
    const step = event.target.closest(".step");
    if (step && !getSelection().toString()) go(steps.indexOf(step), { focus: false });
  });
  addEventListener("hashchange", openHash);
  openHash();
}

function pointAtTokens() {
  const info = document.querySelector("#token-info");
  const tokens = document.querySelector("#tokens");
  function tell(event) {
    const token = event.target.closest(".tok");
    if (!token) return;
    const { at, id, lp, v } = token.dataset;
    info.textContent = `position ${at}, id ${id}` + (lp === undefined ? ", context" : `, log probability ${lp} (${(100 * Math.exp(Number(lp))).toFixed(1)}%)${v ? `, weights ${v}` : ""}`);
  }
  tokens.addEventListener("mouseover", tell);
  tokens.addEventListener("focusin", tell);
}

if (list) walk();
if (document.querySelector("#tokens")) pointAtTokens();
