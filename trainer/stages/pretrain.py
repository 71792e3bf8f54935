"""Pre-training: next-token prediction over packed documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.data.loader import Loader
from trainer.data.packing import IGNORE, Batch
from trainer.loop import Piece, Update
from trainer.model.transformer import Transformer


class TextFeed:
    """One packed batch per update."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def updates(self, step: int) -> Iterator[Update]:
        batch = self.loader.next()
        piece = Piece(lambda model: language_loss(model, batch, float(batch.weights.sum())), batch.tokens, batch.names)
        yield Update(iter([piece]), {"epoch": float(self.loader.epoch)})

    def state(self) -> dict[str, Any]:
        return self.loader.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.loader.restore(state)


def language_loss(model: Transformer, batch: Batch, denominator: float) -> Tensor:
    """Weighted sum of the cross entropies of all targets, over `denominator`."""
    hidden = model.hidden(batch.ids, batch.positions, batch.documents)
    live = batch.targets != IGNORE
    losses = F.cross_entropy(model.logits(hidden[live]), batch.targets[live], reduction="none")
    return (losses * batch.weights[live].to(losses.dtype)).sum() / denominator


@torch.no_grad()
def validate(model: Transformer, batches: list[Batch]) -> float:
    """Mean loss per target over held-out batches, in nats."""
    model.eval()
    total = sum(float(language_loss(model, b, 1.0)) for b in batches)
    model.train()
    return total / max(1.0, sum(float(b.weights.sum()) for b in batches))
