"""Layout templates, the boards: pages that are full, answer to the window, or set text in columns.

Each function samples one order from a `Pen`; see `pages.py`.
"""

# ruff: noqa: E501 - a page's style is easier to read in one line

from __future__ import annotations

from env_factory.templates.layout.pages import (
    FIRST,
    WIDE,
    Layout,
    Pen,
    Window,
    ask,
    at,
    div,
    fills,
    page,
    slide,
    tag,
)


def mosaic(pen: Pen) -> Layout:
    """A full page of panels of different sizes, with next to nothing left empty."""
    gap, part, c = pen.of(12, 16), pen.of(0.5, 0.6), pen.colours
    names, lines, tones = [pen.title() for _ in range(4)], [pen.sentence() for _ in range(4)], pen.tones(4)
    css = f"{slide(pen)} .panel {{ padding: 20px; color: {c.on} }} h2 {{ font-size: 26px }}"
    grid = (
        f" #slide {{ display: grid; gap: {gap}px; padding: {gap}px; grid-template-columns: calc({part} * (100% - {gap}px)) 1fr; grid-template-rows: 1fr 1fr }}"
        " #a { grid-row: 1 / 3 } #b { grid-column: 2 } .pair { display: flex; min-width: 0 }"
        f" .pair {{ gap: {gap}px }} .pair .panel {{ flex: 1 1 0; min-width: 0 }}"
    )
    inner = [tag("h2", text=a) + tag("p", text=b) for a, b in zip(names, lines, strict=True)]
    panels = [div(i, class_="panel", id="abcd"[k], style=f"background:{tones[k]}") for k, i in enumerate(inner)]
    wide = f"{part} * (100% - {3 * gap}px)"
    rest = f"(100% - {3 * gap}px - {wide})"
    half = f"calc((100% - {3 * gap}px) / 2)"
    low = f"calc({2 * gap}px + (100% - {3 * gap}px) / 2)"
    spots = [
        at(gap, gap, f"calc({wide})", f"calc(100% - {2 * gap}px)"),
        at(f"calc({2 * gap}px + {wide})", gap, f"calc({rest})", half),
        at(f"calc({2 * gap}px + {wide})", low, f"calc(({rest} - {gap}px) / 2)", half),
        at(f"calc({3 * gap}px + {wide} + ({rest} - {gap}px) / 2)", low, f"calc(({rest} - {gap}px) / 2)", half),
    ]
    placed = "".join(div(i, class_="panel", id="abcd"[k], style=f"{spots[k]};background:{tones[k]}") for k, i in enumerate(inner))
    checks = (
        ask("empty", most=0.05), ask("place", of="#a", left=gap, top=gap, bottom=gap), ask("place", of="#b", top=gap, right=gap), ask("place", of="#d", right=gap, bottom=gap),
        ask("gaps", of=["#a", "#b"], axis="x", px=gap), ask("gaps", of=["#c", "#d"], axis="x", px=gap), ask("gaps", of=["#b", "#c"], axis="y", px=gap), ask("same", of=["#c", "#d"], what=["width", "height", "top"]),
        ask("same", of=["#b", "#c"], what=["left", "height"]), ask("ratio", of=["#a", "#b"], axis="x", value=part / (1 - part)), ask("balance", most=0.05),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'Four elements of class "panel" fill it, {gap} pixels from its edges and from one another: id "a" on the left over the whole height, "b" on the upper right, "c" and "d" below it side by side, equally wide; "b", "c" and "d" are equally high.',
            f'The width of "a" is to that of "b" as {part:g} to {1 - part:g}.', "No free rectangle takes more than 5% of the page.",
            "They hold, each at its top: " + "; ".join(f'{"abcd"[k]} ({tones[k]}): "{a}", "{b}"' for k, (a, b) in enumerate(zip(names, lines, strict=True))) + ".",
        ),
        texts=(*names, *lines),
        windows=(Window(FIRST, (*checks, ask("holds", of="#a", texts=[[names[0], lines[0]]]))), Window(WIDE, checks)),
        reference=page(css + grid, div(panels[0] + panels[1] + div(panels[2] + panels[3], class_="pair"), id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("empty", "1fr 1fr }", "1fr 120px; grid-template-columns: 1fr 1fr; padding-bottom: 200px }"), ("same", f'id="d" style="background:{tones[3]}"', f'id="d" style="background:{tones[3]};flex-grow:2"'), ("gaps", f"gap: {gap}px; padding", f"gap: {gap - 4}px; padding")),
    )  # fmt: skip


