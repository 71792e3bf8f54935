"""Advantages of the GRPO family: how much better an attempt did than its siblings at the same environment.

normalised (GRPO, Shao et al., 2024): (R - mean) / (std + eps), std with n - 1.   centered (Dr. GRPO, Liu et al., 2025): R - mean.
A group whose attempts all got the same reward teaches nothing and gets zeros, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np


def advantages(
    rewards: Sequence[float], kind: Literal["normalised", "centered"] = "normalised", eps: float = 1e-4
) -> list[float]:
    """One advantage per attempt of a group; zeros for equal rewards and for a single attempt."""
    values = np.asarray(rewards, np.float64)
    if len(values) < 2 or (values == values[0]).all():
        return [0.0] * len(values)
    centered = values - values.mean()
    if kind == "centered":
        return [float(x) for x in centered]
    return [float(x) for x in centered / (values.std(ddof=1) + eps)]


def permuted(groups: Sequence[Sequence[float]], seed: int, step: int) -> list[list[float]]:
    """The same rewards, dealt anew over all attempts of a step: the control arm that must not learn."""
    flat = [r for group in groups for r in group]
    rng = np.random.Generator(np.random.Philox(key=[seed, step]))
    dealt = iter([flat[i] for i in rng.permutation(len(flat))])
    return [[next(dealt) for _ in group] for group in groups]
