"""What a transformer is made of, as data. Imports no torch, so recipes can be read anywhere.

A model is a list of layers, each a triple of attention kind, position kind and feed-forward kind. Kinds are closed lists: a new
one is a new word here, a class beside `attention.py` or `ffn.py`, and a cache in the engine.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerKind(Strict):
    """One layer's attention, position encoding and feed-forward network."""

    attention: Literal["gqa"] = "gqa"
    """Grouped-query attention; multi-head when n_kv_heads == n_heads."""
    position: Literal["rope", "none"] = "rope"
    """Rotary embedding in the half-split layout, or none."""
    ffn: Literal["swiglu", "relu2"] = "swiglu"
    """down(silu(gate x) * up x), or down(relu(up x)^2)."""


class InitConfig(Strict):
    """How fresh weights are drawn. Each tensor has its own random stream, named after it."""

    scheme: Literal["normal", "zero_out"] = "normal"
    """`normal`: every matrix N(0, std). `zero_out`: inputs of a block N(0, gain^2 / fan_in), outputs of a block and the head
    zero."""
    std: float = Field(default=0.02, gt=0)
    """Standard deviation of matrices under `normal`."""
    gain: float = Field(default=0.7, gt=0)
    """Multiplier of 1 / sqrt(fan_in) under `zero_out`."""
    embedding_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the token table."""
    smear_std: float = Field(default=0.25, gt=0)
    """Standard deviation of the tables of preceding tokens."""
    logit_gain: float = 0.0
    """Where a learned logit gain starts. A tied head over embeddings of size 0.5 wants exp(g) near 0.1."""


class ModelConfig(Strict):
    """The transformer. The defaults are Qwen3's architecture (see `stock`); the options below it make a tiny model learn in
    minutes."""

    vocab_size: int = Field(gt=0)
    dim: int = Field(default=128, gt=0)
    n_layers: int = Field(default=2, gt=0)
    n_heads: int = Field(default=4, gt=0)
    n_kv_heads: int = Field(default=2, gt=0)
    head_dim: int = Field(default=32, gt=0)
    ffn_dim: int = Field(default=256, gt=0)
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    """Layer kinds, repeated over the depth: layer i is pattern[i mod len]."""
    max_positions: int = Field(default=512, gt=0)
    """Longest document in tokens, which is also the engine's context."""
    rope_theta: float = Field(default=10000.0, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    norm_weight: bool = True
    """Norms carry a learned gain per channel."""
    qk_norm: bool = True
    """RMSNorm of every query and key head before rotation."""
    attention_scale: float | None = None
    """Multiplier of q.k; None is head_dim ** -0.5. With normalised q and k without gains, head_dim ** -0.5 caps logits at
    sqrt(head_dim),
    too flat for copying; 12 / head_dim does not."""
    smear: int = Field(default=0, ge=0, le=4)
    """How many preceding tokens add their own embedding to a position: 1 sees bigrams, 2 trigrams."""
    embedding_norm: bool = False
    """RMSNorm right after the embedding."""
    tied_head: bool = False
    logit_gain: bool = False
    """Multiply logits by exp(g) with one learned g."""
    init: InitConfig = InitConfig()

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads must be a multiple of n_kv_heads, got {self.n_heads} and {self.n_kv_heads}; change one of them"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}; use {self.head_dim + 1}")
        if not self.pattern:
            raise ValueError("pattern must name at least one layer kind, got none; leave it out for the default")
        return self

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """One kind per layer, first to last."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.n_layers))

    @property
    def scale(self) -> float:
        """The multiplier of q.k."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def stock(self) -> bool:
        """Whether Qwen3ForCausalLM computes the same function, so that an export needs no code of ours."""
        return (
            all(kind == LayerKind() for kind in self.layers)
            and self.norm_weight
            and self.qk_norm
            and self.attention_scale in (None, self.head_dim**-0.5)
            and not (self.smear or self.embedding_norm or self.logit_gain)
        )
