"""Layout environments: the agent writes a web page, a browser draws it, the host judges what is seen.

`make(template, seed, split)` is a pure function to a `Layout`, `draft` wraps it up: the order in prose, a plan of checks that stays
on the host (`sandboxes/layout.py`), a reference page as the solution, another honest page built differently, and pages that cheat.
Nothing is rendered here. The idea of judging slides by rendered, verifiable measures is AeSlides' (arXiv 2604.22840); measures and
templates are our own.
"""

# ruff: noqa: E501 - a page's style is easier to read in one line

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from html import escape
from typing import Any

from env_factory.templates.layout import boards, figures, screens, slides
from env_factory.templates.layout.pages import FIRST, Layout, Pen, Template, div, page, tag
from env_factory.templates.words import SPLITS
from gymsmith.errors import ConfigError
from gymsmith.schema import Draft, Source, TaskSpec, ToolSpec
from sandboxes import layout as rendering
from sandboxes.layout import Plan, View, with_every

PAGE = "/work/index.html"
CONTRAST = 4.5
"""WCAG 2.2, AA."""
TEMPLATES: Mapping[str, Template] = {
    template.__name__: template
    for template in (
        slides.cards, slides.tiles, slides.stage, slides.ladder, slides.quote,
        figures.bars, figures.plan, figures.timeline, figures.stairs, figures.pyramid, figures.hub,
        screens.sidebar, screens.frame, screens.split, screens.checker, screens.badges, screens.offers, screens.table,
        boards.mosaic, boards.kanban, boards.stack, boards.swatches, boards.corners, boards.columns, boards.facts, boards.team,
    )
}  # fmt: skip
"""By the name that an order gives: layout:NAME."""
_END = "END_OF_PAGE"
_TEST = f"""#!/bin/sh
# The page is drawn and judged by the host, see tests/layout.json; without it there is no reward, so none is written here.
if [ -f {PAGE} ] && [ ! -L {PAGE} ] && [ -s {PAGE} ]; then echo PASS page; else echo FAIL page; fi
"""


def make(template: str, seed: int, split: str = "train") -> Layout:
    """The order of these three coordinates; the same arguments give the same one on every machine.

    Raises: ConfigError: unknown template or split.
    """
    if template not in TEMPLATES:
        raise ConfigError(f"expected a layout template out of {', '.join(sorted(TEMPLATES))}, got {template!r}")
    if split not in SPLITS:
        raise ConfigError(f"expected a split out of {sorted(SPLITS)}, got {split!r}")
    return TEMPLATES[template](Pen(random.Random(f"layout/{template}/{seed}/{split}"), split))


def instruction(order: Layout) -> str:
    """What the agent reads."""
    sizes = " and again in one of ".join(f"{w.size[0]} by {w.size[1]} pixels" for w in order.windows)
    over = f" (elements of class {', '.join(name[1:] for name in order.over)} excepted)" if order.over else ""
    rules = (
        f"Write one web page to {PAGE}, HTML with its style inside. It is judged as a browser draws it in a window of {sizes}.",
        "It consists of text and flat boxes: scripts do not run and nothing is loaded; no pictures, SVG, canvas, frames or form fields, "
        "no gradients, and no transform, zoom, filter, mask, clip, blend or animation; overflow stays visible, and nothing comes from "
        "::before or ::after.",
        "Every text in quotation marks, and every name and number that the page is asked to show, stands there once, exactly as it is "
        "written here without the marks, in an element of its own; there is no other text. All of it can be read: letters of at least "
        f"{order.px} pixels, a contrast of {CONTRAST:g} to 1 or more.",
        f"Nothing sticks out of the window or of the coloured box around it, and nothing lies on something that it is not inside of{over}. "
        "Where nothing else is said, positions and sizes may be off by one pixel.",
    )
    return "\n\n".join([*rules, "\n".join(f"- {sentence}" for sentence in order.asks)]) + "\n"


def plan(order: Layout) -> Plan:
    """What is checked in which window."""
    views = []
    for window in order.windows:
        ignored: dict[str, Any] = {"ignore": [name for name in order.over]} if order.over else {}
        every: dict[str, dict[str, Any]] = {
            "texts": {"texts": list(order.texts)},
            "legible": {"px": order.px, "contrast": CONTRAST},
            "fits": ignored,
            "apart": ignored,
        }
        views.append(View(width=window.size[0], height=window.size[1], checks=with_every(window.checks, **every)))
    return Plan(page=PAGE, views=tuple(views))


def draft(template: str, seed: int, split: str = "train") -> Draft:
    """One order as a draft of the factory. Raises: ConfigError: see `make`."""
    order = make(template, seed, split)
    asked = plan(order)
    files = {
        "environment/Dockerfile": b"FROM gymsmith/host\nWORKDIR /work\nRUN chown 1000:1000 /work\n",
        "tests/test.sh": _TEST.encode(),
        rendering.MEMBER: rendering.member(asked),
        "solution/solve.sh": write(order.reference).encode(),
    }
    pages = [*tricks(order), *spoilt(order)]
    return Draft(
        source=Source(uri=f"layout:{template}", kind="parametric", licence="Apache-2.0", meta={"seed": str(seed)}),
        spec=TaskSpec(
            name=f"gymsmith/layout-{template}-{seed}-{split.replace('_', '-')}",
            kind="layout",
            description=(TEMPLATES[template].__doc__ or "").split("\n")[0],
            keywords=("layout", "html", template),
            labels={"family": template, "seed": str(seed), "split": split},
            tool=ToolSpec(name="shell", timeout_s=20.0),
            artifacts=(PAGE,),
            expected=("page", *rendering.test_ids(asked)),
            memory_mb=128,
            pids=32,
        ),
        instruction=instruction(order),
        files=files,
        alternatives=(write(order.alternative),),
        cheats=tuple((name, write(html)) for name, html in pages),
        executable=frozenset(("tests/test.sh", "solution/solve.sh")),
    )


