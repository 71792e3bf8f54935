"""The vocabulary of layout tasks: what can be asked of a rendered page.

Each check is a function of `Seen` and of parameters that a task states as JSON; it returns what is wrong, or "". The five of
`EVERY` hold for any honest page (no trick, the asked texts and no others, legible, inside of the page, nothing on one another); a
template adds those that make it what it is. What is measured, and why a page cannot talk it into something else, is the matter of
`browser/metrics.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from sandboxes.browser.result import Rect, Shade
from sandboxes.layout_seen import NEAR_PX, Missing, Seen, label, largest_empty

Check = Callable[..., str]
REPLACED_ALLOWED = frozenset({"hr", "button"})
COLOUR_STEP = 4
"""How far a channel may be from what was asked."""
EVERY = ("plain", "texts", "legible", "fits", "apart")


def plain(seen: Seen) -> str:
    """Text and flat boxes alone: nothing by which what is measured and what is seen can differ."""
    metrics = seen.metrics
    if metrics.effects:
        return "; ".join(f"{name} on {element}" for name, element in sorted(metrics.effects.items())) + ": not allowed"
    pictures = [label(box) for box in metrics.boxes if box.replaced and box.tag not in REPLACED_ALLOWED]
    if pictures:
        return f"expected text and boxes alone, got {', '.join(pictures[:5])}"
    return "the page has more elements than are measured" if metrics.truncated else ""


def texts(seen: Seen, texts: Sequence[str]) -> str:
    """Exactly these can be read, each once and in an element of its own, and no text is hidden."""
    wanted, got = Counter(texts), Counter(text.text for text in seen.texts)
    if lacking := sorted((wanted - got).elements()):
        return f"cannot be read: {lacking[0][:80]!r} and {len(lacking) - 1} more"
    if extra := sorted((got - wanted).elements()):
        return f"not asked for: {extra[0][:80]!r} and {len(extra) - 1} more"
    hidden = next((text for text in seen.metrics.texts if not text.visible), None)
    return "" if hidden is None else f"hidden ({hidden.hidden}): {hidden.text[:80]!r}"


def legible(seen: Seen, px: float, contrast: float) -> str:
    """Letters of at least this size, contrast of at least this ratio (WCAG 2.2), as they are drawn."""
    for text in seen.texts:
        if min(text.font_px, text.line_px) < px - 0.01:
            return f"letters must be at least {px:g} px, got {min(text.font_px, text.line_px):g}: {text.text[:60]!r}"
        if text.contrast is None or text.contrast < contrast:
            return f"contrast must be at least {contrast:g}, got {text.contrast}: {text.text[:60]!r}"
    return ""


def fits(seen: Seen, ignore: Sequence[str] = ()) -> str:
    """Nothing sticks out of the page, out of a painted element around it, or has to be scrolled to; `ignore` names classes."""
    metrics, boxes = seen.metrics, seen.metrics.boxes
    if metrics.content_width > metrics.width + 1 or metrics.content_height > metrics.height + 1:
        return f"expected all within {metrics.width}x{metrics.height}, got {metrics.content_width}x{metrics.content_height}"
    painted = frozenset(seen.painted)
    for i in seen.painted:
        around = next((boxes[a].rect for a in seen.above(i) if a in painted), seen.page)
        if boxes[i].rect.beyond(around) > NEAR_PX and not any(name in label(boxes[i]) for name in ignore):
            return f"{label(boxes[i])} sticks out by {boxes[i].rect.beyond(around):g} px"
    for text in seen.texts:
        around = next((boxes[a].rect for a in seen.home(text) if a in painted), seen.page)
        if text.rect.beyond(around) > NEAR_PX:
            return f"{text.text[:60]!r} sticks out by {text.rect.beyond(around):g} px"
    return ""


def apart(seen: Seen, ignore: Sequence[str] = ()) -> str:
    """Nothing lies on something else that it is not inside of; `ignore` names classes that are asked to."""
    return next((f"{one} and {other} cover each other" for one, other in seen.clashes(ignore)), "")


def count(seen: Seen, of: str, n: int) -> str:
    """So many elements of a name."""
    got = len(seen.named(of))
    return "" if got == n else f"expected {n} of {of}, got {got}"


def size(seen: Seen, of: str, width: float | None = None, height: float | None = None, near: float = NEAR_PX) -> str:
    """Every one is so wide and so high."""
    for rect in seen.rects(of):
        for wanted, got, word in ((width, rect.width, "wide"), (height, rect.height, "high")):
            if wanted is not None and abs(got - wanted) > near:
                return f"{of} must be {wanted:g} px {word}, got {got:g}"
    return ""


def aspect(seen: Seen, of: str, ratio: float, near: float = 0.01) -> str:
    """Width over height of every one."""
    got = next((r.width / r.height for r in seen.rects(of) if abs(r.width / r.height / ratio - 1) > near), None)
    return "" if got is None else f"{of} must have width : height {ratio:.3f}, got {got:.3f}"


def largest(seen: Seen, of: str, within: str = "page") -> str:
    """As large as its proportions allow: it touches both sides of what is around it, in one direction."""
    rect, around = seen.one(of), seen.one(within)
    free = min(abs(around.width - rect.width), abs(around.height - rect.height))
    return "" if free <= 2 * NEAR_PX else f"{of} must reach from edge to edge, {free:g} px are free"


def place(seen: Seen, of: str, within: str = "page", near: float = NEAR_PX, **edges: float) -> str:
    """Distances (left, top, right, bottom) of a text, or of all elements of a name together, to the edges of what is around."""
    rect, around = _around(seen.where([of])), seen.one(within)
    got = {
        "left": rect.x - around.x,
        "top": rect.y - around.y,
        "right": around.x + around.width - rect.x - rect.width,
        "bottom": around.y + around.height - rect.y - rect.height,
    }
    for edge, wanted in edges.items():
        if abs(got[edge] - wanted) > near:
            return f"{of} must be {wanted:g} px from the {edge}, got {got[edge]:g}"
    return ""


_MEASURES: Mapping[str, Callable[[Rect], float]] = {
    "left": lambda r: r.x,
    "right": lambda r: r.x + r.width,
    "top": lambda r: r.y,
    "bottom": lambda r: r.y + r.height,
    "width": lambda r: r.width,
    "height": lambda r: r.height,
    "middle_x": lambda r: r.x + r.width / 2,
    "middle_y": lambda r: r.y + r.height / 2,
}


def same(seen: Seen, of: Sequence[str], what: Sequence[str], near: float = NEAR_PX) -> str:
    """Elements or texts that share edges, middles or sizes."""
    rects = seen.where(of)
    for measure in what:
        values = [_MEASURES[measure](rect) for rect in rects]
        if max(values) - min(values) > near:
            return f"{', '.join(of)[:80]} must share {measure}, got {min(values):g} to {max(values):g}"
    return ""


def gaps(seen: Seen, of: Sequence[str], axis: str, px: float | None = None, least: float = 0.0, near: float = NEAR_PX) -> str:
    """Neighbours along an axis are this far from one another, or, without px, all equally far and at least `least`."""
    rects = sorted(seen.where(of), key=lambda r: r.x if axis == "x" else r.y)
    got = [b.x - a.x - a.width if axis == "x" else b.y - a.y - a.height for a, b in pairwise(rects)]
    if not got:
        return f"expected neighbours in {of}, there is one alone"
    wanted = px if px is not None else sum(got) / len(got)
    if wanted < least - near:
        return f"gaps must be at least {least:g} px, got {wanted:g}"
    wrong = next((gap for gap in got if abs(gap - wanted) > near), None)
    return "" if wrong is None else f"gaps of {', '.join(of)[:60]} along {axis} must be {wanted:g} px, got {wrong:g}"


def grid(seen: Seen, of: str, columns: int, gap_x: float | None = None, gap_y: float | None = None) -> str:
    """Rows of `columns` equal boxes, aligned both ways, the last row perhaps shorter."""
    rects = seen.rects(of)
    rows = [rects[i : i + columns] for i in range(0, len(rects), columns)]
    if wrong := same(seen, [of], ["width", "height"]):
        return wrong
    for row in rows:
        for rect, head, first in zip(row, rows[0], [row[0]] * len(row), strict=False):
            if abs(rect.y - first.y) > NEAR_PX or abs(rect.x - head.x) > NEAR_PX:
                return f"{of} must stand in rows of {columns}; one at {rect.x:g},{rect.y:g} is out of line"
    for wanted, pairs in (
        (gap_x, [b.x - a.x - a.width for row in rows for a, b in pairwise(row)]),
        (gap_y, [b[0].y - a[0].y - a[0].height for a, b in pairwise(rows)]),
    ):
        wanted = wanted if wanted is not None else (pairs[0] if pairs else 0.0)
        if wrong_gap := next((f"{gap:g}" for gap in pairs if abs(gap - wanted) > NEAR_PX or gap < -NEAR_PX), ""):
            return f"gaps in the grid of {of} must be {wanted:g} px, got {wrong_gap}"
    return ""


def holds(seen: Seen, of: str, texts: Sequence[Sequence[str]]) -> str:
    """The first element of a name, in reading order, has the first texts inside, the second the second, and so on."""
    rects = seen.rects(of)
    if len(rects) != len(texts):
        return f"expected {len(texts)} of {of}, got {len(rects)}"
    for number, (rect, said) in enumerate(zip(rects, texts, strict=True), start=1):
        for each in said:
            if seen.text(each).rect.beyond(rect) > NEAR_PX:
                return f"{each[:60]!r} must stand in number {number} of {of}"
    return ""


def fill(seen: Seen, of: str, colours: Sequence[str], share: float = 0.5) -> str:
    """The colour of each, in reading order, as the screenshot has it."""
    boxes = seen.named(of)
    if len(boxes) != len(colours):
        return f"expected {len(colours)} of {of}, got {len(boxes)}"
    for number, (box, colour) in enumerate(zip(boxes, colours, strict=True), start=1):
        if box.fill is None or not _is(box.fill, colour) or box.fill.share < share:
            return f"number {number} of {of} must be {colour}, got {_hex(box.fill)}"
    return ""


def palette(seen: Seen, colours: Sequence[str], least: float = 0.97, each: float = 0.005) -> str:
    """The page is painted in these colours and no others, and each of them can be seen."""
    shades = seen.metrics.palette
    found = {colour: sum(shade.share for shade in shades if _is(shade, colour)) for colour in colours}
    if lacking := next((colour for colour, share in found.items() if share < each), ""):
        return f"{lacking} must take at least {each:.1%} of the page, got {found[lacking]:.1%}"
    stranger = next((shade for shade in shades if shade.share > 0.004 and not any(_is(shade, c) for c in colours)), None)
    if stranger is not None or sum(found.values()) < least:
        return f"expected the colours {', '.join(colours)} alone, got {_hex(stranger)} besides"
    return ""


def empty(seen: Seen, most: float) -> str:
    """No free rectangle takes more of the page than this."""
    got = largest_empty(seen.occupied())
    return "" if got <= most else f"the largest empty area must be at most {most:.0%} of the page, got {got:.0%}"


def balance(seen: Seen, most: float) -> str:
    """The middle of all that is there is near the middle of the page; fractions of its width and height."""
    tiles = seen.occupied()
    taken = [(c + 0.5, r + 0.5) for r, row in enumerate(tiles) for c, there in enumerate(row) if there]
    if not taken:
        return "the page is empty"
    x, y = (sum(p[k] for p in taken) / len(taken) for k in (0, 1))
    off = max(abs(x / len(tiles[0]) - 0.5), abs(y / len(tiles) - 0.5))
    return "" if off <= most else f"the weight of the page must be within {most:.0%} of its middle, it is {off:.0%} off"


def margin(seen: Seen, px: float, within: str = "page") -> str:
    """Every text, and every painted element that is not around all of it, keeps this far from the edges."""
    around = seen.one(within)
    inner = Rect(around.x + px, around.y + px, around.width - 2 * px, around.height - 2 * px)
    boxes = [seen.metrics.boxes[i] for i in seen.painted]
    things = [(repr(text.text[:40]), text.rect) for text in seen.texts]
    things += [(label(box), box.rect) for box in boxes if around.beyond(box.rect) > NEAR_PX]
    wrong = next((name for name, rect in things if rect.beyond(inner) > NEAR_PX), "")
    return f"{wrong} must keep {px:g} px from the edges" if wrong else ""


def centred(seen: Seen, of: Sequence[str], within: str, axis: str = "xy", near: float = 2.0) -> str:
    """The rectangle around all of these has its middle where that of the other one is."""
    rect, around = _around(seen.where(of)), seen.one(within)
    for name in axis:
        middle = _MEASURES[f"middle_{name}"]
        if abs(off := middle(rect) - middle(around)) > near:
            return f"{', '.join(of)[:60]} must be centred along {name} in {within}, off by {off:g} px"
    return ""


def beyond(seen: Seen, of: str, than: str, side: str, least: float = 0.0) -> str:
    """A text, or elements, on one side (above, below, before, after) of another element, at least so far from it."""
    rect, other = _around(seen.where([of])), seen.one(than)
    got = {
        "above": other.y - rect.y - rect.height,
        "below": rect.y - other.y - other.height,
        "before": other.x - rect.x - rect.width,
        "after": rect.x - other.x - other.width,
    }[side]
    return "" if got >= least - NEAR_PX else f"{of[:60]!r} must be {least:g} px {side} {than}, got {got:g}"


def ladder(seen: Seen, levels: Sequence[Sequence[str]], ratio: float) -> str:
    """Texts of one level have letters of one size, and each level's are larger than the next one's by this factor."""
    sizes = [[seen.text(said).font_px for said in level] for level in levels]
    if any(max(level) - min(level) > 0.5 for level in sizes):
        return f"texts of one level must have one size, got {[sorted(set(level)) for level in sizes]}"
    wrong = next(((a[0], b[0]) for a, b in pairwise(sizes) if a[0] < b[0] * ratio - 0.01), None)
    return "" if wrong is None else f"a level must be {ratio:g} times the next one, got {wrong[0]:g} and {wrong[1]:g} px"


def lines(seen: Seen, of: Sequence[str], least: int = 1, most: int = 1) -> str:
    """In how many lines texts are set."""
    wrong = next((text for text in map(seen.text, of) if not least <= text.lines <= most), None)
    return "" if wrong is None else f"expected {least} to {most} lines, got {wrong.lines}: {wrong.text[:60]!r}"


def measure(seen: Seen, of: str, least: float, most: float) -> str:
    """Characters to a line of a running text."""
    text = seen.text(of)
    got = len(text.text) / text.lines
    return "" if least <= got <= most else f"expected {least:g} to {most:g} characters to a line, got {got:.0f}"


def proportion(seen: Seen, of: str, axis: str, values: Sequence[float], near: float = 0.02) -> str:
    """Widths (x) or heights (y), in reading order along the other axis, are to one another as these values."""
    rects = sorted(seen.rects(of), key=(lambda r: r.x) if axis == "y" else (lambda r: r.y))
    got = [r.width if axis == "x" else r.height for r in rects]
    if len(got) != len(values):
        return f"expected {len(values)} of {of}, got {len(got)}"
    scale = sum(got) / sum(values)
    wrong = next(((g, v) for g, v in zip(got, values, strict=True) if abs(g - v * scale) > near * max(got) + NEAR_PX), None)
    return "" if wrong is None else f"{of} must be as {list(values)}: expected {wrong[1] * scale:.0f} px, got {wrong[0]:.0f}"


def ratio(seen: Seen, of: Sequence[str], axis: str, value: float, near: float = 0.03) -> str:
    """Width (x) or height (y) of the first over that of the second."""
    one, other = ((rect.width if axis == "x" else rect.height) for rect in seen.where(of))
    return "" if abs(one / other / value - 1) <= near else f"{', '.join(of)} must be as {value:.2f} to 1, got {one / other:.2f}"


def fraction(seen: Seen, of: str, within: str, axis: str, value: float, near: float = 0.01) -> str:
    """How much of another one's width (x) or height (y) every one takes."""
    around = seen.one(within)
    for rect in seen.rects(of):
        got = rect.width / around.width if axis == "x" else rect.height / around.height
        if abs(got - value) > near:
            return f"{of} must take {value:.3f} of {within} along {axis}, got {got:.3f}"
    return ""


