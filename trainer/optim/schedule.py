"""Warm-up, stable, decay (Hu et al., 2024): a multiplier of every learning rate, as a function of steps done.

A budget in steps, never in seconds, so that the same seed takes the same path on any machine.
"""

from __future__ import annotations

from trainer.config import ScheduleConfig


def scale(config: ScheduleConfig, step: int, total: int) -> float:
    """Multiplier for update `step` (0-based) of `total`: linear up, 1, then linear down to `final` at the last update."""
    if total <= 0:
        raise ValueError(f"a schedule needs at least one step, got {total}; set the stage's steps")
    up = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay_steps = round(total * config.decay)
    left = total - step
    down = 1.0 if left > decay_steps else config.final + (1 - config.final) * left / decay_steps
    return min(up, down)
