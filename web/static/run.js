// Curves of one run: those it has so far, then each new point as it is logged.

import { Chart } from "./chart.js";

// What people look at first; whatever else a run logs follows by name. [pattern, title, note, group]; a share lies between 0 and 1.
const KNOWN = [
  [/^(reward|reward_mean|mean_reward)$/, "Reward", "mean of a step", "Learning", "share"],
  [/^(pass_rate|pass_at_1|solve_rate)$/, "Pass rate", "", "Learning", "share"],
  [/^entropy$/, "Entropy", "nats a token", "Learning"],
  [/^loss$/, "Loss", "", "Learning"],
  [/^(val_loss|validation_loss)$/, "Validation loss", "", "Learning"],
  [/^(grad_norm|gradient_norm)$/, "Gradient norm", "", "Learning"],
  [/^(mismatch|logprob_difference_mean)$/, "Mismatch", "trainer to sampler", "Learning"],
  [/^logprob_difference_max$/, "Largest mismatch", "nats", "Learning"],
  [/^clip_fraction$/, "Clipped", "share of tokens", "Learning", "share"],
  [/^(rate|lr|learning_rate)$/, "Learning rate", "of its peak", "Learning"],
  [/^(preferred|accuracy)$/, "Preferred", "chosen above rejected", "Learning", "share"],
  [/^commands$/, "Commands", "an attempt", "Rollouts"],
  [/^exit_fraction$/, "Ended by exit", "share of attempts", "Rollouts", "share"],
  [/^folds$/, "Folds", "an attempt", "Rollouts"],
  [/^useful$/, "Useful attempts", "groups that differ", "Rollouts"],
  [/^errors$/, "Lost attempts", "", "Rollouts"],
  [/^zero_advantage_groups$/, "Groups without a difference", "", "Rollouts", "share"],
  [/^tokens_per_s$/, "Tokens a second", "generated", "Speed"],
  [/^episodes_per_s$/, "Episodes a second", "", "Speed"],
  [/^seconds$/, "Seconds a step", "", "Speed"],
  [/_seconds$/, null, "seconds a step", "Speed"],
];
// One chart for all levels of a family.
const BY_FAMILY = /^pass_rate\/(.+)\/([^/]*)$/;
// Curves made of two others, step by step.
const DERIVED = [["tokens_per_s", "decode_tokens", "rollout_seconds"], ["episodes_per_s", "episodes", "rollout_seconds"]];
const GROUPS = ["Learning", "Rollouts", "Pass rate by family", "Speed", "Counts"];
const FOLDED = "Counts";
const root = document.querySelector("#charts");
const smooth = document.querySelector("#smooth");
const charts = new Map();

function place(name) {
  const family = BY_FAMILY.exec(name);
  if (family) return { key: `pass_rate/${family[1]}`, line: family[2], title: family[1], note: "by level", group: "Pass rate by family", share: true, rank: 0 };
  const rank = KNOWN.findIndex(([pattern]) => pattern.test(name));
  if (rank < 0) return { key: name, line: "", title: words(name), note: "", group: FOLDED, share: false, rank: KNOWN.length };
  const [, title, note, group, share] = KNOWN[rank];
  return { key: name, line: "", title: title ?? words(name.replace(/_seconds$/, "")), note, group, share: share === "share", rank };
}

function words(name) {
  const text = name.replaceAll(/[_/.]+/g, " ").trim();
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function section(group) {
  const found = [...root.children].find((other) => other.dataset.group === group);
  if (found) return found;
  const made = document.createElement(group === FOLDED ? "details" : "div");
  made.dataset.group = group;
  const title = document.createElement(group === FOLDED ? "summary" : "h2");
  title.textContent = group;
  const grid = document.createElement("div");
  grid.className = "charts";
  made.append(title, grid);
  const after = [...root.children].find((other) => GROUPS.indexOf(other.dataset.group) > GROUPS.indexOf(group));
  root.insertBefore(made, after ?? null);
  return made;
}

function chart(where) {
  if (charts.has(where.key)) return charts.get(where.key);
  document.querySelector("#no-points")?.remove();
  const figure = document.createElement("figure");
  figure.className = "card chart";
  figure.dataset.metric = where.key;
  figure.dataset.rank = where.rank;
  const made = new Chart(figure, where.title, where.note, where.share);
  made.lineTitle = "level";
  made.smoothing = Number(smooth?.value ?? 0);
  charts.set(where.key, made);
  const grid = section(where.group).querySelector(".charts");
  const later = (other) => Number(other.dataset.rank) - where.rank || (other.dataset.metric > where.key ? 1 : -1);
  grid.insertBefore(figure, [...grid.children].find((other) => later(other) > 0) ?? null);
  return made;
}

function add(name, points) {
  const where = place(name);
  chart(where).add(points, where.line);
  for (const [made, above, below] of DERIVED) {
    if (name !== above && name !== below) continue;
    const other = new Map(charts.get(name === above ? below : above)?.points());
    const ratios = points
      .filter(([step]) => other.has(step))
      .map(([step, value]) => [step, name === above ? value / other.get(step) : other.get(step) / value])
      .map(([step, value]) => [step, Number.isFinite(value) ? value : null]);
    if (ratios.length) chart(place(made)).add(ratios);
  }
}

async function start() {
  const run = encodeURIComponent(root.dataset.run);
  const response = await fetch(`/api/v1/runs/${run}/metrics?points=1000`);
  if (!response.ok) return;
  const { series, last_step: last } = await response.json();
  for (const [name, points] of Object.entries(series)) add(name, points);
  if (root.dataset.live !== "yes") return;
  // A few steps again: one curve may lag behind another, and a point that is known is only replaced.
  const known = Math.max(-1, last - 8);
  const stream = new EventSource(`/api/v1/runs/${run}/events?after=${root.dataset.after}&step=${known}`);
  stream.addEventListener("metrics", (event) => {
    const fresh = new Map();
    for (const [name, step, value] of JSON.parse(event.data).points) {
      if (!fresh.has(name)) fresh.set(name, []);
      fresh.get(name).push([step, value]);
    }
    for (const [name, points] of fresh) add(name, points);
  });
  for (const kind of ["run.state", "job.state"]) stream.addEventListener(kind, refreshSoon);
  addEventListener("pagehide", () => stream.close());
}

// A run's rollouts end many times a second; its state is looked at now and then.
let waiting = 0;
function refreshSoon() {
  waiting ||= setTimeout(() => {
    waiting = 0;
    refreshHead();
  }, 2000);
}

async function refreshHead() {
  const response = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const part = "[data-part=state]";
  document.querySelector(part).replaceWith(document.adoptNode(page.querySelector(part)));
}

smooth?.addEventListener("change", () => charts.forEach((one) => one.smooth(Number(smooth.value))));
start();