def steps(seen: Seen, of: str | Sequence[str], dx: float | None = None, dy: float | None = None, near: float = NEAR_PX) -> str:
    """Each begins this much further right and lower than the one before (None: equal steps); a name's from the left."""
    rects = sorted(seen.rects(of), key=lambda r: (r.x, r.y)) if isinstance(of, str) else seen.where(of)
    moves = [(b.x - a.x, b.y - a.y) for a, b in pairwise(rects)]
    for wanted, axis in ((dx, 0), (dy, 1)):
        aim = wanted if wanted is not None else moves[0][axis]
        if wrong := next((m for m in moves if abs(m[axis] - aim) > near), None):
            return f"{str(of)[:80]} must move on by {aim:g} px along {'xy'[axis]}, got {wrong[axis]:g}"
    return ""


def distance(seen: Seen, of: Sequence[str], what: str, px: float, near: float = NEAR_PX) -> str:
    """Between an edge or a middle of two things."""
    one, other = (_MEASURES[what](rect) for rect in seen.where(of))
    return "" if abs(other - one - px) <= near else f"{what} of {', '.join(of)[:80]} must be {px:g} px apart, got {other - one:g}"


def ring(seen: Seen, of: str, around: str, near: float = 3.0) -> str:
    """Middles at one distance from another one's middle, at equal angles."""
    hub = seen.one(around)
    x, y = hub.x + hub.width / 2, hub.y + hub.height / 2
    middles = [(r.x + r.width / 2 - x, r.y + r.height / 2 - y) for r in seen.rects(of)]
    far = [math.hypot(*m) for m in middles]
    if max(far) - min(far) > near or min(far) < hub.width / 2:
        return f"{of} must be equally far from {around}, got {min(far):.0f} to {max(far):.0f} px"
    turns = sorted(math.atan2(m[1], m[0]) for m in middles)
    each = 2 * math.pi / len(turns)
    wide = [b - a for a, b in pairwise([*turns, turns[0] + 2 * math.pi])]
    return "" if max(abs(w - each) for w in wide) * far[0] <= near else f"{of} must be at equal angles around {around}"


