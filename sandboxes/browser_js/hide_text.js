// Makes every glyph transparent and leaves all else as it is: the difference of two screenshots is the text that can be seen.
// Inline and important, which nothing of the page's style can outrank once transitions are off. Runs where metrics.js ran.
(limit) => {
  const getter = (kind, name) => { const { get } = Object.getOwnPropertyDescriptor(kind.prototype, name); return (of) => get.call(of); };
  const firstChild = getter(Node, "firstChild"), nextSibling = getter(Node, "nextSibling"), shadowRoot = getter(Element, "shadowRoot");
  const firstElement = getter(Element, "firstElementChild"), nextElement = getter(Element, "nextElementSibling");
  const shadowFirst = getter(DocumentFragment, "firstElementChild");
  const htmlStyle = getter(HTMLElement, "style"), svgStyle = getter(SVGElement, "style");
  const stack = [getter(Document, "documentElement")(document)];
  for (let visited = 0; stack.length && visited < limit; visited++) {
    const element = stack.pop();
    let text = false;
    for (let node = firstChild(element), n = 0; node && n < limit; node = nextSibling(node), n++) text ||= node instanceof Text && /\S/.test(node.data);
    if (text && (element instanceof HTMLElement || element instanceof SVGElement)) {
      const svg = element instanceof SVGElement, style = svg ? svgStyle(element) : htmlStyle(element);
      const clipped = getComputedStyle(element).backgroundClip === "text";
      const put = (name, value) => style.setProperty(name, value, "important");
      put("transition", "none");
      put("-webkit-text-fill-color", "transparent");
      put("-webkit-text-stroke-color", "transparent");
      put("text-shadow", "none");
      put("text-decoration-color", "transparent");
      if (svg) { put("fill", "transparent"); put("stroke", "transparent"); }
      if (clipped) put("background", "none");
    }
    const shadow = shadowRoot(element);
    for (const inside of [shadow && shadowFirst(shadow), firstElement(element)]) {
      for (let child = inside; child && stack.length < limit; child = nextElement(child)) stack.push(child);
    }
  }
}
