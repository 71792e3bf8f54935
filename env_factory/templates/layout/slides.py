"""Layout templates, the slides: pages of a fixed composition whose parts stand in stated relations to one another.

Each function samples one order from a `Pen`; see `pages.py`. What a template asks for is checked by `sandboxes.layout_checks`
in the words of the same name.
"""

# ruff: noqa: E501 - a page's style is easier to read in one line

from __future__ import annotations

import math

from env_factory.templates.layout.pages import (
    EDGES,
    FIRST,
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


def cards(pen: Pen) -> Layout:
    """n equal cards in one row."""
    n, gap, edge, high = pen.of(3, 4, 5), pen.of(16, 24, 32), pen.of(40, 56), pen.of(240, 280, 320)
    head, tones, c = pen.title(), pen.tones(n), pen.colours
    said = [(pen.title(), pen.sentence()) for _ in range(n)]
    inner = [tag("h2", text=a) + tag("p", text=b) for a, b in said]
    look = f"{slide(pen)} h1 {{ font-size: 40px }} h2 {{ font-size: 22px }} .card {{ padding: 18px; height: {high}px; color: {c.on} }}"
    flex = f".row {{ display: flex; gap: {gap}px; margin-top: 40px }} .card {{ flex: 1 1 0; min-width: 0 }} #slide {{ padding: {edge}px }}"
    row = "".join(div(i, class_="card", style=f"background:{t}") for i, t in zip(inner, tones, strict=True))
    each = f"(100% - {2 * edge + (n - 1) * gap}px) / {n}"
    placed = "".join(
        div(i, class_="card", style=at(f"calc({edge + k * gap}px + {k} * {each})", 150, f"calc({each})", "", f"background:{t}"))
        for k, (i, t) in enumerate(zip(inner, tones, strict=True))
    )
    checks = (
        ask("place", of="#slide", **EDGES), ask("count", of=".card", n=n), ask("grid", of=".card", columns=n, gap_x=gap),
        ask("size", of=".card", height=high), ask("place", of=".card", left=edge, right=edge),
        ask("holds", of=".card", texts=said), ask("fill", of=".card", colours=tones),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'It has the heading "{head}".',
            f'Below it {n} elements of class "card" stand in one row, equally wide, {high} pixels high and {gap} pixels apart; '
            f"the row keeps {edge} pixels from the left and the right edge of the slide.",
            *(f'Card {i} is {t} and holds "{a}" and "{b}".' for i, ((a, b), t) in enumerate(zip(said, tones, strict=True), start=1)),
        ),
        texts=(head, *(text for pair in said for text in pair)),
        windows=(Window(FIRST, checks), Window((1600, 900), checks)),
        reference=page(look + flex, div(tag("h1", text=head) + div(row, class_="row"), id="slide")),
        alternative=page(look, div(tag("h1", text=head, style=at(edge, 40)) + placed, id="slide")),
        spoilt=(
            ("grid", f"gap: {gap}px", f"gap: {gap + 6}px"), ("size", f"height: {high}px", f"height: {high - 9}px"),
            ("fill", f"background:{tones[1]}", f"background:{c.ink}" if c.ink != c.on else "background:#777777"),
            ("holds", inner[0], inner[0].split("</h2>")[0] + "</h2>"),
        ),
    )  # fmt: skip


