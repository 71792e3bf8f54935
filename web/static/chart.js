// A line chart on a canvas: sharp at any device pixel ratio, live, with a cross-hair. One line or a few; gaps where a value is not finite.

const PAD = { left: 46, right: 10, top: 10, bottom: 20 };
const COLOURS = ["--series-1", "--series-2", "--series-3", "--series-4"];
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

export function format(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e6 || size < 1e-4) ? value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e") : fine.format(value);
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(i * step + 0);
  return out;
}

function smoothed(points, weight) {
  let mean = 0;
  let mass = 0;
  return points.map(([step, value]) => {
    if (value === null) return [step, null];
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return [step, mean / mass];
  });
}

export class Chart {
  // `isShare`: values are shares and are read against 0 and 1 unless all are small.
  constructor(figure, title, note, isShare) {
    this.title = title;
    this.isShare = isShare;
    this.lines = new Map();
    this.smoothing = 0;
    this.hover = null;
    const caption = document.createElement("figcaption");
    const label = document.createElement("span");
    label.textContent = title;
    if (note) {
      const small = document.createElement("small");
      small.textContent = ` ${note}`;
      label.append(small);
    }
    this.output = document.createElement("output");
    caption.append(label, this.output);
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", title);
    this.canvas.tabIndex = 0;
    figure.append(caption, this.canvas);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const steps = this.steps();
      if (!by || !steps.length) return;
      event.preventDefault();
      const at = this.hover === null ? (by > 0 ? -1 : steps.length) : steps.indexOf(this.hover);
      this.hover = steps[Math.min(Math.max(at + by, 0), steps.length - 1)];
      this.draw();
    });
  }

  // Points are [step, value] by step; one of a known step replaces it. `line` names the line they belong to.
  add(points, line = "") {
    if (!this.lines.has(line)) this.lines = new Map([...this.lines, [line, []]].sort(([a], [b]) => (a < b ? -1 : 1)));
    const known = this.lines.get(line);
    for (const [step, value] of points) {
      let at = known.length;
      while (at > 0 && known[at - 1][0] > step) at--;
      if (at > 0 && known[at - 1][0] === step) known[at - 1][1] = value;
      else known.splice(at, 0, [step, value]);
    }
    this.draw();
  }

  points(line = "") {
    return this.lines.get(line) ?? [];
  }

  steps() {
    return [...new Set([...this.lines.values()].flatMap((points) => points.map(([step]) => step)))].sort((a, b) => a - b);
  }

  smooth(weight) {
    this.smoothing = weight;
    this.draw();
  }

  point(x) {
    const steps = this.steps();
    if (x === null || !steps.length) this.hover = null;
    else {
      const wanted = this.first + ((x - PAD.left) / (this.width - PAD.left - PAD.right)) * (this.last - this.first || 1);
      this.hover = steps.reduce((best, step) => (Math.abs(step - wanted) < Math.abs(best - wanted) ? step : best));
    }
    this.draw();
  }

  draw() {
    this.scheduled ||= requestAnimationFrame(() => {
      this.scheduled = 0;
      this.paint();
    });
  }

  // What the caption says: the newest values, or those under the cross-hair.
  tell(colour) {
    const parts = [...this.lines].map(([name, points], i) => {
      const found = this.hover === null ? points.findLast(([, value]) => value !== null) : points.find(([step]) => step === this.hover);
      const part = document.createElement("span");
      part.textContent = this.lines.size > 1 && found ? Number(found[1]?.toFixed(2)) : format(found?.[1]);
      if (this.lines.size > 1) {
        part.title = `${this.lineTitle} ${name}`;
        part.style.color = colour(COLOURS[i % COLOURS.length]);
      }
      return part;
    });
    const where = this.hover === null ? [] : [document.createTextNode(` at ${this.hover}`)];
    this.output.replaceChildren(...parts.flatMap((part, i) => (i ? [document.createTextNode(" "), part] : [part])), ...where);
    const words = [...this.lines].map(([name, points]) => {
      const values = points.map(([, value]) => value).filter((value) => value !== null);
      if (!values.length) return "no points";
      const range = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))].map(format).join(" to ");
      return `${name && `${this.lineTitle} ${name} `}${format(values.at(-1))} at step ${points.at(-1)[0]}, range ${range}`;
    });
    this.canvas.setAttribute("aria-label", `${this.title}: ${words.join("; ") || "no points"}`);
  }

  // Lowest and highest value of the axis.
  range(values) {
    let low = values.reduce((a, b) => Math.min(a, b));
    let high = values.reduce((a, b) => Math.max(a, b));
    if (this.isShare && low >= 0 && high <= 1 && (high > 0.3 || this.lines.size > 1)) return [0, 1];
    if (low >= 0 && high === 0) return [0, 1];
    if (low > 0 && low < high * 0.4) low = 0;
    if (high - low < 1e-12) [low, high] = [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
    return [low, high];
  }

  paint() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = (this.width = canvas.clientWidth);
    const height = canvas.clientHeight;
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.tell(colour);
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const all = [...this.lines.values()].flat();
    const values = all.map(([, value]) => value).filter((value) => value !== null);
    if (!values.length) return;
    this.first = all.reduce((least, [step]) => Math.min(least, step), Infinity);
    this.last = all.reduce((most, [step]) => Math.max(most, step), -Infinity);
    const [low, high] = this.range(values);
    const right = width - PAD.right;
    const bottom = height - PAD.bottom;
    const x = (step) => PAD.left + ((step - this.first) / (this.last - this.first || 1)) * (right - PAD.left);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - PAD.top);
    const frame = { context, x, y, right, bottom, height };
    this.paintAxes(frame, low, high, style, colour);
    [...this.lines.values()].forEach((points, i) => this.paintLine(frame, points, colour(COLOURS[i % COLOURS.length])));
    if (this.hover !== null) this.paintHover(frame, colour);
  }

  paintAxes({ context, x, y, right, height }, low, high, style, colour) {
    context.font = `11px ${style.fontFamily}`;
    context.fillStyle = colour("--muted");
    context.strokeStyle = colour("--line");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const tick of ticks(low, high, 4)) {
      const at = Math.round(y(tick)) + 0.5;
      context.beginPath();
      context.moveTo(PAD.left, at);
      context.lineTo(right, at);
      context.stroke();
      context.fillText(format(Number(tick.toPrecision(10))), PAD.left - 7, at);
    }
    context.textBaseline = "alphabetic";
    const count = Math.max(2, Math.floor(this.width / 70));
    const steps = this.last > this.first ? ticks(this.first, this.last, count).filter(Number.isInteger) : [this.first];
    for (const step of steps) {
      context.textAlign = x(step) > right - 14 ? "right" : x(step) < PAD.left + 14 ? "left" : "center";
      context.fillText(format(step), x(step), height - 5);
    }
  }

  paintLine({ context, x, y, bottom }, points, main) {
    if (!points.length) return;
    const drawn = this.smoothing ? smoothed(points, this.smoothing) : points;
    if (this.lines.size === 1 && !drawn.some(([, value]) => value === null)) {
      const fill = context.createLinearGradient(0, PAD.top, 0, bottom);
      fill.addColorStop(0, `color-mix(in srgb, ${main} 16%, transparent)`);
      fill.addColorStop(1, `color-mix(in srgb, ${main} 1%, transparent)`);
      context.fillStyle = fill;
      context.beginPath();
      context.moveTo(x(drawn[0][0]), bottom);
      for (const [step, value] of drawn) context.lineTo(x(step), y(value));
      context.lineTo(x(drawn.at(-1)[0]), bottom);
      context.fill();
    }
    const stroke = (line, alpha, thickness) => {
      context.globalAlpha = alpha;
      context.strokeStyle = main;
      context.lineWidth = thickness;
      context.lineJoin = "round";
      context.beginPath();
      let down = false;
      for (const [step, value] of line) {
        if (value !== null) context[down ? "lineTo" : "moveTo"](x(step), y(value));
        down = value !== null;
      }
      context.stroke();
      context.globalAlpha = 1;
    };
    if (this.smoothing) stroke(points, 0.28, 1);
    stroke(drawn, 1, this.smoothing ? 2 : 1.6);
    if (points.length === 1 && points[0][1] !== null) this.dot({ context, x, y }, points[0], main, 3);
  }

  paintHover(frame, colour) {
    const { context, x, bottom } = frame;
    context.strokeStyle = colour("--line-strong");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(Math.round(x(this.hover)) + 0.5, PAD.top);
    context.lineTo(Math.round(x(this.hover)) + 0.5, bottom);
    context.stroke();
    [...this.lines.values()].forEach((points, i) => {
      const found = points.find(([step]) => step === this.hover);
      if (found && found[1] !== null) this.dot(frame, found, colour(COLOURS[i % COLOURS.length]), 3.5);
    });
  }

  dot({ context, x, y }, [step, value], colour, radius) {
    context.fillStyle = colour;
    context.beginPath();
    context.arc(x(step), y(value), radius, 0, 7);
    context.fill();
  }
}
