"""Rotary positions (Su et al., 2021) in the half-split layout of Llama and Qwen: channel i turns with channel i + D/2.

Angle of pair i at position t is t * theta ** (-2i / D). DeepSeek's interleaved layout is another function, not this one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def table(head_dim: int, max_positions: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (max_positions, head_dim / 2), float32, computed in float64."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(max_positions, dtype=torch.float64)[:, None] * inverse[None]
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (..., H, D) by per-position cos and sin (..., 1, D / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
