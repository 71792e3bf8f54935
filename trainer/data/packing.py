"""Packs documents into rows: best fit, longest first, every token exactly once.

Best-fit decreasing puts each document into the row with the least room that still holds it (Ding et al., 2024, arXiv
2404.10830). Documents longer than a row are cut into pieces of a row's length first. Inside a row documents do not see each
other: positions restart and the attention mask follows `documents`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

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

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.documents >= 0).sum())

    @property
    def trained(self) -> int:
        """Positions with a target."""
        return int((self.targets != IGNORE).sum())


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of document indices. Ties go to the lower index and the older row, so the result depends on the lengths alone.

    Raises:
        ValueError: a length above the capacity.
    """
    room: list[tuple[int, int]] = []
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"document {index} has {length} tokens, a row holds {capacity}; cut it first")
        at = bisect_left(room, (length, -1))
        if at == len(room):
            left, row = capacity, len(rows)
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(index)
        if left > length:
            insort(room, (left - length, row))
    return rows


def cut(item: Item, capacity: int) -> list[Item]:
    """Pieces of at most `capacity` tokens; one piece when it fits."""
    starts = range(0, max(1, len(item.ids)), capacity)
    return [
        Item(item.ids[s : s + capacity], item.weights[s : s + capacity], {k: v[s : s + capacity] for k, v in item.extra.items()})
        for s in starts
    ]


def pack(rows: Sequence[Sequence[Item]], length: int) -> Batch:
    """Lay items out in rows of `length` tokens, in the order given."""
    shape = (len(rows), length)
    ids, targets = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
    positions, documents = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    weights = np.zeros(shape, np.float32)
    names = {name for row in rows for item in row for name in item.extra}
    extra = {name: np.zeros(shape, np.float32) for name in sorted(names)}
    document = 0
    for r, row in enumerate(rows):
        at = 0
        for item in row:
            n = len(item.ids)
            here, predicts = slice(at, at + n), slice(at, at + n - 1)
            ids[r, here], documents[r, here], positions[r, here] = item.ids, document, np.arange(n)
            live = item.weights[1:] > 0
            targets[r, predicts] = np.where(live, item.ids[1:], IGNORE)
            weights[r, predicts] = item.weights[1:]
            for name, values in item.extra.items():
                extra[name][r, predicts] = values[1:]
            at, document = at + n, document + 1
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(weights),
        torch.from_numpy(positions),
        torch.from_numpy(documents),
        {name: torch.from_numpy(values) for name, values in extra.items()},
    )
