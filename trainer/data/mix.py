"""The order of a run: phases with their own mix of sources and row length, planned window by window, exact at any micro-batch.

A window is so many rows planned together: each source deals documents up to its share of the tokens (what one window gives too
much, the next gives less), documents longer than a row are cut, all are packed best fit, the fullest rows are shuffled and dealt
as micro-batches, and what the emptiest rows hold is packed again with the next window. A phase ends on its last row. A plan is
a function of the state before it, which is a few integers; nothing here depends on workers, prefetching or the number of
processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymsmith.errors import ConfigError
from trainer.data.deck import Deck
from trainer.data.packing import Batch, best_fit_rows, lay_out


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a run with one mix and one row length."""

    batches: int
    """Micro-batches."""
    rows: int
    """Rows of a micro-batch."""
    length: int
    """Tokens of a row."""
    weights: Mapping[str, float]
    """Share of the tokens by source; they need not sum to one."""


@dataclass(slots=True)
class Place:
    """Where a plan starts."""

    phase: int = 0
    done: int = 0
    """Micro-batches of this phase before the window."""
    dealt: dict[str, int] = field(default_factory=dict)
    """Position of each source's deck."""
    owed: dict[str, float] = field(default_factory=dict)
    """Tokens that a source still owes this phase; negative for one that gave too much."""
    over: list[list[int]] = field(default_factory=list)
    """Pieces of the window before: source, document, start, tokens."""

    def dump(self) -> dict[str, Any]:
        """JSON-able."""
        return {"phase": self.phase, "done": self.done, "dealt": self.dealt, "owed": self.owed, "over": self.over}


@dataclass(slots=True)
class Window:
    """Planned rows: pieces (source, document, start, tokens) as (N, 4), row r being pieces[starts[r]:starts[r + 1]]."""

    start: Place
    after: Place
    phase: Phase
    pieces: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def batches(self) -> int:
        """Micro-batches in it."""
        return (len(self.starts) - 1) // self.phase.rows


class Mix:
    """Plans windows over named sources and reads their batches."""

    def __init__(self, decks: Mapping[str, Deck], phases: Sequence[Phase], seed: int, window_rows: int = 1024) -> None:
        for phase in phases:
            unknown = sorted(set(phase.weights) - set(decks))
            if unknown or not phase.weights or min(phase.weights.values()) < 0 or sum(phase.weights.values()) <= 0:
                known = f"sources are {', '.join(sorted(decks))}"
                raise ConfigError(f"expected a mix with weights >= 0 of known sources, got {dict(phase.weights)}; {known}")
        self.decks = [decks[name] for name in sorted(decks)]
        self.phases, self.seed, self.window_rows = list(phases), seed, window_rows

    def plan(self, start: Place) -> Window:
        """The window that begins at `start`, which must lie before the end of the last phase."""
        phase = self.phases[start.phase]
        wanted = min(max(1, self.window_rows // phase.rows), phase.batches - start.done) * phase.rows
        dealt, owed = dict(start.dealt), dict(start.owed)
        pieces = [cut_to(np.asarray(start.over, np.int64).reshape(-1, 4), phase.length)]
        rows, need = 0, wanted * phase.length - int(pieces[0][:, 3].sum())
        while rows < wanted:
            pieces.append(self._deal(phase, need, dealt, owed))
            all_pieces = np.concatenate(pieces)
            order, starts = best_fit_rows(all_pieces[:, 3], phase.length)
            rows = len(starts) - 1
            need = (wanted - rows) * phase.length
        fill = np.add.reduceat(all_pieces[order, 3], starts[:-1])
        ranked = np.argsort(-fill, kind="stable")
        rng = np.random.Generator(np.random.Philox(key=[self.seed, start.phase << 40 | start.done]))
        chosen, rest = rng.permutation(ranked[:wanted]), ranked[wanted:]
        over = all_pieces[order[_ranges(starts, rest)]].tolist()
        done, number = start.done + wanted // phase.rows, start.phase
        if done == phase.batches:
            done, number, owed = 0, number + 1, {}
        sizes = starts[chosen + 1] - starts[chosen]
        after = Place(number, done, dealt, owed, over)
        return Window(start, after, phase, all_pieces[order[_ranges(starts, chosen)]], np.cumsum([0, *sizes]))

    def read(self, window: Window, index: int) -> Batch:
        """Micro-batch `index` of a window. Raises: CorruptData: a document is not what was written."""
        rows = window.phase.rows
        edges = window.starts[index * rows : (index + 1) * rows + 1].tolist()
        pieces = window.pieces[edges[0] : edges[-1]].tolist()
        ids, weights, names = [], [], []
        for source, document, start, count in pieces:
            deck = self.decks[source]
            some, fine = deck.shards.read(document, start, count)
            ids.append(some)
            weights.append(np.ones(count, np.float32) if fine is None else fine / np.float32(255))
            names.append(f"{deck.name}:{document}" if not start else f"{deck.name}:{document}@{start}")
        lengths = [[p[3] for p in pieces[a - edges[0] : b - edges[0]]] for a, b in pairwise(edges)]
        batch = lay_out(lengths, window.phase.length, np.concatenate(ids), np.concatenate(weights), {})
        batch.names = tuple(names)
        return batch

    def _deal(self, phase: Phase, tokens: int, dealt: dict[str, int], owed: dict[str, float]) -> NDArray[np.int64]:
        """Pieces of at least `tokens` more tokens; moves `dealt` and `owed` on."""
        total = sum(phase.weights.values())
        tokens_and_debt = tokens - sum(owed.values())
        out = []
        for number, deck in enumerate(self.decks):
            share = phase.weights.get(deck.name, 0.0) / total
            if not share:
                continue
            quota = owed.get(deck.name, 0.0) + share * tokens_and_debt
            documents, lengths, dealt[deck.name] = deck.deal(dealt.get(deck.name, 0), quota)
            owed[deck.name] = quota - float(lengths.sum())
            sources = np.full(len(documents), number)
            out.append(cut_to(np.stack([sources, documents, np.zeros_like(documents), lengths], axis=1), phase.length))
        return np.concatenate(out)


def cut_to(pieces: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The same pieces in parts of at most `length` tokens; a last part of one token, which predicts nothing, is dropped."""
    parts = -(-pieces[:, 3] // length)
    out = np.repeat(pieces, parts, axis=0)
    number = np.arange(len(out)) - np.repeat(np.cumsum(parts) - parts, parts)
    out[:, 2] += number * length
    out[:, 3] = np.minimum(out[:, 3] - number * length, length)
    return out[out[:, 3] > 1]


def _ranges(starts: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of everything in these rows, row by row."""
    sizes = starts[rows + 1] - starts[rows]
    ends = np.cumsum(sizes)
    return np.arange(int(sizes.sum())) + np.repeat(starts[rows] - (ends - sizes), sizes)
