"""The `Attend` of training: whole rows of packed documents, position t sees s <= t of its own document within the window.

Short rows use one mask. Long rows never have a T x T tensor: without a window each document is attended on its own, causally and
without a mask; with one, queries go in chunks, under masks as wide as chunk and window. Where neither helps, a chunk runs again
in the backward pass instead of keeping its mask or weights.
Soft caps and sinks are not in torch's fused kernel and take the plain form, softmax written out.

Shapes: B rows, T positions, C queries of a chunk, S keys, H query heads, K key heads, G = H / K, D channels.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.attention import Lookup, Scores
from trainer.model.config import MemoryConfig
from trainer.model.dsa import best_keys, divergence, index_scores
from trainer.model.ledger import Ledger

NARROW = 64
"""Channels per head below which bfloat16 attention is lifted to float32 on CPUs (see `_lifted`)."""


class Masked:
    """Attention within documents, for one forward pass.

    Args:
        documents_BT: document of each position, -1 on padding, which sees itself and earlier padding, so that no row of the
            softmax is empty. None: every row is one document.
        oracle: softmax in float32 whatever comes, as `transformers` does.
    """

    def __init__(
        self, documents_BT: Tensor | None, memory: MemoryConfig, ledger: Ledger | None = None, oracle: bool = False
    ) -> None:
        self.documents, self.chunk, self.oracle = documents_BT, memory.attention_chunk, oracle
        self.ledger = ledger or Ledger()
        self._masks: dict[tuple[int | None, int, int], Tensor] = {}
        self._spans: list[list[tuple[int, int]]] | None = None

    def dense(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        q, k, v = _lifted(q, k, v)
        with torch.autocast(q.device.type, enabled=False):
            if self.ledger.inspect:
                self._measure(index, q, k, scores)
            width = max(q.size(-1), v.size(-1))
            y = self._attention(_padded(q, width), _padded(k, width), _padded(v, width), scores)
        y = y.transpose(1, 2)
        return y if y.size(-1) == v.size(-1) else y[..., : v.size(-1)]

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
        heads, nope = q_nope.shape[-2:]
        k_nope, v = up(c).unflatten(-1, (heads, -1)).tensor_split((nope,), -1)
        q = torch.cat((q_nope, q_rope), -1)
        k = torch.cat((k_nope, k_rope.unsqueeze(-2).expand(*k_nope.shape[:-1], -1)), -1)
        if keep is None:
            return self.dense(index, q, k, v, scores)
        q, k, v = _lifted(q, k, v)
        with torch.autocast(q.device.type, enabled=False):
            if self.ledger.inspect:
                self._measure(index, q, k, scores)
            return self._chosen(index, q, k, v, scores, keep).transpose(1, 2)

    def visible(self, window: int | None, t: slice, s: slice) -> Tensor:
        """(B or 1, 1, C, S) booleans: which keys `s` the queries `t` see."""
        device = None if self.documents is None else self.documents.device
        ahead = torch.arange(t.start, t.stop, device=device)[:, None] - torch.arange(s.start, s.stop, device=device)
        seen = ahead >= 0
        if window is not None:
            seen &= ahead < window
        if self.documents is None:
            return seen[None, None]
        return ((self.documents[:, t, None] == self.documents[:, None, s]) & seen)[:, None]

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
        T, plain = q.size(2), self.oracle or scores.softcap is not None or scores.sinks is not None
        window = None if scores.window is None or scores.window >= T else scores.window
        if not plain and self.documents is None and window is None:
            return _fused(q, k, v, scores.scale, None)
        if self.chunk >= T:
            mask = self._mask(window, slice(0, T), slice(0, T), q.device)
            return read(self._weights(q, k, mask, scores), v) if plain else _fused(q, k, v, scores.scale, mask)
        if not plain and window is None and (spans := self._documents()) is not None:
            rows = [
                torch.cat(
                    [_fused(q[b, None, :, i:j], k[b, None, :, i:j], v[b, None, :, i:j], scores.scale, None) for i, j in row], 2
                )
                for b, row in enumerate(spans)
            ]
            return torch.cat(rows)
        chunks = [slice(at, min(at + self.chunk, T)) for at in range(0, T, self.chunk)]
        return torch.cat([self._piece(q[:, :, t], k, v, scores, plain, t) for t in chunks], 2)

    def _piece(self, q: Tensor, k: Tensor, v: Tensor, scores: Scores, plain: bool, t: slice) -> Tensor:
        """Queries of positions t among the keys of whole rows: masks of windows are kept for all layers, what else would be a
        square runs again in the backward pass."""
        window = scores.window
        s = slice(0 if window is None else max(0, t.start - window + 1), t.stop)

        if not plain and window is not None:
            return _fused(q, k[:, :, s], v[:, :, s], scores.scale, self._mask(window, t, s, q.device))

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = self.visible(window, t, s).to(q.device)
            return read(self._weights(q, k, mask, scores), v) if plain else _fused(q, k, v, scores.scale, mask)

        return checkpoint(run, q, k[:, :, s], v[:, :, s], use_reentrant=False, preserve_rng_state=False)

    def _chosen(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores, keep: Lookup) -> Tensor:
        """Attention to the keys that an indexer finds, and the indexer's loss."""
        T, config = q.size(2), keep.config
        learns = torch.is_grad_enabled() and config.loss > 0

        def run(
            at: int, q: Tensor, k: Tensor, v: Tensor, index_q: Tensor, index_k: Tensor, weights: Tensor
        ) -> tuple[Tensor, Tensor]:
            t, s = slice(at, at + q.size(2)), slice(0, k.size(2))
            seen = self.visible(None, t, s).to(q.device)
            ranks = index_scores(index_q, index_k, weights, self.oracle)
            kept = seen[:, 0]
            if config.stage == "sparse":
                kept = kept & best_keys(ranks.detach().masked_fill(~kept, float("-inf")), config, self.oracle)
            attention = self._weights(q, k, kept[:, None], scores)
            kl = divergence(ranks, attention.sum(1), kept) if learns else ranks.new_zeros(ranks.shape[:2])
            return read(attention, v), kl

        pieces = []
        for at in range(0, T, self.chunk):
            t, s = slice(at, min(at + self.chunk, T)), slice(0, min(at + self.chunk, T))
            given = (at, q[:, :, t], k[:, :, s], v[:, :, s], keep.q[:, t], keep.k[:, s], keep.weights[:, t])
            if self.chunk >= T:
                pieces.append(run(*given))
            else:
                pieces.append(checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False))
        if learns:
            kl_BT = torch.cat([kl for _, kl in pieces], 1)
            live = torch.ones_like(kl_BT) if self.ledger.live_BT is None else self.ledger.live_BT.to(kl_BT)
            mean = (kl_BT * live).sum() / live.sum().clamp(min=1)
            self.ledger.note("indexer_kl", index, mean)
            self.ledger.lose("indexer", index, config.loss * mean)
        return torch.cat([y for y, _ in pieces], 2)

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor, scores: Scores) -> Tensor:
        """Attention weights written out: (B, H, C, S)."""
        logits = logits_of(q, k, scores).masked_fill(~mask, float("-inf"))
        narrow = self.oracle and scores.sinks is None
        dtype = torch.float32 if narrow else torch.promote_types(logits.dtype, torch.float32)
        return softmax(logits, scores.sinks, dtype).to(q.dtype)

    def _mask(self, window: int | None, t: slice, s: slice, device: torch.device) -> Tensor:
        """A mask that all layers share, made once."""
        key = window, t.start, t.stop
        if key not in self._masks:
            self._masks[key] = self.visible(window, t, s).to(device)
        return self._masks[key]

    def _documents(self) -> list[list[tuple[int, int]]] | None:
        """Start and end of every document, row by row; None when a document comes back after another one."""
        if self._spans is None and self.documents is not None:
            self._spans = [runs(row) for row in self.documents.tolist()]
            rows = zip(self._spans, self.documents.tolist(), strict=True)
            if any(len({row[i] for i, _ in spans}) < len(spans) for spans, row in rows):
                self._spans = []
        return self._spans or None

    @torch.no_grad()
    def _measure(self, index: int, q: Tensor, k: Tensor, scores: Scores) -> None:
        """Largest logit of each head, and the mean weight that later positions give to their document's first token."""
        B, H, T, _ = q.shape
        live = torch.ones(B, T, dtype=torch.bool, device=q.device) if self.ledger.live_BT is None else self.ledger.live_BT
        starts = torch.zeros_like(live)
        starts[:, 0] = True
        if self.documents is not None:
            starts[:, 1:] = self.documents[:, 1:] != self.documents[:, :-1]
        later = live & ~starts
        most, mass = q.new_full((H,), float("-inf")), q.new_zeros(H)
        for at in range(0, T, self.chunk):
            t, s = slice(at, min(at + self.chunk, T)), slice(0, min(at + self.chunk, T))
            mask = self.visible(scores.window, t, s).to(q.device)
            logits = logits_of(q[:, :, t], k[:, :, s], scores).masked_fill(~mask, float("-inf"))
            most = torch.maximum(most, logits.masked_fill(~live[:, None, t, None], float("-inf")).amax((0, 2, 3)))
            first = softmax(logits, scores.sinks, logits.dtype) * starts[:, None, None, s]
            mass += (first.sum(-1) * later[:, None, t]).sum((0, 2))
        self.ledger.note("max_logit", index, most)
        self.ledger.note("first_mass", index, mass / later.sum().clamp(min=1))


