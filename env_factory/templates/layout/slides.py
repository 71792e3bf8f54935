"""Layout templates, the slides: pages of a fixed composition whose parts stand in stated relations to one another.

Each function samples one order from a `Pen`; see `pages.py`. What a template asks for is checked by `sandboxes.layout_checks`
in the words of the same name.
"""

# ruff: noqa: E501 - a page's style is easier to read in one line

from __future__ import annotations

import math

from env_factory.templates.layout.pages import FIRST, Layout, Pen, Window, ask, at, div, page, tag

STAGE = "position:relative;width:100%;height:100%"
EDGES = {"left": 0, "top": 0, "right": 0, "bottom": 0}


def slide(pen: Pen) -> str:
    """Style of a slide that fills the window."""
    return f"#slide {{ {STAGE}; background: {pen.colours.back}; color: {pen.colours.ink} }}"


def fills(pen: Pen) -> str:
    """The sentence that asks for it."""
    return f'An element with id "slide" fills the window; it is {pen.colours.back}.'


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


def bars(pen: Pen) -> Layout:
    """A bar chart: heights as values."""
    n, wide, gap, c = pen.of(4, 5, 6), pen.of(80, 96), pen.of(32, 48), pen.colours
    values = pen.rng.sample(range(20, 100), n)
    names, head, tone = [pen.word().capitalize() for _ in range(n)], pen.title(), pen.tones(1)[0]
    scale, total = 4, n * wide + (n - 1) * gap
    css = f"{slide(pen)} h1 {{ font-size: 32px; padding: 24px 0; text-align: center }} .bar {{ background: {tone}; width: {wide}px }} p {{ text-align: center }}"
    made = [(v, tag("p", text=str(v), style=f"color:{c.on}"), tag("p", text=name)) for v, name in zip(values, names, strict=True)]
    chart = "".join(
        div(div(inside, class_="bar", id=f"bar{k}", style=f"height:{v * scale}px") + below, class_="column")
        for k, (v, inside, below) in enumerate(made, start=1)
    )
    flex = (
        f".chart {{ display: flex; align-items: flex-end; justify-content: center; gap: {gap}px; position: absolute; bottom: 40px; left: 0; right: 0 }} "
        f".column {{ width: {wide}px }}"
    )
    placed = "".join(
        div(
            inside,
            class_="bar",
            id=f"bar{k}",
            style=at(f"calc(50% - {total / 2:g}px + {(k - 1) * (wide + gap)}px)", "auto", "", v * scale, "bottom:80px"),
        )
        + tag(
            "p",
            text=names[k - 1],
            style=at(f"calc(50% - {total / 2:g}px + {(k - 1) * (wide + gap)}px)", "auto", wide, "", "bottom:50px"),
        )
        for k, (v, inside, _) in enumerate(made, start=1)
    )
    checks = (
        ask("proportion", of=".bar", axis="y", values=values), ask("same", of=[".bar"], what=["bottom", "width"]),
        ask("gaps", of=[".bar"], axis="x", px=gap), ask("size", of=".bar", width=wide), ask("centred", of=[".bar"], within="page", axis="x"),
        *(ask("holds", of=f"#bar{k}", texts=[[str(v)]]) for k, v in enumerate(values, start=1)), ask("fill", of=".bar", colours=[tone] * n),
        *(ask("centred", of=[name], within=f"#bar{k}", axis="x", near=4.0) for k, name in enumerate(names, start=1)),
    )  # fmt: skip
    table = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
    return Layout(
        asks=(
            fills(pen), f'It has the heading "{head}" and below it a bar chart of these values, from the left to the right: {table}.',
            f'Each bar is an element of class "bar" ({tone}), {wide} pixels wide, with the ids "bar1" to "bar{n}"; bars are {gap} pixels apart, stand on one '
            f"line, and are centred in the window from left to right. Their heights are to one another as the values, the highest at least {max(values) * 3} pixels.",
            'The value stands inside of its bar, the name below it, centred under the bar (within 4 pixels).',
        ),
        texts=(head, *map(str, values), *names),
        windows=(Window(FIRST, checks),),
        reference=page(css + flex, div(tag("h1", text=head) + div(chart, class_="chart"), id="slide")),
        alternative=page(css, div(tag("h1", text=head) + placed, id="slide")),
        spoilt=(
            ("proportion", f"height:{values[0] * scale}px", f"height:{values[0] * scale + 40}px"), ("same", "align-items: flex-end", "align-items: flex-start"),
            ("gaps", f"gap: {gap}px", f"gap: {gap - 8}px"),
        ),
    )  # fmt: skip


