"""Counts parameters and FLOPs of a model from its config alone. Imports no torch: what nobody could build here is counted too.

A trained token costs 6 FLOPs for each weight that multiplies it (2 forward, 4 backward; looking up an embedding multiplies
nothing, a tied head does), and 6 (d_qk + d_v) for each pair of a query head and a key. How many keys a query has is counted in
two ways, and every figure says which:

- `palm`: all T of them, causal or not, windowed or not (Chowdhery et al., 2022, appendix B: 12 L H D T). Published MFUs use it,
  OLMo's among them, so theirs are compared on this count.
- `causal`: those that the layer really reads: t + 1 at position t, at most the window, at most the indexer's top k. For DSA the
  indexer's own products over all earlier keys are part of it; its loss runs backward over the chosen keys only, while it warms up
  over all.

Latent attention is counted as it trains, with keys and values projected up per head; the absorbed form is for decoding. Norms,
activations, softmax and recomputation are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.model.config import LayerKind, ModelConfig

Count = Literal["palm", "causal"]
TRAIN = 3
"""A backward pass costs twice a forward pass."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. `mixed` and `dense` multiply every token, `routed` is what all routed experts hold together."""

    attention: int
    indexer: int
    dense: int
    """Feed-forward: the dense network, or router and shared experts."""
    routed: int
    routed_active: int
    """Of the experts that one token visits."""
    vectors: int
    """Norms, biases and sinks."""

    @property
    def total(self) -> int:
        return self.attention + self.indexer + self.dense + self.routed + self.vectors

    @property
    def active(self) -> int:
        return self.total - self.routed + self.routed_active

    @property
    def multiplied(self) -> int:
        """Weights that multiply a token."""
        return self.attention + self.indexer + self.dense + self.routed_active


def layer(config: ModelConfig, kind: LayerKind) -> Layer:
    """Count one layer of a kind."""
    attention, indexer, vectors = _attention(config, kind)
    dense = routed = routed_active = 0
    if kind.ffn == "moe":
        moe = config.moe
        dense = config.dim * moe.experts + 3 * config.dim * moe.shared_dim
        routed, routed_active = 3 * config.dim * moe.dim * moe.experts, 3 * config.dim * moe.dim * moe.top_k
        vectors += moe.experts * moe.router_bias + moe.experts * (2 * moe.dim + config.dim) * moe.expert_bias
    else:
        matrices = 2 if kind.ffn == "relu2" else 3
        dense = matrices * config.dim * config.ffn_dim
        vectors += ((matrices - 1) * config.ffn_dim + config.dim) * config.ffn_bias
    vectors += config.dim * config.norm_weight * (4 if config.norm_place == "sandwich" else 2)
    return Layer(attention, indexer, dense, routed, routed_active, vectors)


