"""Attention layers. What is projected, normed and rotated stands here; how keys are kept and masked is the caller's.

A layer hands q, k and v to an `Attend`: training passes one that masks by document (below), the engine passes one that writes
to and reads from its cache. So both run the same weights through the same code.

Shapes: `...` any leading dimensions (B, T in training, N in the engine), H query heads, K key/value heads, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.config import LayerKind, ModelConfig
from trainer.model.norm import RMSNorm
from trainer.model.rope import rotate

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer index, q (..., H, D), k (..., K, D), v (..., K, D), scale) -> (..., H, D)."""


class GQA(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023): query head h reads key/value head h // (H / K)."""

    def __init__(self, config: ModelConfig, kind: LayerKind, index: int) -> None:
        super().__init__()
        self.index, self.position, self.scale = index, kind.position, config.scale
        self.heads = (config.n_heads, config.n_kv_heads, config.head_dim)
        self.q = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        norm = RMSNorm(config.head_dim, config.norm_eps, config.norm_weight) if config.qk_norm else nn.Identity()
        self.q_norm: nn.Module = norm
        self.k_norm: nn.Module = RMSNorm(config.head_dim, config.norm_eps, config.norm_weight) if config.qk_norm else norm

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x (..., dim), cos and sin (..., 1, D / 2) -> (..., dim)."""
        n_heads, n_kv_heads, head_dim = self.heads
        q = self.q_norm(self.q(x).unflatten(-1, (n_heads, head_dim)))
        k = self.k_norm(self.k(x).unflatten(-1, (n_kv_heads, head_dim)))
        v = self.v(x).unflatten(-1, (n_kv_heads, head_dim))
        if self.position == "rope":
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return self.o(attend(self.index, q, k, v, self.scale).flatten(-2))


ATTENTION: dict[str, Callable[[ModelConfig, LayerKind, int], nn.Module]] = {"gqa": GQA}
"""Class of each `LayerKind.attention`."""


def document_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T) booleans: position t may see s when s <= t and both belong to the same document.

    Padding carries document -1 and sees itself and earlier padding, so that no row of the softmax is empty.
    """
    T = documents_BT.size(1)
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    return (same & torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril())[:, None]


def masked_attend(mask: Tensor | None) -> Attend:
    """An `Attend` for whole (B, T) batches: under `mask` (B, 1, T, T), or plainly causal when it is None.

    Half precision is lifted to float32 here: on CPUs the fused kernel's backward is several times slower in bfloat16.
    """

    def attend(index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(1, 2).float() if x.dtype == torch.bfloat16 else x.transpose(1, 2) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.size(1) != k.size(1)
            )
        return y.transpose(1, 2)

    return attend
