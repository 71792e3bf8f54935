"""RMSNorm (Zhang and Sennrich, 2019), with or without a learned gain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last dimension, times a gain that starts at one.

    With `offset` the gain is 1 + weight and the weight starts at zero.
    """

    oracle = False
    """Compute in float32 whatever comes, operation by operation as `transformers` does (see `Transformer.follow_oracle`)."""

    def __init__(self, dim: int, eps: float, weight: bool = True, offset: bool = False) -> None:
        super().__init__()
        self.dim, self.eps, self.offset = dim, eps, offset
        start = torch.zeros if offset else torch.ones
        self.weight = nn.Parameter(start(dim)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        if self.oracle:
            return self._as_oracle(x)
        weight: Tensor | None = self.weight
        if weight is not None and self.offset:
            weight = 1 + weight
        return F.rms_norm(x, (self.dim,), weight, self.eps)

    def _as_oracle(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            y = y * (1.0 + self.weight.float()) if self.offset else self.weight * y
        return y.to(x.dtype)


def norm_of(config: ModelConfig, dim: int | None = None) -> RMSNorm:
    """A norm over `dim` channels (the model's width by default) with the model's options."""
    return RMSNorm(dim or config.dim, config.norm_eps, config.norm_weight, config.norm_offset)