def logits_of(q: Tensor, k: Tensor, scores: Scores) -> Tensor:
    """softcap(scale * q.k), (B, H, C, S); query head h meets key head h // G."""
    grouped = q.unflatten(1, (k.size(1), -1)).flatten(2, 3)
    x = (grouped @ k.mT * scores.scale).unflatten(2, (-1, q.size(2))).flatten(1, 2)
    return x if scores.softcap is None else scores.softcap * torch.tanh(x / scores.softcap)


def read(weights: Tensor, v: Tensor) -> Tensor:
    """Weights (B, H, C, S) times values (B, K, S, D): (B, H, C, D)."""
    grouped = weights.unflatten(1, (v.size(1), -1)).flatten(2, 3)
    return (grouped @ v).unflatten(2, (-1, weights.size(2))).flatten(1, 2)


def softmax(logits: Tensor, sinks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Over the last dimension of (B, H, C, S), with one more logit per head that then is dropped."""
    if sinks is None:
        return torch.softmax(logits, -1, dtype=dtype)
    column = sinks.to(logits.dtype).view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat((logits, column), -1), -1, dtype=dtype)[..., :-1]


def runs(values: list[int]) -> list[tuple[int, int]]:
    """(start, end) of each stretch of equal neighbours."""
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return list(itertools.pairwise(edges))


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.size(1) != k.size(1)
    )


def _lifted(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, heads, D) to (B, heads, T, D), all of the values' type: norms and rotation leave q and k in float32 under autocast.
    Narrow heads in bfloat16 become float32 on CPUs, where the fused kernel's backward is more than twice as slow otherwise."""
    lift = v.dtype == torch.bfloat16 and v.device.type == "cpu" and q.size(-1) < NARROW
    dtype = torch.float32 if lift else v.dtype
    return q.transpose(1, 2).to(dtype), k.transpose(1, 2).to(dtype), v.transpose(1, 2).to(dtype)


def _padded(x: Tensor, channels: int) -> Tensor:
    """Zeros to the width that keys and values share: the fused kernel has one, and the plain form falls back to a T x T tensor.
    In keys and queries they change no product, in values they are cut off again."""
    return x if x.size(-1) == channels else F.pad(x, (0, channels - x.size(-1)))
