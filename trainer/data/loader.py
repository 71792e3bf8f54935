"""Batches of packed documents, epoch after epoch, resumable at any batch.

The order of an epoch is a function of (seed, epoch): documents are shuffled, packed best-fit, rows shuffled. So the whole state
is the epoch and a cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gymsmith.errors import ConfigError
from trainer.data.documents import Document
from trainer.data.packing import Batch, Item, best_fit, cut, pack


class Loader:
    """Endless batches of `rows` rows; the last batch of an epoch may have fewer, so that every token is seen once."""

    def __init__(self, documents: Sequence[Document], rows: int, length: int, seed: int) -> None:
        """Raises: ConfigError: no document has two tokens."""
        pieces = [(n, piece) for n, d in enumerate(documents, 1) for piece in cut(Item(d.ids, d.weights), length)]
        self.items = [piece for _, piece in pieces if len(piece.ids) > 1]
        self.names = [f"document {n}" for n, piece in pieces if len(piece.ids) > 1]
        if not self.items:
            raise ConfigError(f"expected a document of two tokens or more, got none in {len(documents)}; write another corpus")
        self.rows, self.length, self.seed = rows, length, seed
        self.epoch = self.cursor = 0
        self.order = self._shuffle()

    def next(self) -> Batch:
        """The next batch."""
        if self.cursor >= len(self.order):
            self.epoch, self.cursor = self.epoch + 1, 0
            self.order = self._shuffle()
        rows = self.order[self.cursor : self.cursor + self.rows]
        self.cursor += len(rows)
        batch = pack([[self.items[i] for i in row] for row in rows], self.length)
        batch.names = tuple(self.names[i] for row in rows for i in row)
        return batch

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        return {"epoch": self.epoch, "cursor": self.cursor}

    def restore(self, state: dict[str, Any]) -> None:
        """Go where `state` stood."""
        self.epoch, self.cursor = int(state["epoch"]), int(state["cursor"])
        self.order = self._shuffle()

    def _shuffle(self) -> list[list[int]]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        documents = rng.permutation(len(self.items))
        rows = best_fit([len(self.items[i].ids) for i in documents], self.length)
        return [[int(documents[i]) for i in rows[r]] for r in rng.permutation(len(rows))]