def tiles(pen: Pen) -> Layout:
    """Rows and columns of tiles with different gaps."""
    columns, rows, gap_x, gap_y = pen.of(3, 4), pen.of(2, 3), pen.of(12, 20), pen.of(28, 36)
    wide, high, c = 200, 120, pen.colours
    words = [pen.title() for _ in range(columns * rows)]
    tones = pen.tones(len(words))
    look = f"{slide(pen)} .tile {{ padding: 14px; color: {c.on}; width: {wide}px; height: {high}px }}"
    grid = (
        f"#slide {{ display: grid; grid-template-columns: repeat({columns}, {wide}px); column-gap: {gap_x}px; row-gap: {gap_y}px; "
        "place-content: center }"
    )
    made = [(tag("p", text=w), t) for w, t in zip(words, tones, strict=True)]
    x = f"calc(50% - {(columns * wide + (columns - 1) * gap_x) / 2:g}px + {{}}px)"
    y = f"calc(50% - {(rows * high + (rows - 1) * gap_y) / 2:g}px + {{}}px)"
    placed = "".join(
        div(
            i,
            class_="tile",
            style=at(x.format(k % columns * (wide + gap_x)), y.format(k // columns * (high + gap_y)), "", "", f"background:{t}"),
        )
        for k, (i, t) in enumerate(made)
    )
    checks = (
        ask("count", of=".tile", n=len(words)), ask("grid", of=".tile", columns=columns, gap_x=gap_x, gap_y=gap_y),
        ask("size", of=".tile", width=wide, height=high), ask("centred", of=[".tile"], within="page"),
        ask("holds", of=".tile", texts=[[w] for w in words]),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen),
            f'In its middle, both ways, {len(words)} elements of class "tile" stand in {rows} rows of {columns}. Each is {wide} by '
            f"{high} pixels; columns are {gap_x} pixels apart, rows {gap_y} pixels.",
            "In reading order the tiles hold: " + ", ".join(f'"{w}"' for w in words) + ". The colours of the tiles are yours.",
        ),
        texts=tuple(words),
        windows=(Window(FIRST, checks), Window((1440, 810), checks)),
        reference=page(look + grid, div("".join(div(i, class_="tile", style=f"background:{t}") for i, t in made), id="slide")),
        alternative=page(look, div(placed, id="slide")),
        spoilt=(
            ("grid", f"row-gap: {gap_y}px", f"row-gap: {gap_x}px"), ("centred", "place-content: center", "place-content: center start"),
            ("holds", made[0][0], "<p></p>"), ("count", f'<div class="tile" style="background:{tones[-1]}">{made[-1][0]}</div></div>', f"{made[-1][0]}</div>"),
        ),
    )  # fmt: skip


def stage(pen: Pen) -> Layout:
    """A 16:9 stage, as large as the window lets it be."""
    head, line, c = pen.title(), pen.sentence(), pen.colours
    look = f"html, body {{ background: #000000 }} #stage {{ background: {c.back}; color: {c.ink}; text-align: center }} h1 {{ font-size: 44px }}"
    flex = (
        "body { display: grid; place-items: center } #stage { width: min(100vw, 177.7778vh); aspect-ratio: 16 / 9; display: flex; "
        "flex-direction: column; justify-content: center; gap: 12px }"
    )
    away = (
        "#stage { position: absolute; width: min(100vw, 177.7778vh); height: min(56.25vw, 100vh); left: calc(50% - min(50vw, 88.8889vh)); "
        "top: calc(50% - min(28.125vw, 50vh)) } h1, p { position: absolute; left: 0; right: 0 } h1 { top: calc(50% - 50px) } p { top: calc(50% + 26px) }"
    )
    body = div(tag("h1", text=head) + tag("p", text=line), id="stage")
    checks = (
        ask("aspect", of="#stage", ratio=16 / 9), ask("largest", of="#stage"), ask("centred", of=["#stage"], within="page"),
        ask("centred", of=[head, line], within="#stage", near=12.0), ask("fill", of="#stage", colours=[c.back]),
    )  # fmt: skip
    return Layout(
        asks=(
            f'An element with id "stage", {c.back}, has the proportions 16:9 in every window, is as large as fits into it, and stands in '
            "its middle. What is left of the window is black (#000000).",
            f'In the middle of the stage, both ways (within 12 pixels), "{head}" stands above "{line}".',
        ),
        texts=(head, line),
        windows=(Window(FIRST, checks), Window((1024, 768), checks)),
        reference=page(look + flex, body),
        alternative=page(look + away, body),
        spoilt=(
            ("aspect", "16 / 9", "4 / 3"), ("largest", "min(100vw, 177.7778vh)", "min(90vw, 160vh)"),
            ("centred", "place-items: center", "place-items: start"), ("fill", f"background: {c.back}", f"background: {c.tones[0]}; color: {c.on}"),
        ),
    )  # fmt: skip


