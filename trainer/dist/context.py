"""Context parallelism: each rank holds two pieces of every row, head and tail, and all keys and values are gathered.

A row of T positions is cut into 2c pieces; rank r holds pieces r and 2c - 1 - r, so causal attention costs every rank the same
(Llama 3, 2024, section 3.3.2: all-gather, because keys and values are small under grouped queries). Queries stay. A piece attends
to the keys up to its own end, and the document mask is made from gathered documents at true positions, so it survives the cut.
The backward pass sums the ranks' gradients of a key and sends them home.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from trainer.data.packing import IGNORE, Batch
from trainer.dist.collective import stack
from trainer.dist.mesh import World
from trainer.model.attention import Attend, Scores
from trainer.model.config import MemoryConfig
from trainer.model.ledger import Ledger
from trainer.model.masking import Masked


def share(batch: Batch, world: World) -> Batch:
    """This process's rows of a batch, and its pieces of them.

    A batch whose rows do not come out even (an epoch's last) is filled with rows of padding.
    """
    parts = world.size(("dp", "fsdp", "ep"))
    number = world.rank(("dp", "fsdp", "ep"))

    def mine(x: Tensor, fill: float) -> Tensor:
        missing = -len(x) % parts
        if missing:
            x = torch.cat((x, x.new_full((missing, *x.shape[1:]), fill)))
        return pieces(x.chunk(parts)[number], world)

    return replace(
        batch,
        ids=mine(batch.ids, 0),
        targets=mine(batch.targets, IGNORE),
        weights=mine(batch.weights, 0),
        positions=mine(batch.positions, 0),
        documents=mine(batch.documents, -1),
        extra={name: mine(x, 0) for name, x in batch.extra.items()},
    )


def pieces(x_BT: Tensor, world: World) -> Tensor:
    """Pieces r and 2c - 1 - r of each row."""
    parts = world.sizes["cp"]
    if parts == 1:
        return x_BT
    found = x_BT.chunk(2 * parts, 1)
    number = world.place["cp"]
    return torch.cat((found[number], found[2 * parts - 1 - number]), 1)


def whole(x: Tensor, dim: int, world: World) -> Tensor:
    """All ranks' pieces of x, put back in order along `dim`."""
    heads, tails = (stack(half.contiguous(), world.group(("cp",))).unbind() for half in x.chunk(2, dim))
    return torch.cat((*heads, *reversed(tails)), dim)


class Gathered(Masked):
    """`Masked` for this rank's pieces: its queries, everyone's keys and values."""

    def __init__(
        self, documents_BT: Tensor | None, memory: MemoryConfig, ledger: Ledger | None, oracle: bool, world: World
    ) -> None:
        super().__init__(None if documents_BT is None else whole(documents_BT, 1, world), memory, ledger, oracle)
        self.world = world

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        k, v = whole(k, 2, self.world), whole(v, 2, self.world)
        plain = self.oracle or scores.softcap is not None or scores.sinks is not None
        size, number, last = q.size(2) // 2, self.world.place["cp"], 2 * self.world.sizes["cp"] - 1
        out = []
        for piece, at in zip(q.chunk(2, 2), (number, last - number), strict=True):
            for start in range(0, size, self.chunk):
                t = slice(at * size + start, at * size + min(start + self.chunk, size))
                out.append(self._piece(piece[:, :, start : start + self.chunk], k, v, scores, plain, t))
        return torch.cat(out, 2)

    @torch.no_grad()
    def _measure(self, index: int, q: Tensor, k: Tensor, scores: Scores) -> None:
        mine, self.ledger = self.ledger, Ledger(None if self.documents is None else self.documents >= 0, True)
        super()._measure(index, whole(q, 2, self.world), whole(k, 2, self.world), scores)
        for name, values in self.ledger.statistics.items():
            mine.note(name, index, values[index])
        self.ledger = mine


def gathering(world: World) -> Callable[..., Attend]:
    """What takes the place of `Transformer.masking`."""

    def make(documents_BT: Tensor | None, memory: MemoryConfig, ledger: Ledger | None, oracle: bool) -> Attend:
        return Gathered(documents_BT, memory, ledger, oracle, world)

    return make
