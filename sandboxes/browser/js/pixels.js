// Runs in a blank page of our own. Compares screenshots of some text with the one without any (base64 PNG), line of text by line of
// text, and looks for areas where nothing is and for colours. Argument: {shots, bare, texts: [{shot, lines, colour, opacity, count}],
// boxes: [[x, y, width, height]], tile}; the first of the shots is the whole page.
async ({ shots, bare, texts, boxes, tile }) => {
  const read = async (base64) => {
    const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${base64}`)).blob());
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, bitmap.width, bitmap.height);
  };
  const pictures = await Promise.all(shots.map(read)), b = await read(bare);
  const width = b.width, height = b.height, B = b.data, B32 = new Uint32Array(B.buffer);

  // WCAG 2.2, "relative luminance" and "contrast ratio"
  const linear = new Float64Array(256).map((_, i) => (i / 255 <= 0.04045 ? i / 255 / 12.92 : ((i / 255 + 0.055) / 1.055) ** 2.4));
  const light = (D, i) => 0.2126 * linear[D[i]] + 0.7152 * linear[D[i + 1]] + 0.0722 * linear[D[i + 2]];
  const ratio = (l, m) => (Math.max(l, m) + 0.05) / (Math.min(l, m) + 0.05);
  const blend = (colour, alpha, D, i) => {
    const mix = (k) => linear[Math.round(colour[k] * alpha + D[i + k] * (1 - alpha))];
    return 0.2126 * mix(0) + 0.7152 * mix(1) + 0.0722 * mix(2);
  };

  let budget = 40 * width * height; // a page that stacks its text in heaps gets no more of our time than that
  const seen = texts.map(({ shot, lines, colour, opacity, count }) => {
    const A = pictures[shot].data, A32 = new Uint32Array(A.buffer);
    let segments = 0, inked = 0, top = Infinity, bottom = -1;
    const declared = [], measured = [];
    const total = lines.reduce((sum, line) => sum + line[2], 0) || 1;
    for (const [x, y, w, h] of lines) {
      const parts = Math.max(1, Math.min(16, Math.ceil((count * w) / total / 4)));
      for (let p = 0; p < parts; p++) {
        segments++;
        const from = Math.max(0, Math.floor(x + (w * p) / parts)), to = Math.min(width, Math.ceil(x + (w * (p + 1)) / parts));
        let best = 1, at = -1;
        budget -= Math.max(0, to - from) * Math.min(height, h);
        if (budget < 0) continue;
        for (let row = Math.max(0, Math.floor(y)); row < Math.min(height, Math.ceil(y + h)); row++) {
          for (let column = from; column < to; column++) {
            const pixel = row * width + column;
            if (A32[pixel] === B32[pixel]) continue;
            const c = ratio(light(A, pixel * 4), light(B, pixel * 4));
            if (c > best) { best = c; at = pixel * 4; }
            if (c >= 1.3) { top = Math.min(top, row); bottom = Math.max(bottom, row); }
          }
        }
        if (best < 1.3) continue;
        inked++;
        measured.push(best);
        declared.push(colour && colour[3] > 0 ? ratio(blend(colour, colour[3] * opacity, B, at), light(B, at)) : best);
      }
    }
    const low = (values) => (values.length ? values.sort((m, n) => m - n)[Math.floor(values.length / 4)] : 1);
    return { fraction: inked / Math.max(1, segments), height: bottom < 0 ? 0 : bottom - top + 1, declared: low(declared), measured: low(measured) };
  });

  // ---- tiles of one colour, and the largest rectangle of them
  const A = pictures[0].data;
  const columns = Math.floor(width / tile), rows = Math.floor(height / tile);
  const flat = new Int32Array(columns * rows).fill(-1);
  const tones = new Map();
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const low = [255, 255, 255], high = [0, 0, 0];
      for (let y = r * tile; y < (r + 1) * tile; y++) {
        for (let i = (y * width + c * tile) * 4, end = i + tile * 4; i < end; i += 4) {
          for (let k = 0; k < 3; k++) { const v = A[i + k]; if (v < low[k]) low[k] = v; if (v > high[k]) high[k] = v; }
        }
      }
      if (Math.max(high[0] - low[0], high[1] - low[1], high[2] - low[2]) > 6) continue;
      const tone = ((low[0] >> 3) << 10) | ((low[1] >> 3) << 5) | (low[2] >> 3);
      flat[r * columns + c] = tone;
      tones.set(tone, (tones.get(tone) ?? 0) + 1);
    }
  }
  let largest = [0, 0, 0, 0];
  const run = new Int32Array(columns); // how many tiles of this tone stand above, this one included
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const tone = flat[r * columns + c];
      run[c] = tone < 0 ? 0 : r && flat[(r - 1) * columns + c] === tone ? run[c] + 1 : 1;
    }
    for (let c = 0; c < columns; c++) {
      const tone = flat[r * columns + c];
      for (let e = c, lowest = run[c]; e < columns && tone >= 0 && flat[r * columns + e] === tone; e++) {
        lowest = Math.min(lowest, run[e]);
        if (lowest * (e - c + 1) > largest[2] * largest[3]) largest = [c, r - lowest + 1, e - c + 1, lowest];
      }
    }
  }
  // ---- colours without any text: the commonest one of each box, on a grid of points, and those of the page
  const commonest = (counts) => {
    let best = 0, sum = 0, at = 0;
    for (const [colour, n] of counts) { sum += n; if (n > best) { best = n; at = colour; } }
    return sum ? [at & 255, (at >> 8) & 255, (at >> 16) & 255, best / sum] : null;
  };
  const GRID = 24;
  const fills = boxes.map(([x, y, w, h]) => {
    const counts = new Map();
    for (let r = 0; r < GRID; r++) {
      const row = Math.floor(y + (h * (r + 0.5)) / GRID);
      for (let c = 0; c < GRID && row >= 0 && row < height; c++) {
        const column = Math.floor(x + (w * (c + 0.5)) / GRID);
        if (column < 0 || column >= width) continue;
        const colour = B32[row * width + column];
        counts.set(colour, (counts.get(colour) ?? 0) + 1);
      }
    }
    return commonest(counts);
  });
  const shades = new Map();
  let points = 0;
  for (let row = 0; row < height; row += 2) {
    for (let column = 0; column < width; column += 2) {
      const colour = B32[row * width + column];
      shades.set(colour, (shades.get(colour) ?? 0) + 1);
      points++;
    }
  }
  const palette = [...shades].sort((m, n) => n[1] - m[1]).slice(0, 24).map(([v, n]) => [v & 255, (v >> 8) & 255, (v >> 16) & 255, n / points]);
  const background = [...tones].sort((m, n) => n[1] - m[1])[0] ?? [-1, 0];
  return {
    seen, fills, palette, size: [width, height], empty: [...tones.values()].reduce((m, n) => m + n, 0) / Math.max(1, columns * rows),
    largest: largest.map((v) => v * tile), background: background[1] / Math.max(1, columns * rows),
  };
}
