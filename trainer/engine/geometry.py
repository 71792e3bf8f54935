"""Which tensor shapes the decoder may use so that a sequence's numbers never depend on its neighbours.

Floating-point sums depend on their order, and a matrix library picks its order by shape. Measured on x86 with torch 2.13: rows
of a product are bitwise equal for any number of rows from eight on, not for one or two; masked keys beyond a sequence's end
change no bit for some key lengths (64, 128, 192, 384, 448, 512) and do for others (256, 320), because products over more than
192 keys are summed in two halves. `probe` finds out for the shapes of one model, on the machine it runs on, with random data.
What holds, the decoder uses: it drops idle rows, shortens keys, and reads caches that another shape filled. What does not, it
leaves alone.
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
    """Idle rows may be dropped, and caches filled by one shape read by another."""
    keys: tuple[int, ...]
    """Key lengths that give the same bits, ascending; the last is the context."""
    exact: bool = True
    """No bit of an answer depends on its company. Otherwise the last ones may."""


@functools.cache
def probe(model: ModelConfig, engine: EngineConfig) -> Geometry:
    """The cheapest geometry that is exact here. Takes some ten milliseconds for a small model.

    Experts get as many rows as chose them, and windows, caps, sinks and latents are attended in forms whose sums nobody probed:
    models with these are decoded in the cheapest shapes, right to rounding.
    """
    grouped = model.n_heads // model.n_kv_heads
    if not _plain(model):
        log.info(
            "the last bits of this engine's answers may depend on their company: only plain attention and dense layers are exact"
        )
        return Geometry(max(4, grouped), True, tuple(range(KEYS, engine.context + 1, KEYS)), exact=False)
    if all(_linear_is_exact(n, k, engine) for n, k in _linears(model)):
        for rows in (4, 8, 16):
            if rows >= grouped and (keys := _exact_keys(model, engine, rows)):
                return Geometry(rows, True, keys)
    log.warning("engine shapes are fixed: products on this machine depend on their shape, decoding will be slower")
    return Geometry(max(ROWS, grouped), False, (engine.context,))


def _plain(model: ModelConfig) -> bool:
    """Whether all layers are what the probes below try out."""
    extras = model.attention_softcap, model.attention_sinks, model.attention_bias, model.output_bias, model.ffn_bias
    return not any(extras) and all(k.attention == "gqa" and k.window is None and k.ffn != "moe" for k in model.layers)


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


def _exact_keys(model: ModelConfig, engine: EngineConfig, rows: int) -> tuple[int, ...]:
    """Key lengths at which `rows` queries and a prefill chunk's give the bits of a full context; empty when rows do not agree."""
    generator = torch.Generator().manual_seed(rows)
    heads, dim, context = model.n_kv_heads, model.head_dim, engine.context
    many = engine.chunk * (model.n_heads // heads)
    k, v = (torch.randn(2, heads, context, dim, generator=generator) for _ in range(2))
    q = torch.randn(2, heads, many, dim, generator=generator)
    exact = []
    for keys in range(KEYS, context + 1, KEYS):
        ends = torch.randint(0, keys, (2, many), generator=generator)
        full, short = key_bias(ends, context), key_bias(ends, keys)
        whole = attention(q, k, v, full, model.scale)
        agree = torch.equal(attention(q, k[:, :, :keys], v[:, :, :keys], short, model.scale), whole)
        for at in (0, 1, many - rows):
            here = slice(at, at + rows)
            part = attention(q[:, :, here].contiguous(), k[:, :, :keys], v[:, :, :keys], short[:, :, here], model.scale)
            agree = agree and torch.equal(part, whole[:, :, here])
        if agree:
            exact.append(keys)
    return tuple(exact) if exact and exact[-1] == context else ()


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """q (B, K, R, D), k and v (B, K, S, D), bias (B, 1, R or 1, S) -> (B, K, R, D)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)


def key_bias(ends: Tensor, keys: int) -> Tensor:
    """(B, 1, R, keys): 0 for key s <= ends[b, r], -inf beyond. ends (B, R)."""
    hidden = torch.arange(keys) > ends[..., None]
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[:, None]
