"""What goes into a rendering and what comes out: documents, and the words for how they looked.

Types only, and how they are read from files; no browser is imported. Lengths are CSS pixels (one to a screenshot's pixel), the
origin is the page's upper left corner, colours and contrast follow WCAG 2.2.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from gymsmith.errors import PolicyRefused
from gymsmith.schema import Word

MAX_FILES, MAX_BYTES = 500, 32 * 1024 * 1024
WIDE = 16 / 9

Status = Literal["ok", "stopped", "crashed", "failed"]
"""stopped: it was not done at its deadline, or flooded us with requests, dialogs or windows; its renderer was killed.
crashed: its renderer died, of a bug or for want of memory. failed: it could not be measured, it had left its document."""


class Document(Word):
    """A page and the only files that it may load, by path relative to it."""

    files: dict[str, bytes]
    entry: str = "index.html"
    width: int = 1280
    height: int = 720
    still: bool = False
    """Text and inline style alone: its scripts are not run, pictures, frames and fonts are not loaded."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.entry not in self.files:
            raise PolicyRefused(f"entry must be one of the files, got {self.entry!r}; there are {sorted(self.files)[:10]}")
        if len(self.files) > MAX_FILES or sum(map(len, self.files.values())) > MAX_BYTES:
            raise PolicyRefused(f"a document must have at most {MAX_FILES} files of {MAX_BYTES} bytes together, it has more")
        for name, value in (("width", self.width), ("height", self.height)):
            if not 16 <= value <= 4096:
                raise PolicyRefused(f"{name} must be between 16 and 4096 pixels, got {value}")
        return self

    @classmethod
    def of_html(cls, html: str, **size: Any) -> Document:
        """A page without other files."""
        return cls(files={"index.html": html.encode()}, **size)

    @classmethod
    def of_folder(cls, folder: Path, entry: str = "index.html", **size: Any) -> Document:
        """The regular files below a folder; links, pipes and devices in it are left out.

        Raises: PolicyRefused (too many or too large, or no such entry).
        """
        files: dict[str, bytes] = {}
        total = 0
        for top, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if not os.path.islink(os.path.join(top, name)))
            for name in sorted(names):
                path = os.path.join(top, name)
                content = _regular_file(path, MAX_BYTES - total)
                if content is not None:
                    total += len(content)
                    files[os.path.relpath(path, folder)] = content
                if len(files) > MAX_FILES:
                    raise PolicyRefused(f"{folder} must hold at most {MAX_FILES} files, it holds more")
        return cls(files=files, entry=entry, **size)


class Rect(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return max(self.width, 0.0) * max(self.height, 0.0)

    def meet(self, other: Rect) -> Rect:
        """What both cover; of area 0 when they do not meet."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.x + self.width, other.x + other.width), min(self.y + self.height, other.y + other.height)
        return Rect(x, y, max(0.0, right - x), max(0.0, bottom - y))

    def beyond(self, outer: Rect) -> float:
        """How far this sticks out of `outer`, on the side where it is worst."""
        right, bottom = self.x + self.width - outer.x - outer.width, self.y + self.height - outer.y - outer.height
        return max(outer.x - self.x, outer.y - self.y, right, bottom, 0.0)


class Shade(NamedTuple):
    """A colour of the picture without its text, sRGB 0 to 255."""

    red: int
    green: int
    blue: int
    share: float
    """Of the points that were looked at."""


class Box(Word):
    """An element that has text of its own, paints something, is an image or the like, or stands directly in the body."""

    parent: int
    """Index of the nearest recorded ancestor; -1: none."""
    tag: str
    id: str
    classes: str
    rect: Rect
    text: bool
    replaced: bool
    """An image, a canvas, a form field or another element whose content is not the page's."""
    painted: bool
    visible: bool
    positioned: bool
    fill: Shade | None = None
    """The commonest colour on a grid of points inside its rectangle; None: all of it is outside of the viewport."""


class Text(Word):
    """One text node."""

    box: int
    text: str
    rect: Rect
    visible: bool
    hidden: str = ""
    """Why not: opacity, hidden, no box, tiny, blurred, disguised, font, offscreen, unpainted, contrast, cut,
    heaped."""
    fraction: float = 0.0
    """How much of its length shows ink on the screenshot."""
    contrast: float | None = None
    """Contrast ratio between its colour and what is really behind it; None: no ink."""
    readable: bool = False
    """The contrast meets WCAG AA: 4.5, or 3 for large text."""
    font_px: float
    line_px: float = 0.0
    """Height of its lowest line as it is laid out: what ::first-line, zoom and transforms leave of font_px."""
    lines: int = 1
    bold: bool


class Overlap(Word):
    """Two elements, neither inside the other, that cover each other."""

    first: int
    second: int
    area: float
    fraction: float
    """Of the smaller one."""


class Overflow(Word):
    """Something that does not fit where it is."""

    box: int
    where: Literal["page", "parent", "cut", "text"]
    """Out of the page; out of its parent; content cut off by the element's own edge; text out of its own element."""
    pixels: float


class Empty(Word):
    """Where nothing is, from the pixels: tiles of one colour."""

    fraction: float
    background: float
    """Fraction of tiles in the commonest colour."""
    largest: Rect
    """Largest rectangle of tiles of the same colour."""


class Metrics(Word):
    """How a page is laid out and what can be seen of it."""

    width: int
    height: int
    content_width: int
    """With everything that can be scrolled to."""
    content_height: int
    aspect: float
    """Of the content."""
    wide: bool
    """The content's aspect is 16:9, within one percent."""
    title: str
    boxes: tuple[Box, ...]
    texts: tuple[Text, ...]
    overlaps: tuple[Overlap, ...]
    overflows: tuple[Overflow, ...]
    empty: Empty
    palette: tuple[Shade, ...] = ()
    """Colours without any text, the commonest first, at most 24."""
    effects: dict[str, str] = Field(default_factory=dict)
    """Style by which what is measured and what is seen can differ, with the first element that has it: transform, zoom, filter,
    clip, mask, blend, picture, overflow (other than visible), animation, spacing, generated (::before, ::after)."""
    truncated: bool
    """The page has more elements than are measured."""

    @property
    def visible_text(self) -> str:
        """What a reader sees, in document order."""
        return " ".join(text.text for text in self.texts if text.visible)

    @property
    def hidden_characters(self) -> int:
        """Length of the text that is there and cannot be seen."""
        return sum(len(text.text) for text in self.texts if not text.visible)


class Refusal(Word):
    """A request that was not served."""

    url: str
    kind: str


class Rendered(Word):
    """One rendering. What the page did wrong is data here; an exception means that it was not rendered through our own fault."""

    status: Status
    cause: str = ""
    png: bytes = Field(default=b"", exclude=True, repr=False)
    """The viewport, at one pixel to a CSS pixel. Not part of the JSON; `png_sha256` is."""
    png_sha256: str = ""
    metrics: Metrics | None = None
    """None where they were not asked for, or the status is not ok."""
    refused: tuple[Refusal, ...] = ()
    refused_count: int = 0
    dialogs: int = 0
    popups: int = 0
    isolation: Literal["namespace", "none"]
    renderer: str
    """Browser version and fonts. Screenshots are byte-identical only where this is the same."""
    seconds: float

    def report(self) -> dict[str, Any]:
        """As JSON values, without the picture."""
        return self.model_dump(mode="json")


def _regular_file(path: str, most: int) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        content = file.read(most + 1)
    if len(content) > most:
        raise PolicyRefused(f"a document must have at most {MAX_BYTES} bytes, with {path} it has more")
    return content
