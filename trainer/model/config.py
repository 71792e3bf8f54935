"""What a transformer is made of, as data. Imports no torch, so recipes can be read anywhere.

A model is a list of layers, each a choice of attention, positions, window and feed-forward network. Kinds are closed lists: a new
one is a new word here, a class beside `attention.py` or `ffn.py`, and a cache in the engine. What a kind needs beyond a word
stands in its table: `ropes`, `mla`, `dsa`, `moe`, `mtp`.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerKind(Strict):
    """One layer's attention, position encoding and feed-forward network."""

    attention: Literal["gqa", "mla", "dsa"] = "gqa"
    """Grouped-query attention (multi-head when n_kv_heads == n_heads), multi-head latent attention, or latent attention over the
    keys that a lightning indexer picks."""
    position: str = "rope"
    """`none`, or the name of one of `ModelConfig.ropes`; `rope` is there without being named, over `rope_theta`."""
    window: int | None = Field(default=None, ge=1)
    """A query sees this many keys, itself included; None sees all before it."""
    ffn: Literal["swiglu", "geglu", "relu2", "moe"] = "swiglu"
    """down(silu(gate x) * up x); the same with tanh-GELU; down(relu(up x)^2); a mixture of experts as `moe` says."""


class YarnConfig(Strict):
    """YaRN (Peng et al., 2023): slow pairs are interpolated by `factor`, fast ones left alone, a ramp between."""

    factor: float = Field(ge=1)
    original_positions: int = Field(gt=0)
    """Context length before the extension."""
    beta_fast: float = Field(default=32.0, gt=0)
    """Pairs that turn more often than this within the original context stay as they are."""
    beta_slow: float = Field(default=1.0, gt=0)
    """Pairs that turn less often than this are interpolated in full."""
    truncate: bool = True
    """Round the ramp's ends to whole pairs."""
    attention_factor: float | None = None
    """Multiplier of cosines and sines; None derives it from the two below."""
    mscale: float | None = None
    mscale_all: float | None = None
    """DeepSeek's pair: with both set, cosines and sines get m(mscale) / m(mscale_all), where m(a) = 0.1 a ln(factor) + 1, and
    latent attention's scale gets m(mscale_all)^2. Without them cosines and sines get m(1)."""

    def m(self, a: float) -> float:
        """0.1 a ln(factor) + 1."""
        return 0.1 * a * math.log(self.factor) + 1.0

    @property
    def table_gain(self) -> float:
        """Multiplier of cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        return self.m(self.mscale) / self.m(self.mscale_all) if self.mscale and self.mscale_all else self.m(1.0)

    @property
    def scale_gain(self) -> float:
        """Multiplier of latent attention's scale."""
        return self.m(self.mscale_all) ** 2 if self.mscale_all else 1.0


class RopeConfig(Strict):
    """One rotary encoding, chosen by layers through its name."""

    name: str = "rope"
    theta: float = Field(default=10000.0, gt=0)
    """Base of the wavelengths. Raising it before a context extension is ABF (adjusted base frequency, Llama 2 Long)."""
    layout: Literal["half", "interleaved"] = "half"
    """Channel i turns with i + D/2 (Llama, Qwen), or 2i with 2i + 1 (DeepSeek)."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of a head's channels that turn, the first ones; latent attention turns all of `MLAConfig.rope_dim`."""
    yarn: YarnConfig | None = None


class MLAConfig(Strict):
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): keys and values come from one latent per token."""

    q_latent: int | None = Field(default=None, gt=0)
    """Width of the query latent; None projects queries directly."""
    kv_latent: int = Field(default=64, gt=0)
    nope_dim: int = Field(default=32, gt=0)
    """Channels per head without rotation."""
    rope_dim: int = Field(default=16, gt=0)
    """Rotated channels per head; their key is shared by all heads."""
    v_dim: int = Field(default=32, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    """Of the latents' norms."""

    @property
    def qk_dim(self) -> int:
        """Channels of a query and key."""
        return self.nope_dim + self.rope_dim