def corner(seen: Seen, of: str, on: str, near: float = 2.0) -> str:
    """The middle of each lies on the upper right corner of its partner, in reading order."""
    for number, (badge, card) in enumerate(zip(seen.rects(of), seen.rects(on), strict=False), start=1):
        off = max(abs(badge.x + badge.width / 2 - card.x - card.width), abs(badge.y + badge.height / 2 - card.y))
        if off > near:
            return f"number {number} of {of} must have its middle on the upper right corner of its {on}, off by {off:g} px"
    return ""


def mirror(seen: Seen, of: str, near: float = 2.0) -> str:
    """What stands left of the page's middle stands right of it as well, in a mirror."""
    middle, rects = seen.page.width / 2, seen.rects(of)
    for rect in rects:
        x = 2 * middle - rect.x - rect.width
        if not any(abs(x - o.x) <= near and abs(rect.y - o.y) <= near and abs(rect.width - o.width) <= near for o in rects):
            return f"one of {of} at {rect.x:g},{rect.y:g} has no counterpart in the mirror"
    return ""


def _around(rects: Sequence[Rect]) -> Rect:
    left, top = min(r.x for r in rects), min(r.y for r in rects)
    return Rect(left, top, max(r.x + r.width for r in rects) - left, max(r.y + r.height for r in rects) - top)


def _is(shade: Shade, colour: str) -> bool:
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return all(abs(a - b) <= COLOUR_STEP for a, b in zip(wanted, shade[:3], strict=True))


def _hex(shade: Shade | None) -> str:
    return "none" if shade is None else f"#{shade.red:02x}{shade.green:02x}{shade.blue:02x} ({shade.share:.0%})"


CHECKS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        plain, texts, legible, fits, apart, count, size, aspect, largest, place, same, gaps, grid, holds, fill, palette, empty,
        balance, margin, centred, beyond, ladder, lines, measure, proportion, ratio, fraction, steps, distance, ring, corner,
        mirror,
    )
}  # fmt: skip


def wrong(kind: str, seen: Seen, params: Mapping[str, Any]) -> str:
    """What one check finds wrong, or "". Raises: KeyError, TypeError: the task asks for a check that is not as it says."""
    try:
        return CHECKS[kind](seen, **params)
    except Missing as lack:
        return str(lack)
