"""Turns logits into tokens, repeatably: which token comes depends on (seed, position) and the row's logits alone.

u = hash(seed, position) in [0, 1) picks the token by inverse CDF in float64. The logprob returned is the log softmax at the
sampling temperature over the full vocabulary, as SGLang returns it; a greedy token's is untempered.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK = (1 << 64) - 1


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) per (seed, position): splitmix64 (Steele et al., 2014) applied to each in turn."""
    return (_mix(_mix(seeds) + positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits: Tensor, temperatures: list[float], seeds: list[int], positions: list[int]) -> tuple[list[int], list[float]]:
    """One token and its logprob per row of logits (R, V). Temperature 0 is greedy.

    Seeds are taken modulo 2^64; positions are those of the new tokens.
    """
    heat = torch.tensor([t or 1.0 for t in temperatures], dtype=torch.float64)[:, None]
    logprobs = torch.log_softmax(logits.double() / heat, -1)
    cdf = logprobs.exp().cumsum(-1)
    u = uniform(np.array([s & _MASK for s in seeds], np.uint64), np.array(positions, np.uint64))
    drawn = (cdf <= torch.from_numpy(u)[:, None] * cdf[:, -1:]).sum(-1).clamp(max=logits.size(-1) - 1)
    if not all(temperatures):
        greedy = torch.tensor([t == 0 for t in temperatures])
        drawn = torch.where(greedy, logprobs.argmax(-1), drawn)
    return drawn.tolist(), logprobs.gather(1, drawn[:, None])[:, 0].tolist()
