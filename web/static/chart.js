// A line chart on a canvas: sharp at any device pixel ratio, live, with a cross-hair. One curve each; gaps where a value is not finite.

const PAD = { left: 46, right: 10, top: 10, bottom: 20 };
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

export class Chart {
  constructor(figure, name, title, note, isRate) {
    this.isRate = isRate;
    this.name = name;
    this.title = title;
    this.points = [];
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
    this.canvas.tabIndex = 0;
    figure.append(caption, this.canvas);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || !this.points.length) return;
      event.preventDefault();
      const at = this.hover ?? (by > 0 ? -1 : this.points.length);
      this.hover = Math.min(Math.max(at + by, 0), this.points.length - 1);
      this.draw();
    });
  }

  // Points are [step, value] by step; one of a known step replaces it.
  add(points) {
    for (const [step, value] of points) {
      let at = this.points.length;
      while (at > 0 && this.points[at - 1][0] > step) at--;
      if (at > 0 && this.points[at - 1][0] === step) this.points[at - 1][1] = value;
      else this.points.splice(at, 0, [step, value]);
    }
    this.draw();
  }

  smooth(weight) {
    this.smoothing = weight;
    this.draw();
  }

  point(x) {
    if (x === null || !this.points.length) this.hover = null;
    else {
      const step = this.firstStep + ((x - PAD.left) / (this.width - PAD.left - PAD.right)) * (this.lastStep - this.firstStep || 1);
      let best = 0;
      for (let i = 1; i < this.points.length; i++) if (Math.abs(this.points[i][0] - step) < Math.abs(this.points[best][0] - step)) best = i;
      this.hover = best;
    }
    this.draw();
  }

  smoothed() {
    let mean = 0;
    let weight = 0;
    return this.points.map(([step, value]) => {
      if (value === null) return [step, null];
      mean = this.smoothing * mean + (1 - this.smoothing) * value;
      weight = this.smoothing * weight + (1 - this.smoothing);
      return [step, mean / weight];
    });
  }

  draw() {
    if (this.scheduled) return;
    this.scheduled = requestAnimationFrame(() => {
      this.scheduled = 0;
      this.paint();
    });
  }

  paint() {
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = (this.width = canvas.clientWidth);
    const height = canvas.clientHeight;
    if (!width || !height) return;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const values = this.points.map(([, value]) => value).filter((value) => value !== null);
    const last = values.at(-1);
    this.output.textContent = this.hover === null ? format(last) : `${format(this.points[this.hover][1])} at ${this.points[this.hover][0]}`;
    canvas.setAttribute("aria-label", values.length ? `${this.title}: ${format(last)} at step ${this.points.at(-1)[0]}, from ${format(Math.min(...values.slice(-5000)))} to ${format(Math.max(...values.slice(-5000)))}` : `${this.title}: no points`);
    if (!values.length) return;

    this.firstStep = this.points[0][0];
    this.lastStep = this.points.at(-1)[0];
    let low = values.reduce((a, b) => Math.min(a, b));
    let high = values.reduce((a, b) => Math.max(a, b));
    // Rates are read against 0 and 1; everything else against its own range.
    if (this.isRate && low >= 0 && high > 0.3 && high <= 1) [low, high] = [0, 1];
    else if (low > 0 && low < high * 0.4) low = 0;
    if (high - low < 1e-12) [low, high] = [low - Math.max(Math.abs(low) * 0.1, 1e-6), high + Math.max(Math.abs(high) * 0.1, 1e-6)];
    const right = width - PAD.right;
    const bottom = height - PAD.bottom;
    const x = (step) => PAD.left + ((step - this.firstStep) / (this.lastStep - this.firstStep || 1)) * (right - PAD.left);
    const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - PAD.top);

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
    const steps = this.lastStep > this.firstStep ? ticks(this.firstStep, this.lastStep, Math.max(2, Math.floor(width / 70))).filter(Number.isInteger) : [this.firstStep];
    for (const step of steps) {
      context.textAlign = x(step) > right - 14 ? "right" : x(step) < PAD.left + 14 ? "left" : "center";
      context.fillText(format(step), x(step), height - 5);
    }

    const line = (points, stroke, alpha, thickness) => {
      context.globalAlpha = alpha;
      context.strokeStyle = stroke;
      context.lineWidth = thickness;
      context.lineJoin = "round";
      context.beginPath();
      let down = false;
      for (const [step, value] of points) {
        if (value === null) down = false;
        else {
          if (down) context.lineTo(x(step), y(value));
          else context.moveTo(x(step), y(value));
          down = true;
        }
      }
      context.stroke();
      context.globalAlpha = 1;
    };
    const main = colour("--series-1");
    const drawn = this.smoothing ? this.smoothed() : this.points;
    if (!drawn.some(([, value]) => value === null)) {
      const fill = context.createLinearGradient(0, PAD.top, 0, bottom);
      fill.addColorStop(0, `color-mix(in srgb, ${main} 16%, transparent)`);
      fill.addColorStop(1, `color-mix(in srgb, ${main} 1%, transparent)`);
      context.fillStyle = fill;
      context.beginPath();
      context.moveTo(x(this.firstStep), bottom);
      for (const [step, value] of drawn) context.lineTo(x(step), y(value));
      context.lineTo(x(this.lastStep), bottom);
      context.fill();
    }
    if (this.smoothing) {
      line(this.points, main, 0.28, 1);
      line(drawn, main, 1, 2);
    } else line(this.points, main, 1, 1.6);
    if (values.length === 1) {
      context.fillStyle = main;
      context.beginPath();
      context.arc(x(this.firstStep), y(values[0]), 3, 0, 7);
      context.fill();
    }
    const chosen = this.hover === null ? null : this.points[this.hover];
    if (chosen && chosen[1] !== null) {
      context.strokeStyle = colour("--line-strong");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(Math.round(x(chosen[0])) + 0.5, PAD.top);
      context.lineTo(Math.round(x(chosen[0])) + 0.5, bottom);
      context.stroke();
      context.fillStyle = main;
      context.beginPath();
      context.arc(x(chosen[0]), y(chosen[1]), 3.5, 0, 7);
      context.fill();
    }
  }
}
