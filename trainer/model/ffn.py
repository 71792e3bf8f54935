"""Feed-forward networks: SwiGLU (Shazeer, 2020) and squared ReLU (So et al., 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import ModelConfig


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ReLU2(nn.Module):
    """down(relu(up x) ** 2): two matrices, no gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


FFN: dict[str, type[nn.Module]] = {"swiglu": SwiGLU, "relu2": ReLU2}
"""Class of each `LayerKind.ffn`."""