def kanban(pen: Pen) -> Layout:
    """Columns of equal width with different numbers of notes."""
    gap, inset, high, c = pen.of(20, 28), 16, pen.of(76, 88), pen.colours
    counts, tones = pen.rng.sample((1, 2, 3, 4), 3), pen.tones(2)
    heads, notes = [pen.title() for _ in range(3)], [[pen.title() for _ in range(n)] for n in counts]
    css = f"{slide(pen)} .column {{ background: {tones[0]}; color: {c.on}; padding: {inset}px }} h2 {{ font-size: 24px; height: 60px }} .note {{ background: {tones[1]}; height: {high}px; padding: 10px }}"
    grid = f" #slide {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: {gap}px; padding: {gap}px }} .column {{ display: flex; flex-direction: column; gap: 12px }}"
    flow = "".join(
        div(tag("h2", text=h) + "".join(div(tag("p", text=n), class_="note") for n in ns), class_="column")
        for h, ns in zip(heads, notes, strict=True)
    )
    each = f"(100% - {4 * gap}px) / 3"
    placed = "".join(
        div(
            tag("h2", text=h) + "".join(div(tag("p", text=n), class_="note", style=f"position:absolute;left:{inset}px;right:{inset}px;top:{88 + k * (high + 12)}px") for k, n in enumerate(ns)),
            class_="column", style=at(f"calc({gap}px + {i} * ({each} + {gap}px))", gap, f"calc({each})", f"calc(100% - {2 * gap}px)"),
        )
        for i, (h, ns) in enumerate(zip(heads, notes, strict=True))
    )  # fmt: skip
    checks = (
        ask("count", of=".column", n=3), ask("grid", of=".column", columns=3, gap_x=gap), ask("count", of=".note", n=sum(counts)), ask("size", of=".note", height=high),
        ask("holds", of=".column", texts=[[h, *ns] for h, ns in zip(heads, notes, strict=True)]), ask("place", of=".column", left=gap, top=gap, right=gap, bottom=gap),
        *(ask("gaps", of=ns, axis="y", least=high / 2) for ns in notes if len(ns) > 1), ask("same", of=[".note"], what=["width"]),
        ask("same", of=[ns[0] for ns in notes], what=["top"]), ask("fill", of=".note", colours=[tones[1]] * sum(counts)),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'Three elements of class "column" ({tones[0]}) share its width, {gap} pixels apart and {gap} pixels from each edge of the slide.',
            f'Each has a heading and below it, one under the other at equal distances, elements of class "note" ({tones[1]}, {high} pixels high, all of one width); the first notes begin at one height.',
            "; ".join(f'"{h}" with ' + ", ".join(f'"{n}"' for n in ns) for h, ns in zip(heads, notes, strict=True)) + ". Each note is one line or two, from its top.",
        ),
        texts=(*heads, *(n for ns in notes for n in ns)),
        windows=(Window(FIRST, checks), Window(WIDE, checks)),
        reference=page(css + grid, div(flow, id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("grid", "repeat(3, 1fr)", "1fr 1fr 1.2fr"), ("size", f"height: {high}px", f"height: {high - 8}px"), ("holds", f"<h2>{heads[0]}</h2>", ""), ("fill", f".note {{ background: {tones[1]}", ".note { background: #777777")),
    )  # fmt: skip


