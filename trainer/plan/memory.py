"""Memory of one GPU under a parallel layout, part by part. Imports no torch.

Weights, gradients and optimizer state are numbers times bytes, divided as `trainer/dist` divides them (every parameter over
`fsdp`, matrices over `tp`, routed experts over `ep`; `dp` and `cp` divide none). Activations are what the blocks' autograd
keeps for the backward pass, tensor by tensor, with attention fused (no T x T); fragmentation, communication buffers and the
CUDA context are not counted, so leave a tenth free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from trainer.model.config import LayerKind, ModelConfig
from trainer.plan.flops import Layer, layer, parameters

GIB = 1 << 30
CAPACITY = {"H100": 80e9, "H200": 141e9, "B200": 192e9, "A100": 80e9}
"""Bytes on board, from the makers' data sheets."""


class Split(Protocol):
    """How many processes share what: `ParallelConfig`."""

    dp: int
    fsdp: int
    ep: int
    cp: int
    tp: int


@dataclass(frozen=True, slots=True)
class Formats:
    """Bytes of one number each."""

    master: int = 4
    compute: int = 2
    """Of weights and activations in matrix products; 4 is plain float32, which needs no copy beside the masters."""
    gradient: int = 4
    moment: int = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU."""

    masters: float
    copies: float
    """Of the weights in the compute format."""
    gradients: float
    optimizer: float
    gathered: float
    """Two whole layers, while FSDP computes one and fetches the next."""
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in self.__slots__)

    @property
    def states(self) -> float:
        """What stays between steps."""
        return self.masters + self.optimizer


def memory(
    config: ModelConfig,
    split: Split,
    *,
    rows: int,
    length: int,
    optimizer: Literal["muon", "adamw"],
    recompute: bool = False,
    head_chunk: int = 0,
    formats: Formats | None = None,
) -> Memory:
    """Bytes on one GPU that works on `rows` rows of `length` tokens at a time (before context parallelism cuts them)."""
    f = formats or Formats()
    held = parameters(config)
    routed = held.routed / (split.ep * split.fsdp)
    matrices = (held.matrices - held.routed) / (split.tp * split.fsdp)
    rest = (held.total - held.matrices) / (split.tp * split.fsdp)
    own = routed + matrices + rest
    moments = routed + matrices + 2 * rest if optimizer == "muon" else 2 * own
    layers = [layer(config, kind) for kind in config.layers]
    largest = max(_on_gpu(x, split) for x in layers)
    tokens = rows * length / split.cp
    kept = sum(activation_numbers(config, kind, split.tp) for kind in config.layers)
    if recompute:
        # Every block keeps its input alone; one block at a time is whole.
        kept = config.n_layers * config.dim + max(activation_numbers(config, kind, split.tp) for kind in config.layers)
    # In pieces the logits are worked on in place; together they, their softmax and their gradient exist at once.
    logits = min(tokens, head_chunk) * 4 if head_chunk else tokens * 12
    return Memory(
        masters=own * f.master,
        copies=own * f.compute if f.compute != f.master else 0.0,
        gradients=own * f.gradient,
        optimizer=moments * f.moment,
        gathered=2 * largest * f.compute if split.fsdp > 1 else 0.0,
        activations=tokens * (kept + 2 * config.dim) * f.compute,
        logits=logits * config.vocab_size / split.tp,
    )


def _on_gpu(held: Layer, split: Split) -> float:
    """Weights of one layer that FSDP gathers on one GPU."""
    return held.routed / split.ep + (held.total - held.routed) / split.tp


def activation_numbers(config: ModelConfig, kind: LayerKind, tp: int = 1) -> float:
    """Numbers per token that one block keeps for its backward pass."""
    dim, heads = config.dim, config.n_heads
    # The residual stream into both norms, and what the norms give to the projections.
    numbers: float = 4 * dim + (2 * dim if config.norm_place == "sandwich" else 0)
    if kind.attention == "gqa":
        queries, keys = heads * config.head_dim, config.n_kv_heads * config.head_dim
        inner = 2 * queries + 2 * keys + (queries + keys if config.qk_norm else 0)
        inner += 2 * queries if config.attention_gate else 0
    else:
        mla = config.mla
        q, k, v = heads * mla.qk_dim, heads * mla.qk_dim, heads * mla.v_dim
        numbers += 2 * mla.kv_latent + mla.rope_dim + 2 * (mla.q_latent or 0)
        inner = q + k + 2 * v
        if kind.attention == "dsa":
            numbers += config.dsa.dim * (config.dsa.heads + 2) + config.dsa.heads
    numbers += inner / tp
    if kind.ffn == "moe":
        moe = config.moe
        numbers += moe.experts + 2 * moe.top_k * dim + 4 * moe.top_k * moe.dim + 4 * moe.shared_dim / tp
    else:
        numbers += (2 if kind.ffn == "relu2" else 4) * config.ffn_dim / tp
    return numbers