def _attention(config: ModelConfig, kind: LayerKind) -> tuple[int, int, int]:
    """(matrices, indexer's matrices, vectors)."""
    dim, heads, norm = config.dim, config.n_heads, config.norm_weight
    if kind.attention == "gqa":
        queries, keys = heads * config.head_dim, config.n_kv_heads * config.head_dim
        matrices = dim * (queries * (3 if config.attention_gate else 2) + 2 * keys)
        normed = queries + keys if config.qk_norm_width == "full" else 2 * config.head_dim
        vectors = normed * (config.qk_norm and norm) + heads * config.attention_sinks
        return matrices, 0, vectors + (queries + 2 * keys) * config.attention_bias + dim * config.output_bias
    mla, dsa = config.mla, config.dsa
    down = mla.kv_latent + mla.rope_dim
    matrices = dim * down + mla.kv_latent * heads * (mla.nope_dim + mla.v_dim) + heads * mla.v_dim * dim
    vectors = mla.kv_latent + down * config.attention_bias + dim * config.output_bias
    if mla.q_latent is None:
        matrices += dim * heads * mla.qk_dim
    else:
        matrices += dim * mla.q_latent + mla.q_latent * heads * mla.qk_dim
        vectors += mla.q_latent * (1 + config.attention_bias)
    if config.attention_gate:
        matrices += dim * heads * mla.v_dim
    indexer = 0
    if kind.attention == "dsa":
        indexer = (mla.q_latent or 0) * dsa.heads * dsa.dim + dim * dsa.dim + dim * dsa.heads
        vectors += 2 * dsa.dim
    return matrices, indexer, vectors


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a model holds. A tied head is the embedding and counts once."""

    total: int
    active: int
    """Without the routed experts that a token does not visit."""
    embedding: int
    """Token tables."""
    head: int
    """0 when tied."""
    routed: int
    """In routed experts."""
    mtp: int
    """In modules for multi-token prediction, which are part of `total` and of `active`."""
    matrices: int
    """Hidden matrices, experts included: what Muon would own."""

    @property
    def embedding_share(self) -> float:
        """Of embedding and head together, in all parameters."""
        return (self.embedding + self.head) / self.total


def parameters(config: ModelConfig) -> Parameters:
    """Count the whole model."""
    layers = [layer(config, kind) for kind in config.layers]
    embedding = config.vocab_size * config.dim * (1 + config.smear)
    head = 0 if config.tied_head else config.vocab_size * config.dim
    rest = config.dim * config.norm_weight * (1 + config.embedding_norm) + config.logit_gain
    mtp = mtp_active = mtp_matrices = mtp_routed = 0
    if config.mtp is not None:
        copies = 1 if config.mtp.share else config.mtp.depth
        block = layer(config, config.layers[-1])
        own = 2 * config.dim * config.dim
        vectors = 2 * config.dim * config.norm_weight
        mtp, mtp_active = copies * (block.total + own + vectors), copies * (block.active + own + vectors)
        mtp_matrices, mtp_routed = copies * (block.total - block.vectors + own), copies * block.routed
    return Parameters(
        total=sum(x.total for x in layers) + embedding + head + rest + mtp,
        active=sum(x.active for x in layers) + embedding + head + rest + mtp_active,
        embedding=embedding,
        head=head,
        routed=sum(x.routed for x in layers) + mtp_routed,
        mtp=mtp,
        matrices=sum(x.total - x.vectors for x in layers) + mtp_matrices,
    )


def pair_flops(config: ModelConfig, kind: LayerKind) -> int:
    """FLOPs of the forward pass for one query position and one key, over all heads: scores and weighted values."""
    if kind.attention == "gqa":
        return 4 * config.n_heads * config.head_dim
    return 2 * config.n_heads * (config.mla.qk_dim + config.mla.v_dim)


def index_flops(config: ModelConfig) -> int:
    """Likewise of the lightning indexer: its products, and their weighted sum over index heads."""
    return 2 * config.dsa.heads * (config.dsa.dim + 1)


def mean_keys(length: int, limit: int | None) -> float:
    """Keys that a query of a row of `length` reads on average: min(t + 1, limit) over all t."""
    limit = min(length, limit or length)
    return (limit * (limit + 1) / 2 + (length - limit) * limit) / length


def attention_flops(config: ModelConfig, kind: LayerKind, length: int, count: Count = "causal") -> float:
    """FLOPs of attention itself (no projections) of one layer per trained token."""
    pair = pair_flops(config, kind)
    if count == "palm":
        return float(TRAIN * pair * length)
    if kind.attention != "dsa":
        return TRAIN * pair * mean_keys(length, kind.window)
    seen, chosen = mean_keys(length, None), mean_keys(length, config.dsa.top_k)
    if config.dsa.stage == "warmup":
        # Everything else is frozen: attention runs forward only, over all keys.
        return pair * seen + TRAIN * index_flops(config) * seen
    return TRAIN * pair * chosen + index_flops(config) * (seen + (TRAIN - 1) * chosen)


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of one trained token."""

    weights: float
    """6 per multiplied weight."""
    attention: Mapping[str, float]
    """Kind of attention -> over all layers of that kind."""

    @property
    def total(self) -> float:
        return self.weights + sum(self.attention.values())


def kind_name(kind: LayerKind) -> str:
    """How tables call a layer's attention."""
    return f"{kind.attention} window {kind.window}" if kind.window else kind.attention


def flops(config: ModelConfig, length: int, count: Count = "causal") -> Flops:
    """FLOPs per trained token in rows of one document of `length` tokens."""
    attention: defaultdict[str, float] = defaultdict(float)
    multiplied = config.vocab_size * config.dim
    kinds = list(config.layers)
    if config.mtp is not None:
        # Every depth runs a block, merges two states and predicts with the shared head, whoever owns the weights.
        kinds += [config.layers[-1]] * config.mtp.depth
        multiplied += config.mtp.depth * (2 * config.dim * config.dim + config.vocab_size * config.dim)
    for kind in kinds:
        multiplied += layer(config, kind).multiplied
        attention[kind_name(kind)] += attention_flops(config, kind, length, count)
    return Flops(2.0 * TRAIN * multiplied, dict(attention))
