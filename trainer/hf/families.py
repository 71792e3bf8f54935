"""Ten architectures of `transformers`: what is special in the config.json of each, read and written. Imports no torch.

Absent keys mean what they mean to `transformers` 5; older files (`rope_theta`, `rope_scaling`) are understood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gymsmith.errors import ConfigError
from trainer.hf.keys import (
    DSA,
    FULL,
    MLA,
    MOE,
    SLIDING,
    Document,
    dense_layers,
    ffns_of,
    head_dim_of,
    layers_of,
    read_biases,
    read_rope,
    read_table,
    read_types,
    windows_of,
    write_rope,
    write_table,
    write_types,
)
from trainer.model.config import ModelConfig


@dataclass(frozen=True)
class Family:
    """One architecture: how its config.json says what a `ModelConfig` says."""

    name: str
    """`NAMEForCausalLM` is the class in `transformers`."""
    model_type: str
    theta: float
    """Base of the wavelengths where a file names none."""
    read: Callable[[Document], Document]
    """What is special to the family, from config.json, over `BASE`."""
    write: Callable[[ModelConfig], Document]
    """The same, back."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Their defaults that differ from those in the tables."""

    @property
    def architecture(self) -> str:
        """The class name in config.json."""
        return f"{self.name}ForCausalLM"


def _qwen3(c: Document) -> Document:
    n, first = c["num_hidden_layers"], c.get("max_window_layers", 28)
    slides = c.get("use_sliding_window", False) and c.get("sliding_window", 4096)
    types = c.get("layer_types") or [SLIDING if slides and i >= first else FULL for i in range(n)]
    layers = layers_of(c | {"sliding_window": slides or None}, windows_of(c, types), ["rope"] * n, ["swiglu"] * n)
    return layers | read_biases(c) | {"ropes": [read_rope(c)], "head_dim": c.get("head_dim", 128), "qk_norm": True}


def _qwen3_back(m: ModelConfig) -> Document:
    types = write_types(m)
    own = {"head_dim": m.head_dim, "attention_bias": m.attention_bias, "rope_parameters": write_rope(m, m.layers[0].position)}
    return own | (types | {"use_sliding_window": True} if types["sliding_window"] else {})


def _smollm3(c: Document) -> Document:
    n, every = c["num_hidden_layers"], c.get("no_rope_layer_interval", 4)
    turns = c.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(n)]
    slides = c.get("sliding_window") if c.get("use_sliding_window", False) else None
    types = c.get("layer_types") or [SLIDING if slides and not turn else FULL for turn in turns]
    layers = layers_of(
        c, [slides if t == SLIDING else None for t in types], ["rope" if t else "none" for t in turns], ["swiglu"] * n
    )
    own = {"ropes": [read_rope(c)], "head_dim": head_dim_of(c), "qk_norm": False, "ffn_bias": c.get("mlp_bias", False)}
    return layers | read_biases(c) | own


def _smollm3_back(m: ModelConfig) -> Document:
    types, turning = write_types(m), [k.position != "none" for k in m.layers]
    position = next((k.position for k in m.layers if k.position != "none"), "rope")
    return types | {
        "use_sliding_window": types["sliding_window"] is not None,
        "no_rope_layers": [int(t) for t in turning],
        "attention_bias": m.attention_bias,
        "mlp_bias": m.ffn_bias,
        "head_dim": m.head_dim,
        "rope_parameters": write_rope(m, position),
    }


def _olmo3(c: Document) -> Document:
    types = read_types(c, 4)
    ropes = [read_rope(c, "full", FULL), read_rope(c, "sliding", SLIDING)]
    positions = ["sliding" if t == SLIDING else "full" for t in types]
    own = {"norm_place": "post", "qk_norm_width": "full", "head_dim": head_dim_of(c), "ropes": ropes}
    return layers_of(c, windows_of(c, types), positions, ["swiglu"] * len(types)) | read_biases(c) | own


def _olmo3_back(m: ModelConfig) -> Document:
    by_kind = {SLIDING if k.window else FULL: write_rope(m, k.position) for k in m.layers}
    for body in by_kind.values():
        body.pop("truncate", None)
    return write_types(m) | {"attention_bias": m.attention_bias, "head_dim": m.head_dim, "rope_parameters": by_kind}


def _gemma2(c: Document) -> Document:
    types = read_types(c, 2)
    n = len(types)
    return (
        layers_of(c, windows_of(c, types), ["rope"] * n, ["geglu"] * n)
        | read_biases(c)
        | {
            "ropes": [read_rope(c)],
            "head_dim": c.get("head_dim", 256),
            "qk_norm": False,
            "norm_place": "sandwich",
            "norm_offset": True,
            "embedding_scale": c["hidden_size"] ** 0.5,
            "attention_scale": c.get("query_pre_attn_scalar", 256) ** -0.5,
            "attention_softcap": c.get("attn_logit_softcapping"),
            "logit_softcap": c.get("final_logit_softcapping"),
        }
    )


