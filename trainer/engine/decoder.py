"""Runs the model for the engine: a static cache per slot, prefill in chunks, decode for all slots.

The decoder owns a copy of the weights, so that training may change its own while a version is being served. Both passes run
the model's own code with an `Attend` that writes to and reads from the cache (`cache.py`), in the shapes that `geometry` allows.

Shapes: R rows, C chunk tokens, H query heads, K key/value heads, G = H / K, D channels, S keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.checkpoint import load_weights
from trainer.config import EngineConfig
from trainer.engine.cache import Cache, Kept
from trainer.engine.geometry import ROWS, Geometry, attention, key_bias, probe
from trainer.model.attention import Attend
from trainer.model.config import ModelConfig
from trainer.model.embedding import NOTHING
from trainer.model.transformer import Transformer

Tokens = NDArray[np.int64]
"""(slots, context + 1): what every slot's sequence holds; entries beyond its length mean nothing."""


@dataclass(slots=True)
class Chunk:
    """Tokens of one sequence that enter its cache together."""

    slot: int
    start: int
    stop: int


class Decoder:
    """Weights, caches, and the two forward passes."""

    def __init__(
        self, model: ModelConfig, engine: EngineConfig, geometry: Geometry | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.config, self.engine = model, engine
        self.geometry = geometry or probe(model, engine)
        self.model = Transformer(model).requires_grad_(False).eval().to(dtype)
        self.cache = Cache(model, engine.slots, engine.context, engine.chunk, dtype)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights in. What the caches hold was computed with the old ones."""
        load_weights(self.model, weights)

    def copy(self, source: int, target: int, length: int) -> None:
        """Give one slot the first `length` cached tokens of another."""
        self.cache.copy(source, target, length)

    def usable(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Per slot, the prefix of `lengths` (slots,) cached tokens if a sequence can go on from there, or else 0."""
        return self.cache.usable(lengths)

    @torch.inference_mode()
    def prefill(self, tokens: Tokens, chunks: Sequence[Chunk]) -> Tensor:
        """Cache every chunk (at most `engine.chunk` tokens each).

        Returns:
            Logits (len(chunks), V) after the last token of each.
        """
        n, C = len(chunks), self.engine.chunk
        rows = n if self.geometry.elastic else self.engine.slots
        slots, starts, stops = np.zeros(rows, np.int64), np.full(rows, self.engine.context), np.full(rows, self.engine.context)
        for r, chunk in enumerate(chunks):
            slots[r], starts[r], stops[r] = chunk.slot, chunk.start, chunk.stop
        self.cache.wrote(slots[:n], starts[:n], starts[:n] + C)
        places = starts[:, None] + np.arange(C)
        ids, previous = self._inputs(tokens, slots[:, None], np.where(places < stops[:, None], places, -1))
        positions = torch.from_numpy(places)
        keys = self._keys(int(stops[:n].max()))
        G = self.config.n_heads // self.config.n_kv_heads
        bias = key_bias(positions.repeat_interleave(G, 1), keys)
        attend = self._prefill_attend(torch.from_numpy(slots), positions, bias, keys)
        hidden = self.model.trunk(ids, previous, positions.clamp(max=self.config.max_positions - 1), attend)
        return self._head(hidden[torch.arange(n), torch.from_numpy(stops[:n] - starts[:n] - 1)])

    @torch.inference_mode()
    def decode(self, tokens: Tokens, slots: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
        """Cache the last token of the sequences in `slots` (n,), which have `lengths` (n,) tokens.

        Returns:
            Logits (n, V) for the next token.
        """
        self.cache.wrote(slots, lengths - 1, lengths)
        n = len(slots)
        rows, packed = self.engine.slots, _up(n, ROWS)
        if self.geometry.elastic:
            rows = _up(int(slots.max()) + 1, ROWS)
        # Few sequences among many slots: gathering their caches is cheaper than computing the rows between them.
        gather = self.geometry.elastic and 2 * packed <= rows
        if gather:
            rows, at, pick = packed, np.full(packed, slots[0]), np.arange(n)
            at[:n] = slots
        else:
            at, pick = np.arange(rows), slots
        last = np.full(rows, -1)
        last[pick] = lengths - 1
        ids, previous = self._inputs(tokens, at, last)
        positions = torch.from_numpy(np.where(last < 0, self.engine.context, last))
        keys = self._keys(int(lengths.max()))
        attend = self._decode_attend(torch.from_numpy(at), gather, positions, key_bias(positions[:, None], keys), keys)
        hidden = self.model.trunk(ids, previous, positions.clamp(max=self.config.max_positions - 1), attend)
        return self.model.logits(hidden)[torch.from_numpy(pick)]

    def _inputs(self, tokens: Tokens, slots: NDArray[np.int64], places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Ids (...) and predecessors (..., smear) of the tokens at `places`; NOTHING where a place is negative."""
        backs = [np.where(places >= b, tokens[slots, np.maximum(places - b, 0)], NOTHING) for b in range(self.config.smear + 1)]
        previous = np.stack(backs[1:], -1) if backs[1:] else np.zeros((*places.shape, 0), np.int64)
        return torch.from_numpy(backs[0]), torch.from_numpy(previous)

    def _keys(self, longest: int) -> int:
        """The shortest admissible key length."""
        return next(keys for keys in self.geometry.keys if keys >= longest)

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits of (n, dim), in a number of rows that keeps them exact."""
        n = hidden.size(0)
        rows = max(ROWS, n) if self.geometry.elastic else self.engine.slots
        padded = hidden if n == rows else torch.cat((hidden, hidden.new_zeros(rows - n, hidden.size(1))))
        return self.model.logits(padded)[:n]

    def _prefill_attend(self, slots: Tensor, positions_RC: Tensor, bias: Tensor, keys: int) -> Attend:
        K, D = self.config.n_kv_heads, self.config.head_dim
        G = self.config.n_heads // K

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            R, C = positions_RC.shape
            k_cache, v_cache = self.cache.layers[index]
            k_cache[slots[:, None], :, positions_RC] = k
            v_cache[slots[:, None], :, positions_RC] = v
            grouped = q.view(R, C, K, G, D).permute(0, 2, 1, 3, 4).reshape(R, K, C * G, D)
            y = attention(grouped, k_cache[slots, :, :keys], v_cache[slots, :, :keys], bias, scale)
            return y.view(R, K, C, G, D).permute(0, 2, 1, 3, 4).reshape(R, C, K * G, D)

        return Kept(self.cache, slots, positions_RC, keys, attend)

    def _decode_attend(self, slots: Tensor, gather: bool, positions_R: Tensor, bias: Tensor, keys: int) -> Attend:
        K, D, rows = self.config.n_kv_heads, self.config.head_dim, len(slots)
        G, M = self.config.n_heads // K, self.geometry.query_rows
        padded = torch.zeros(rows, K, M, D, dtype=self.model.head.weight.dtype)

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            k_cache, v_cache = self.cache.layers[index]
            k_cache[slots, :, positions_R] = k
            v_cache[slots, :, positions_R] = v
            padded[:, :, :G] = q.view(rows, K, G, D)
            of = slots if gather else slice(rows)
            y = attention(padded, k_cache[of, :, :keys], v_cache[of, :, :keys], bias, scale)
            return y[:, :, :G].reshape(rows, K * G, D)

        return Kept(self.cache, slots, positions_R[:, None], keys, attend)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
