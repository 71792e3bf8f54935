"""Multi-token prediction (DeepSeek-V3, 2024, section 2.2), sequential: module k sees one token further and predicts the next one.

    h_k[t] = Block_k(W_k [norm(h_{k-1}[t]); norm(embedding(x[t + k]))])        logits of x[t + k + 1] = head(norm(h_k[t]))

h_0 is the state before the model's final norm. Embedding and head are the model's own; with `share` all depths run module 1.
What lies beyond a document's end is neither read nor predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.data.packing import IGNORE
from trainer.model.block import Block
from trainer.model.config import ModelConfig
from trainer.model.norm import norm_of


class MTP(nn.Module):
    """One prediction module; its block is of the last layer's kind."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        self.hidden_norm = norm_of(config)
        self.token_norm = norm_of(config)
        self.merge = nn.Linear(2 * config.dim, config.dim, bias=False)
        self.block = Block(config, config.layers[-1], config.n_layers + depth)
        self.norm = norm_of(config)

    def merged(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The block's input from two (..., dim)."""
        return self.merge(torch.cat((self.hidden_norm(hidden), self.token_norm(tokens)), -1))


def ahead(values_BT: Tensor, positions_BT: Tensor, k: int, fill: int) -> tuple[Tensor, Tensor]:
    """values[t + k] (further dimensions follow along), `fill` where the document ends before; and where it does not, (B, T)."""
    T = positions_BT.size(1)
    valid = torch.zeros_like(positions_BT, dtype=torch.bool)
    shifted = torch.full_like(values_BT, fill)
    if k < T:
        valid[:, : T - k] = positions_BT[:, k:] == positions_BT[:, : T - k] + k
        shifted[:, : T - k] = values_BT[:, k:]
        shifted[~valid] = fill
    return shifted, valid


def targets_ahead(targets_BT: Tensor, positions_BT: Tensor, depth: int) -> Tensor:
    """Targets of module `depth` (from 0): those of `depth + 1` positions later in the same document, else IGNORE."""
    return ahead(targets_BT, positions_BT, depth + 1, IGNORE)[0]
