"""Our tensors under the names and in the shapes of a Hugging Face checkpoint, and back, from one table read both ways.

Most tensors keep their shape and change their name. Experts do not: ours are three stacks `gate`, `up` (E, F, D) and `down`
(E, D, F). Files hold them one by one (`split`), or, for gpt-oss, transposed with gate and up in alternating columns
(`interleaved`). In memory `transformers` stacks the split ones again, gate above up (`fused`), which is how their gradients come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gymsmith.errors import UserError

Layout = Literal["split", "fused", "interleaved"]
Many = Sequence[Tensor]

OUTSIDE = {
    "embedding.token.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
"""Names that do not belong to a layer; the same in all families."""

PLAIN = {
    **{f"attention.{part}": f"self_attn.{part}_proj" for part in "qkvo"},
    **{f"ffn.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""Modules and tensors of a layer: ours -> theirs. What most families share."""
QK_NORM = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
SHARED = {f"ffn.shared.{part}": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")}
ROUTED = SHARED | {"ffn.router": "mlp.gate", "ffn.bias": "mlp.gate.e_score_correction_bias"}
LATENT = {
    "attention.q_down": "self_attn.q_a_proj",
    "attention.q_down_norm": "self_attn.q_a_layernorm",
    "attention.q_up": "self_attn.q_b_proj",
    "attention.kv_down": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_down_norm": "self_attn.kv_a_layernorm",
    "attention.kv_up": "self_attn.kv_b_proj",
}
INDEXER = {
    "attention.indexer.q_up": "self_attn.indexer.wq_b",
    "attention.indexer.k": "self_attn.indexer.wk",
    "attention.indexer.k_norm": "self_attn.indexer.k_norm",
    "attention.indexer.weights": "self_attn.indexer.weights_proj",
}
SANDWICH = {
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}

PARTS: dict[str, dict[str, str]] = {
    "Qwen3": PLAIN | QK_NORM,
    "SmolLM3": PLAIN,
    "Olmo3": PLAIN | QK_NORM | {"attention_post_norm": "post_attention_layernorm", "ffn_post_norm": "post_feedforward_layernorm"},
    "Gemma2": PLAIN | SANDWICH,
    "Glm4Moe": PLAIN | QK_NORM | ROUTED,
    "GptOss": PLAIN | {"attention.sinks": "self_attn.sinks", "ffn.router": "mlp.router"},
    "Afmoe": PLAIN
    | QK_NORM
    | SHARED
    | {
        "attention.gate": "self_attn.gate_proj",
        "attention_post_norm": "post_attention_layernorm",
        "ffn_norm": "pre_mlp_layernorm",
        "ffn_post_norm": "post_mlp_layernorm",
        "ffn.router": "mlp.router.gate",
        "ffn.bias": "mlp.expert_bias",
    },
    "DeepseekV3": PLAIN | ROUTED | LATENT,
    "DeepseekV32": PLAIN | ROUTED | LATENT | INDEXER,
    "GlmMoeDsa": PLAIN | ROUTED | LATENT | INDEXER,
}
"""Family -> the names of what is inside a layer."""


@dataclass(frozen=True, slots=True)
class Move:
    """Tensors that travel together: ours become theirs by `out`, theirs become ours by `back`."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    out: Callable[[Many], Many]
    back: Callable[[Many], Many]


def moves(names: Iterable[str], family: str, experts: int = 0, layout: Layout = "split") -> list[Move]:
    """How the tensors of a model with these names (ours) travel. gpt-oss knows one layout, whatever is asked for.

    Raises:
        UserError: the family has no place for a tensor.
    """
    layout = "interleaved" if family == "GptOss" else layout
    found: list[Move] = []
    for name in names:
        layer, rest = _split(name)
        if not travels(name, family):
            continue
        if ".experts." not in name:
            found.append(Move((name,), (_theirs(name, layer, rest, family),), list, list))
            continue
        stem, _, part = name.rpartition(".")
        target = f"model.layers.{layer}.mlp.experts"
        if layout == "split":
            each = tuple(f"{target}.{e}.{part}_proj.weight" for e in range(experts))
            found.append(Move((name,), each, lambda t: t[0].unbind(0), lambda t: [torch.stack(list(t))]))
        elif part.startswith("down"):
            transposed = layout == "interleaved" and part == "down"
            turn = (lambda t: [t[0].mT]) if transposed else list
            found.append(Move((name,), (f"{target}.{part.replace('down', 'down_proj')}",), turn, turn))
        elif part.startswith("gate"):
            both = (name, f"{stem}.{part.replace('gate', 'up')}")
            out, back = _PAIRED[layout, part]
            found.append(Move(both, (f"{target}.{part.replace('gate', 'gate_up_proj')}",), out, back))
    return found


def travels(name: str, family: str) -> bool:
    """Whether a tensor has a place at all: training's own state, predictors of further tokens and gpt-oss' selection bias, which
    that family does not have, stay behind."""
    return not (name.startswith("mtp.") or name.endswith(".ffn.momentum") or (family == "GptOss" and name.endswith(".ffn.bias")))


_PAIRED: dict[tuple[str, str], tuple[Callable[[Many], Many], Callable[[Many], Many]]] = {
    ("fused", "gate"): (lambda t: [torch.cat(tuple(t), 1)], lambda t: t[0].chunk(2, 1)),
    ("interleaved", "gate"): (
        lambda t: [torch.stack(tuple(t), -1).transpose(1, 2).flatten(-2)],
        lambda t: t[0].unflatten(-1, (-1, 2)).transpose(1, 2).unbind(-1),
    ),
    ("interleaved", "gate_bias"): (
        lambda t: [torch.stack(tuple(t), -1).flatten(-2)],
        lambda t: t[0].unflatten(-1, (-1, 2)).unbind(-1),
    ),
}
"""Gate and up (E, F, D) in one tensor: (E, 2 F, D), or (E, D, 2 F) with gate in the even columns."""


def to_theirs(weights: Mapping[str, Tensor], family: str, experts: int = 0, layout: Layout = "split") -> dict[str, Tensor]:
    """Our weights (or gradients) as theirs."""
    found: dict[str, Tensor] = {}
    for move in moves(weights, family, experts, layout):
        found.update(zip(move.theirs, move.out([weights[name] for name in move.ours]), strict=True))
    return found


def _split(name: str) -> tuple[str, str]:
    """("3", "attention.q.weight") of "blocks.3.attention.q.weight"; ("", name) outside the layers."""
    if not name.startswith("blocks."):
        return "", name
    _, layer, rest = name.split(".", 2)
    return layer, rest


def _theirs(name: str, layer: str, rest: str, family: str) -> str:
    if not layer and name in OUTSIDE:
        return OUTSIDE[name]
    parts = PARTS[family]
    module, _, leaf = rest.rpartition(".")
    if layer and rest in parts:
        return f"model.layers.{layer}.{parts[rest]}"
    if layer and module in parts:
        return f"model.layers.{layer}.{parts[module]}.{leaf}"
    raise UserError(f"{family}ForCausalLM has no place for the tensor {name}; export the model as another family")