def write(html: str) -> str:
    """A script that writes a page."""
    return f"#!/bin/sh\ncat > {PAGE} <<'{_END}'\n{html}{_END}\n"


def spoilt(order: Layout) -> list[tuple[str, str]]:
    """The reference with one thing wrong, named for the check that has to notice.

    Raises: AssertionError: a change of the template does not occur in its reference.
    """
    pages = []
    for number, (kind, old, new) in enumerate(order.spoilt, start=1):
        assert old in order.reference and old != new, f"spoilt {kind}: {old!r} is not in the reference page"
        pages.append((f"spoilt-{number}-{kind}", order.reference.replace(old, new, 1)))
    return pages


def tricks(order: Layout) -> list[tuple[str, str]]:
    """Pages that want the reward without the page: by name of the trick."""
    words = "h1, h2, p, td, div"
    styled = {
        "text-off-screen": "h1, h2, p, td { position: relative; left: -5000px }",
        "text-indented-away": "h1, h2, p, td { text-indent: -5000px }",
        "overflow-hidden": "div { overflow: hidden } h1, h2, p, td { font-size: 90px; white-space: nowrap }",
        "overflow-clipped": "html, body, div, p { overflow: clip } h1, h2, p, td { font-size: 120px }",
        "tiny-letters": f"{words} {{ font-size: 7px !important; line-height: 1 !important }}",
        "tiny-first-line": f"{', '.join(f'{word}::first-line' for word in words.split(', '))} {{ font-size: 7px }}",
        "letters-of-no-colour": "h1, h2, p, td, div { color: transparent !important }",
        "letters-hardly-there": "h1, h2, p, td { opacity: .09 }",
        "zoomed": "body { zoom: .5; width: 200vw; height: 200vh }",
        "scaled": "body { transform: scale(.5); transform-origin: 0 0; width: 200vw; height: 200vh }",
        "covered": "html::after { content: ''; position: fixed; inset: 0; background: #fff }",
        "clipped": "h1, h2, p, td { clip-path: inset(0 0 100% 0) }",
    }
    pages = [(name, order.reference.replace("</style>", f"{css}\n</style>")) for name, css in styled.items()]
    style, _, body = order.reference.partition("</style></head>")
    css, inner = style.partition("<style>")[2], body.removeprefix("\n<body>\n").removesuffix("</body></html>\n")
    said = [tag("p", text=text) for text in order.texts]
    wide, high = FIRST
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}"><foreignObject width="{wide}" height="{high}">'
        f'<body xmlns="http://www.w3.org/1999/xhtml"><style>{css}</style>{inner}</body></foreignObject></svg>'
    )
    lines = "".join(f'<text x="40" y="{40 + 30 * i}">{escape(text)}</text>' for i, text in enumerate(order.texts))
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}">{lines}</svg>'
    painted = "".join(f"g.fillText({json.dumps(text)},40,{40 + 30 * i});" for i, text in enumerate(order.texts))
    told = " ".join(order.texts)
    pages += [
        ("picture", page("img { display: block }", f'<img alt="{escape(told)}" src="data:image/svg+xml,{escape(svg)}">')),
        ("drawing", page("svg { display: block }", drawing)),
        ("canvas", page("", f'<canvas id="c" width="{wide}" height="{high}"></canvas><script>const g=c.getContext("2d");{painted}</script>')),
        ("frame", page("iframe { border: 0; width: 100%; height: 100% }", f'<iframe srcdoc="{escape(order.reference)}"></iframe>')),
        ("comment-and-title", page("", f"<!-- {told.replace('--', '')} -->").replace("<title>Page", f"<title>{escape(told)}")),
        ("fields", page("", "".join(f"<textarea readonly>{escape(text)}</textarea>" for text in order.texts))),
        ("generated-text", page("p::before { content: attr(title) }", "".join(f'<p title="{escape(t)}"></p>' for t in order.texts))),
        ("script-that-knows-its-judge", page(css, f"<script>if (innerWidth === {wide}) document.write({json.dumps(inner)})</script>")),
        (
            "scroll-height-lies",
            page(
                css + " body { padding-top: 900px }",
                f"{inner}<script>for (const n of ['scrollHeight','clientHeight']) Object.defineProperty(Element.prototype,n,{{get:()=>{high}}})</script>",
            ),
        ),
        ("words-without-a-layout", page("", "".join(said))),
        ("boxes-without-words", order.reference.partition("</head>")[0] + "</head>\n<body>\n" + _silent(inner, order.texts) + "</body></html>\n"),
        ("words-twice", page(css, inner + div("".join(said), style="position:absolute;left:-4000px"))),
    ]  # fmt: skip
    return pages


def _silent(inner: str, texts: tuple[str, ...]) -> str:
    for text in texts:
        inner = inner.replace(f">{escape(text, quote=False)}<", "><")
    return inner