class DSAConfig(Strict):
    """DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, 2025): a small indexer scores all keys, attention reads the best."""

    heads: int = Field(default=4, gt=0)
    dim: int = Field(default=32, gt=0)
    """Channels per index head; the first `MLAConfig.rope_dim` of them turn."""
    top_k: int = Field(default=64, gt=0)
    layout: Literal["half", "interleaved"] = "half"
    """Rotary layout of the indexer: DeepSeek-V3.2 half-split, GLM interleaved, whatever the layer itself uses."""
    stage: Literal["warmup", "sparse"] = "sparse"
    """`warmup`: dense attention, the indexer learns its distribution over all keys; freeze everything else. `sparse`: attention
    over the chosen keys, the indexer learns the distribution among them."""
    loss: float = Field(default=1.0, ge=0)
    """Weight of the indexer's KL divergence."""
    deterministic: bool = True
    """Equal scores go to the earlier key on every device; the library's own top-k leaves ties open."""


class MoEConfig(Strict):
    """A mixture of experts: shared ones that always run and routed ones of which each token takes `top_k`."""

    experts: int = Field(default=8, gt=0)
    top_k: int = Field(default=2, gt=0)
    dim: int = Field(default=64, gt=0)
    """Hidden width of a routed expert."""
    shared_dim: int = Field(default=0, ge=0)
    """Hidden width of all shared experts together; 0 has none."""
    score: Literal["sigmoid", "softmax", "softmax_top"] = "sigmoid"
    """Of router logits: each on its own, over all experts, or over the chosen ones (gpt-oss)."""
    normalise: bool = True
    """Divide the chosen scores by their sum."""
    scale: float = Field(default=1.0, gt=0)
    """Multiplier of the routed experts' weights."""
    groups: int = Field(default=1, gt=0)
    groups_kept: int = Field(default=1, gt=0)
    """Only experts of the best groups can be chosen; a group counts by the sum of its two best biased scores (DeepSeek-V3)."""
    router_cast: Literal["inputs", "logits", "none"] = "inputs"
    """What is lifted to float32 in half precision: hidden states and router weights (DeepSeek-V3), logits (AFMoE), nothing."""
    router_bias: bool = False
    """The router has a learned bias on its logits (gpt-oss)."""
    activation: Literal["swiglu", "clamped"] = "swiglu"
    """`clamped`: (up + 1) * gate * sigmoid(alpha * gate) with both clamped at `limit` (gpt-oss)."""
    alpha: float = 1.702
    limit: float = 7.0
    expert_bias: bool = False
    """Experts' matrices have biases."""
    balance: Literal["none", "sign", "smebu"] = "none"
    """Who moves the selection bias after a step: nobody; `sign`: b += rate * sign(mean load - load) (Wang et al., 2024,
    arXiv 2408.15664); `smebu`: soft-clamped momentum updates (Arcee Trinity, 2026, arXiv 2602.17004)."""
    rate: float = Field(default=1e-3, gt=0)
    """Step of the selection bias: gamma of `sign`, lambda of `smebu`."""
    kappa: float = Field(default=2.0, gt=0)
    """Slope of smebu's tanh clamp."""
    momentum: float = Field(default=0.5, ge=0, lt=1)
    """Beta of smebu."""
    sequence_loss: float = Field(default=0.0, ge=0)
    """Weight of the balance loss within each row (DeepSeek-V3, eq. 17)."""
    batch_loss: float = Field(default=0.0, ge=0)
    """Weight of the balance loss over the whole micro-batch."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the mean squared logsumexp of router logits."""
    matmul: Literal["grouped", "loop"] = "grouped"
    """One grouped product over tokens sorted by expert, or a plain loop over experts, which is the reference."""

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.experts % self.groups or self.groups_kept > self.groups:
            raise ValueError(
                f"experts must divide into groups and groups_kept <= groups, got {self.experts} experts, {self.groups} groups, "
                f"{self.groups_kept} kept; change one of them"
            )
        reachable = self.experts // self.groups * self.groups_kept
        if self.top_k > reachable:
            raise ValueError(f"top_k must be <= the {reachable} experts a token can reach, got {self.top_k}; lower it")
        if self.groups > 1 and self.experts // self.groups < 2:
            raise ValueError(f"a group needs two experts to be scored, got {self.experts} in {self.groups}; use fewer groups")
        return self


class MTPConfig(Strict):
    """Multi-token prediction (DeepSeek-V3, 2024, section 2.2): module k predicts token t + k + 1 from what module k - 1 left."""

    depth: int = Field(default=1, gt=0)
    share: bool = False
    """All depths run the same parameters (GLM-5) instead of their own."""
    weight: float = Field(default=0.3, ge=0)
    """Lambda: the modules' mean loss counts this much."""