def plan(pen: Pen) -> Layout:
    """A plan of weeks: where bars begin and how long they are."""
    n, week, step, c = pen.of(4, 5), pen.of(90, 100), pen.of(64, 72), pen.colours
    tasks = [(pen.title(), *(lambda a: (a, pen.rng.randint(3, 10 - a)))(pen.rng.randint(0, 5))) for _ in range(n)]
    tones, high = pen.tones(n), 44
    head = pen.title()
    css = f"{slide(pen)} h1 {{ font-size: 34px }} .task {{ height: {high}px; padding: 8px 12px; color: {c.on} }} p {{ white-space: nowrap }}"
    track = f"#track {{ width: {10 * week}px; background: {c.on if c.on != c.ink else '#8899aa'} }}"
    bars_ = [
        (f"margin-left:{a * week}px;width:{long * week}px;background:{t}", a, long, t, tag("p", text=name))
        for (name, a, long), t in zip(tasks, tones, strict=True)
    ]
    ref = f" #slide {{ padding: 40px 60px }} #track {{ margin-top: 40px; padding-bottom: 20px; padding-top: 20px; display: grid; row-gap: {step - high}px }}"
    rows = "".join(div(i, class_="task", style=s) for s, _, _, _, i in bars_)
    placed = "".join(
        div(i, class_="task", style=at(a * week, 20 + step * k, long * week, "", f"background:{t}"))
        for k, (_, a, long, t, i) in enumerate(bars_)
    )
    alt = f" #track {{ {at(60, 130, '', 40 + step * (n - 1) + high)} }} h1 {{ {at(60, 40)} }}"
    checks = (
        ask("size", of="#track", width=10 * week), ask("count", of=".task", n=n), ask("size", of=".task", height=high),
        ask("gaps", of=[".task"], axis="y", px=step - high), ask("fill", of=".task", colours=tones),
        *(ask("place", of=f"#{chr(97 + k)}", within="#track", left=a * week, right=(10 - a - long) * week) for k, (_, a, long) in enumerate(tasks)),
        ask("holds", of=".task", texts=[[name] for name, _, _ in tasks]),
    )  # fmt: skip

    def lettered(html: str) -> str:
        for k in range(n):
            html = html.replace('<div class="task" style', f'<div class="task" id="{chr(97 + k)}" style', 1)
        return html

    return Layout(
        asks=(
            fills(pen), f'It has the heading "{head}" and an element with id "track", {10 * week} pixels wide: a week is {week} pixels.',
            f'In the track {n} elements of class "task", {high} pixels high, stand one below the other, {step - high} pixels apart:',
            *(
                f'id "{chr(97 + k)}", {t}, from the beginning of week {a + 1} to the end of week {a + long}, with the text "{name}" inside;'
                for k, ((name, a, long), t) in enumerate(zip(tasks, tones, strict=True))
            ),
            f"the track itself is {track.split('background: ')[1].split(' ')[0]}.",
        ),
        texts=(head, *(name for name, _, _ in tasks)),
        windows=(Window(FIRST, checks),),
        reference=lettered(page(css + track + ref, div(tag("h1", text=head) + div(rows, id="track"), id="slide"))),
        alternative=lettered(page(css + track + alt, div(tag("h1", text=head) + div(placed, id="track"), id="slide"))),
        spoilt=(
            ("place", f"margin-left:{tasks[0][1] * week}px;width:{tasks[0][2] * week}px", f"margin-left:{tasks[0][1] * week}px;width:{tasks[0][2] * week - 30}px"),
            ("gaps", f"row-gap: {step - high}px", f"row-gap: {step - high - 5}px"), ("size", f"width: {10 * week}px", f"width: {11 * week}px"),
        ),
    )  # fmt: skip


