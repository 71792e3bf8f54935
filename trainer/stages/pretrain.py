"""Pre-training: next-token prediction over packed documents."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from trainer.data.loader import Loader
from trainer.data.packing import Batch
from trainer.loop import Piece, Statistics, Update
from trainer.model.head import head_loss
from trainer.model.mtp import ahead, targets_ahead
from trainer.model.transformer import Transformer

Share = Callable[[Batch], Batch]
"""What of a batch this process computes, where it computes."""


def whole(batch: Batch) -> Batch:
    """All of it, here."""
    return batch


class TextFeed:
    """One packed batch per update."""

    def __init__(self, loader: Loader, share: Share = whole, inspect: bool = False) -> None:
        self.loader, self.share, self.inspect = loader, share, inspect

    def updates(self, step: int) -> Iterator[Update]:
        started = time.perf_counter()
        batch = self.loader.next()
        total, seen = float(batch.weights.sum()), Statistics()
        piece = Piece(lambda model: language_loss(model, self.share(batch), total, seen, self.inspect), batch.tokens, batch.names)
        metrics = {"epoch": float(self.loader.epoch), "loader_seconds": time.perf_counter() - started}
        yield Update(iter([piece]), metrics, statistics=seen)

    def state(self) -> dict[str, Any]:
        return self.loader.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.loader.restore(state)


def language_loss(
    model: Transformer, batch: Batch, denominator: float, seen: Statistics | None = None, inspect: bool = False
) -> Tensor:
    """Weighted sum of the cross entropies of all targets, over `denominator`, with what else the model trains on.

    That is: z-loss; lambda times the mean over prediction modules of theirs (DeepSeek-V3, eq. 24 to 25); auxiliary losses, which
    are means over tokens, in the proportion that this batch has of the denominator.

    Args:
        seen: the forward pass's statistics are merged into it.
        inspect: whether these include attention's largest logits.
    """
    outputs = model.outputs(batch.ids, batch.positions, batch.documents, inspect=inspect)
    total = head_loss(model, outputs.hidden, batch.targets, batch.weights).total
    if outputs.mtp and model.config.mtp is not None:
        for depth, hidden in enumerate(outputs.mtp):
            targets = targets_ahead(batch.targets, batch.positions, depth)
            weights, _ = ahead(batch.weights, batch.positions, depth + 1, 0)
            share = model.config.mtp.weight / len(outputs.mtp)
            total = total + share * head_loss(model, hidden, targets, weights).total
    loss = total / denominator
    if outputs.losses:
        loss = loss + sum(outputs.losses.values()) * (batch.weights.sum() / denominator)
    if seen is not None:
        merge(seen, outputs.statistics)
    return loss


def merge(seen: Statistics, more: Statistics) -> None:
    """Statistics of one more micro-batch: counts add up, the largest stays, of means the last."""
    for name, by_layer in more.items():
        held = seen.setdefault(name, {})
        for layer, value in by_layer.items():
            if layer not in held:
                held[layer] = value.clone()
            elif name == "max_logit":
                held[layer] = torch.maximum(held[layer], value)
            elif name == "expert_counts":
                held[layer] = held[layer] + value
            else:
                held[layer] = value


@torch.no_grad()
def validate(
    model: Transformer, batches: list[Batch], share: Share = whole, add: Callable[[Tensor], Tensor] = lambda x: x
) -> float:
    """Mean cross entropy per target over held-out batches, in nats. `add` sums over processes, of which each does its share."""
    training = model.training
    model.eval()
    sums = [torch.zeros((), dtype=torch.float64)]
    for b in map(share, batches):
        hidden = model.hidden(b.ids, b.positions, b.documents)
        sums.append(head_loss(model, hidden, b.targets, b.weights).cross_entropy.double().cpu())
    model.train(training)
    return float(add(torch.stack(sums).sum())) / max(1.0, sum(float(b.weights.sum()) for b in batches))