class InitConfig(Strict):
    """How fresh weights are drawn. Each tensor has its own random stream, named after it."""

    scheme: Literal["normal", "zero_out"] = "normal"
    """`normal`: every matrix N(0, std). `zero_out`: inputs of a block N(0, gain^2 / fan_in), outputs of a block and the head
    zero."""
    std: float = Field(default=0.02, gt=0)
    """Standard deviation of matrices under `normal`."""
    cut: float | None = Field(default=None, gt=0)
    """Redraw matrices beyond this many standard deviations under `normal`."""
    depth_scaled: bool = False
    """Outputs of blocks start at std / sqrt(2 n_layers) under `normal`."""
    gain: float = Field(default=0.7, gt=0)
    """Multiplier of 1 / sqrt(fan_in) under `zero_out`."""
    embedding_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the token table."""
    smear_std: float = Field(default=0.25, gt=0)
    """Standard deviation of the tables of preceding tokens."""
    logit_gain: float = 0.0
    """Where a learned logit gain starts. A tied head over embeddings of size 0.5 wants exp(g) near 0.1."""


class MemoryConfig(Strict):
    """How a forward and backward pass trade time for memory. Not part of the architecture: it changes no result."""

    recompute: Literal["none", "block"] = "none"
    """`block`: a block keeps its input and runs again in the backward pass."""
    offload: bool = False
    """What the backward pass needs waits in host memory."""
    attention_chunk: int = Field(default=512, gt=0)
    """Rows up to this long use one mask for the whole row; longer ones are attended piece by piece."""
    head_chunk: int = Field(default=0, ge=0)
    """Positions per piece of the output head, whose logits never exist all at once; 0 computes them together."""


class ModelConfig(Strict):
    """The transformer. The defaults are Qwen3's architecture (see `stock`)."""

    vocab_size: int = Field(gt=0)
    dim: int = Field(default=128, gt=0)
    n_layers: int = Field(default=2, gt=0)
    n_heads: int = Field(default=4, gt=0)
    n_kv_heads: int = Field(default=2, gt=0)
    head_dim: int = Field(default=32, gt=0)
    """Channels per head of grouped-query attention; latent attention has its own in `mla`."""
    ffn_dim: int = Field(default=256, gt=0)
    pattern: tuple[LayerKind, ...] = (LayerKind(),)
    """Layer kinds, repeated over the depth: layer i is pattern[i mod len]."""
    first_layers: tuple[LayerKind, ...] = ()
    """Kinds of the first layers instead of the pattern's: dense ones before a mixture of experts."""
    last_layers: tuple[LayerKind, ...] = ()
    """Kinds of the last layers instead of the pattern's: a full layer after windowed ones."""
    max_positions: int = Field(default=512, gt=0)
    """Longest document in tokens, which is also the engine's context."""
    rope_theta: float = Field(default=10000.0, gt=0)
    ropes: tuple[RopeConfig, ...] = ()
    """Further rotary encodings by name, or `rope` itself with options."""
    norm_eps: float = Field(default=1e-6, gt=0)
    norm_weight: bool = True
    """Norms carry a learned gain per channel."""
    norm_offset: bool = False
    """Norms multiply by 1 + weight, which starts at zero (Gemma)."""
    norm_place: Literal["pre", "post", "sandwich"] = "pre"
    """Before a block's parts, after them and before the residual sum (OLMo 2), or both (Gemma 2)."""
    qk_norm: bool = True
    """RMSNorm of queries and keys before rotation."""
    qk_norm_width: Literal["head", "full"] = "head"
    """Norm each head (Qwen3) or all heads together (OLMo 2)."""
    attention_scale: float | None = None
    """Multiplier of q.k; None is head_dim ** -0.5. With normalised q and k without gains, head_dim ** -0.5 caps logits at
    sqrt(head_dim),
    too flat for copying; 12 / head_dim does not."""
    attention_bias: bool = False
    """Biases on q, k and v; in latent attention on the projections down."""
    output_bias: bool = False
    """A bias on o."""
    attention_gate: bool = False
    """Multiply what attention returns by sigmoid(W_g x), channel by channel (Qiu et al., 2025, arXiv 2505.06708)."""
    attention_sinks: bool = False
    """A learned logit per head that takes part in the softmax and has no value (gpt-oss)."""
    attention_softcap: float | None = Field(default=None, gt=0)
    """Cap attention logits: c tanh(x / c) (Gemma 2)."""
    ffn_bias: bool = False
    """Biases in dense feed-forward networks."""
    smear: int = Field(default=0, ge=0, le=4)
    """How many preceding tokens add their own embedding to a position: 1 sees bigrams, 2 trigrams."""
    embedding_norm: bool = False
    """RMSNorm right after the embedding."""
    embedding_scale: float = Field(default=1.0, gt=0)
    """Multiplier of the embedding; Gemma's is sqrt(dim)."""
    tied_head: bool = False
    logit_gain: bool = False
    """Multiply logits by exp(g) with one learned g."""
    logit_softcap: float | None = Field(default=None, gt=0)
    """Cap logits: c tanh(x / c)."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared logsumexp of the logits, which keeps them from drifting (PaLM, 2022, section 5)."""
    mla: MLAConfig = MLAConfig()
    dsa: DSAConfig = DSAConfig()
    moe: MoEConfig = MoEConfig()
    mtp: MTPConfig | None = None
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
        if len(self.first_layers) + len(self.last_layers) > self.n_layers:
            named = f"{len(self.first_layers)} first and {len(self.last_layers)} last"
            raise ValueError(f"first_layers and last_layers must fit into n_layers = {self.n_layers}, got {named}; name fewer")
        names = [rope.name for rope in self.ropes]
        if len(set(names)) < len(names) or "none" in names:
            raise ValueError(f"ropes must have names of their own and none of them `none`, got {names}; rename one")
        for kind in self.layers:
            if kind.position not in ("none", "rope", *names):
                known = ", ".join(dict.fromkeys(("none", "rope", *names)))
                raise ValueError(f"position must be one of {known}, got {kind.position!r}; add it to ropes")
            if kind.attention != "gqa" and (self.mla.rope_dim % 2 or kind.position == "none"):
                have = f"rope_dim {self.mla.rope_dim}, position {kind.position!r}"
                raise ValueError(f"latent attention needs an even mla.rope_dim and a rotary position, got {have}; change it")
            if kind.attention != "gqa" and kind.window is not None:
                raise ValueError(f"latent attention has no window, got {kind.window}; leave it out")
            if kind.attention == "dsa" and (self.mla.q_latent is None or self.dsa.dim < self.mla.rope_dim):
                have = f"q_latent {self.mla.q_latent}, dim {self.dsa.dim}, rope_dim {self.mla.rope_dim}"
                raise ValueError(f"the indexer needs mla.q_latent and dsa.dim >= mla.rope_dim, got {have}; change them")
            if kind.attention == "gqa" and kind.position != "none" and self.rotated(kind) % 2:
                raise ValueError(
                    f"an even number of channels must turn, got {self.rotated(kind)} of {self.head_dim} under "
                    f"{kind.position!r}; change its fraction"
                )
        return self

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """One kind per layer, first to last."""
        kinds = [self.pattern[i % len(self.pattern)] for i in range(self.n_layers)]
        kinds[: len(self.first_layers)] = self.first_layers
        kinds[self.n_layers - len(self.last_layers) :] = self.last_layers
        return tuple(kinds)

    def rope(self, name: str) -> RopeConfig:
        """The rotary encoding of that name."""
        return next((rope for rope in self.ropes if rope.name == name), RopeConfig(theta=self.rope_theta))

    def rotated(self, kind: LayerKind) -> int:
        """Channels per head that turn in such a layer."""
        if kind.position == "none":
            return 0
        return self.mla.rope_dim if kind.attention != "gqa" else int(self.head_dim * self.rope(kind.position).fraction)

    @property
    def scale(self) -> float:
        """The multiplier of q.k in grouped-query attention."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def scale_of(self, kind: LayerKind) -> float:
        """The multiplier of q.k in such a layer."""
        if kind.attention == "gqa" or self.attention_scale is not None:
            return self.scale
        yarn = self.rope(kind.position).yarn
        return self.mla.qk_dim**-0.5 * (1.0 if yarn is None else yarn.scale_gain)

    @property
    def stock(self) -> bool:
        """Whether Qwen3ForCausalLM computes the same function, so that an export needs no code of ours."""
        same = ModelConfig.model_fields
        free = {"vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "pattern", "max_positions"}
        free |= {"first_layers", "last_layers", "rope_theta", "norm_eps", "attention_scale", "tied_head", "z_loss", "init"}
        free |= {"mla", "dsa", "moe"}
        return (
            all(kind == LayerKind() for kind in self.layers)
            and self.attention_scale in (None, self.head_dim**-0.5)
            and all(getattr(self, name) == same[name].default for name in same.keys() - free)
        )
