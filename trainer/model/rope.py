"""Rotary positions (Su et al., 2021) in both layouts, with adjusted bases and YaRN.

Pair i of D channels turns at position t by t * theta ** (-2i / D). Half-split (Llama, Qwen): channels i and i + D/2 are a pair.
Interleaved (DeepSeek): channels 2i and 2i + 1 are. They are different functions of the same weights. `rotate` returns pairs in
half-split order either way: queries and keys agree on it, so scores do not change, and nothing is moved back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.model.config import RopeConfig, YarnConfig


def frequencies(config: RopeConfig, channels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Angle per position of each pair, (channels / 2,)."""
    even = torch.arange(0, channels, 2, dtype=dtype)
    plain = 1.0 / (config.theta ** (even / channels)) if dtype == torch.float32 else config.theta ** (-even / channels)
    if config.yarn is None:
        return plain
    # 1 where a pair keeps its speed, 0 where it slows down by the factor.
    keep = 1 - ramp(config.yarn, config.theta, channels, dtype)
    slow = 1.0 / (config.yarn.factor * config.theta ** (even / channels))
    return slow * (1 - keep) + plain * keep


def ramp(yarn: YarnConfig, theta: float, channels: int, dtype: torch.dtype) -> Tensor:
    """How far each pair is interpolated, 0 to 1 (channels / 2,): YaRN section 3.2 with rotations counted over the old context."""

    def pair(rotations: float) -> float:
        return channels * math.log(yarn.original_positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(yarn.beta_fast), pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    high = high + 0.001 if low == high else high
    return ((torch.arange(channels // 2, dtype=dtype) - low) / (high - low)).clamp(0, 1)


def table(config: RopeConfig, channels: int, max_positions: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (max_positions, channels / 2), computed in `dtype`."""
    angle = torch.arange(max_positions, dtype=dtype)[:, None] * frequencies(config, channels, dtype)[None]
    gain = 1.0 if config.yarn is None else config.yarn.table_gain
    return angle.cos() * gain, angle.sin() * gain


class Rope(nn.Module):
    """The tables of one encoding, looked up by position."""

    cos: Tensor
    sin: Tensor
    oracle = False

    def __init__(self, config: RopeConfig, channels: int, max_positions: int) -> None:
        super().__init__()
        self.config, self.channels, self.max_positions = config, channels, max_positions
        cos, sin = table(config, channels, max_positions)
        self.register_buffer("cos", cos.float(), persistent=False)
        self.register_buffer("sin", sin.float(), persistent=False)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(...) -> cosines and sines (..., 1, channels / 2)."""
        return self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)

    def follow_oracle(self) -> None:
        """Tables whose every step is float32, as `transformers` computes them."""
        cos, sin = table(self.config, self.channels, self.max_positions, torch.float32)
        self.cos, self.sin = cos.to(self.cos), sin.to(self.sin)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Turn the first channels of x (..., H, D) by per-position cos and sin (..., 1, R / 2); the rest passes."""
    turned = 2 * cos.size(-1)
    head, rest = (x, None) if turned == x.size(-1) else (x[..., :turned], x[..., turned:])
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, -1)
    y = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
    return y if rest is None else torch.cat((y, rest), -1)
