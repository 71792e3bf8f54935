// Makes every glyph transparent but those of the texts named in `show`, and leaves all else as it is: what two screenshots differ in
// is the ink of those texts. Inline and important, which nothing of the page's style can outrank once transitions are off. Runs in
// the world where metrics.js ran, which left there the element of each text.
({ limit, show }) => {
  const getter = (kind, name) => { const { get } = Object.getOwnPropertyDescriptor(kind.prototype, name); return (of) => get.call(of); };
  const firstChild = getter(Node, "firstChild"), nextSibling = getter(Node, "nextSibling"), shadowRoot = getter(Element, "shadowRoot");
  const firstElement = getter(Element, "firstElementChild"), nextElement = getter(Element, "nextElementSibling");
  const shadowFirst = getter(DocumentFragment, "firstElementChild");
  const htmlStyle = getter(HTMLElement, "style"), svgStyle = getter(SVGElement, "style");
  const styleOf = (element) => (element instanceof SVGElement ? svgStyle(element) : htmlStyle(element));

  if (!globalThis.original) {
    globalThis.original = new Map(); // element -> what it looked like before any was hidden
    const stack = [getter(Document, "documentElement")(document)];
    for (let visited = 0; stack.length && visited < limit; visited++) {
      const element = stack.pop();
      let text = false;
      for (let node = firstChild(element), n = 0; node && n < limit; node = nextSibling(node), n++) text ||= node instanceof Text && /\S/.test(node.data);
      if (text && (element instanceof HTMLElement || element instanceof SVGElement)) {
        const s = getComputedStyle(element), svg = element instanceof SVGElement;
        original.set(element, [
          ["transition", "none", "none"],
          ["-webkit-text-fill-color", "transparent", s.webkitTextFillColor],
          ["-webkit-text-stroke-color", "transparent", s.webkitTextStrokeColor],
          ["text-shadow", "none", s.textShadow],
          ["text-decoration-color", "transparent", s.textDecorationColor],
          ...(svg ? [["fill", "transparent", s.fill], ["stroke", "transparent", s.stroke]] : []),
          ...(s.backgroundClip === "text" ? [["background-image", "none", s.backgroundImage], ["background-color", "transparent", s.backgroundColor]] : []),
        ]);
      }
      const shadow = shadowRoot(element);
      for (const inside of [shadow && shadowFirst(shadow), firstElement(element)]) {
        for (let child = inside; child && stack.length < limit; child = nextElement(child)) stack.push(child);
      }
    }
  }
  const shown = new Set(show.map((index) => globalThis.homes[index]));
  for (const [element, properties] of original) {
    const style = styleOf(element);
    for (const [name, off, on] of properties) style.setProperty(name, shown.has(element) ? on : off, "important");
  }
}
