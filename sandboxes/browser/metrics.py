"""From what the page scripts saw to `Metrics`: which text can be seen, what overlaps, what does not fit.

Pure functions of two JSON objects: `seen` (metrics.js, of the document) and `pixels` (pixels.js, of two screenshots). Text counts
as visible only when it leaves ink: the difference between the screenshot and the same one with every glyph transparent.
"""

from __future__ import annotations

from typing import Any

from sandboxes.browser.result import WIDE, Box, Empty, Metrics, Overflow, Overlap, Rect, Shade, Text

TOLERANCE_PX = 1.0
"""Borders and rounding stick out by less than this."""
LAYERS = 4
"""Texts that lie on one another are told apart to this depth."""
CONSIDERED, REPORTED = 400, 1000
"""Boxes compared for overlaps, in document order, and overlaps named at most."""


def measure(seen: dict[str, Any], pixels: dict[str, Any]) -> Metrics:
    """The metrics of a page."""
    width, height = seen["viewport"]
    content_width, content_height = seen["content"]
    boxes = [_box(row, fill) for row, fill in zip(seen["boxes"], pixels["fills"], strict=True)]
    texts = [_text(row, ink) for row, ink in zip(seen["texts"], pixels["seen"], strict=True)]
    aspect = content_width / max(content_height, 1)
    return Metrics(
        width=width,
        height=height,
        content_width=content_width,
        content_height=content_height,
        aspect=round(aspect, 4),
        wide=abs(aspect / WIDE - 1) <= 0.01,
        title=seen["title"],
        boxes=tuple(boxes),
        texts=tuple(texts),
        overlaps=tuple(overlaps(boxes)),
        overflows=tuple(overflows(boxes, seen["boxes"], texts, Rect(0, 0, width, height))),
        empty=Empty(
            fraction=round(pixels["empty"], 4), background=round(pixels["background"], 4), largest=Rect(*pixels["largest"])
        ),
        palette=tuple(_shade(row) for row in pixels["palette"]),
        effects=seen["effects"],
        truncated=seen["truncated"],
    )


def layers(rows: list[dict[str, Any]]) -> list[list[int]]:
    """Texts (by index) in groups, in none of which two lie at the same place: so the ink there is known to be theirs.

    One group for a page without text on text. A text that is hidden for another reason is in none. Text that would need more than
    LAYERS groups is marked hidden ("heaped").
    """
    groups: list[set[int]] = [set()]
    for index, row in enumerate(rows):
        if row["hidden"]:
            continue
        free = next((group for group in groups if group.isdisjoint(row["on"])), None)
        if free is not None:
            free.add(index)
        elif len(groups) < LAYERS:
            groups.append({index})
        else:
            row["hidden"] = "heaped"
    return [sorted(group) for group in groups]


def pixel_query(rows: list[dict[str, Any]], groups: list[list[int]]) -> list[dict[str, Any]]:
    """What pixels.js needs to know of each text."""
    shot = {index: number + 1 for number, group in enumerate(groups) for index in group} if len(groups) > 1 else {}
    return [
        {
            "shot": shot.get(index, 0),
            "lines": [] if row["hidden"] else row["lines"],
            "colour": None if row["gradient"] else row["colour"],
            "opacity": row["opacity"],
            "count": len(row["text"]),
        }
        for index, row in enumerate(rows)
    ]


def overlaps(boxes: list[Box]) -> list[Overlap]:
    """Pairs of visible elements with content, neither an ancestor of the other, that share at least four square pixels."""
    shown = [
        (index, box)
        for index, box in enumerate(boxes[:CONSIDERED])
        if box.visible and (box.text or box.replaced or box.painted) and box.rect.area > 0
    ]
    shown.sort(key=lambda pair: pair[1].rect.x)
    found: list[Overlap] = []
    for position, (index, box) in enumerate(shown):
        right = box.rect.x + box.rect.width
        for other_index, other in shown[position + 1 :]:
            if other.rect.x >= right or len(found) == REPORTED:
                break
            common = box.rect.meet(other.rect)
            if min(common.width, common.height) <= TOLERANCE_PX or common.area < 4:
                continue
            if _inside(boxes, index, other_index) or _inside(boxes, other_index, index):
                continue
            first, second = sorted((index, other_index))
            smaller = min(box.rect.area, other.rect.area)
            found.append(
                Overlap(first=first, second=second, area=round(common.area, 2), fraction=round(common.area / smaller, 4))
            )
    return sorted(found, key=lambda overlap: (overlap.first, overlap.second))