def stack(pen: Pen) -> Layout:
    """Side by side in a wide window, one below the other in a narrow one."""
    n, gap, high, c = 3, pen.of(16, 24), pen.of(180, 200), pen.colours
    said, tones, narrow = [(pen.title(), pen.sentence()) for _ in range(n)], pen.tones(n), (480, 900)
    css = f"{slide(pen)} .box {{ height: {high}px; padding: 16px; color: {c.on} }} h2 {{ font-size: 22px }}"
    media = f" #slide {{ padding: {gap}px; display: flex; gap: {gap}px }} .box {{ flex: 1 1 0; min-width: 0 }} @media (max-width: 700px) {{ #slide {{ flex-direction: column }} .box {{ flex: none }} }}"
    auto = f" #slide {{ padding: {gap}px; display: grid; gap: {gap}px; align-content: start; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)) }}"
    body = div(
        "".join(
            div(tag("h2", text=a) + tag("p", text=b), class_="box", style=f"background:{t}")
            for (a, b), t in zip(said, tones, strict=True)
        ),
        id="slide",
    )
    both = (
        ask("count", of=".box", n=n),
        ask("size", of=".box", height=high),
        ask("holds", of=".box", texts=said),
        ask("place", of=".box", left=gap, top=gap, right=gap),
        ask("fill", of=".box", colours=tones),
    )
    return Layout(
        asks=(
            fills(pen), f'It has {n} elements of class "box", {high} pixels high, {gap} pixels from one another and from the left, upper and right edges of the window.',
            "In a window of more than 1000 pixels they stand side by side, equally wide; in one of less than 600 pixels one below the other, over the whole width.",
            "In order: " + "; ".join(f'{t} with "{a}" and "{b}"' for (a, b), t in zip(said, tones, strict=True)) + ".",
        ),
        texts=tuple(v for pair in said for v in pair),
        windows=(Window(FIRST, (*both, ask("grid", of=".box", columns=n, gap_x=gap))), Window(narrow, (*both, ask("grid", of=".box", columns=1, gap_y=gap)))),
        reference=page(css + media, body),
        alternative=page(css + auto, body),
        spoilt=(("grid", "max-width: 700px", "max-width: 300px"), ("size", f"height: {high}px", f"height: {high + 6}px"), ("place", f"padding: {gap}px; display: flex", f"padding: {gap + 9}px; display: flex")),
    )  # fmt: skip


def swatches(pen: Pen) -> Layout:
    """A palette, named by its own colours, and no other colour anywhere."""
    n, c = pen.of(4, 5), pen.colours
    tones = pen.tones(n)
    css = f".swatch {{ color: {c.on} }} p {{ font: 22px monospace }}"
    flex = " body { display: flex } .swatch { flex: 1 1 0; min-width: 0; display: flex; align-items: flex-end; justify-content: center; padding-bottom: 40px }"
    away = " .swatch { position: absolute; top: 0; height: 100%; text-align: center } .swatch p { position: absolute; left: 0; right: 0; bottom: 40px }"
    flow = "".join(div(tag("p", text=t), class_="swatch", style=f"background:{t}") for t in tones)
    placed = "".join(
        div(tag("p", text=t), class_="swatch", style=f"background:{t};left:calc({k} * 100% / {n});width:calc(100% / {n})")
        for k, t in enumerate(tones)
    )
    checks = (
        ask("palette", colours=tones, least=0.985, each=0.15), ask("grid", of=".swatch", columns=n, gap_x=0), ask("fraction", of=".swatch", within="page", axis="x", value=1 / n), ask("fraction", of=".swatch", within="page", axis="y", value=1),
        ask("fill", of=".swatch", colours=tones), ask("holds", of=".swatch", texts=[[t] for t in tones]), ask("same", of=tones, what=["bottom"]), ask("place", of=tones[0], bottom=40, near=8),
    )  # fmt: skip
    return Layout(
        asks=(
            f'{n} elements of class "swatch", side by side without gaps and equally wide, fill the window; they are, from the left, {", ".join(tones)}. No other colour is painted.',
            "In each stands the name of its colour as written here, centred, all on one line 40 pixels (within 8) above the lower edge of the window.",
        ),
        texts=tuple(tones),
        windows=(Window(FIRST, checks), Window((1400, 700), checks)),
        reference=page(css + flex, flow),
        alternative=page(css + away, placed),
        spoilt=(("palette", "p { font", "p { background: #777777; font"), ("grid", "body { display: flex }", "body { display: flex; gap: 6px }"), ("fraction", f"background:{tones[0]}", f"background:{tones[0]};flex-grow:2"), ("place", "padding-bottom: 40px", "padding-bottom: 70px")),
    )  # fmt: skip


