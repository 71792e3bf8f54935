"""What the engine keeps of every token, by kind of layer, and attention over it.

Grouped-query layers keep keys and values. Latent layers keep the latent and the rotary key that all heads share, and attend in
the absorbed form, in which keys are never made: one key head, whose values are the first channels of its keys. Sparse layers keep
the indexer's key beside it and read the chosen latents alone. Windowed layers keep a ring of two windows and a chunk, so that a
slot can go back by a window, as the next turn of a conversation may; a sequence that parts earlier is computed anew.

Plain grouped-query attention is the decoder's own, because its shapes promise bits (see `geometry`). What stands here agrees with
the training forward to rounding.

Shapes: R rows, C chunk tokens, S keys, H query heads, K key/value heads, G = H / K, D channels, L latent channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.engine.geometry import KEYS
from trainer.model.attention import Lookup, Scores
from trainer.model.config import LayerKind, ModelConfig
from trainer.model.dsa import best_keys, index_scores

Plain = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, q (..., H, D), k (..., K, D), v (..., K, D), scale) -> (..., H, D), keys and values written."""


class Cache:
    """Tensors of every layer; their last dimension but one is the column, the first the slot.

    A position has the column of its number, in windowed layers modulo the ring. Behind these come scratch columns, for positions
    from `context` on: what is written there nobody reads.
    """

    def __init__(self, model: ModelConfig, slots: int, context: int, chunk: int, dtype: torch.dtype = torch.float32) -> None:
        self.context = context
        self.rings = [context if kind.window is None else ring(kind.window, context, chunk) for kind in model.layers]
        """Columns of each layer, without scratch."""
        self.layers = [
            [torch.zeros(slots, *heads, own + max(chunk, KEYS), channels, dtype=dtype) for heads, channels in parts(model, kind)]
            for kind, own in zip(model.layers, self.rings, strict=True)
        ]
        windowed = [(kind.window, own) for kind, own in zip(model.layers, self.rings, strict=True) if kind.window is not None]
        self.windows = {(window, own) for window, own in windowed if own < context}
        self.reach = np.zeros(slots, np.int64)
        """Per slot, the positions below which something was written since it last began at 0: rings lost what lies far below."""

    def columns(self, index: int, positions: Tensor) -> Tensor:
        """Where a layer keeps the tokens at these positions."""
        own = self.rings[index]
        if own == self.context:
            return positions
        return torch.where(positions < self.context, positions % own, positions - self.context + own)

    def wrote(self, slots: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        """Positions `starts` to `stops` (n,) of these slots are about to be overwritten."""
        self.reach[slots] = np.maximum(stops, np.where(starts > 0, self.reach[slots], 0)).clip(max=self.context)

    def usable(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Per slot, the prefix of `lengths` (slots,) tokens if the next token's windows are still whole, or else 0."""
        whole = np.ones(len(lengths), bool)
        for window, own in self.windows:
            whole &= np.maximum(lengths - window + 1, 0) >= self.reach - own
        return np.where(whole, lengths, 0)

    def copy(self, source: int, target: int, length: int) -> None:
        """Give one slot the first `length` cached tokens of another."""
        for layer, own in zip(self.layers, self.rings, strict=True):
            for tensor in layer:
                tensor[target, ..., : min(length, own), :] = tensor[source, ..., : min(length, own), :]
        self.reach[target] = self.reach[source]

    @property
    def slot_bytes(self) -> int:
        """Memory of one sequence of `context` tokens, without scratch."""
        return sum(t[0, ..., :own, :].nbytes for own, layer in zip(self.rings, self.layers, strict=True) for t in layer)


def ring(window: int, context: int, chunk: int) -> int:
    """Columns for such a window: after a chunk has entered, a slot may still go back by a window."""
    return min(context, 2 * window + chunk)


def parts(model: ModelConfig, kind: LayerKind) -> list[tuple[tuple[int, ...], int]]:
    """(heads, channels) of each tensor that such a layer keeps; no heads where all share one."""
    if kind.attention == "gqa":
        return [((model.n_kv_heads,), model.head_dim)] * 2
    latent: list[tuple[tuple[int, ...], int]] = [((), model.mla.kv_latent + model.mla.rope_dim)]
    return [*latent, ((), model.dsa.dim)] if kind.attention == "dsa" else latent


class Kept:
    """An `Attend` over the cache, for one pass: a chunk of prompts (R, C) or one token of each row (R,).

    Args:
        slots: (R,) whose cache each row reads and writes.
        positions_RC: where each token stands; C = 1 for one token. From the cache's context on lies scratch.
        keys: how many positions are read.
        plain: attention without window, cap and sinks.
    """

    def __init__(self, cache: Cache, slots: Tensor, positions_RC: Tensor, keys: int, plain: Plain) -> None:
        self.cache, self.slots, self.positions, self.keys, self.plain = cache, slots, positions_RC, keys, plain

    def dense(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        if scores.window is None and scores.softcap is None and scores.sinks is None:
            return self.plain(index, q, k, v, scores.scale)
        (R, C), (H, D), K = self.positions.shape, q.shape[-2:], k.size(-2)
        k_cache, v_cache = self.cache.layers[index]
        at, keys = self.cache.columns(index, self.positions), min(self.keys, self.cache.rings[index])
        k_cache[self.slots[:, None], :, at] = k.view(R, C, K, D)
        v_cache[self.slots[:, None], :, at] = v.view(R, C, K, D)
        grouped = q.view(R, C, K, H // K, D).permute(0, 2, 1, 3, 4).reshape(R, K, -1, D)
        seen = self._visible(index, keys, scores.window).repeat_interleave(H // K, 1)[:, None]
        sinks = None if scores.sinks is None else scores.sinks.view(K, -1).repeat(1, C)[..., None]
        y = attended(grouped, k_cache[self.slots, :, :keys], v_cache[self.slots, :, :keys], seen, scores, sinks)
        return y.view(R, K, C, -1, D).permute(0, 2, 1, 3, 4).reshape(q.shape)

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
        (R, C), (H, N), L = self.positions.shape, q_nope.shape[-2:], c.size(-1)
        weight: Tensor = up.weight  # type: ignore[assignment]
        up_k, up_v = weight.unflatten(0, (H, -1)).tensor_split((N,), 1)
        cache = self.cache.layers[index][0]
        cache[self.slots[:, None], self.positions] = torch.cat((c, k_rope), -1).view(R, C, -1)
        q = torch.cat((torch.einsum("...hn,hnl->...hl", q_nope, up_k), q_rope), -1).view(R, C * H, -1)
        seen = self._visible(index, self.keys, None)
        if keep is not None:
            chosen = self._chosen(index, keep, seen)
        if keep is None or keep.config.top_k >= self.keys:
            found = cache[self.slots, : self.keys]
        elif C == 1:
            # Every row chose as many keys: only these are read. Those of them that it does not see stay masked.
            at = chosen[:, 0].nonzero()[:, -1].view(R, -1)
            found, seen = cache[self.slots[:, None], at], seen[:, 0].gather(-1, at)[:, None]
        else:
            found, seen = cache[self.slots, : self.keys], seen & chosen
        y = attended(q, found, found[..., :L], seen.repeat_interleave(H, 1), scores, None)
        return torch.einsum("...hl,hvl->...hv", y.view(*q_nope.shape[:-1], L), up_v)

    def _chosen(self, index: int, keep: Lookup, seen: Tensor) -> Tensor:
        """(R, C, S) booleans: the keys that each token's indexer wants, as many for each."""
        R, C = self.positions.shape
        cache = self.cache.layers[index][1]
        cache[self.slots[:, None], self.positions] = keep.k.view(R, C, -1)
        asked = [x.view(R, C, *x.shape[-n:]) for x, n in ((keep.q, 2), (keep.weights, 1))]
        found = index_scores(asked[0], cache[self.slots, : self.keys], asked[1])
        return best_keys(found.masked_fill(~seen, float("-inf")), keep.config)

    def _visible(self, index: int, keys: int, window: int | None) -> Tensor:
        """(R, C, S) booleans: which of a layer's first `keys` columns each token sees."""
        behind = self.positions[..., None] - torch.arange(keys)
        if window is None:
            return behind >= 0
        if keys == self.cache.rings[index] < self.cache.context:  # A column holds the newest of its positions.
            behind = behind % keys
            return (behind < window) & (behind <= self.positions[..., None])
        return (behind >= 0) & (behind < window)


def attended(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scores: Scores, sinks: Tensor | None) -> Tensor:
    """Attention written out: q (..., M, D), k (..., S, D), v (..., S, V), seen (..., M, S), sinks (..., M, 1) -> (..., M, V).

    A row that sees nothing, which only idle ones do, reads some average instead of NaN.
    """
    logits = q @ k.mT * scores.scale
    if scores.softcap is not None:
        logits = scores.softcap * torch.tanh(logits / scores.softcap)
    logits = logits.masked_fill(~seen, torch.finfo(logits.dtype).min)
    if sinks is not None:
        logits = torch.cat((logits, sinks.to(logits).expand(*logits.shape[:-1], 1)), -1)
    return torch.softmax(logits, -1)[..., : k.size(-2)] @ v
