"""Attention layers. What is projected, normed and rotated stands here; how keys are kept and masked is the caller's.

A layer hands its queries, keys and values to an `Attend`: training passes one that masks by document (`masking.py`), the engine
one that writes to and reads from its cache, context parallelism one that gathers keys. All run the same weights through the same
code.

Shapes: `...` any leading dimensions (B, T in training, N in the engine), H query heads, K key/value heads, D channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.model.config import DSAConfig, LayerKind, ModelConfig
from trainer.model.norm import norm_of
from trainer.model.rope import rotate


@dataclass(frozen=True, slots=True)
class Scores:
    """How products of queries and keys become weights: softmax over softcap(scale * q.k) of the keys in the window, and sinks."""

    scale: float
    window: int | None = None
    """Keys that a query sees, itself included."""
    softcap: float | None = None
    """c in c * tanh(x / c)."""
    sinks: Tensor | None = None
    """(H,) logits that take part in the softmax and have no value."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What an indexer asks and stores for these positions. `dsa.index_scores` scores keys, `dsa.best_keys` chooses."""

    q: Tensor
    """(..., index heads, index dim), rotated."""
    k: Tensor
    """(..., index dim), rotated: one key per position, to be cached."""
    weights: Tensor
    """(..., index heads)."""
    config: DSAConfig


class Attend(Protocol):
    """Who owns keys and values. Layers call one of the two methods, once each."""

    def dense(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        """Layer `index`: q (..., H, D), k and v (..., K, D) of these positions -> (..., H, D)."""
        ...

    def latent(
        self,
        index: int,
        q_nope: Tensor,
        q_rope: Tensor,
        c: Tensor,
        k_rope: Tensor,
        up: nn.Module,
        scores: Scores,
        keep: Lookup | None = None,
    ) -> Tensor:
        """Latent attention, naive or absorbed: both give the same.

        Args:
            q_nope: (..., H, nope_dim).
            q_rope: (..., H, rope_dim), rotated.
            c: (..., kv_latent), normed; with k_rope all that a cache needs.
            k_rope: (..., rope_dim), rotated, shared by the heads.
            up: c -> (..., H * (nope_dim + v_dim)), per head first the key's channels, then the value's; its `weight` is
                (H * (nope_dim + v_dim), kv_latent).
            keep: attend only to the keys that this lookup finds.

        Returns:
            (..., H, v_dim).
        """
        ...


class GQA(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023): query head h reads key/value head h // (H / K)."""

    def __init__(self, config: ModelConfig, kind: LayerKind, index: int) -> None:
        super().__init__()
        self.index, self.kind, self.head_dim = index, kind, config.head_dim
        self.scale, self.softcap = config.scale, config.attention_softcap
        self.interleaved = kind.position != "none" and config.rope(kind.position).layout == "interleaved"
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q = nn.Linear(config.dim, queries, bias=config.attention_bias)
        self.k = nn.Linear(config.dim, keys, bias=config.attention_bias)
        self.v = nn.Linear(config.dim, keys, bias=config.attention_bias)
        self.o = nn.Linear(queries, config.dim, bias=config.output_bias)
        self.gate = nn.Linear(config.dim, queries, bias=False) if config.attention_gate else None
        self.sinks = nn.Parameter(torch.zeros(config.n_heads)) if config.attention_sinks else None
        full = config.qk_norm_width == "full"
        self.norm_first = config.qk_norm and full
        self.q_norm: nn.Module = norm_of(config, queries if full else config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm: nn.Module = norm_of(config, keys if full else config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor | None, sin: Tensor | None, attend: Attend) -> Tensor:
        """x (..., dim), cos and sin (..., 1, rotated channels / 2), None without positions -> (..., dim)."""
        q, k = self.q(x), self.k(x)
        if self.norm_first:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.unflatten(-1, (-1, self.head_dim)), k.unflatten(-1, (-1, self.head_dim))
        if not self.norm_first:
            q, k = self.q_norm(q), self.k_norm(k)
        v = self.v(x).unflatten(-1, (-1, self.head_dim))
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin, self.interleaved), rotate(k, cos, sin, self.interleaved)
        y = attend.dense(self.index, q, k, v, Scores(self.scale, self.kind.window, self.softcap, self.sinks)).flatten(-2)
        return self.o(y if self.gate is None else y * torch.sigmoid(self.gate(x)))

    def head_blocks(self) -> dict[str, tuple[int, ...]]:
        """Matrices whose rows are grouped by head -> the number of heads, then the rows of each projection in a head."""
        heads = {"q.weight": self.q, "k.weight": self.k, "v.weight": self.v}
        return {name: (linear.weight.size(0) // self.head_dim, self.head_dim) for name, linear in heads.items()}

    @torch.no_grad()
    def clip_heads(self, gamma_H: Tensor) -> None:
        """Scale each head's logits by gamma (QK-clip; Kimi K2, 2025): gamma^0.5 on k and on q. A k that heads share takes the
        least of them, and each q the rest of its own gamma.

        Raises:
            ValueError: q and k are normed, so scaling their projections changes nothing.
        """
        if not isinstance(self.q_norm, nn.Identity):
            raise ValueError("expected attention without qk_norm, got one with it; drop either qk_norm or QK-clip")
        shared_KG = gamma_H.view(self.k.weight.size(0) // self.head_dim, -1)
        root_K1 = shared_KG.amin(1, keepdim=True).sqrt()
        scale_rows(self.k, root_K1.flatten())
        scale_rows(self.q, (shared_KG / root_K1).flatten())


def scale_rows(linear: nn.Linear, factor_H: Tensor) -> None:
    """Multiply each head's rows (and biases) in place."""
    for p in (linear.weight, linear.bias):
        if p is not None:
            p.mul_(factor_H.to(p).repeat_interleave(p.size(0) // len(factor_H)).view(-1, *[1] * (p.ndim - 1)))