def corners(pen: Pen) -> Layout:
    """A poster: a word in each corner, a square in the middle."""
    edge, side, c = pen.of(32, 48, 64), pen.of(200, 260), pen.colours
    words, tone, middle = [pen.title() for _ in range(4)], pen.tones(1)[0], pen.word().capitalize()
    css = f"{slide(pen)} .corner {{ font-size: 24px; line-height: 28px; white-space: nowrap }} #square {{ width: {side}px; height: {side}px; background: {tone}; color: {c.on} }}"
    spots = ("left:{0}px;top:{0}px", "right:{0}px;top:{0}px", "left:{0}px;bottom:{0}px", "right:{0}px;bottom:{0}px")
    placed = "".join(
        tag("p", text=w, class_="corner", style=f"position:absolute;{s.format(edge)}") for w, s in zip(words, spots, strict=True)
    )
    square = div(tag("p", text=middle), id="square")
    away = f" #square {{ position: absolute; left: calc(50% - {side / 2:g}px); top: calc(50% - {side / 2:g}px); text-align: center; line-height: {side}px }}"
    grid = f" #slide {{ display: grid; grid-template-columns: 1fr auto 1fr; grid-template-rows: 1fr {side}px 1fr; padding: {edge}px }} #square {{ grid-area: 2 / 2; display: grid; place-items: center }}"
    homes = ("1 / 1;place-self:start", "1 / 3;place-self:start end", "3 / 1;place-self:end start", "3 / 3;place-self:end")
    flow = "".join(tag("p", text=w, class_="corner", style=f"grid-area:{h}") for w, h in zip(words, homes, strict=True))
    checks = (
        ask("place", of=words[0], left=edge, top=edge, near=4), ask("place", of=words[1], right=edge, top=edge, near=4), ask("place", of=words[2], left=edge, bottom=edge, near=4),
        ask("place", of=words[3], right=edge, bottom=edge, near=4), ask("centred", of=["#square"], within="page"), ask("aspect", of="#square", ratio=1.0), ask("size", of="#square", width=side),
        ask("centred", of=[middle], within="#square", near=4.0), ask("margin", px=edge - 5), ask("fill", of="#square", colours=[tone]),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'In each corner of the window, {edge} pixels from both of its edges (within 4), stands a text in one line: "{words[0]}" on the upper left, "{words[1]}" on the upper right, "{words[2]}" on the lower left, "{words[3]}" on the lower right.',
            f'In the middle stands a square, an element with id "square" ({tone}, {side} by {side} pixels), and in its middle (within 4 pixels) "{middle}".',
        ),
        texts=(*words, middle),
        windows=(Window(FIRST, checks), Window(WIDE, checks)),
        reference=page(css + grid, div(flow + square, id="slide")),
        alternative=page(css + away, div(placed + square, id="slide")),
        spoilt=(("place", "place-self:start end", "place-self:start center"), ("aspect", f"height: {side}px; background", f"height: {side - 20}px; background"), ("fill", f"background: {tone}", f"background: {c.ink}" if c.ink != c.on else "background: #999999"), ("centred", "place-items: center", "place-items: start")),
    )  # fmt: skip


