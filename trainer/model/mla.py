"""Multi-head latent attention (DeepSeek-V2, 2024, section 2.1; also V3): keys and values of all heads come from one latent.

    c_q = norm(W_dq x)           q = W_uq c_q = [q_nope; q_rope] per head
    [c; k_r] = W_dkv x           c <- norm(c), k_rope = rotate(k_r), shared by the heads
    [k_nope; v] = W_ukv c        k = [k_nope; k_rope]

A cache holds c and k_rope. `absorbed` never forms keys: q_nope is taken through W_uk once, and the attended latents through W_uv.

Shapes: `...` leading dimensions, S keys, H heads, N = nope_dim, R = rope_dim, V = v_dim, L = kv_latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.model.attention import Attend, Lookup, Scores
from trainer.model.config import LayerKind, ModelConfig
from trainer.model.norm import RMSNorm
from trainer.model.rope import rotate


class MLA(nn.Module):
    """Latent attention; the query latent is optional."""

    def __init__(self, config: ModelConfig, kind: LayerKind, index: int) -> None:
        super().__init__()
        mla, self.index = config.mla, index
        self.nope_dim, self.rope_dim, self.v_dim, self.latent = mla.nope_dim, mla.rope_dim, mla.v_dim, mla.kv_latent
        self.scores = Scores(config.scale_of(kind), softcap=config.attention_softcap)
        self.interleaved = config.rope(kind.position).layout == "interleaved"
        heads, bias = config.n_heads, config.attention_bias
        self.has_q_latent = mla.q_latent is not None
        if mla.q_latent is None:
            self.q = nn.Linear(config.dim, heads * mla.qk_dim, bias=False)
        else:
            self.q_down = nn.Linear(config.dim, mla.q_latent, bias=bias)
            self.q_down_norm = RMSNorm(mla.q_latent, mla.norm_eps)
            self.q_up = nn.Linear(mla.q_latent, heads * mla.qk_dim, bias=False)
        self.kv_down = nn.Linear(config.dim, mla.kv_latent + mla.rope_dim, bias=bias)
        self.kv_down_norm = RMSNorm(mla.kv_latent, mla.norm_eps)
        self.kv_up = nn.Linear(mla.kv_latent, heads * (mla.nope_dim + mla.v_dim), bias=False)
        self.o = nn.Linear(heads * mla.v_dim, config.dim, bias=config.output_bias)
        self.gate = nn.Linear(config.dim, heads * mla.v_dim, bias=False) if config.attention_gate else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x (..., dim), cos and sin (..., 1, R / 2) -> (..., dim)."""
        c_q = self.q_down_norm(self.q_down(x)) if self.has_q_latent else x
        q = (self.q_up(c_q) if self.has_q_latent else self.q(x)).unflatten(-1, (-1, self.nope_dim + self.rope_dim))
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), -1)
        c, k_rope = self.kv_down(x).split((self.latent, self.rope_dim), -1)
        q_rope = rotate(q_rope, cos, sin, self.interleaved)
        k_rope = rotate(k_rope.unsqueeze(-2), cos, sin, self.interleaved).squeeze(-2)
        keep = self.lookup(x, c_q, cos, sin)
        y = attend.latent(self.index, q_nope, q_rope, self.kv_down_norm(c), k_rope, self.kv_up, self.scores, keep).flatten(-2)
        return self.o(y if self.gate is None else y * torch.sigmoid(self.gate(x)))

    def lookup(self, x: Tensor, c_q: Tensor, cos: Tensor, sin: Tensor) -> Lookup | None:
        """Which keys the heads attend to; None for all that they see."""
        return None

    def head_blocks(self) -> dict[str, tuple[int, ...]]:
        """Matrices whose rows are grouped by head -> the number of heads, then the rows of each projection in a head."""
        heads = self.kv_up.weight.size(0) // (self.nope_dim + self.v_dim)
        q = "q_up.weight" if self.has_q_latent else "q.weight"
        return {q: (heads, self.nope_dim + self.rope_dim), "kv_up.weight": (heads, self.nope_dim, self.v_dim)}

    @torch.no_grad()
    def clip_heads(self, gamma_H: Tensor) -> None:
        """Scale each head's logits by gamma (QK-clip; Kimi K2, 2025, algorithm 1). The rotary key is shared, so its part falls
        on the rotary query alone."""
        root = gamma_H.sqrt()
        q = self.q_up if self.has_q_latent else self.q
        row_factors(q, (self.nope_dim, root), (self.rope_dim, gamma_H))
        row_factors(self.kv_up, (self.nope_dim, root), (self.v_dim, torch.ones_like(gamma_H)))


def row_factors(linear: nn.Linear, *parts: tuple[int, Tensor]) -> None:
    """Multiply the rows of each head in place: its first rows by one factor, the next by another."""
    factors = torch.cat([factor_H[:, None].expand(-1, rows) for rows, factor_H in parts], 1)
    linear.weight.mul_(factors.flatten()[:, None].to(linear.weight))


def naive(q_nope: Tensor, q_rope: Tensor, c: Tensor, k_rope: Tensor, up: Tensor, scale: float, mask: Tensor) -> Tensor:
    """Keys and values formed: q_nope (C, H, N), q_rope (C, H, R), c (S, L), k_rope (S, R), up (H * (N + V), L), mask (C, S)
    -> (C, H, V)."""
    N = q_nope.size(-1)
    kv = (c @ up.mT).unflatten(-1, (q_nope.size(-2), -1))
    logits = torch.einsum("chn,shn->hcs", q_nope, kv[..., :N]) + torch.einsum("chr,sr->hcs", q_rope, k_rope)
    weights = torch.softmax((logits * scale).masked_fill(~mask, float("-inf")), -1)
    return torch.einsum("hcs,shv->chv", weights, kv[..., N:])


def absorbed(q_nope: Tensor, q_rope: Tensor, c: Tensor, k_rope: Tensor, up: Tensor, scale: float, mask: Tensor) -> Tensor:
    """The same through the latent: per key L + R products and sums instead of H * (N + R)."""
    up_k, up_v = up.unflatten(0, (q_nope.size(-2), -1)).tensor_split((q_nope.size(-1),), 1)
    q = torch.cat((torch.einsum("chn,hnl->chl", q_nope, up_k), q_rope), -1)
    logits = torch.einsum("chd,sd->hcs", q, torch.cat((c, k_rope), -1))
    weights = torch.softmax((logits * scale).masked_fill(~mask, float("-inf")), -1)
    return torch.einsum("hcl,hvl->chv", torch.einsum("hcs,sl->hcl", weights, c), up_v)
