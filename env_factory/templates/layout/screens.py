"""Layout templates, the screens: frames, panels, boards and lists whose parts share out a window.

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


def sidebar(pen: Pen) -> Layout:
    """A bar of fixed width, and the rest."""
    wide, step, c, n = pen.of(220, 260, 300), pen.of(48, 56), pen.colours, pen.of(4, 5, 6)
    tone, head = pen.tones(1)[0], pen.title()
    entries = [pen.title() for _ in range(n)]
    css = f"#side {{ background: {tone}; color: {c.on} }} #main {{ background: {c.back}; color: {c.ink} }} h1 {{ font-size: 36px }} .entry {{ line-height: 24px }}"
    flex = f" body {{ display: flex }} #side {{ flex: 0 0 {wide}px; padding: 32px 24px; display: flex; flex-direction: column; gap: {step - 24}px }} #main {{ flex: 1; padding: 32px }}"
    away = (
        f" #side {{ {at(0, 0, wide, '100%')} }} #main {{ {at(wide, 0, f'calc(100% - {wide}px)', '100%')} }} h1 {{ {at(32, 32)} }}"
    )
    inner = "".join(tag("p", text=e, class_="entry") for e in entries)
    placed = "".join(tag("p", text=e, class_="entry", style=at(24, 32 + step * k)) for k, e in enumerate(entries))
    main = div(tag("h1", text=head), id="main")
    checks = (
        ask("size", of="#side", width=wide), ask("place", of="#side", left=0, top=0, bottom=0), ask("place", of="#main", left=wide, top=0, right=0, bottom=0),
        ask("steps", of=".entry", dx=0, dy=step), ask("holds", of="#side", texts=[entries]), ask("holds", of="#main", texts=[[head]]),
        ask("fill", of="#side", colours=[tone]), ask("same", of=entries, what=["left"]),
    )  # fmt: skip
    return Layout(
        asks=(
            f'An element with id "side" ({tone}) is {wide} pixels wide and as high as the window, at its left edge; an element with id "main" ({c.back}) takes all the rest.',
            f"In the bar, one below the other and flush left, {n} elements of class \"entry\" say " + ", ".join(f'"{e}"' for e in entries) + f"; each begins {step} pixels lower than the one before.",
            f'"main" has the heading "{head}".',
        ),
        texts=(head, *entries),
        windows=(Window(FIRST, checks), Window(WIDE, checks)),
        reference=page(css + flex, div(inner, id="side") + main),
        alternative=page(css + away, div(placed, id="side") + main),
        spoilt=(("size", f"0 0 {wide}px", f"0 0 {wide + 20}px"), ("steps", f"gap: {step - 24}px", f"gap: {step - 20}px"), ("place", "#main { flex: 1;", "#main { flex: 0 0 60%;")),
    )  # fmt: skip


def frame(pen: Pen) -> Layout:
    """Head and foot of fixed height, the middle takes the rest."""
    top, foot, c = pen.of(72, 88, 96), pen.of(48, 56), pen.colours
    (one, two), (head, line, end) = pen.tones(2), (pen.title(), pen.sentence(), pen.title())
    css = f"#head {{ background: {one}; color: {c.on} }} #foot {{ background: {two}; color: {c.on} }} #body {{ background: {c.back}; color: {c.ink} }} h1 {{ font-size: 30px }}"
    grid = f" body {{ display: grid; grid-template-rows: {top}px 1fr {foot}px }} #head, #body, #foot {{ display: grid; place-items: center }}"
    away = (
        f" #head {{ {at(0, 0, '100%', top)} }} #foot {{ {at(0, 'auto', '100%', foot, 'bottom:0')} }} #body {{ {at(0, top, '100%', f'calc(100% - {top + foot}px)')} }}"
        f" #head, #body, #foot {{ text-align: center }} #head {{ line-height: {top}px }} #foot {{ line-height: {foot}px }} #body p {{ position: absolute; left: 0; right: 0; top: calc(50% - 12px); line-height: 24px }}"
    )
    body = div(tag("h1", text=head), id="head") + div(tag("p", text=line), id="body") + div(tag("p", text=end), id="foot")
    checks = (
        ask("size", of="#head", height=top), ask("size", of="#foot", height=foot), ask("place", of="#head", left=0, top=0, right=0),
        ask("place", of="#body", left=0, top=top, right=0, bottom=foot), ask("place", of="#foot", left=0, right=0, bottom=0),
        ask("centred", of=[head], within="#head", near=3.0), ask("centred", of=[line], within="#body", near=3.0), ask("centred", of=[end], within="#foot", near=3.0),
    )  # fmt: skip
    return Layout(
        asks=(
            f'Three elements fill the window from the top to the bottom, each as wide as it is: "head" ({one}, {top} pixels high), "body" ({c.back}, all the rest), "foot" ({two}, {foot} pixels); the names are ids.',
            f'In the middle of each, both ways (within 3 pixels), stands its text in one line: "{head}", "{line}", "{end}".',
        ),
        texts=(head, line, end),
        windows=(Window(FIRST, checks), Window((1100, 900), checks)),
        reference=page(css + grid, body),
        alternative=page(css + away, body),
        spoilt=(("size", f"{top}px 1fr", f"{top + 8}px 1fr"), ("place", "1fr", "200px"), ("centred", "place-items: center", "place-items: center start")),
    )  # fmt: skip


def split(pen: Pen) -> Layout:
    """Two panels that share the window in a stated ratio."""
    part, c = pen.of(0.618, 0.382, 0.25, 0.7), pen.colours
    (one, two), (a, b) = pen.tones(2), (pen.title(), pen.title())
    css = f"#left {{ background: {one} }} #right {{ background: {two} }} h2 {{ font-size: 28px; color: {c.on} }}"
    flex = f" body {{ display: flex }} #left, #right {{ display: flex; align-items: center; justify-content: center; flex: {1 - part:.3f} }} #left {{ flex: {part} }}"
    away = (
        f" #left {{ {at(0, 0, f'{part:.1%}', '100%')} }} #right {{ {at(f'{part:.1%}', 0, f'{1 - part:.1%}', '100%')} }}"
        " h2 { position: absolute; left: 0; right: 0; top: calc(50% - 18px); line-height: 36px; text-align: center }"
    )
    body = div(tag("h2", text=a), id="left") + div(tag("h2", text=b), id="right")
    checks = (
        ask("fraction", of="#left", within="page", axis="x", value=part), ask("fraction", of="#right", within="page", axis="x", value=1 - part),
        ask("fraction", of="#left", within="page", axis="y", value=1), ask("same", of=["#left", "#right"], what=["top", "height"]),
        ask("centred", of=[a], within="#left", near=3.0), ask("centred", of=[b], within="#right", near=3.0), ask("palette", colours=[one, two]),
    )  # fmt: skip
    return Layout(
        asks=(
            f'Two elements with the ids "left" ({one}) and "right" ({two}) fill the window side by side; "left" takes {part:.1%} of its width. There is no other colour besides that of letters.',
            f'In the middle of each, both ways (within 3 pixels), stands its heading: "{a}" and "{b}".',
        ),
        texts=(a, b),
        windows=(Window(FIRST, checks), Window((1440, 600), checks)),
        reference=page(css + flex, body),
        alternative=page(css + away, body),
        spoilt=(("fraction", f"#left {{ flex: {part} }}", f"#left {{ flex: {part + 0.08:.3f} }}"), ("palette", "h2 {", "h2 { background: #777777;"), ("centred", "align-items: center", "align-items: flex-end")),
    )  # fmt: skip


def checker(pen: Pen) -> Layout:
    """A board of squares in two colours."""
    n, c = pen.of(3, 4, 5), pen.colours
    (one, two), cell = pen.tones(2), {3: 180, 4: 150, 5: 120}[n]
    names = [f"{'ABCDE'[k % n]}{k // n + 1}" for k in range(n * n)]
    colours = [(one, two)[(k % n + k // n) % 2] for k in range(n * n)]
    css = f"{slide(pen)} .cell {{ width: {cell}px; height: {cell}px; color: {c.on}; padding: 8px }}"
    grid = f" #slide {{ display: grid; grid-template-columns: repeat({n}, {cell}px); place-content: center }}"
    x = f"calc(50% - {n * cell / 2:g}px + {{}}px)"
    cells = "".join(div(tag("p", text=a), class_="cell", style=f"background:{t}") for a, t in zip(names, colours, strict=True))
    placed = "".join(
        div(tag("p", text=a), class_="cell", style=at(x.format(k % n * cell), x.format(k // n * cell), "", "", f"background:{t}"))
        for k, (a, t) in enumerate(zip(names, colours, strict=True))
    )
    checks = (
        ask("count", of=".cell", n=n * n), ask("grid", of=".cell", columns=n, gap_x=0, gap_y=0), ask("aspect", of=".cell", ratio=1.0), ask("size", of=".cell", width=cell),
        ask("fill", of=".cell", colours=colours), ask("holds", of=".cell", texts=[[a] for a in names]), ask("centred", of=[".cell"], within="page"),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'In its middle lies a board of {n} by {n} squares without gaps, elements of class "cell", {cell} by {cell} pixels.',
            f"Their colours alternate like those of a chess-board, {one} in the upper left corner, then {two}. Each holds its name: columns are letters from A, rows numbers from 1, so the first row is {', '.join(names[:n])}.",
        ),
        texts=tuple(names),
        windows=(Window(FIRST, checks), Window((1280, 800), checks)),
        reference=page(css + grid, div(cells, id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("grid", "place-content: center", "place-content: center; gap: 4px"), ("aspect", f"height: {cell}px", f"height: {cell - 8}px"), ("fill", f"background:{one}", f"background:{two}")),
    )  # fmt: skip


def badges(pen: Pen) -> Layout:
    """Cards with a number on the corner: the one thing that may lie on another."""
    n, wide, gap, c = pen.of(3, 4), 220, pen.of(40, 56), pen.colours
    tones, dot, high = pen.tones(n + 1), pen.of(40, 48), 240
    names, numbers = [pen.title() for _ in range(n)], [str(k) for k in pen.rng.sample(range(10, 100), n)]
    badge = tones.pop()
    css = f"{slide(pen)} .card {{ width: {wide}px; height: {high}px; padding: 40px 16px; color: {c.on} }} .badge {{ width: {dot}px; height: {dot}px; background: {badge}; color: {c.on}; border-radius: 50%; text-align: center; line-height: {dot}px }}"
    flex = f" #slide {{ display: flex; gap: {gap}px; align-items: center; justify-content: center }} .holder {{ position: relative }} .badge {{ position: absolute; right: -{dot / 2:g}px; top: -{dot / 2:g}px }}"
    cards = [
        (div(tag("h2", text=a), class_="card", style=f"background:{t}"), div(text=k, class_="badge"))
        for a, k, t in zip(names, numbers, tones, strict=True)
    ]
    total = n * wide + (n - 1) * gap
    placed = "".join(
        div(
            tag("h2", text=a),
            class_="card",
            style=at(
                f"calc(50% - {total / 2:g}px + {k * (wide + gap)}px)", f"calc(50% - {high / 2:g}px)", "", "", f"background:{t}"
            ),
        )
        + div(
            text=m,
            class_="badge",
            style=at(
                f"calc(50% - {total / 2:g}px + {k * (wide + gap) + wide - dot / 2:g}px)", f"calc(50% - {(high + dot) / 2:g}px)"
            ),
        )
        for k, (a, m, t) in enumerate(zip(names, numbers, tones, strict=True))
    )
    checks = (
        ask("count", of=".card", n=n), ask("count", of=".badge", n=n), ask("corner", of=".badge", on=".card"), ask("gaps", of=[".card"], axis="x", px=gap),
        ask("size", of=".card", width=wide, height=high), ask("size", of=".badge", width=dot, height=dot), ask("same", of=[".card"], what=["top"]),
        ask("holds", of=".card", texts=[[a] for a in names]), ask("holds", of=".badge", texts=[[k] for k in numbers]), ask("fill", of=".badge", colours=[badge] * n),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'{n} elements of class "card", {wide} by {high} pixels, stand in a row, {gap} pixels apart, with the headings ' + ", ".join(f'"{a}"' for a in names) + ".",
            f'On the upper right corner of each lies the middle of an element of class "badge" ({badge}, round, {dot} by {dot} pixels) with its number: {", ".join(numbers)}. A badge is not inside of its card\'s element. The colours of the cards are yours, but not {badge}.',
        ),
        texts=(*names, *numbers),
        windows=(Window(FIRST, checks),),
        reference=page(css + flex, div("".join(div(card + b, class_="holder") for card, b in cards), id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("corner", f"right: -{dot / 2:g}px; top: -{dot / 2:g}px", "right: 4px; top: 4px"), ("gaps", f"gap: {gap}px", f"gap: {gap - 7}px"), ("size", f"width: {dot}px; height: {dot}px", f"width: {dot}px; height: {dot + 5}px")),
        over=(".badge",),
    )  # fmt: skip


def offers(pen: Pen) -> Layout:
    """Three columns, the middle one stands out."""
    wide, low, more, gap, c = 280, pen.of(360, 400), pen.of(60, 80), pen.of(24, 32), pen.colours
    tones, names = pen.tones(2), [pen.title() for _ in range(3)]
    prices, lines = [f"{k} coins" for k in pen.rng.sample(range(10, 90), 3)], [pen.sentence() for _ in range(3)]
    css = f"{slide(pen)} .offer {{ width: {wide}px; height: {low}px; padding: 24px; background: {tones[0]}; color: {c.on} }} #best {{ height: {low + more}px; background: {tones[1]} }} .price {{ font-size: 32px }}"
    inner = [
        tag("h2", text=a) + tag("p", text=b, class_="price") + tag("p", text=s)
        for a, b, s in zip(names, prices, lines, strict=True)
    ]
    ids = ["", "best", ""]
    flex = f" #slide {{ display: flex; justify-content: center; align-items: center; gap: {gap}px }}"
    made = "".join(div(i, class_="offer", id=k) for i, k in zip(inner, ids, strict=True))
    placed = "".join(
        div(
            i,
            class_="offer",
            id=k,
            style=at(f"calc(50% + {(n - 1) * (wide + gap) - wide / 2:g}px)", f"calc(50% - {(low + (more if k else 0)) / 2:g}px)"),
        )
        for n, (i, k) in enumerate(zip(inner, ids, strict=True))
    )
    checks = (
        ask("count", of=".offer", n=3), ask("size", of="#best", height=low + more), ask("size", of=".offer", width=wide), ask("same", of=[".offer"], what=["middle_y"]),
        ask("gaps", of=[".offer"], axis="x", px=gap), ask("centred", of=[".offer"], within="page"), ask("centred", of=["#best"], within="page"),
        ask("holds", of="#best", texts=[[names[1], prices[1], lines[1]]]), ask("balance", most=0.06),
        ask("ladder", levels=[prices, lines], ratio=1.6), ask("fill", of="#best", colours=[tones[1]]),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'Three elements of class "offer", {wide} pixels wide and {gap} pixels apart, stand in the middle of the window; their middles are on one line.',
            f'Each is {low} pixels high and {tones[0]}, but the middle one, with id "best", is {low + more} pixels high and {tones[1]}.',
            "They hold, from the left to the right: " + "; ".join(f'"{a}", "{b}", "{s}"' for a, b, s in zip(names, prices, lines, strict=True)) + ". The letters of the prices have one size, at least 1.6 times that of the sentences, which have one size too.",
        ),
        texts=(*names, *prices, *lines),
        windows=(Window(FIRST, checks),),
        reference=page(css + flex, div(made, id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("size", f"#best {{ height: {low + more}px", f"#best {{ height: {low + more - 20}px"), ("same", "align-items: center", "align-items: flex-start"), ("ladder", "font-size: 32px", "font-size: 22px"), ("fill", f"background: {tones[1]}", f"background: {tones[0]}")),
    )  # fmt: skip


def table(pen: Pen) -> Layout:
    """Words flush left, numbers flush right, rows at equal steps."""
    n, step = pen.of(4, 5, 6), pen.of(56, 64)
    rows = [
        (pen.title(), str(pen.rng.randint(2, 9) * 10 ** pen.rng.randint(0, 3)), str(pen.rng.randint(100, 99999)))
        for _ in range(n)
    ]
    while len({v for r in rows for v in r}) < 3 * n:
        rows = [(a, str(int(b) + k), str(int(d) + 7 * k)) for k, (a, b, d) in enumerate(rows)]
    widths = (pen.of(300, 340), pen.of(160, 180), 200)
    css = f"{slide(pen)} td {{ text-align: right; padding: 0; height: {step}px; vertical-align: middle; line-height: 24px }} td.word {{ text-align: left }}"
    made = tag(
        "table",
        "".join(
            tag(
                "tr",
                tag("td", text=a, class_="word", style=f"width:{widths[0]}px")
                + "".join(tag("td", text=b, style=f"width:{w}px") for b, w in ((r[0], widths[1]), (r[1], widths[2]))),
            )
            for a, *r in rows
        ),
    )
    total = sum(widths)
    lines = "".join(
        tag(
            "p",
            text=r[k],
            style=at(
                f"calc(50% - {total / 2:g}px + {sum(widths[:k])}px)",
                80 + i * step,
                widths[k],
                "",
                f"text-align:{'left' if k == 0 else 'right'};line-height:24px",
            ),
        )
        for i, r in enumerate(rows)
        for k in range(3)
    )
    checks = (
        ask("same", of=[r[0] for r in rows], what=["left"]), ask("same", of=[r[1] for r in rows], what=["right"]), ask("same", of=[r[2] for r in rows], what=["right"]),
        *(ask("same", of=list(r), what=["middle_y"]) for r in rows), ask("steps", of=[r[0] for r in rows], dx=0, dy=step),
        ask("distance", of=[rows[0][1], rows[0][2]], what="right", px=widths[2]),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), "It shows a table without rules or frames, each value in an element of its own:",
            "; ".join(" | ".join(f'"{v}"' for v in r) for r in rows) + ".",
            f"Words are flush left, the numbers of a column flush right; the right edges of the two columns of numbers are {widths[2]} pixels apart. The values of a row are level (their middles on one line), and each row is {step} pixels lower than the one before.",
        ),
        texts=tuple(v for r in rows for v in r),
        windows=(Window(FIRST, checks),),
        reference=page(css + " table { border-collapse: collapse; margin: 60px auto 0 }", div(made, id="slide", style="padding-top:1px")),
        alternative=page(css, div(lines, id="slide")),
        spoilt=(("same", "td { text-align: right", "td { text-align: center"), ("steps", f"height: {step}px", f"height: {step - 6}px"), ("distance", f"width:{widths[2]}px", f"width:{widths[2] + 30}px")),
    )  # fmt: skip