def columns(pen: Pen) -> Layout:
    """Running text in three columns."""
    wide, gap = pen.of(280, 300), pen.of(40, 52)
    head, paragraphs, em = pen.title(), [" ".join(pen.sentence() for _ in range(4)) for _ in range(3)], pen.of(18, 20)
    total = 3 * wide + 2 * gap
    css = f"{slide(pen)} h1 {{ font-size: 38px }} .text {{ width: {wide}px; font-size: {em}px; line-height: 1.45 }}"
    flow = (
        " #slide { padding-top: 60px } .row { display: flex; justify-content: center; margin-top: 40px; gap: "
        + f"{gap}px }} h1 {{ margin-left: calc(50% - {total / 2:g}px) }}"
    )
    row = div("".join(tag("p", text=t, class_="text") for t in paragraphs), class_="row")
    placed = "".join(
        tag("p", text=t, class_="text", style=at(f"calc(50% - {total / 2:g}px + {k * (wide + gap)}px)", 160))
        for k, t in enumerate(paragraphs)
    )
    checks = (
        ask("size", of=".text", width=wide), ask("gaps", of=[".text"], axis="x", px=gap), ask("lines", of=paragraphs, least=4, most=12), ask("same", of=paragraphs, what=["top"]),
        ask("centred", of=[".text"], within="page", axis="x"), ask("same", of=[head, paragraphs[0]], what=["left"], near=3.0), ask("ladder", levels=[[head], paragraphs], ratio=1.8), *(ask("measure", of=t, least=16, most=40) for t in paragraphs),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'It has the heading "{head}" and below it three columns of text, elements of class "text", {wide} pixels wide and {gap} pixels apart, side by side and together centred in the window from left to right. Their first lines are level, the heading begins where the first column does (within 3 pixels).',
            "The columns are: " + "; ".join(f'"{t}"' for t in paragraphs), "Each is set in 4 to 12 lines of 16 to 40 characters on average; letters of the heading are at least 1.8 times as large as theirs, which have one size.",
        ),
        texts=(head, *paragraphs),
        windows=(Window(FIRST, checks), Window(WIDE, checks)),
        reference=page(css + flow, div(tag("h1", text=head) + row, id="slide")),
        alternative=page(css, div(tag("h1", text=head, style=at(f"calc(50% - {total / 2:g}px)", 60)) + placed, id="slide")),
        spoilt=(("gaps", f"gap: {gap}px", f"gap: {gap + 6}px"), ("size", f".text {{ width: {wide}px", f".text {{ width: {wide - 20}px"), ("ladder", "font-size: 38px", "font-size: 30px"), ("same", '<p class="text">', '<p class="text" style="margin-top:20px">')),
        px=18,
    )  # fmt: skip


def facts(pen: Pen) -> Layout:
    """Labels that end and values that begin on one axis."""
    n, gap, step = pen.of(4, 5, 6), pen.of(24, 36), pen.of(48, 60)
    pairs = [(pen.word().capitalize(), pen.title()) for _ in range(n)]
    css = f"{slide(pen)} .label, .value {{ line-height: 24px; white-space: nowrap }} .label {{ text-align: right }}"
    grid = f" #slide {{ display: grid; grid-template-columns: 1fr 1fr; column-gap: {gap}px; row-gap: {step - 24}px; align-content: center }}"
    flow = "".join(tag("p", text=a, class_="label") + tag("p", text=b, class_="value") for a, b in pairs)
    top = f"calc(50% - {(step * (n - 1) + 24) / 2:g}px + {{}}px)"
    placed = "".join(
        tag("p", text=a, class_="label", style=f"position:absolute;right:calc(50% + {gap / 2:g}px);top:{top.format(step * k)}")
        + tag("p", text=b, class_="value", style=f"position:absolute;left:calc(50% + {gap / 2:g}px);top:{top.format(step * k)}")
        for k, (a, b) in enumerate(pairs)
    )
    labels, values = [a for a, _ in pairs], [b for _, b in pairs]
    checks = (
        ask("same", of=labels, what=["right"]), ask("same", of=values, what=["left"]), *(ask("same", of=list(pair), what=["middle_y"]) for pair in pairs), ask("steps", of=values, dx=0, dy=step),
        *(ask("gaps", of=list(pair), axis="x", px=gap) for pair in pairs), ask("place", of=labels[0], right=640 + gap / 2), ask("centred", of=[*labels, *values], within="page", axis="y", near=4.0),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f"It lists {n} facts, a label and a value each, one below the other: " + "; ".join(f'"{a}" | "{b}"' for a, b in pairs) + ".",
            f"Labels end, and values begin, {gap / 2:g} pixels from the vertical middle line of the window, labels on its left. Label and value are level; each fact is {step} pixels lower than the one before, and the list is centred from top to bottom (within 4 pixels).",
        ),
        texts=tuple(v for pair in pairs for v in pair),
        windows=(Window(FIRST, checks),),
        reference=page(css + grid, div(flow, id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("same", "text-align: right", "text-align: left"), ("steps", f"row-gap: {step - 24}px", f"row-gap: {step - 18}px"), ("gaps", f"column-gap: {gap}px", f"column-gap: {gap + 8}px"), ("centred", "align-content: center", "align-content: start")),
    )  # fmt: skip


