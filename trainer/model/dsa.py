"""DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, 2025, section 2.1): a lightning indexer in front of latent attention.

    I[t, s] = sum_j w[t, j] relu(q_I[t, j] . k_I[s] / sqrt(d))        q_I from the query latent, k_I and w from the hidden state

Each query attends to the keys with the largest I. Which ones is a choice without gradient; the indexer learns from a KL
divergence to what attention does, on inputs cut off from the graph. So the language loss never reaches the indexer and the
divergence never reaches the trunk, and both trains at once or one after the other.

Index queries and keys turn in a layout of their own, whatever the layer uses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.model.attention import Lookup
from trainer.model.config import DSAConfig, LayerKind, ModelConfig
from trainer.model.mla import MLA
from trainer.model.rope import rotate


class Indexer(nn.Module):
    """Scores every key for every query with a few small heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = dsa = config.dsa
        assert config.mla.q_latent is not None, "checked by ModelConfig"
        self.q_up = nn.Linear(config.mla.q_latent, dsa.heads * dsa.dim, bias=False)
        self.k = nn.Linear(config.dim, dsa.dim, bias=False)
        self.k_norm = nn.LayerNorm(dsa.dim, eps=1e-6)
        self.weights = nn.Linear(config.dim, dsa.heads, bias=False)

    def forward(self, x: Tensor, c_q: Tensor, cos: Tensor, sin: Tensor) -> Lookup:
        """x (..., dim), c_q (..., q_latent), cos and sin (..., 1, rope_dim / 2)."""
        x, c_q = x.detach(), c_q.detach()
        interleaved = self.config.layout == "interleaved"
        q = rotate(self.q_up(c_q).unflatten(-1, (-1, self.config.dim)), cos, sin, interleaved)
        k = rotate(self.k_norm(self.k(x)).unsqueeze(-2), cos, sin, interleaved).squeeze(-2)
        return Lookup(q, k, self.weights(x) * self.config.heads**-0.5, self.config)


class DSA(MLA):
    """Latent attention over the keys that the indexer finds."""

    def __init__(self, config: ModelConfig, kind: LayerKind, index: int) -> None:
        super().__init__(config, kind, index)
        self.indexer = Indexer(config)

    def lookup(self, x: Tensor, c_q: Tensor, cos: Tensor, sin: Tensor) -> Lookup:
        found: Lookup = self.indexer(x, c_q, cos, sin)
        return found


def index_scores(q: Tensor, k: Tensor, weights: Tensor, oracle: bool = False) -> Tensor:
    """I (B, C, S) of index queries q (B, C, J, d), keys k (B, S, d) and weights (B, C, J), at least in float32."""
    dtype = torch.float32 if oracle else torch.promote_types(q.dtype, torch.float32)
    q, k, weights = q.to(dtype), k.to(dtype), weights.to(dtype)
    products = torch.relu(q @ k.mT.unsqueeze(1) * q.size(-1) ** -0.5)
    return (weights.unsqueeze(-2) @ products).squeeze(-2)


def best_keys(scores: Tensor, config: DSAConfig, oracle: bool = False) -> Tensor:
    """True at the top-k of the last dimension. Deterministically, equal scores go to the earlier key."""
    k = min(config.top_k, scores.size(-1))
    if config.deterministic and not oracle:
        chosen = scores.sort(dim=-1, descending=True, stable=True)[1][..., :k]
    else:
        chosen = scores.topk(k, -1)[1]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)


def divergence(scores: Tensor, attention: Tensor, kept: Tensor) -> Tensor:
    """KL(p || softmax of the scores) of each query, both over `kept` keys.

    Args:
        scores: I (..., S), with gradient.
        attention: (..., S), attention weights summed over heads; p is its share of each key.
        kept: (..., S) booleans.
    """
    target = attention.detach().masked_fill(~kept, 0)
    target = target / target.sum(-1, keepdim=True).clamp(min=1e-10)
    logs = torch.log_softmax(scores.masked_fill(~kept, float("-inf")), -1).masked_fill(~kept, 0)
    return torch.xlogy(target, target).sum(-1) - (target * logs).sum(-1)
