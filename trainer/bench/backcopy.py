"""The gate's toy: a head that has something to say on few tokens, and what it does on all the others.

The Bigram-Backcopy task (Guo et al., 2024, arXiv 2410.13835, section 2). Rows start with one and the same token and follow a
fixed Markov chain, which the residual stream can learn alone; after a trigger comes the token before the trigger, which only
attention knows. Softmax weights sum to one, so off the triggers a head without a gate can be silent in one way: it looks at the
first token and lets that token's value vanish (a sink). Where attention's output is gated (Qiu et al., 2025, arXiv 2505.06708)
it can close the gate instead.

Stability is looked at where training breaks: the rate is ordinary until the task is mostly learnt, then climbs far above what
serves. Sizes, steps and rates were chosen by runs without a gate alone, on other seeds than the table's: they had to learn, to
show the sink, and to spike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.bench.toys import Batches, fit
from trainer.config import OptimConfig
from trainer.model.attention import Scores
from trainer.model.config import InitConfig, ModelConfig
from trainer.model.masking import Masked, logits_of, softmax
from trainer.model.transformer import Transformer

TOKENS, TRIGGERS = 64, 3
"""Token 0 begins a row, 1 to 3 are triggers, the rest follow the chain."""
LENGTH, ROWS, WARM = 64, 32, 10
RATES = (0.01, 0.03)
"""Ordinary ones."""
PEAKS = (0.15, 0.25)
"""What the rate climbs to, from the last of `RATES`, over `CLIMB` steps after `CALM` steps."""
CALM, CLIMB = 120, 50


def chain() -> Tensor:
    """(V, V) probabilities of a token's successors; a fifth of all steps lead to triggers, whose own rows are empty."""
    draws, first = torch.Generator().manual_seed(7), 1 + TRIGGERS
    others = torch.softmax(2.0 * torch.randn(TOKENS - TRIGGERS, TOKENS - TRIGGERS, generator=draws), -1)
    rows_VV = torch.zeros(1 + TOKENS, 1 + TOKENS)
    rows_VV[0, first:] = 1 / others.size(0)
    rows_VV[first:, 1:first] = 0.2 / TRIGGERS
    rows_VV[first:, first:] = 0.8 * others
    return rows_VV


def triggers(ids: Tensor) -> Tensor:
    """Which tokens are triggers."""
    return (ids >= 1) & (ids <= TRIGGERS)


def walk(count: int, draws: torch.Generator) -> Tensor:
    """(count, LENGTH + 1) ids of independent rows."""
    ends = chain().cumsum(1)
    # Sums that end a rounding error below one would leave the vocabulary.
    ends[:, -1] = 1
    ids, luck = torch.zeros(count, LENGTH + 1, dtype=torch.long), torch.rand(LENGTH + 1, count, 1, generator=draws)
    for t in range(1, LENGTH + 1):
        last = ids[:, t - 1]
        follows = torch.searchsorted(ends[last], luck[t], right=True)[:, 0]
        ids[:, t] = torch.where(triggers(last), ids[:, t - 2], follows)
    return ids


def batches(seed: int) -> Batches:
    """Every position asks for its successor."""
    draws = torch.Generator().manual_seed(seed)
    while True:
        # Many batches are drawn at once, since a row is drawn token by token.
        for ids in walk(64 * ROWS, draws).split(ROWS):
            yield ids[:, :-1], ids[:, 1:]


class Watched(Masked):
    """Also notes what each position gives to the first one, (B, T), averaged over heads."""

    def dense(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        row = slice(0, q.size(1))
        logits = logits_of(q.transpose(1, 2), k.transpose(1, 2), scores).masked_fill(~self.visible(None, row, row), float("-inf"))
        self.ledger.note("first", index, softmax(logits, scores.sinks, logits.dtype)[..., 0].mean(1))
        return super().dense(index, q, k, v, scores)


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one arm. What is not `spikes` is measured on rows that were not trained on."""

    first_mass: float
    """Attention on the first token, averaged over positions that are neither it nor a trigger."""
    even: float
    """The same if every position shared its attention evenly."""
    excess: float
    """Loss above the entropy of the task."""
    spikes: int
    """Steps whose loss lies six deviations above the 32 before."""


def config(on: bool) -> ModelConfig:
    """One layer, one head."""
    return ModelConfig(
        vocab_size=1 + TOKENS, dim=64, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=32, ffn_dim=64, max_positions=LENGTH,
        attention_gate=on, qk_norm=False, init=InitConfig(std=0.1, embedding_std=0.5),
    )  # fmt: skip


def gate(on: bool, seed: int, rate: float, peak: float | None = None, steps: int = 300) -> Run:
    """Train one head in one layer, with a gate or without.

    Args:
        peak: climb from `rate` to this and stay there; None keeps an ordinary schedule.
    """
    model, optim = Transformer(config(on), seed), OptimConfig(hidden="adamw", lr=rate, adam_lr=rate, betas=(0.9, 0.999))
    climb = None if peak is None else lambda step: climbing(step, peak / rate)
    losses = fit(model, optim, batches(seed), steps, WARM, climb)
    return Run(*look(model, walk(128, torch.Generator().manual_seed(seed + 1000))), spikes(losses))


def climbing(step: int, height: float) -> float:
    """Multiplier of the rate: warm-up, calm, then geometrically up to `height`."""
    return min(1.0, (step + 1) / WARM) if step < CALM else height ** min(1.0, (step - CALM) / CLIMB)


@torch.no_grad()
def look(model: Transformer, ids: Tensor) -> tuple[float, float, float]:
    """(first_mass, even, excess) of a `Run`."""
    seen, asked = ids[:, :-1], ids[:, 1:]
    model.masking = Watched
    out = model.outputs(seen)
    said = triggers(seen)
    silent = ~said
    silent[:, 0] = False
    loss = F.cross_entropy(model.logits(out.hidden).flatten(0, 1), asked.flatten(), reduction="none").view_as(asked)
    known = torch.where(said, 1.0, chain()[seen, asked])
    even = (1 / torch.arange(1, LENGTH + 1)).expand(seen.shape)
    return float(out.statistics["first"][0][silent].mean()), float(even[silent].mean()), float((loss + known.log()).mean())


def spikes(losses: list[float], window: int = 32, sigmas: float = 6.0) -> int:
    """How many losses lie so many standard deviations above the mean of those before."""
    count = 0
    for i in range(window, len(losses)):
        before = torch.tensor(losses[i - window : i])
        count += losses[i] > float(before.mean() + sigmas * before.std())
    return count
