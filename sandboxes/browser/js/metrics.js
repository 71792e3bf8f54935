// Runs in an isolated world after the page's scripts were switched off: its prototypes are its own, so nothing that the page
// redefined is asked. Ends what moves, then says what there is. Argument: how much may be said. Returns JSON text.
async (limits) => {
  // A page may name an element so that `form.firstChild` or `document.body` is that element: only the prototypes' getters are asked.
  const getter = (kind, name) => { const { get } = Object.getOwnPropertyDescriptor(kind.prototype, name); return (of) => get.call(of); };
  const firstChild = getter(Node, "firstChild"), nextSibling = getter(Node, "nextSibling"), parentNode = getter(Node, "parentNode");
  const firstElement = getter(Element, "firstElementChild"), nextElement = getter(Element, "nextElementSibling");
  const tagName = getter(Element, "tagName"), idOf = getter(Element, "id"), shadowRoot = getter(Element, "shadowRoot");
  const shadowFirst = getter(DocumentFragment, "firstElementChild");
  const wide = getter(Element, "scrollWidth"), high = getter(Element, "scrollHeight");
  const clientWide = getter(Element, "clientWidth"), clientHigh = getter(Element, "clientHeight");
  const boundsOf = (element) => Element.prototype.getBoundingClientRect.call(element);
  const attribute = (element, name) => Element.prototype.getAttribute.call(element, name) ?? "";
  const body = getter(Document, "body")(document), root = getter(Document, "documentElement")(document);
  const fonts = Object.getOwnPropertyDescriptor(Document.prototype, "fonts").get.call(document);
  const animations = Document.prototype.getAnimations.call(document);

  scrollTo({ left: 0, top: 0, behavior: "instant" });
  await fonts.ready;
  for (const moving of animations) {
    try { Number.isFinite(moving.effect.getComputedTiming().endTime) ? moving.finish() : moving.cancel(); } catch {}
  }
  await Promise.all([...getter(Document, "images")(document)].slice(0, 500).filter((i) => i.complete).map((i) => i.decode().catch(() => {})));

  const boxes = [], texts = [];
  const homes = (globalThis.homes = []); // for show_text.js
  const webFonts = new Set([...fonts].slice(0, 100).map((f) => f.family.replace(/["']/g, "").toLowerCase()));
  const SKIPPED = new Set(["SCRIPT", "STYLE", "HEAD", "TITLE", "META", "LINK", "NOSCRIPT", "TEMPLATE", "DATALIST"]);
  const SHOWN = new Set(["IMG", "SVG", "CANVAS", "VIDEO", "IFRAME", "INPUT", "BUTTON", "SELECT", "TEXTAREA", "HR", "OBJECT", "EMBED"]);
  const round = (v) => Math.round(v * 100) / 100;
  const rectOf = (r) => [round(r.left), round(r.top), round(r.width), round(r.height)];
  const alphaOf = (colour) => { const m = /^rgba?\(([^)]*)\)/.exec(colour); return m ? Number(m[1].split(/[\s,/]+/)[3] ?? 1) : 1; };
  const colourOf = (colour) => {
    const m = /^rgba?\(([^)]*)\)/.exec(colour);
    if (!m) return null;
    const [r, g, b, a] = m[1].split(/[\s,/]+/).map(Number);
    return [r, g, b, a ?? 1];
  };
  const paints = (s) =>
    alphaOf(s.backgroundColor) > 0 || s.backgroundImage !== "none" || s.boxShadow !== "none" ||
    ["Top", "Right", "Bottom", "Left"].some((side) => parseFloat(s[`border${side}Width`]) > 0 && alphaOf(s[`border${side}Color`]) > 0);
  // ---- style that can make what is measured differ from what is seen; a rule may refuse it (`Metrics.effects`)
  const effects = {};
  const note = (name, is, element, tag) => { if (is && !(name in effects)) effects[name] = `${tag.toLowerCase()}${idOf(element) ? "#" + idOf(element) : ""}`.slice(0, 80); };
  const generates = (element, pseudo) => !["none", "normal"].includes(getComputedStyle(element, pseudo).content);
  const noteEffects = (element, tag, s) => {
    const font = parseFloat(s.fontSize) || 16;
    note("transform", [s.transform, s.rotate, s.scale, s.translate, s.perspective, s.offsetPath].some((v) => v && v !== "none"), element, tag);
    note("zoom", s.zoom && s.zoom !== "1", element, tag);
    note("filter", s.filter !== "none" || s.backdropFilter !== "none", element, tag);
    note("clip", s.clipPath !== "none" || s.clip !== "auto", element, tag);
    note("mask", (s.maskImage ?? s.webkitMaskImage) !== "none", element, tag);
    note("blend", s.mixBlendMode !== "normal", element, tag);
    note("picture", [s.backgroundImage, s.borderImageSource, s.listStyleImage].some((v) => v !== "none") || !["normal", "none"].includes(s.content), element, tag);
    note("overflow", s.overflowX !== "visible" || s.overflowY !== "visible", element, tag);
    note("animation", s.animationName !== "none", element, tag);
    note("spacing", parseFloat(s.letterSpacing) < -0.05 * font || parseFloat(s.wordSpacing) < -0.2 * font || (s.fontSizeAdjust ?? "none") !== "none", element, tag);
    note("generated", generates(element, "::before") || generates(element, "::after"), element, tag);
  };
  const blurOf = (filter) => { const m = /blur\(([\d.]+)px\)/.exec(filter); return m ? Number(m[1]) : 0; };

  // ---- elements, parents before children; a frame of the stack is [element, recorded parent, opacity so far, blur so far]
  const stack = [[root, -1, 1, 0]];
  let visited = 0, lineCount = 0, truncated = false;
  while (stack.length) {
    const [element, parent, opacityAbove, blurAbove] = stack.pop();
    if (++visited > limits.nodes || boxes.length >= limits.boxes || texts.length >= limits.texts || lineCount > limits.lines) { truncated = true; break; }
    const tag = tagName(element).toUpperCase();
    if (SKIPPED.has(tag)) continue;
    const style = getComputedStyle(element);
    if (style.display === "none") continue;
    noteEffects(element, tag, style);
    const opacity = opacityAbove * Number(style.opacity), blur = blurAbove + blurOf(style.filter);
    const rect = boundsOf(element);
    const own = [];
    let node = firstChild(element);
    for (let n = 0; node && n < limits.nodes; n++, node = nextSibling(node)) {
      if (node instanceof Text && /\S/.test(node.data)) own.push(node);
    }
    const shown = SHOWN.has(tag), painted = paints(style);
    let index = parent;
    if (element === body || parentNode(element) === body || own.length || shown || painted) {
      index = boxes.length;
      boxes.push({
        parent, tag: tag.toLowerCase().slice(0, 40), id: idOf(element).slice(0, 80),
        classes: attribute(element, "class").slice(0, 80), rect: rectOf(rect),
        text: own.length > 0, replaced: shown, painted, visible: opacity > 0.05 && style.visibility === "visible",
        positioned: style.position === "fixed" || style.position === "absolute",
        cut: [style.overflowX !== "visible" ? Math.max(0, wide(element) - clientWide(element)) : 0,
              style.overflowY !== "visible" ? Math.max(0, high(element) - clientHigh(element)) : 0],
      });
    }
    for (const node of own) {
      if (texts.length >= limits.texts) break;
      const range = document.createRange();
      range.selectNodeContents(node);
      const lines = [...range.getClientRects()].slice(0, 40).filter((r) => r.width > 0 && r.height > 0).map(rectOf);
      if ((lineCount += lines.length) > limits.lines) { truncated = true; break; }
      const text = node.data.replace(/\s+/g, " ").trim();
      const font = parseFloat(style.fontSize), each = lines.reduce((sum, l) => sum + l[2], 0) / Math.max(1, text.length);
      const family = style.fontFamily.split(",").map((f) => f.replace(/["']/g, "").trim().toLowerCase());
      const fill = style.webkitTextFillColor, svg = element instanceof SVGElement;
      let hidden = "";
      if (opacity < 0.1) hidden = "opacity";
      else if (style.visibility !== "visible") hidden = "hidden";
      else if (!lines.length) hidden = "no box";
      else if (font < 6 || Math.max(...lines.map((l) => l[3])) < 6 || each < 1.5) hidden = "tiny";
      else if (blur >= 2) hidden = "blurred";
      else if ((style.webkitTextSecurity ?? "none") !== "none") hidden = "disguised";
      else if (family.some((f) => webFonts.has(f))) hidden = "font";
      else if (lines.every((l) => l[0] + l[2] <= 0 || l[1] + l[3] <= 0 || l[0] >= innerWidth || l[1] >= innerHeight)) hidden = "offscreen";
      homes.push(element);
      texts.push({
        box: index, home: visited, text: text.slice(0, limits.characters), lines, hidden, font, bold: Number(style.fontWeight) >= 700,
        colour: colourOf(svg ? style.fill : fill), opacity: round(opacity), gradient: style.backgroundClip === "text",
      });
    }
    const children = [];
    const shadow = shadowRoot(element);
    for (const inside of [shadow && shadowFirst(shadow), firstElement(element)]) {
      for (let child = inside; child && children.length < limits.nodes; child = nextElement(child)) children.push(child);
    }
    for (let i = children.length; i--; ) stack.push([children[i], index, opacity, blur]);
  }
  // ---- which texts lie on which: `on` names earlier ones of other elements; those of one element are never told apart
  const flat = texts.flatMap(({ lines, hidden }, text) => (hidden ? [] : lines.map(([x, y, w, h]) => ({ x, y, r: x + w, b: y + h, text }))));
  flat.sort((a, b) => a.y - b.y);
  const on = texts.map(() => new Set()), heaped = new Set();
  flat.forEach((a, i) => {
    for (let k = i + 1; k < flat.length && flat[k].y < a.b - 2; k++) {
      const b = flat[k], w = Math.min(a.r, b.r) - Math.max(a.x, b.x), h = Math.min(a.b, b.b) - b.y;
      if (w <= 2 || h <= 2) continue;
      const most = w * h > Math.min((a.r - a.x) * (a.b - a.y), (b.r - b.x) * (b.b - b.y)) / 2;
      if (a.text !== b.text && texts[a.text].home !== texts[b.text].home) on[Math.max(a.text, b.text)].add(Math.min(a.text, b.text));
      else if (most) { heaped.add(a.text); heaped.add(b.text); }
    }
  });
  texts.forEach((text, i) => {
    if (heaped.has(i) || on[i].size > 50) text.hidden ||= "heaped";
    text.on = [...on[i]].slice(0, 50);
  });
  return JSON.stringify({
    boxes, texts, truncated, effects, viewport: [innerWidth, innerHeight],
    content: [Math.max(wide(root), body ? wide(body) : 0), Math.max(high(root), body ? high(body) : 0)],
    title: getter(Document, "title")(document).slice(0, 200), url: location.href.slice(0, 300),
  });
}
