"""Context parallelism: each rank holds two pieces of every row, head and tail, and all keys and values are gathered.

A row of T positions is cut into 2c pieces; rank r holds pieces r and 2c - 1 - r, so that causal attention costs every rank the same
(Llama 3, 2024, section 3.3.2: all-gather, because keys and values are small under grouped queries). Queries stay. A piece attends
to the keys up to its own end, and the document mask is made from gathered documents at true positions, so it survives the cut.
The backward pass sums the ranks' gradients of a key and sends them home.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trainer.data.packing import IGNORE, Batch
from trainer.dist.mesh import World


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
