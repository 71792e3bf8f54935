"""Layout templates, the figures: charts to scale, time lines, stairs, pyramids and rings, made of flat boxes.

Each function samples one order from a `Pen`; see `pages.py`.
"""

# ruff: noqa: E501 - a page's style is easier to read in one line

from __future__ import annotations

import math

from env_factory.templates.layout.pages import (
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


def stairs(pen: Pen) -> Layout:
    """Boxes that go down in equal steps."""
    n, dx, dy, wide, high, c = pen.of(4, 5), pen.of(180, 200), pen.of(90, 100), pen.of(160, 170), pen.of(70, 80), pen.colours
    names, tones = [pen.title() for _ in range(n)], pen.tones(n)
    css = f"{slide(pen)} .step {{ width: {wide}px; height: {high}px; padding: 8px; color: {c.on} }}"
    placed = "".join(
        div(tag("p", text=a), class_="step", style=at(80 + dx * k, 80 + dy * k, "", "", f"background:{t}"))
        for k, (a, t) in enumerate(zip(names, tones, strict=True))
    )
    flow = "".join(
        div(tag("p", text=a), class_="step", style=f"margin-left:{dx * k}px;background:{t}")
        for k, (a, t) in enumerate(zip(names, tones, strict=True))
    )
    checks = (
        ask("count", of=".step", n=n), ask("steps", of=".step", dx=dx, dy=dy), ask("size", of=".step", width=wide, height=high), ask("place", of=".step", left=80, top=80),
        ask("holds", of=".step", texts=[[a] for a in names]), ask("fill", of=".step", colours=tones),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'{n} elements of class "step", {wide} by {high} pixels, go down like stairs: the first begins 80 pixels from the left and from the top, each next one {dx} pixels further right and {dy} pixels lower.',
            "From the top they are: " + ", ".join(f'"{a}" ({t})' for a, t in zip(names, tones, strict=True)) + ".",
        ),
        texts=tuple(names),
        windows=(Window(FIRST, checks),),
        reference=page(css + f" #slide {{ padding: 80px; display: flex; flex-direction: column; gap: {dy - high}px }}", div(flow, id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("steps", f"margin-left:{dx}px", f"margin-left:{dx + 9}px"), ("place", "padding: 80px", "padding: 72px"), ("fill", f"background:{tones[0]}", f"background:{tones[1]}")),
    )  # fmt: skip


def pyramid(pen: Pen) -> Layout:
    """Tiers of growing width, one on the other."""
    n, unit, high, gap, c = pen.of(4, 5), pen.of(180, 200), pen.of(90, 100), pen.of(8, 12), pen.colours
    names, tones = [pen.title() for _ in range(n)], pen.tones(n)
    css = f"{slide(pen)} .tier {{ height: {high}px; color: {c.on}; text-align: center; line-height: {high}px }} p {{ white-space: nowrap; font-size: 16px }}"
    flex = f" #slide {{ display: flex; flex-direction: column; align-items: center; justify-content: center; gap: {gap}px }}"
    total = n * high + (n - 1) * gap
    made = "".join(
        div(tag("p", text=a), class_="tier", style=f"width:{unit * (k + 1)}px;background:{t}")
        for k, (a, t) in enumerate(zip(names, tones, strict=True))
    )
    placed = "".join(
        div(
            tag("p", text=a),
            class_="tier",
            style=at(
                f"calc(50% - {unit * (k + 1) / 2:g}px)",
                f"calc(50% - {total / 2:g}px + {k * (high + gap)}px)",
                unit * (k + 1),
                "",
                f"background:{t}",
            ),
        )
        for k, (a, t) in enumerate(zip(names, tones, strict=True))
    )
    checks = (
        ask("proportion", of=".tier", axis="x", values=list(range(1, n + 1))), ask("same", of=[".tier"], what=["middle_x", "height"]), ask("gaps", of=[".tier"], axis="y", px=gap),
        ask("mirror", of=".tier"), ask("holds", of=".tier", texts=[[a] for a in names]), ask("size", of=".tier", height=high), ask("fill", of=".tier", colours=tones),
    )  # fmt: skip
    return Layout(
        asks=(
            fills(pen), f'{n} elements of class "tier", {high} pixels high and {gap} pixels apart, stand one below the other, centred in the window from left to right; their widths are as 1 : 2 : ... : {n}, the uppermost at least 150 pixels.',
            "From the top they hold: " + ", ".join(f'"{a}" ({t})' for a, t in zip(names, tones, strict=True)) + ", each in one line.",
        ),
        texts=tuple(names),
        windows=(Window(FIRST, (*checks, ask("lines", of=names))),),
        reference=page(css + flex, div(made, id="slide")),
        alternative=page(css, div(placed, id="slide")),
        spoilt=(("proportion", f"width:{unit * n}px", f"width:{unit * n - 80}px"), ("same", "align-items: center", "align-items: flex-start"), ("gaps", f"gap: {gap}px", f"gap: {gap + 5}px")),
    )  # fmt: skip


def hub(pen: Pen) -> Layout:
    """Satellites around a hub at equal angles."""
    n, far, c = pen.of(5, 6, 8), pen.of(230, 250), pen.colours
    tones, names = pen.tones(2), [pen.word().capitalize() for _ in range(n + 1)]
    wide, high = 120, 60
    css = (
        f"{slide(pen)} #hub {{ left: calc(50% - 80px); top: calc(50% - 50px); width: 160px; height: 100px; background: {tones[0]}; line-height: 100px }} "
        f".node {{ width: {wide}px; height: {high}px; background: {tones[1]}; line-height: {high}px }} #hub, .node {{ position: absolute; color: {c.on}; text-align: center }}"
    )
    placed = "".join(
        div(
            tag("p", text=a),
            class_="node",
            style=f"left:calc(50% + {far * math.sin(2 * math.pi * k / n) - wide / 2:.2f}px);top:calc(50% - {far * math.cos(2 * math.pi * k / n) + high / 2:.2f}px)",
        )
        for k, a in enumerate(names[1:])
    )
    turned = "".join(div(tag("p", text=a), class_="node", style=f"--k:{k}") for k, a in enumerate(names[1:]))
    trig = f" .node {{ left: calc(50% - {wide / 2:g}px + {far}px * sin(360deg * var(--k) / {n})); top: calc(50% - {high / 2:g}px - {far}px * cos(360deg * var(--k) / {n})) }}"
    checks = (
        ask("count", of=".node", n=n), ask("ring", of=".node", around="#hub"), ask("centred", of=["#hub"], within="page"), ask("size", of=".node", width=wide, height=high),
        ask("holds", of="#hub", texts=[[names[0]]]), ask("fill", of=".node", colours=[tones[1]] * n), ask("same", of=["#hub", names[1]], what=["middle_x"], near=3.0),
    )  # fmt: skip
    body = div(tag("p", text=names[0]), id="hub")
    return Layout(
        asks=(
            fills(pen), f'In the middle of the window stands an element with id "hub" ({tones[0]}) with the word "{names[0]}".',
            f'Around it stand {n} elements of class "node" ({tones[1]}, {wide} by {high} pixels), their middles all equally far from that of the hub and at equal angles (within 3 pixels), one of them straight above it with the word "{names[1]}", the others in any order with ' + ", ".join(f'"{a}"' for a in names[2:]) + ".",
        ),
        texts=tuple(names),
        windows=(Window(FIRST, checks), Window((1280, 800), checks)),
        reference=page(css + trig, div(body + turned, id="slide")),
        alternative=page(css, div(body + placed, id="slide")),
        spoilt=(("ring", "--k:1", "--k:1.3"), ("size", f"height: {high}px; background", f"height: {high - 8}px; background"), ("centred", "left: calc(50% - 80px)", "left: calc(50% - 60px)")),
    )  # fmt: skip
