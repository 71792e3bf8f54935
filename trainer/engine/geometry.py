"""Which tensor shapes the decoder may use so that a sequence's numbers never depend on its neighbours.

Floating-point sums depend on their order, and a matrix library picks its order by shape. Measured on x86 with torch 2.13: rows
of a product are bitwise equal for any number of rows from four (attention) or seven (linear layers) on, and masked keys beyond
a sequence's end change no bit; products of one or two rows differ. `probe` checks this for the shapes of one model on the
machine it runs on, with random data: where it holds, the decoder may drop idle rows, shorten the keys and reuse what another
shape computed; where it does not, every shape is fixed.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import EngineConfig
from trainer.model.config import ModelConfig

log = logging.getLogger(__name__)
KEYS = 64
"""Key lengths are multiples of this."""
ROWS = 8
"""Batches have a multiple of this many rows."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the decoder does about shapes."""

    query_rows: int
    """Rows per key head in attention: real queries, then padding."""
    elastic: bool
    """Idle rows may be dropped, keys shortened, and caches filled by one shape read by another."""


@functools.cache
def probe(model: ModelConfig, engine: EngineConfig) -> Geometry:
    """The cheapest geometry that is exact here. Takes some ten milliseconds for a small model."""
    grouped = model.n_heads // model.n_kv_heads
    elastic = all(_linear_is_exact(n, k, engine) for n, k in _linears(model))
    if elastic:
        for rows in (4, 8, 16):
            if rows >= grouped and _attention_is_exact(model, engine, rows):
                return Geometry(rows, True)
    log.warning("engine shapes are fixed: products on this machine depend on their shape, decoding will be slower")
    return Geometry(max(ROWS, grouped), False)


def _linears(model: ModelConfig) -> set[tuple[int, int]]:
    """(in, out) of every matrix in the model."""
    heads, kv_heads = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    return {
        (model.dim, heads),
        (model.dim, kv_heads),
        (heads, model.dim),
        (model.dim, model.ffn_dim),
        (model.ffn_dim, model.dim),
        (model.dim, model.vocab_size),
    }


def _linear_is_exact(n: int, k: int, engine: EngineConfig) -> bool:
    generator = torch.Generator().manual_seed(n * 1009 + k)
    weight = torch.randn(k, n, generator=generator)
    most = engine.slots * engine.chunk
    x = torch.randn(most, n, generator=generator)
    whole = F.linear(x, weight)
    shapes = [(ROWS, 0), (2 * ROWS, 3), (5 * ROWS, 1), (engine.slots, 2), (engine.chunk, 5), (most // 2 + ROWS, 0)]
    return all(
        torch.equal(F.linear(x[at : at + m].contiguous(), weight), whole[at : at + m]) for m, at in shapes if at + m <= most
    )


def _attention_is_exact(model: ModelConfig, engine: EngineConfig, rows: int) -> bool:
    """A query gives the same bits among `rows` rows and a prefill chunk's, with short keys and long ones."""
    generator = torch.Generator().manual_seed(rows)
    heads, dim = model.n_kv_heads, model.head_dim
    many = engine.chunk * (model.n_heads // heads)
    k, v = (torch.randn(2, heads, engine.context, dim, generator=generator) for _ in range(2))
    q = torch.randn(2, heads, many, dim, generator=generator)
    for length in {KEYS, engine.context}:
        ends = torch.randint(0, length, (2, many), generator=generator)
        results: list[Tensor] = []
        for keys in range(length, engine.context + 1, KEYS):
            bias = key_bias(ends, keys)
            results.append(attention(q, k[:, :, :keys], v[:, :, :keys], bias, model.scale))
        whole = results[0]
        for other in results[1:]:
            if not torch.equal(whole, other):
                return False
        bias = key_bias(ends, length)
        for at in (0, 1, many - rows):
            part = attention(
                q[:, :, at : at + rows].contiguous(), k[:, :, :length], v[:, :, :length], bias[:, :, at : at + rows], model.scale
            )
            if not torch.equal(part, whole[:, :, at : at + rows]):
                return False
    return True


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """q (B, K, R, D), k and v (B, K, S, D), bias (B, 1, R or 1, S) -> (B, K, R, D)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def key_bias(ends: Tensor, keys: int) -> Tensor:
    """(B, 1, R, keys): 0 for key s <= ends[b, r], -inf beyond. ends (B, R)."""
    hidden = torch.arange(keys) > ends[..., None]
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None]
