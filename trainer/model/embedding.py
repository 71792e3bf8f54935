"""Token embedding, optionally smeared: a position also gets what its predecessors were.

input[t] = E[x[t]] + E1[x[t-1]] + E2[x[t-2]] + ...   A tiny model copies from its context by matching what came before; with the
predecessors in the input the first layer can do so, which moves the onset of copying forward by some hundred thousand tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.model.config import ModelConfig
from trainer.model.norm import norm_of

NOTHING = 0
"""Id that stands for 'no token' before a document's first: the padding id."""


class Embedding(nn.Module):
    """Tables of the token itself and of `config.smear` predecessors."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.dim)
        self.smear = nn.ModuleList(nn.Embedding(config.vocab_size, config.dim) for _ in range(config.smear))
        self.norm = norm_of(config) if config.embedding_norm else None
        self.scale = config.embedding_scale

    def forward(self, ids: Tensor, previous: Tensor) -> Tensor:
        """ids (...), previous (..., smear) with the nearest predecessor first -> (..., dim)."""
        x = self.token(ids)
        for i, table in enumerate(self.smear):
            x = x + table(previous[..., i])
        if self.scale != 1.0:
            x = x * self.scale
        return x if self.norm is None else self.norm(x)


def predecessors(ids_BT: Tensor, positions_BT: Tensor, count: int) -> Tensor:
    """(B, T, count): the tokens before each position within its document, NOTHING where there is none."""
    columns = []
    for back in range(1, count + 1):
        shifted = torch.roll(ids_BT, back, 1)
        columns.append(torch.where(positions_BT >= back, shifted, NOTHING))
    return torch.stack(columns, -1) if columns else ids_BT.new_empty((*ids_BT.shape, 0))
