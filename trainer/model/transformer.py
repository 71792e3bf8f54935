"""The transformer: embedding, pre-norm blocks from the layer list, final norm, head.

Deliberately not here: parallelism, precision, caches. The engine calls `trunk` with its own `Attend`; training calls `forward`
with a batch of packed documents. Selecting positions before the head saves the vocabulary projection where nothing is trained.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from trainer.model.attention import ATTENTION, Attend, document_mask, masked_attend
from trainer.model.config import LayerKind, ModelConfig
from trainer.model.embedding import Embedding, predecessors
from trainer.model.ffn import FFN
from trainer.model.norm import RMSNorm
from trainer.model.rope import table


class Block(nn.Module):
    """x + attention(norm x), then x + ffn(norm x)."""

    def __init__(self, config: ModelConfig, kind: LayerKind, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps, config.norm_weight)
        self.attention = ATTENTION[kind.attention](config, kind, index)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps, config.norm_weight)
        self.ffn = FFN[kind.ffn](config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, attend)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):
    """A causal language model over packed documents."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config)
        self.blocks = nn.ModuleList(Block(config, kind, i) for i, kind in enumerate(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps, config.norm_weight)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.gain = nn.Parameter(torch.zeros(())) if config.logit_gain else None
        cos, sin = table(config.head_dim, config.max_positions, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        initialise(self, seed)
        if config.tied_head:
            self.head.weight = self.embedding.token.weight

    def trunk(self, ids: Tensor, previous: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states after the final norm (..., dim), for ids (...), previous (..., smear) and positions (...)."""
        cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)
        x = self.embedding(ids, previous)
        for block in self.blocks:
            x = block(x, cos, sin, attend)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) -> (..., vocab)."""
        return self.head(hidden if self.gain is None else hidden * self.gain.exp())

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, dim) of packed rows. Without documents, each row is one document from position 0."""
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.size(1), device=ids_BT.device).expand_as(ids_BT)
        mask = None if documents_BT is None else document_mask(documents_BT)
        previous = predecessors(ids_BT, positions_BT, self.config.smear)
        return self.trunk(ids_BT, previous, positions_BT, masked_attend(mask))

    def forward(self, ids_BT: Tensor, positions_BT: Tensor | None = None, documents_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, vocab)."""
        return self.logits(self.hidden(ids_BT, positions_BT, documents_BT))


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> None:
    """Draw fresh weights. A tensor's stream depends on the seed and its name alone, so depth or order of creation change
    nothing else."""
    init = model.config.init
    for name, parameter in model.named_parameters():
        if name == "gain":
            parameter.fill_(init.logit_gain)
        if parameter.ndim < 2:
            continue
        stream = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(stream, "big") >> 1)
        if name == "embedding.token.weight":
            std = init.embedding_std
        elif name.startswith("embedding.smear"):
            std = init.smear_std
        elif init.scheme == "normal":
            std = init.std
        elif name.endswith(("o.weight", "down.weight")) or name == "head.weight":
            std = 0.0
        else:
            std = init.gain / math.sqrt(parameter.size(1))
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
