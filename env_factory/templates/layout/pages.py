"""What layout templates are made of: a pen that draws words, numbers and colours from a seed, and pages as HTML text.

A template is one function `(pen) -> Layout`: the sentences of the order, the checks, a reference page, another honest page that
is built in another way (absolute positions or a table where the first is flex or grid), and changes to the reference that break
what the template is about. Nothing is rendered here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from env_factory.templates.words import SPLITS
from sandboxes.layout import Asked

FIRST = (1280, 720)
"""The window in which every page is judged."""
STAGE = "position:relative;width:100%;height:100%"
EDGES = {"left": 0, "top": 0, "right": 0, "bottom": 0}
WIDE = (1600, 900)
"""A second window."""


class Colours(NamedTuple):
    """Colours that go together; every text on its ground has a contrast of 4.5 or more."""

    back: str
    ink: str
    """Text on `back`."""
    tones: tuple[str, str, str, str, str]
    on: str
    """Text on any of the tones."""


COLOURS = (
    Colours("#14213d", "#ffffff", ("#fca311", "#8ecae6", "#e5e5e5", "#95d5b2", "#ffd6a5"), "#101418"),
    Colours("#fdf6e3", "#1f2933", ("#264653", "#6d2e46", "#1d3557", "#2f5d3a", "#5a3e2b"), "#ffffff"),
    Colours("#f4f7fb", "#10243e", ("#cfe3ff", "#ffe2c2", "#d7f2dc", "#eadcff", "#ffd9e2"), "#10243e"),
    Colours("#22272e", "#f0f3f6", ("#96d0ff", "#f6c177", "#8ddb8c", "#e2b6ff", "#ff938a"), "#0d1117"),
    Colours("#ffffff", "#222222", ("#0b5394", "#38761d", "#990000", "#5b3a8c", "#7f4b00"), "#ffffff"),
    Colours("#e9f2ec", "#173a1e", ("#1b5e3a", "#0f4c5c", "#7a2e2e", "#3d348b", "#5f4b00"), "#ffffff"),
)
_VERBS = ("holds", "meets", "keeps", "finds", "moves", "lifts", "paints", "guards", "follows", "carries")
_PLACES = ("near the", "behind the", "above the", "under the", "beside the", "before the")


class Pen:
    """Draws from one seed. No word comes twice, so that no text is part of another."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.colours = rng.choice(COLOURS)
        self._words = list(SPLITS[split])
        rng.shuffle(self._words)

    def word(self) -> str:
        """A fresh noun."""
        return self._words.pop()

    def title(self) -> str:
        """Two words for a heading."""
        return f"{self.word().capitalize()} and {self.word()}"

    def sentence(self) -> str:
        """Eight words that mean little."""
        one, two = self.word(), self.word()
        return f"The {one} {self.rng.choice(_VERBS)} the {two} {self.rng.choice(_PLACES)} {self.word()}."

    def of(self, *values: Any) -> Any:
        """One of these."""
        return self.rng.choice(values)

    def tones(self, count: int) -> list[str]:
        """So many colours in a random order; neighbours differ."""
        order = self.rng.sample(self.colours.tones, len(self.colours.tones))
        return [order[i % len(order)] for i in range(count)]


class Window(NamedTuple):
    """A size of the window and what must hold in it, besides what holds for every page."""

    size: tuple[int, int]
    checks: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """One sampled order and the ways to fulfil it."""

    asks: tuple[str, ...]
    """Sentences about this page, after those that hold for every page."""
    texts: tuple[str, ...]
    windows: tuple[Window, ...]
    """The first is FIRST; a second one has checks of its own."""
    reference: str
    alternative: str
    spoilt: tuple[tuple[str, str, str], ...]
    """(check that must notice, text of the reference, what takes its place)."""
    px: int = 16
    """Least size of letters."""
    over: tuple[str, ...] = ()
    """Classes that are asked to lie on others."""


Template = Callable[[Pen], Layout]


def ask(kind: str, **params: Any) -> Asked:
    """One check."""
    return Asked(kind=kind, params=params)


def page(css: str, body: str) -> str:
    """A page whose style begins from nothing."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Page</title>\n<style>\n'
        "* { box-sizing: border-box; margin: 0; padding: 0 }\nhtml, body { height: 100% }\nbody { font: 18px/1.3 sans-serif }\n"
        f"{css.strip()}\n</style></head>\n<body>\n{body.strip()}\n</body></html>\n"
    )


def tag(name: str, inside: str = "", *, text: str = "", style: str = "", **attributes: str) -> str:
    """An element: its text (escaped), then what is inside."""
    given = {key.rstrip("_"): value for key, value in attributes.items() if value}
    if style:
        given["style"] = style
    spelled = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    return f"<{name}{spelled}>{escape(text, quote=False)}{inside}</{name}>"


def div(inside: str = "", **attributes: str) -> str:
    """A div."""
    return tag("div", inside, **attributes)


def at(x: str | float, y: str | float, width: str | float = "", height: str | float = "", more: str = "") -> str:
    """The style of an absolute position; numbers are pixels."""
    parts = [("left", x), ("top", y), ("width", width), ("height", height)]
    spelled = [f"{name}:{value if isinstance(value, str) else f'{value:g}px'}" for name, value in parts if value != ""]
    return ";".join(["position:absolute", *spelled, *([more] if more else [])])


def slide(pen: Pen) -> str:
    """Style of a slide that fills the window."""
    return f"#slide {{ {STAGE}; background: {pen.colours.back}; color: {pen.colours.ink} }}"


def fills(pen: Pen) -> str:
    """The sentence that asks for it."""
    return f'An element with id "slide" fills the window; it is {pen.colours.back}.'
