"""Documents of one source in a shuffled order that no memory holds: a keyed permutation, another one each epoch.

A four-round Feistel network over the smallest even number of bits that covers the documents, walked until the result lies inside
(Black and Rogaway, 2002, "Ciphers with arbitrary finite domains", section 3). Position p of the endless deck is therefore a
function of (seed, source, p): the whole state of a shuffle over any number of documents is one integer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gymsmith.errors import ConfigError
from trainer.data.shards import Shards

ROUNDS = 4
HELD_OUT = 100
"""One document in so many is never dealt: it is held out to measure on."""


def permuted(positions: NDArray[np.int64], size: int, key: bytes) -> NDArray[np.int64]:
    """Where a keyed permutation of range(size) sends `positions`, all below `size`."""
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = np.frombuffer(hashlib.sha256(key).digest(), np.uint64)[:ROUNDS]
    out = positions.astype(np.uint64)
    outside = np.arange(len(out))
    while len(outside):
        value = out[outside]
        left, right = value >> shift, value & mask
        for k in keys:
            mixed = (right ^ k) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
        value = left << shift | right
        out[outside] = value
        outside = outside[value >= size]
    return out.astype(np.int64)


@dataclass(slots=True)
class Deck:
    """One source of a mix: which of its documents may be dealt, and the order in which they are."""

    name: str
    shards: Shards
    seed: int
    min_tokens: int = 2
    """Shorter documents are passed over; one token predicts nothing."""
    max_tokens: int | None = None
    """Longer documents are passed over."""
    held_out: bool = False
    """Deal only the documents that training never sees, instead of all others."""

    def deal(self, position: int, tokens: float) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """Documents from `position` on until `tokens` are reached, their lengths, and the position after the last.

        Raises:
            ConfigError: a whole epoch holds no document that may be dealt.
        """
        documents: list[NDArray[np.int64]] = []
        lengths: list[NDArray[np.int64]] = []
        barren = 0
        while tokens > 0:
            epoch, at = divmod(position, len(self.shards))
            guess = int(tokens / (self.shards.tokens / len(self.shards)) * 1.25) + 16
            places = np.arange(at, min(at + guess, len(self.shards)))
            found = permuted(places, len(self.shards), f"{self.seed}/{self.name}/{epoch}".encode())
            size = self.shards.lengths(found)
            fit = np.flatnonzero(self._allowed(found, size))
            enough = np.cumsum(size[fit])
            used = int(np.searchsorted(enough, tokens)) + 1
            if used <= len(fit):
                fit, position = fit[:used], position + int(fit[used - 1]) + 1
            else:
                position += len(places)
            tokens -= int(size[fit].sum())
            documents.append(found[fit])
            lengths.append(size[fit])
            barren = 0 if len(fit) else barren + len(places)
            if barren > 2 * len(self.shards):
                limits = f"expected documents of {self.min_tokens} to {self.max_tokens or 'any number of'} tokens"
                raise ConfigError(f"source {self.name}: {limits}, got none; change the limits or the source")
        none = np.empty(0, np.int64)
        return np.concatenate([none, *documents]), np.concatenate([none, *lengths]), position

    def epoch(self, position: int) -> float:
        """How often its documents have been dealt."""
        return position / len(self.shards)

    def _allowed(self, documents: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        allowed = (documents % HELD_OUT == HELD_OUT - 1) == self.held_out
        allowed &= lengths >= max(2, self.min_tokens)
        return allowed if self.max_tokens is None else allowed & (lengths <= self.max_tokens)
