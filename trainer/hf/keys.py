"""Pieces of a config.json: which key says which field, and how layers, windows and rotary encodings are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gymsmith.errors import ConfigError
from trainer.model.config import ModelConfig

Document = dict[str, Any]
"""The content of a config.json."""
Table = Mapping[str, tuple[str, Any]]
"""Our field -> (their key, its default in `transformers`)."""
NEEDED = object()

BASE: Table = {
    "vocab_size": ("vocab_size", NEEDED),
    "dim": ("hidden_size", NEEDED),
    "n_layers": ("num_hidden_layers", NEEDED),
    "n_heads": ("num_attention_heads", NEEDED),
    "ffn_dim": ("intermediate_size", NEEDED),
    "max_positions": ("max_position_embeddings", NEEDED),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied_head": ("tie_word_embeddings", False),
}
MOE: Table = {
    "experts": ("n_routed_experts", NEEDED),
    "top_k": ("num_experts_per_tok", 8),
    "dim": ("moe_intermediate_size", NEEDED),
    "scale": ("routed_scaling_factor", 2.5),
    "normalise": ("norm_topk_prob", True),
    "groups": ("n_group", 8),
    "groups_kept": ("topk_group", 4),
}
MLA: Table = {
    "q_latent": ("q_lora_rank", 1536),
    "kv_latent": ("kv_lora_rank", 512),
    "nope_dim": ("qk_nope_head_dim", 128),
    "rope_dim": ("qk_rope_head_dim", 64),
    "v_dim": ("v_head_dim", 128),
}
DSA: Table = {"top_k": ("index_topk", 2048), "dim": ("index_head_dim", 128), "heads": ("index_n_heads", 64)}
YARN: Table = {
    "factor": ("factor", NEEDED),
    "original_positions": ("original_max_position_embeddings", NEEDED),
    "beta_fast": ("beta_fast", 32.0),
    "beta_slow": ("beta_slow", 1.0),
    "truncate": ("truncate", True),
    "attention_factor": ("attention_factor", None),
    "mscale": ("mscale", None),
    "mscale_all": ("mscale_all_dim", None),
}
FULL, SLIDING = "full_attention", "sliding_attention"


def read_table(document: Mapping[str, Any], table: Table) -> Document:
    """Our fields from their keys. Raises: KeyError: a key without a default is absent."""
    return {ours: document[key] if default is NEEDED else document.get(key, default) for ours, (key, default) in table.items()}


def write_table(config: Any, table: Table) -> Document:
    return {key: getattr(config, ours) for ours, (key, _) in table.items()}


def read_rope(c: Document, name: str = "rope", kind: str = "", **more: Any) -> Document:
    """A rotary encoding; `kind` names the layers it is for where the file keeps one for each."""
    found = c.get("rope_parameters") or c.get("rope_scaling") or {}
    if FULL in found or SLIDING in found:
        found = found.get(kind) or {}
    elif kind == SLIDING:
        found = {k: v for k, v in found.items() if k == "rope_theta"}
    found = {k: v for k, v in found.items() if v is not None}
    which = found.get("rope_type", found.get("type", "default"))
    if which not in ("default", "yarn"):
        raise ConfigError(f"expected rope_type default or yarn, got {which!r}; no such rotary encoding here")
    yarn = None
    if which == "yarn":
        found.setdefault("original_max_position_embeddings", c["max_position_embeddings"])
        found.setdefault("factor", c["max_position_embeddings"] / found["original_max_position_embeddings"])
        yarn = read_table(found, YARN)
        if kind:
            # Where every kind of layer has its own encoding, `transformers` looks for the switch beside them and finds none.
            yarn["truncate"] = True
    return {"name": name, "theta": found.get("rope_theta", c["rope_theta"]), "yarn": yarn, **more}


def write_rope(model: ModelConfig, position: str) -> Document:
    rope = model.rope(position)
    if rope.yarn is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    found = {k: v for k, v in write_table(rope.yarn, YARN).items() if v is not None}
    return {"rope_type": "yarn", "rope_theta": rope.theta, **found}


def layers_of(
    c: Document, windows: Sequence[Any], positions: Sequence[str], ffns: Sequence[str], attention: str = "gqa"
) -> Document:
    kinds = zip(windows, positions, ffns, strict=True)
    if len(windows) != c["num_hidden_layers"]:
        raise ConfigError(f"expected {c['num_hidden_layers']} entries for num_hidden_layers, got {len(windows)}; make them agree")
    return {"pattern": [{"attention": attention, "window": w, "position": p, "ffn": f} for w, p, f in kinds]}


def read_types(c: Document, period: int) -> list[str]:
    """`layer_types`, by default every `period`-th layer full."""
    n = c["num_hidden_layers"]
    return list(c.get("layer_types") or (SLIDING if (i + 1) % period else FULL for i in range(n)))


def write_types(model: ModelConfig) -> Document:
    windows = [kind.window for kind in model.layers]
    return {
        "layer_types": [FULL if w is None else SLIDING for w in windows],
        "sliding_window": next((w for w in windows if w is not None), None),
    }


def windows_of(c: Document, types: Sequence[str]) -> list[int | None]:
    return [c.get("sliding_window") if t == SLIDING else None for t in types]


def dense_layers(model: ModelConfig) -> int:
    """How many leading layers are dense."""
    return next((i for i, kind in enumerate(model.layers) if kind.ffn == "moe"), model.n_layers)


def ffns_of(c: Document, dense: int) -> list[str]:
    return ["swiglu" if i < dense else "moe" for i in range(c["num_hidden_layers"])]


def head_dim_of(c: Document) -> int:
    return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])


def read_biases(c: Document) -> Document:
    given = bool(c.get("attention_bias", False))
    return {"attention_bias": given, "output_bias": given}