def overflows(boxes: list[Box], rows: list[dict[str, Any]], texts: list[Text], page: Rect) -> list[Overflow]:
    """What sticks out of the page, of its parent or of its own box, and what is cut off."""
    found: list[Overflow] = []
    for index, (box, row) in enumerate(zip(boxes, rows, strict=True)):
        if not box.visible or box.rect.area == 0:
            continue
        out = box.rect.beyond(page)
        if out > TOLERANCE_PX and box.tag not in ("html", "body"):
            found.append(Overflow(box=index, where="page", pixels=round(out, 2)))
        above = boxes[box.parent] if box.parent >= 0 else None
        if above is not None and above.tag not in ("html", "body") and above.rect.area > 0:
            out = box.rect.beyond(above.rect)
            if out > TOLERANCE_PX:
                found.append(Overflow(box=index, where="parent", pixels=round(out, 2)))
        if max(row["cut"]) > TOLERANCE_PX and box.tag not in ("html", "body"):
            found.append(Overflow(box=index, where="cut", pixels=float(max(row["cut"]))))
    for text in texts:
        home = boxes[text.box] if text.box >= 0 else None
        if home is not None and home.text and home.rect.area > 0 and text.rect.area > 0 and home.tag not in ("html", "body"):
            out = text.rect.beyond(home.rect)
            # line boxes of tight line heights are taller than their element; what matters is text out of the side
            if out > max(TOLERANCE_PX, 0.5 * text.font_px):
                found.append(Overflow(box=text.box, where="text", pixels=round(out, 2)))
    return found


def _box(row: dict[str, Any], fill: list[float] | None) -> Box:
    kept = {name: row[name] for name in Box.model_fields if name not in ("rect", "fill")}
    return Box(rect=Rect(*row["rect"]), fill=None if fill is None else _shade(fill), **kept)


def _shade(row: list[float]) -> Shade:
    return Shade(int(row[0]), int(row[1]), int(row[2]), round(row[3], 4))


def _text(row: dict[str, Any], ink: dict[str, Any]) -> Text:
    lines = [Rect(*line) for line in row["lines"]]
    left, top = min((line.x for line in lines), default=0.0), min((line.y for line in lines), default=0.0)
    right = max((line.x + line.width for line in lines), default=0.0)
    bottom = max((line.y + line.height for line in lines), default=0.0)
    # the declared colour against the real background, as WCAG has it, unless something between the two makes it much weaker
    contrast = ink["measured"] if ink["measured"] < ink["declared"] / 2 else ink["declared"]
    hidden = row["hidden"] or _unseen(row["text"], ink, contrast)
    large = row["font"] >= 24 or (row["bold"] and row["font"] >= 18.66)
    return Text(
        box=row["box"],
        text=row["text"],
        rect=Rect(left, top, round(right - left, 2), round(bottom - top, 2)),
        visible=not hidden,
        hidden=hidden,
        fraction=round(ink["fraction"], 4),
        contrast=round(contrast, 2) if ink["fraction"] else None,
        readable=not hidden and contrast >= (3.0 if large else 4.5),
        font_px=row["font"],
        line_px=round(min((line.height for line in lines), default=0.0), 2),
        lines=len({round(line.y) for line in lines}),
        bold=row["bold"],
    )


def _unseen(text: str, ink: dict[str, Any], contrast: float) -> str:
    if not ink["fraction"]:
        return "unpainted"
    if ink["height"] < 4 and any(letter.isalnum() for letter in text):
        return "tiny"
    if contrast < 1.3:
        return "contrast"
    return "cut" if ink["fraction"] < 0.5 else ""


def _inside(boxes: list[Box], inner: int, outer: int) -> bool:
    """Whether `outer` is an ancestor of `inner`. Parents stand before their children."""
    while inner > outer:
        inner = boxes[inner].parent
    return inner == outer