def timeline(pen: Pen) -> Layout:
    """Points at equal distances, labels by turns above and below."""
    n, dot = pen.of(5, 6), pen.of(24, 32)
    names, years, tone = [pen.title() for _ in range(n)], sorted(pen.rng.sample(range(1901, 1999), n)), pen.tones(1)[0]
    between = pen.of(150, 170) if n == 6 else pen.of(180, 200)
    total = n * dot + (n - 1) * between
    css = f"{slide(pen)} .dot {{ width: {dot}px; height: {dot}px; border-radius: 50%; background: {tone} }} p {{ text-align: center; white-space: nowrap }}"
    left = f"calc(50% - {total / 2:g}px + {{}}px)"
    away = "".join(
        div(id=f"dot{k + 1}", class_="dot", style=at(left.format(k * (dot + between)), f"calc(50% - {dot / 2:g}px)"))
        + tag(
            "p",
            text=names[k],
            style=at(
                left.format(k * (dot + between) - 80), f"calc(50% {'-' if k % 2 else '+'} {90 if k % 2 else 50}px)", dot + 160
            ),
        )
        + tag(
            "p",
            text=str(years[k]),
            style=at(
                left.format(k * (dot + between) - 80), f"calc(50% {'-' if k % 2 else '+'} {130 if k % 2 else 90}px)", dot + 160
            ),
        )
        for k in range(n)
    )
    cells = "".join(
        div(
            (tag("p", text=str(years[k])) + tag("p", text=names[k]) + div(id=f"dot{k + 1}", class_="dot")) if k % 2
            else (div(id=f"dot{k + 1}", class_="dot") + tag("p", text=names[k]) + tag("p", text=str(years[k]))),
            class_="up" if k % 2 else "down", style=f"grid-column:{k + 1}",
        )
        for k in range(n)
    )  # fmt: skip
    grid = (
        f"#slide {{ display: grid; grid-template-columns: repeat({n}, {dot}px); column-gap: {between}px; justify-content: center; grid-template-rows: 50% 50% }} "
        f".up, .down {{ display: flex; flex-direction: column; align-items: center; gap: 14px; grid-row: 1; height: calc(50vh + {dot / 2:g}px); justify-content: flex-end }} "
        f".down {{ grid-row: 2; justify-content: flex-start; position: relative; top: -{dot / 2:g}px; height: auto }} .up p, .down p {{ width: 180px }}"
    )
    checks = (
        ask("count", of=".dot", n=n), ask("same", of=[".dot"], what=["middle_y", "width", "height"]), ask("gaps", of=[".dot"], axis="x", px=between),
        ask("size", of=".dot", width=dot, height=dot), ask("centred", of=[".dot"], within="page"),
        *(ask("centred", of=[name], within=f"#dot{k}", axis="x") for k, name in enumerate(names, start=1)),
        *(ask("beyond", of=names[k], than=f"#dot{k + 1}", side="above" if k % 2 else "below", least=8) for k in range(n)),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen),
            f'{n} round elements of class "dot" ({tone}, {dot} by {dot} pixels, ids "dot1" to "dot{n}") stand in a row, {between} pixels apart, in the middle of the '
            "window both ways.",
            "Each has a name and a year, the name centred on its dot from left to right, at least 8 pixels away from it: below the first dot, above the second, below the third, and so on.",
            "; ".join(f'dot {k}: "{name}", "{year}"' for k, (name, year) in enumerate(zip(names, years, strict=True), start=1)) + ".",
        ),
        texts=(*names, *map(str, years)),
        windows=(Window(FIRST, checks), Window((1600, 900), checks)),
        reference=page(css + grid, div(cells, id="slide")),
        alternative=page(css, div(away, id="slide")),
        spoilt=(
            ("gaps", f"column-gap: {between}px", f"column-gap: {between - 12}px"), ("same", f"top: -{dot / 2:g}px", "top: 6px"),
            ("beyond", ".up p, .down p { width: 180px }", ".up p, .down p { width: 180px } .down p { position: relative; top: -90px }"), ("size", f"height: {dot}px; border", f"height: {dot + 6}px; border"),
        ),
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