def team(pen: Pen) -> Layout:
    """People left and right of a middle line, as in a mirror."""
    rows, wide, high, gap, c = pen.of(2, 3), pen.of(220, 240), pen.of(130, 150), pen.of(80, 120), pen.colours
    names, tones = [(pen.word().capitalize(), pen.title()) for _ in range(2 * rows)], pen.tones(2)
    css = f"{slide(pen)} .person {{ width: {wide}px; height: {high}px; background: {tones[0]}; color: {c.on}; padding: 16px }} #line {{ width: 8px; background: {tones[1]} }}"
    grid = f" #slide {{ display: grid; grid-template-columns: {wide}px 8px {wide}px; column-gap: {gap}px; row-gap: 24px; place-content: center }} #line {{ grid-column: 2; grid-row: 1 / {rows + 1} }}"
    flow = "".join(
        div(tag("h2", text=a) + tag("p", text=b), class_="person", style=f"grid-column:{1 + 2 * (k % 2)};grid-row:{k // 2 + 1}")
        for k, (a, b) in enumerate(names)
    )
    total = rows * high + (rows - 1) * 24
    placed = "".join(
        div(
            tag("h2", text=a) + tag("p", text=b),
            class_="person",
            style=f"position:absolute;{'right' if k % 2 == 0 else 'left'}:calc(50% + {gap + 4}px);top:calc(50% - {total / 2:g}px + {k // 2 * (high + 24)}px)",
        )
        for k, (a, b) in enumerate(names)
    )
    line = div(id="line")
    checks = (
        ask("mirror", of=".person"), ask("count", of=".person", n=2 * rows), ask("size", of=".person", width=wide, height=high), ask("size", of="#line", width=8, height=total), ask("centred", of=["#line"], within="page"),
        ask("grid", of=".person", columns=2, gap_x=2 * gap + 8, gap_y=24), ask("holds", of=".person", texts=[list(p) for p in names]), ask("balance", most=0.03),
        ask("fill", of=".person", colours=[tones[0]] * (2 * rows)), ask("fill", of="#line", colours=[tones[1]]),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'In the middle of the window, both ways, stands a vertical line, an element with id "line" ({tones[1]}), 8 pixels wide and {total} pixels high.',
            f'Left and right of it, {gap} pixels away, stand {rows} elements of class "person" ({tones[0]}, {wide} by {high} pixels) one below the other, 24 pixels apart, as in a mirror; the line is as high as they are together.',
            "In reading order they hold: " + "; ".join(f'"{a}" and "{b}"' for a, b in names) + ".",
        ),
        texts=tuple(v for pair in names for v in pair),
        windows=(Window(FIRST, checks), Window((1440, 810), checks)),
        reference=page(css + grid, div(flow + line, id="slide")),
        alternative=page(css + f" #line {{ {at('calc(50% - 4px)', f'calc(50% - {total / 2:g}px)', '', total)} }}", div(placed + line, id="slide")),
        spoilt=(("mirror", f"column-gap: {gap}px", f"column-gap: {gap}px; padding-right: 60px"), ("size", f"width: {wide}px; height: {high}px", f"width: {wide}px; height: {high - 10}px"), ("grid", "row-gap: 24px", "row-gap: 30px"), ("holds", f"<p>{names[0][1]}</p>", "")),
    )  # fmt: skip
