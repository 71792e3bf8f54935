"""Packs documents into rows: best fit, longest first, every token exactly once.

Best-fit decreasing puts each document into the row with the least room that still holds it (Ding et al., 2024, arXiv
2404.10830). Documents longer than a row are cut into pieces of a row's length first. Inside a row documents do not see each
other: positions restart and the attention mask follows `documents`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORE = -100
"""Target of a position that predicts nothing."""


@dataclass(slots=True)
class Item:
    """One document or trajectory segment on its way into a row; all arrays (T,).

    `weights[t]` weighs the prediction *of* token t; the first token of an item is never predicted.
    """

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Per-token values that travel along: logprobs, advantages."""


@dataclass(slots=True)
class Batch:
    """Packed rows (B, T). Position t predicts `targets[b, t]`, the next token of its document."""

    ids: Tensor
    targets: Tensor
    """IGNORE at the end of documents, on padding and where the weight is zero."""
    weights: Tensor
    positions: Tensor
    documents: Tensor
    """Index of the document within the call to `pack`, -1 on padding."""
    extra: dict[str, Tensor]
    """Aligned with `targets`: the value that belongs to the predicted token."""
    names: tuple[str, ...] = ()
    """What document i is called, for messages."""

    def to(self, device: torch.device) -> Batch:
        """The same batch there."""
        names = ("ids", "targets", "weights", "positions", "documents")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, **moved, extra={name: t.to(device) for name, t in self.extra.items()})

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents >= 0).sum())

    @property
    def trained(self) -> int:
        """Positions with a target."""
        return int((self.targets != IGNORE).sum())


def best_fit(lengths: Sequence[int] | NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Rows of document indices. Ties go to the lower index and the older row, so the result depends on the lengths alone.

    Raises:
        ValueError: a length below one or above the capacity.
    """
    order, starts = best_fit_rows(np.asarray(lengths, np.int64), capacity)
    flat = order.tolist()
    return [flat[a:b] for a, b in pairwise(starts.tolist())]


def best_fit_rows(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`best_fit` as two arrays: row r holds documents `order[starts[r]:starts[r + 1]]`.

    Documents of one length are placed together and rows of one free room are filled together, found through a bitmap of the rooms
    that exist. The work grows with the distinct lengths and rooms, hardly with the documents.
    """
    if not len(lengths):
        return np.empty(0, np.int64), np.zeros(1, np.int64)
    wrong = np.flatnonzero((lengths > capacity) | (lengths < 1))
    if len(wrong):
        index = int(wrong[0])
        raise ValueError(f"document {index} has {lengths[index]} tokens, a row holds {capacity}; cut or drop it first")
    order = np.argsort(-lengths, kind="stable")
    values, firsts = np.unique(-lengths[order], return_index=True)
    edges = [*firsts.tolist(), len(order)]
    row_of = np.empty(len(order), np.int64)
    rooms: dict[int, list[NDArray[np.int64]]] = {}
    bits = rows = 0

    for length, at, end in zip((-values).tolist(), edges, edges[1:], strict=False):
        while at < end:
            fitting = bits >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                here = rooms.pop(room)
                bits ^= 1 << room
                found = np.sort(np.concatenate(here)) if len(here) > 1 else here[0]
            else:
                # No row has room: open as many as the rest of this length fills.
                room = capacity
                found = rows + np.arange(-(-(end - at) // (capacity // length)))
                rows += len(found)
            # A row stays the tightest fit until it holds no further one of this length.
            each = room // length
            placed = min(end - at, len(found) * each)
            whole, part = divmod(placed, each)
            used = whole + (part > 0)
            row_of[at : at + placed] = np.repeat(found[:used], each)[:placed]
            at += placed
            for left, members in (
                (room - each * length, found[:whole]),
                (room - part * length, found[whole:used]),
                (room, found[used:]),
            ):
                if left and len(members):
                    rooms.setdefault(left, []).append(members)
                    bits |= 1 << left
    by_row = np.argsort(row_of, kind="stable")
    return order[by_row], np.searchsorted(row_of[by_row], np.arange(rows + 1))


def cut(item: Item, capacity: int) -> list[Item]:
    """Pieces of at most `capacity` tokens; one piece when it fits."""
    starts = range(0, max(1, len(item.ids)), capacity)
    return [
        Item(item.ids[s : s + capacity], item.weights[s : s + capacity], {k: v[s : s + capacity] for k, v in item.extra.items()})
        for s in starts
    ]


def pack(rows: Sequence[Sequence[Item]], length: int) -> Batch:
    """Lay items out in rows of `length` tokens, in the order given."""
    items = [item for row in rows for item in row]
    names = sorted({name for item in items for name in item.extra})
    blank = np.zeros(0, np.float32)
    return lay_out(
        [[len(item.ids) for item in row] for row in rows],
        length,
        np.concatenate([blank.astype(np.int32), *(item.ids for item in items)]),
        np.concatenate([blank, *(item.weights for item in items)]),
        {
            name: np.concatenate([blank, *(item.extra.get(name, np.zeros(len(item.ids), np.float32)) for item in items)])
            for name in names
        },
    )


def lay_out(
    rows: Sequence[Sequence[int]],
    length: int,
    ids: NDArray[np.integer],
    weights: NDArray[np.float32],
    extra: Mapping[str, NDArray[np.float32]],
) -> Batch:
    """Rows of `length` positions from documents that lie end to end in `ids`; `rows` holds the documents' lengths."""
    lengths = np.asarray([n for row in rows for n in row], np.int64)
    ends = np.cumsum(lengths)
    document = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)
    # Shifted by one: what a position predicts. The last one of a document predicts nothing.
    live = np.zeros(len(ids), bool)
    live[:-1] = weights[1:] > 0
    live[ends - 1] = False
    target = np.full(len(ids), IGNORE, np.int64)
    target[:-1][live[:-1]] = ids[1:][live[:-1]]

    def place(values: NDArray[Any], fill: int, dtype: type) -> Tensor:
        out: NDArray[Any] = np.full((len(rows), length), fill, dtype)
        at = 0
        for r, row in enumerate(rows):
            n = sum(row)
            out[r, :n] = values[at : at + n]
            at += n
        return torch.from_numpy(out)

    def following(values: NDArray[np.float32]) -> NDArray[np.float32]:
        out = np.zeros(len(values), np.float32)
        out[:-1] = values[1:]
        out[ends - 1] = 0
        return out

    return Batch(
        place(ids, 0, np.int64),
        place(target, IGNORE, np.int64),
        place(following(weights), 0, np.float32),
        place(position, 0, np.int64),
        place(document, -1, np.int64),
        {name: place(following(values), 0, np.float32) for name, values in extra.items()},
    )