def _gemma2_back(m: ModelConfig) -> Document:
    return write_types(m) | {
        "head_dim": m.head_dim,
        "attention_bias": m.attention_bias,
        "query_pre_attn_scalar": max(1, round(m.scale**-2)),
        "attn_logit_softcapping": m.attention_softcap,
        "final_logit_softcapping": m.logit_softcap,
        "rope_parameters": write_rope(m, m.layers[0].position),
    }


def _glm4_moe(c: Document) -> Document:
    n = c["num_hidden_layers"]
    found = c.get("rope_parameters") or {}
    share = found.get("partial_rotary_factor", c.get("partial_rotary_factor", 0.5))
    moe = read_table(c, MOE) | {"shared_dim": c["moe_intermediate_size"] * c.get("n_shared_experts", 1)}
    return layers_of(c, [None] * n, ["rope"] * n, ffns_of(c, c.get("first_k_dense_replace", 1))) | {
        "ropes": [read_rope(c, fraction=share)],
        "head_dim": head_dim_of(c),
        "qk_norm": c.get("use_qk_norm", False),
        "attention_bias": c.get("attention_bias", False),
        "moe": moe,
    }


def _glm4_moe_back(m: ModelConfig) -> Document:
    position = m.layers[0].position
    return _write_routing(m) | {
        "head_dim": m.head_dim,
        "first_k_dense_replace": dense_layers(m),
        "use_qk_norm": m.qk_norm,
        "attention_bias": m.attention_bias,
        "rope_parameters": write_rope(m, position) | {"partial_rotary_factor": m.rope(position).fraction},
        "num_nextn_predict_layers": 0,
    }


