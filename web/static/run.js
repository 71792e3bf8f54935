// Curves of one run: those it has so far, then each new point as it is logged.

import { Chart } from "./chart.js";

// What people look at first; whatever else a run logs follows by name.
const KNOWN = [
  [/^(reward|reward_mean|mean_reward)$/, "Reward", "mean of a step"],
  [/^(pass_rate|pass_at_1|solve_rate)$/, "Pass rate", ""],
  [/^entropy$/, "Entropy", "nats a token"],
  [/^loss$/, "Loss", ""],
  [/^(val_loss|loss_val)$/, "Validation loss", ""],
  [/^(grad_norm|gradient_norm)$/, "Gradient norm", ""],
  [/^(tokens_per_s|tokens_s)$/, "Tokens a second", ""],
  [/^(episodes_per_s)$/, "Episodes a second", ""],
  [/^(mismatch|mismatch_kl|logprob_mismatch|mismatch_abs)$/, "Mismatch", "trainer against sampler"],
  [/^(lr|learning_rate)$/, "Learning rate", ""],
];
const root = document.querySelector("#charts");
const charts = new Map();
const smooth = document.querySelector("#smooth");

function rank(name) {
  const at = KNOWN.findIndex(([pattern]) => pattern.test(name));
  return at < 0 ? KNOWN.length : at;
}

function words(name) {
  const text = name.replaceAll(/[_/.]+/g, " ").trim();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function chart(name) {
  if (charts.has(name)) return charts.get(name);
  document.querySelector("#no-points")?.remove();
  const figure = document.createElement("figure");
  figure.className = "card chart";
  figure.dataset.metric = name;
  const known = KNOWN[rank(name)];
  const made = new Chart(figure, name, known ? known[1] : words(name), known ? known[2] : "", /reward|rate|pass|fraction|share|groups|accuracy/.test(name) && !/lr|learning/.test(name));
  made.smoothing = Number(smooth.value);
  charts.set(name, made);
  const after = [...root.querySelectorAll("figure")].find((other) => rank(other.dataset.metric) > rank(name) || (rank(other.dataset.metric) === rank(name) && other.dataset.metric > name));
  root.insertBefore(figure, after ?? null);
  return made;
}

async function start() {
  const run = encodeURIComponent(root.dataset.run);
  const response = await fetch(`/api/v1/runs/${run}/metrics?points=1000`);
  if (!response.ok) return;
  const { series } = await response.json();
  for (const [name, points] of Object.entries(series)) chart(name).add(points);
  if (root.dataset.live !== "yes") return;
  const stream = new EventSource(`/api/v1/runs/${run}/events`);
  stream.addEventListener("metrics", (event) => {
    const fresh = new Map();
    for (const [name, step, value] of JSON.parse(event.data).points) {
      if (!fresh.has(name)) fresh.set(name, []);
      fresh.get(name).push([step, value]);
    }
    for (const [name, points] of fresh) chart(name).add(points);
  });
  stream.addEventListener("run.state", refreshHead);
  addEventListener("pagehide", () => stream.close());
}

async function refreshHead() {
  const response = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const part = "[data-part=state]";
  document.querySelector(part).replaceWith(document.adoptNode(page.querySelector(part)));
}

smooth.addEventListener("change", () => charts.forEach((one) => one.smooth(Number(smooth.value))));
start();
