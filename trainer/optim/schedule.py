"""Learning rate as a function of steps done, batch size as a function of tokens seen.

Warm-up, stable, decay (Hu et al., 2024, section 4; the 1 - t^0.5 fall: Haegele et al., 2024), or cosine (Loshchilov and
Hutter, 2017). Budgets in steps and tokens, never in seconds, so that the same seed takes the same path on any machine. An
anneal branch of a stable run is the same schedule with a nearer end: up to the branch both give the same rates.
"""

from __future__ import annotations

import math

from trainer.config import BatchConfig, ScheduleConfig


def scale(config: ScheduleConfig, step: int, total: int) -> float:
    """Multiplier for update `step` (0-based) of `total`: linear up, then along `config.shape` down towards `final`."""
    if total <= 0:
        raise ValueError(f"a schedule needs at least one step, got {total}; set the stage's steps")
    up = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.shape == "cosine":
        done = max(0, step - config.warmup_steps) / max(1, total - config.warmup_steps)
        return min(up, config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2)
    decay_steps = round(total * config.decay) if config.decay_steps is None else min(total, config.decay_steps)
    left = total - step
    if left > decay_steps:
        return up
    if config.fall == "sqrt":
        return min(up, config.final + (1 - config.final) * (1 - math.sqrt(1 - left / decay_steps)))
    return min(up, config.final + (1 - config.final) * left / decay_steps)


def pieces(config: BatchConfig, tokens: int) -> int:
    """Micro-batches of the next update, once `tokens` were trained on."""
    return [n for at, n in config.stages if at <= tokens][-1]


def batch_scale(config: BatchConfig, tokens: int) -> float:
    """Multiplier of the rate while the batch is smaller than its last size: the square root of the ratio, or 1."""
    return math.sqrt(pieces(config, tokens) / config.stages[-1][1]) if config.sqrt_rate else 1.0


def updates(config: BatchConfig, piece_tokens: int, budget_tokens: int) -> int:
    """Updates until `budget_tokens` are seen, when each micro-batch holds `piece_tokens`. The last may go over the budget."""
    seen = count = 0
    while seen < budget_tokens:
        stage = pieces(config, seen)
        until = min([budget_tokens, *(at for at, _ in config.stages if at > seen)])
        n = -(-(until - seen) // (stage * piece_tokens))
        seen, count = seen + n * stage * piece_tokens, count + n
    return count