def _write_routing(m: ModelConfig) -> Document:
    """The routed experts, their shared companions as one."""
    return write_table(m.moe, MOE) | {"n_shared_experts": m.moe.shared_dim // m.moe.dim}


def _gpt_oss(c: Document) -> Document:
    types = read_types(c, 2)
    moe = {
        "experts": c.get("num_local_experts", 128),
        "top_k": c.get("num_experts_per_tok", 4),
        "dim": c["intermediate_size"],
        "score": "softmax_top",
        "normalise": False,
        "router_cast": "none",
        "router_bias": True,
        "expert_bias": True,
        "activation": "clamped",
        "alpha": c.get("swiglu_alpha", 1.702),
        "limit": c.get("swiglu_limit", 7.0),
    }
    return (
        layers_of(c, windows_of(c, types), ["rope"] * len(types), ["moe"] * len(types))
        | read_biases(c)
        | {"ropes": [read_rope(c)], "head_dim": c.get("head_dim", 64), "qk_norm": False, "attention_sinks": True, "moe": moe}
    )


def _gpt_oss_back(m: ModelConfig) -> Document:
    return write_types(m) | {
        "intermediate_size": m.moe.dim,
        "num_local_experts": m.moe.experts,
        "num_experts_per_tok": m.moe.top_k,
        "swiglu_alpha": m.moe.alpha,
        "swiglu_limit": m.moe.limit,
        "head_dim": m.head_dim,
        "attention_bias": m.attention_bias,
        "rope_parameters": write_rope(m, m.layers[0].position),
    }


def _afmoe(c: Document) -> Document:
    types = read_types(c, c.get("global_attn_every_n_layers", 4))
    moe = {
        "experts": c.get("num_experts", 64),
        "top_k": c.get("num_experts_per_tok", 6),
        "dim": c["moe_intermediate_size"],
        "shared_dim": c["moe_intermediate_size"] * c.get("num_shared_experts", 2),
        "scale": c.get("route_scale", 1.0),
        "router_cast": "logits",
    }
    positions = ["rope" if t == SLIDING else "none" for t in types]
    layers = layers_of(c, windows_of(c, types), positions, ffns_of(c, c.get("num_dense_layers", 1)))
    own = {
        "ropes": [read_rope(c)],
        "head_dim": c.get("head_dim", 128),
        "norm_place": "sandwich",
        "attention_gate": True,
        "embedding_scale": c["hidden_size"] ** 0.5 if c.get("mup_enabled", False) else 1.0,
        "moe": moe,
    }
    return layers | read_biases(c) | own


def _afmoe_back(m: ModelConfig) -> Document:
    position = next((k.position for k in m.layers if k.position != "none"), "rope")
    return write_types(m) | {
        "head_dim": m.head_dim,
        "attention_bias": m.attention_bias,
        "moe_intermediate_size": m.moe.dim,
        "num_dense_layers": dense_layers(m),
        "num_experts": m.moe.experts,
        "num_experts_per_tok": m.moe.top_k,
        "num_shared_experts": m.moe.shared_dim // m.moe.dim,
        "route_scale": m.moe.scale,
        "mup_enabled": m.embedding_scale != 1.0,
        "rope_parameters": write_rope(m, position),
    }


def _latent(c: Document, attention: str, layout: str) -> Document:
    n = c["num_hidden_layers"]
    given = c.get("mlp_layer_types")
    ffns = ["moe" if t == "sparse" else "swiglu" for t in given] if given else ffns_of(c, c.get("first_k_dense_replace", 3))
    moe = read_table(c, MOE) | {"shared_dim": c["moe_intermediate_size"] * c.get("n_shared_experts", 1)}
    own = {"ropes": [read_rope(c, layout=layout)], "mla": read_table(c, MLA), "moe": moe}
    return layers_of(c, [None] * n, ["rope"] * n, ffns, attention) | read_biases(c) | own


def _latent_back(m: ModelConfig) -> Document:
    own = {"first_k_dense_replace": dense_layers(m), "attention_bias": m.attention_bias, "num_key_value_heads": m.n_heads}
    return _write_routing(m) | write_table(m.mla, MLA) | own | {"rope_parameters": write_rope(m, m.layers[0].position)}


def _deepseek_v3(c: Document) -> Document:
    return _latent(c, "mla", "interleaved" if c.get("rope_interleave", True) else "half")


def _deepseek_v3_back(m: ModelConfig) -> Document:
    interleaved = m.rope(m.layers[0].position).layout == "interleaved"
    return _latent_back(m) | {"rope_interleave": interleaved, "num_nextn_predict_layers": 0}


def _sparse(layout: str) -> Callable[[Document], Document]:
    """DeepSeek-V3.2 and GLM-5 differ in how their indexers turn."""

    def read(c: Document) -> Document:
        schedule = c.get("index_topk_freq", 1) > 1 or "S" in c.get("index_topk_pattern", "")
        if schedule or "shared" in c.get("indexer_types", ()):
            raise ConfigError("expected indexer_types to be all 'full', got 'shared' ones; no layer here borrows another's keys")
        return _latent(c, "dsa", "interleaved") | {"dsa": read_table(c, DSA) | {"layout": layout}}

    return read


def _sparse_back(m: ModelConfig) -> Document:
    kinds = ["sparse" if k.ffn == "moe" else "dense" for k in m.layers]
    return _latent_back(m) | write_table(m.dsa, DSA) | {"mlp_layer_types": kinds}


_TIED = {"tie_word_embeddings": True}
_GLM = {"rms_norm_eps": 1e-5, "n_group": 1, "topk_group": 1}
_GLM5 = _GLM | {"q_lora_rank": 2048, "v_head_dim": 256, "qk_nope_head_dim": 192, "index_n_heads": 32}
_OSS = {"rms_norm_eps": 1e-5, "attention_bias": True, "sliding_window": 128}
_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("Qwen3", "qwen3", 10000.0, _qwen3, _qwen3_back),
        Family("SmolLM3", "smollm3", 2000000.0, _smollm3, _smollm3_back, _TIED),
        Family("Olmo3", "olmo3", 500000.0, _olmo3, _olmo3_back, {"rms_norm_eps": 1e-5, "sliding_window": 4096}),
        Family("Gemma2", "gemma2", 10000.0, _gemma2, _gemma2_back, _TIED | _CAPS),
        Family("Glm4Moe", "glm4_moe", 10000.0, _glm4_moe, _glm4_moe_back, _GLM | {"routed_scaling_factor": 1.0}),
        Family("GptOss", "gpt_oss", 150000.0, _gpt_oss, _gpt_oss_back, _OSS),
        Family("Afmoe", "afmoe", 10000.0, _afmoe, _afmoe_back, {"rms_norm_eps": 1e-5, "sliding_window": 1024}),
        Family("DeepseekV3", "deepseek_v3", 10000.0, _deepseek_v3, _deepseek_v3_back),
        Family("DeepseekV32", "deepseek_v32", 10000.0, _sparse("half"), _sparse_back),
        Family("GlmMoeDsa", "glm_moe_dsa", 10000.0, _sparse("interleaved"), _sparse_back, _GLM5),
    )
}
"""By name, in the order in which an export tries them."""
