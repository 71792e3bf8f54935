"""Feed-forward networks: SwiGLU and GeGLU (Shazeer, 2020) and squared ReLU (So et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import ModelConfig


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or config.ffn_dim
        self.gate = nn.Linear(config.dim, hidden, bias=config.ffn_bias)
        self.up = nn.Linear(config.dim, hidden, bias=config.ffn_bias)
        self.down = nn.Linear(hidden, config.dim, bias=config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GeGLU(SwiGLU):
    """down(gelu(gate x) * up x), gelu in its tanh form."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class ReLU2(nn.Module):
    """down(relu(up x) ** 2): two matrices, no gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=config.ffn_bias)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(_Square.apply(self.up(x)))  # type: ignore[no-untyped-call]


class _Square(torch.autograd.Function):
    """y = r^2 with r = max(x, 0); dx = 2 r g, which torch computes as a power and a comparison, in three times as long."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        r = x.relu()
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        (r,) = ctx.saved_tensors
        return (g * r).mul_(2)
