"""A rendered page as a layout check asks for it: elements by name, texts by what they say, and where something is.

`Seen` wraps the `Metrics` of one rendering. A named element (`#id`, `.class`) counts when it can be seen and paints something or
holds text; asking for one that does not raises `Missing`, whose message is what the agent's page lacks. Lengths are CSS pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from sandboxes.browser.result import Box, Metrics, Rect, Text

NEAR_PX = 1.5
"""Rounding and borders differ by less than this."""
TILES = (64, 36)
"""Columns and rows of the grid on which occupied area is counted."""


class Missing(Exception):
    """The page has not what a check is about; says what was expected and what is there."""


class Seen:
    """One rendering, read-only."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.page = Rect(0, 0, metrics.width, metrics.height)
        self.texts = [text for text in metrics.texts if text.visible]
        self.painted = [
            i for i, box in enumerate(metrics.boxes) if box.visible and box.painted and box.tag not in ("html", "body")
        ]

    def named(self, name: str) -> list[Box]:
        """The visible elements called `#id` or `.class`, in reading order (rows from the top, each from the left)."""
        kind, word = name[:1], name[1:]
        found = [
            box
            for box in self.metrics.boxes
            if box.visible and (box.id == word if kind == "#" else word in box.classes.split()) and box.rect.area > 0
        ]
        if not found:
            raise Missing(f"expected an element {name} that paints something, there is none")
        if kind == "#" and len(found) > 1:
            raise Missing(f"expected one element {name}, there are {len(found)}")
        return reading_order(found)

    def rects(self, name: str) -> list[Rect]:
        """Where the elements of a name are."""
        return [box.rect for box in self.named(name)]

    def one(self, name: str) -> Rect:
        """Where the one element of this name is; "page" is the viewport."""
        if name == "page":
            return self.page
        found = self.rects(name)
        if len(found) != 1:
            raise Missing(f"expected one element {name}, there are {len(found)}")
        return found[0]

    def text(self, said: str) -> Text:
        """The one visible text that says exactly this."""
        found = [text for text in self.texts if text.text == said]
        if len(found) != 1:
            raise Missing(f"expected the text {said[:60]!r} once in an element of its own, it is there {len(found)} times")
        return found[0]

    def where(self, names: Sequence[str]) -> list[Rect]:
        """Rectangles of texts that say this, else of "page", `#id` and `.class` (all of them)."""
        said = {text.text for text in self.texts}
        found: list[Rect] = []
        for name in names:
            if name in said or (name[:1] not in ("#", ".") and name != "page"):
                found.append(self.text(name).rect)
            else:
                found += [self.page] if name == "page" else self.rects(name)
        return found

    def above(self, index: int) -> Iterator[int]:
        """Recorded ancestors of a box, the nearest first."""
        index = self.metrics.boxes[index].parent
        while index >= 0:
            yield index
            index = self.metrics.boxes[index].parent

    def home(self, text: Text) -> Iterator[int]:
        """The box of a text and those around it."""
        if text.box >= 0:
            yield text.box
            yield from self.above(text.box)

    def clashes(self, but: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
        """Pairs of things on one another that are not inside one another: painted elements, texts.

        but: classes (".name") of elements that may lie on others, with what is inside of them.
        """
        boxes, free = self.metrics.boxes, {name[1:] for name in but}
        loose = {i for i, box in enumerate(boxes) if free & set(box.classes.split())}
        around = {i: frozenset(self.above(i)) for i in self.painted}
        painted = [i for i in self.painted if i not in loose and not around[i] & loose]
        for i, j in combinations(painted, 2):
            if i not in around[j] and j not in around[i] and meet(boxes[i].rect, boxes[j].rect):
                yield label(boxes[i]), label(boxes[j])
        texts = [text for text in self.texts if not loose & set(self.home(text))]
        for text in texts:
            inside = frozenset(self.home(text))
            for i in painted:
                if i not in inside and meet(text.rect, boxes[i].rect):
                    yield repr(text.text[:40]), label(boxes[i])
        for a, b in combinations(texts, 2):
            if a.box != b.box and meet(a.rect, b.rect, 3.0):
                yield repr(a.text[:40]), repr(b.text[:40])

    def occupied(self) -> list[list[bool]]:
        """Which tiles of the page something stands on: a text, or a painted element that holds a text and no other such one."""
        holding = {next((i for i in self.home(text) if i in set(self.painted)), -1) for text in self.texts}
        outer = {i for inner in holding if inner >= 0 for i in self.above(inner)}
        whole = 0.9 * self.page.area
        rects = [self.metrics.boxes[i].rect for i in holding - outer if i >= 0 and self.metrics.boxes[i].rect.area < whole]
        rects += [text.rect for text in self.texts]
        columns, rows = TILES
        width, height = self.page.width / columns, self.page.height / rows
        tiles = [[False] * columns for _ in range(rows)]
        for rect in rects:
            for row in range(max(0, int(rect.y / height)), min(rows, int((rect.y + rect.height) / height) + 1)):
                for column in range(max(0, int(rect.x / width)), min(columns, int((rect.x + rect.width) / width) + 1)):
                    tiles[row][column] = True
        return tiles


def reading_order(boxes: Sequence[Box]) -> list[Box]:
    """Rows from the top, each from the left; what begins within half of the lowest height of a row's first belongs to it."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: (box.rect.y, box.rect.x)):
        if rows and box.rect.y - rows[-1][0].rect.y < min(box.rect.height, rows[-1][0].rect.height) / 2:
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: box.rect.x)]


def meet(one: Rect, other: Rect, near: float = NEAR_PX) -> bool:
    """Whether both cover more than a border's width of the same place."""
    common = one.meet(other)
    return min(common.width, common.height) > near


def label(box: Box) -> str:
    """An element as a person would point at it."""
    return f"{box.tag}{'#' + box.id if box.id else ''}{'.' + '.'.join(box.classes.split()) if box.classes else ''}"


def largest_empty(tiles: Sequence[Sequence[bool]]) -> float:
    """Area of the largest rectangle of free tiles, as a fraction of all."""
    columns, best = len(tiles[0]), 0
    heights = [0] * columns
    for row in tiles:
        heights = [0 if taken else height + 1 for taken, height in zip(row, heights, strict=True)]
        for start in range(columns):
            lowest = heights[start]
            for end in range(start, columns):
                lowest = min(lowest, heights[end])
                if not lowest:
                    break
                best = max(best, lowest * (end - start + 1))
    return best / (len(tiles) * columns)