def ladder(pen: Pen) -> Layout:
    """A scale of letters, flush left."""
    ratio, least, edge = pen.of(1.4, 1.5, 1.6), pen.of(18, 20), pen.of(60, 80)
    levels = [[pen.title()], [pen.title()], [pen.sentence(), pen.sentence()]]
    middle = math.ceil(least * ratio)
    sizes = [math.ceil(middle * ratio), middle, least]
    flat = [text for level in levels for text in level]
    css = f"{slide(pen)} h1 {{ font-size: {sizes[0]}px }} h2 {{ font-size: {sizes[1]}px }} p {{ font-size: {sizes[2]}px }}"
    inner = "".join(tag(f"h{n}", text=levels[n - 1][0]) for n in (1, 2)) + "".join(tag("p", text=t) for t in levels[2])
    names = ("h1", "h2", "p", "p")
    placed = "".join(tag(n, text=t, style=at(edge, edge + 90 * i)) for i, (n, t) in enumerate(zip(names, flat, strict=True)))
    checks = (
        ask("ladder", levels=levels, ratio=ratio), ask("same", of=flat, what=["left"]), ask("place", of=levels[0][0], left=edge),
        ask("margin", px=edge - 8), ask("lines", of=flat),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen),
            f'It shows four lines, one below the other, flush left {edge} pixels from the left edge: "{flat[0]}" (first level), '
            f'"{flat[1]}" (second level), "{flat[2]}" and "{flat[3]}" (third level, letters of one size).',
            f"Letters of a level are at least {ratio} times as large as those of the next one. No line is broken. All keep {edge - 8} pixels from the edges.",
        ),
        texts=tuple(flat),
        windows=(Window(FIRST, checks),),
        reference=page(css + f" #slide {{ padding: {edge}px; display: flex; flex-direction: column; gap: 20px; justify-content: center }}", div(inner, id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(
            ("ladder", f"h2 {{ font-size: {sizes[1]}px", f"h2 {{ font-size: {sizes[2]}px"), ("same", "<h2>", '<h2 style="padding-left:9px">'),
            ("margin", "gap: 20px; justify-content: center", "gap: 20px; padding-top: 4px"), ("lines", "<h1>", '<h1 style="width:120px">'),
        ),
        px=least,
    )  # fmt: skip


def quote(pen: Pen) -> Layout:
    """A quotation of a readable measure in the middle."""
    low, high = pen.of(24, 28), pen.of(44, 48)
    words, who, em = " ".join(pen.sentence() for _ in range(3)), pen.title(), pen.of(30, 34)
    css = f"{slide(pen)} #quote {{ font-size: {em}px; width: 640px; line-height: 1.35 }} #who {{ font-size: 20px; width: 640px; text-align: right }}"
    body = tag("p", text=words, id="quote") + tag("p", text=who, id="who")
    flex = "#slide { display: flex; flex-direction: column; align-items: center; justify-content: center; gap: 24px }"
    away = "#quote { position: absolute; left: calc(50% - 320px); bottom: calc(50% - 110px) } #who { position: absolute; left: calc(50% - 320px); top: calc(50% + 134px) }"
    checks = (
        ask("measure", of=words, least=low, most=high), ask("lines", of=[words], least=3, most=7), ask("lines", of=[who]),
        ask("centred", of=["#quote"], within="page", axis="x"), ask("centred", of=["#quote"], within="page", axis="y", near=60.0),
        ask("same", of=["#quote", who], what=["right"], near=3.0), ask("ladder", levels=[[words], [who]], ratio=1.4),
        ask("beyond", of=who, than="#quote", side="below", least=12),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen),
            f'An element with id "quote" says "{words}". It stands in the middle of the window from left to right, within 60 pixels of the middle from top to bottom, in 3 to 7 '
            f"lines of {low} to {high} characters on average.",
            f'At least 12 pixels below it "{who}" ends where the element "quote" ends on the right (within 3 pixels), in one line; letters of the quotation are at least 1.4 times as large.',
        ),
        texts=(words, who),
        windows=(Window(FIRST, checks), Window((1600, 900), checks)),
        reference=page(css + flex, div(body, id="slide")),
        alternative=page(css + away, div(body, id="slide")),
        spoilt=(
            ("measure", "#quote { " + f"font-size: {em}px; width: 640px", "#quote { " + f"font-size: {em}px; width: 1100px"), ("same", "text-align: right", "text-align: left"),
            ("ladder", f"font-size: {em}px", "font-size: 24px"), ("centred", "align-items: center", "align-items: flex-start"),
        ),
    )  # fmt: skip
