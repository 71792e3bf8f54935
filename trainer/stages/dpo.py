"""Direct preference optimisation (Rafailov et al., 2023) on own rollouts: of two attempts at one environment, prefer the one
that passed.

    L = -log sigmoid(beta * ((log pi(w) - log ref(w)) - (log pi(l) - log ref(l))))   over the sampled tokens of winner and loser

With `length_normalised` each log-ratio is divided by its tokens (OLMo 3). The reference is the model as it was at the start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gymsmith.schema import Trajectory
from trainer.config import DPOConfig
from trainer.data.packing import IGNORE, Batch, Item
from trainer.loop import Piece, Update
from trainer.model.transformer import Transformer
from trainer.rl.batches import Scored, items, micro_batches, valid
from trainer.rl.loss import target_logprobs


@dataclass(slots=True)
class Pair:
    """Packing items of an attempt that passed and of one that failed."""

    winner: list[Item]
    loser: list[Item]


def pairs(groups: Sequence[Sequence[Trajectory]], per_group: int) -> list[Pair]:
    """Up to `per_group` pairs of each group, first passed with first failed."""
    out = []
    for group in groups:
        known = [t for t in group if valid(t)]
        won = [t for t in known if t.reward is not None and t.reward.value >= 1]
        lost = [t for t in known if t.reward is not None and t.reward.value < 1]
        for winner, loser in list(zip(won, lost, strict=False))[:per_group]:
            pair = Pair(items(Scored(winner, 0.0)), items(Scored(loser, 0.0)))
            if pair.winner and pair.loser:
                out.append(pair)
    return out


class PairFeed:
    """`config.pairs` pairs per update, in an order that depends on (seed, epoch) alone."""

    def __init__(self, found: Sequence[Pair], reference: Transformer, config: DPOConfig, seed: int) -> None:
        self.found, self.config, self.seed = found, config, seed
        self.per_epoch = -(-len(found) // config.pairs)
        self.reference = [
            (score(reference, pair.winner, config.length_normalised), score(reference, pair.loser, config.length_normalised))
            for pair in found
        ]

    def updates(self, step: int) -> Iterator[Update]:
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.found))
        chosen = [int(i) for i in order[place * self.config.pairs : (place + 1) * self.config.pairs]]
        metrics: dict[str, float] = {}
        yield Update(iter([Piece(lambda model: self._loss(model, chosen, metrics), len(chosen))]), metrics)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing: the step says it all."""

    def _loss(self, model: Transformer, chosen: Sequence[int], metrics: dict[str, float]) -> Tensor:
        work, owner, counts = [], [], [0] * (2 * len(chosen))
        for n, i in enumerate(chosen):
            for side, side_items in enumerate((self.found[i].winner, self.found[i].loser)):
                work += side_items
                owner += [2 * n + side] * len(side_items)
                counts[2 * n + side] = int(sum(item.weights[1:].sum() for item in side_items))
        for item, index in zip(work, owner, strict=True):
            item.extra["owner"] = np.full(len(item.ids), index, np.float32)
        totals = torch.zeros(2 * len(chosen))
        for batch in micro_batches(work):
            logprobs, _ = target_logprobs(model, batch)
            totals = totals.index_add(0, owners(batch), logprobs)
        if self.config.length_normalised:
            totals = totals / torch.tensor(counts)
        reference = torch.tensor([value for i in chosen for value in self.reference[i]])
        gain = (totals - reference).view(-1, 2)
        margin = gain[:, 0] - gain[:, 1]
        metrics["preferred"] = float((margin > 0).float().mean())
        metrics["margin"] = float(margin.detach().mean())
        return -F.logsigmoid(self.config.beta * margin).mean()


def owners(batch: Batch) -> Tensor:
    """Index of the side that each target of a batch belongs to, in row order."""
    return batch.extra["owner"][batch.targets != IGNORE].long()


@torch.no_grad()
def score(model: Transformer, work: Sequence[Item], normalised: bool) -> float:
    """Sum (or mean) of the log probabilities of an attempt's sampled tokens."""
    logprobs = [target_logprobs(model, batch)[0] for batch in micro_batches(work)]
    total = sum(float(x.sum()) for x in logprobs)
    return total / sum(x.numel() for x in logprobs) if normalised else total
