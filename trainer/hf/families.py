"""Ten architectures of `transformers`: config.json to `ModelConfig` and back. Imports no torch.

A family is chosen for an export by doing: the model is written as its config.json, read again, and compared with what it was. So a
family takes exactly the models that it computes, and none because somebody listed the conditions. What does not change the function
of a model (initialisation, balance losses, prediction of further tokens) is left out of the comparison and of the file.

Absent keys mean what they mean to `transformers` 5; older files (`rope_theta`, `rope_scaling`, `torch_dtype`) are understood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from gymsmith.errors import ConfigError
from trainer.model.config import LayerKind, ModelConfig

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
NULLABLE = {"q_lora_rank", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"}
"""Keys whose null switches something off; elsewhere null is as good as absent."""
FULL, SLIDING = "full_attention", "sliding_attention"
TRAINING = {"init", "mtp", "z_loss", "smear_std"}
"""Fields of `ModelConfig` that do not change what a trained model computes."""
ROUTING = ("experts", "top_k", "dim", "shared_dim", "score", "scale", "groups", "groups_kept", "router_bias", "activation")


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


def read(document: Document, where: str) -> tuple[Family, ModelConfig]:
    """The family and the model that a config.json describes.

    Raises:
        ConfigError: an architecture or option that is not ours, a key that is missing, or sizes that fit no model.
    """
    names = document.get("architectures") or [""]
    family = next((f for f in FAMILIES.values() if f.architecture == names[0]), None)
    if family is None:
        known = ", ".join(f.architecture for f in FAMILIES.values())
        raise ConfigError(f"{where}: expected architectures to be one of {known}, got {names}; convert the model to one of them")
    if document.get("quantization_config"):
        method = document["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(f"{where}: expected plain weights, got quantised ones ({method}); save them in bfloat16 first")
    for key in ("hidden_act", "hidden_activation"):
        expected = "gelu_pytorch_tanh" if family.name == "Gemma2" else "silu"
        if document.get(key, expected) not in (expected, "gelu" if family.name == "Gemma2" and key == "hidden_act" else expected):
            raise ConfigError(f"{where}: expected {key} {expected!r}, got {document[key]!r}; no such layer here")
    filled = dict(family.defaults) | {k: v for k, v in document.items() if v is not None or k in NULLABLE}
    try:
        config = _table(filled, BASE) | {"n_kv_heads": filled.get("num_key_value_heads", filled.get("num_attention_heads"))}
        config["rope_theta"] = filled.setdefault("rope_theta", family.theta)
        return family, ModelConfig.model_validate(config | family.read(filled))
    except KeyError as e:
        raise ConfigError(f"{where}: expected the key {e.args[0]!r}, got none; add it") from e
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "sizes"
        raise ConfigError(f"{where}: {place}: {first['msg'].removeprefix('Value error, ')}; correct the file") from e


def write(family: Family, model: ModelConfig) -> Document:
    """config.json of a model that the family computes."""
    fixed = {"architectures": [family.architecture], "model_type": family.model_type, "dtype": "float32"}
    act = {"hidden_activation": "gelu_pytorch_tanh"} if family.name == "Gemma2" else {"hidden_act": "silu"}
    return fixed | _back(model, BASE) | {"num_key_value_heads": model.n_kv_heads} | act | family.write(model)


def family_of(model: ModelConfig, preferred: str = "") -> Family | None:
    """The first family (the preferred one before all) that computes exactly this model; None when none does."""
    order = sorted(FAMILIES.values(), key=lambda f: f.name != preferred)
    return next((f for f in order if _computes(f, model)), None)


def _computes(family: Family, model: ModelConfig) -> bool:
    try:
        return essence(read(write(family, model), family.name)[1]) == essence(model)
    except ConfigError:
        return False


def essence(model: ModelConfig) -> Document:
    """What of a config decides the function: equal for equal functions, however the config spells them."""
    kinds = model.layers
    latent, routed = any(k.attention != "gqa" for k in kinds), any(k.ffn == "moe" for k in kinds)
    heads = ("n_kv_heads", "head_dim", "qk_norm", "qk_norm_width", "attention_scale")
    skipped = {"pattern", "first_layers", "last_layers", "ropes", "rope_theta", "mla", "dsa", "moe", *TRAINING}
    skipped |= set(heads) if latent else {"attention_scale"}
    if all(k.ffn == "moe" for k in kinds):
        skipped |= {"ffn_dim", "ffn_bias"}
    found = {name: getattr(model, name) for name in ModelConfig.model_fields if name not in skipped}
    found["qk_norm_width"] = model.qk_norm_width if model.qk_norm and not latent else ""
    found["layers"] = [
        (k.attention, k.window, k.ffn, model.scale_of(k), None if k.position == "none" else _turn(model, k.position)) for k in kinds
    ]
    found["moe"] = {name: getattr(model.moe, name) for name in ROUTING} if routed else None
    if routed and model.moe.activation == "clamped":
        found["clamp"] = (model.moe.alpha, model.moe.limit, model.moe.expert_bias)
    if routed and model.moe.score != "softmax_top":
        found["normalise"] = model.moe.normalise
    found["mla"] = model.mla if latent else None
    sparse = any(k.attention == "dsa" for k in kinds)
    found["dsa"] = (model.dsa.heads, model.dsa.dim, model.dsa.top_k, model.dsa.layout) if sparse else None
    return found


def _turn(model: ModelConfig, position: str) -> Document:
    """A rotary encoding without its name."""
    return model.rope(position).model_dump(exclude={"name"})


# ------------------------------------------------------------ pieces


def _table(document: Mapping[str, Any], table: Table) -> Document:
    """Our fields from their keys. Raises: KeyError: a key without a default is absent."""
    return {ours: document[key] if default is NEEDED else document.get(key, default) for ours, (key, default) in table.items()}


def _back(config: Any, table: Table) -> Document:
    return {key: getattr(config, ours) for ours, (key, _) in table.items()}


def _rope(c: Document, name: str = "rope", kind: str = "", **more: Any) -> Document:
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
        yarn = _table(found, YARN)
        if kind:
            # Where every kind of layer has its own encoding, `transformers` looks for the switch beside them and finds none.
            yarn["truncate"] = True
    return {"name": name, "theta": found.get("rope_theta", c["rope_theta"]), "yarn": yarn, **more}


def _rope_back(model: ModelConfig, position: str) -> Document:
    rope = model.rope(position)
    if rope.yarn is None:
        return {"rope_type": "default", "rope_theta": rope.theta}
    found = {k: v for k, v in _back(rope.yarn, YARN).items() if v is not None}
    return {"rope_type": "yarn", "rope_theta": rope.theta, **found}


def _layers(c: Document, windows: Sequence[Any], positions: Sequence[str], ffns: Sequence[str], attention: str = "gqa") -> Document:
    kinds = zip(windows, positions, ffns, strict=True)
    if len(windows) != c["num_hidden_layers"]:
        raise ConfigError(f"expected {c['num_hidden_layers']} entries for num_hidden_layers, got {len(windows)}; make them agree")
    return {"pattern": [{"attention": attention, "window": w, "position": p, "ffn": f} for w, p, f in kinds]}


def _types(c: Document, period: int) -> list[str]:
    """`layer_types`, by default every `period`-th layer full."""
    n = c["num_hidden_layers"]
    return list(c.get("layer_types") or (SLIDING if (i + 1) % period else FULL for i in range(n)))


def _types_back(model: ModelConfig) -> Document:
    windows = [kind.window for kind in model.layers]
    return {
        "layer_types": [FULL if w is None else SLIDING for w in windows],
        "sliding_window": next((w for w in windows if w is not None), None),
    }


def _windows(c: Document, types: Sequence[str]) -> list[int | None]:
    return [c.get("sliding_window") if t == SLIDING else None for t in types]


def _dense(model: ModelConfig) -> int:
    """How many leading layers are dense."""
    return next((i for i, kind in enumerate(model.layers) if kind.ffn == "moe"), model.n_layers)


def _ffns(c: Document, dense: int) -> list[str]:
    return ["swiglu" if i < dense else "moe" for i in range(c["num_hidden_layers"])]


def _head_dim(c: Document) -> int:
    return int(c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"])


def _biases(c: Document) -> Document:
    given = bool(c.get("attention_bias", False))
    return {"attention_bias": given, "output_bias": given}


# ------------------------------------------------------------ families


def _qwen3(c: Document) -> Document:
    n, first = c["num_hidden_layers"], c.get("max_window_layers", 28)
    slides = c.get("use_sliding_window", False) and c.get("sliding_window", 4096)
    types = c.get("layer_types") or [SLIDING if slides and i >= first else FULL for i in range(n)]
    layers = _layers(c | {"sliding_window": slides or None}, _windows(c, types), ["rope"] * n, ["swiglu"] * n)
    return layers | _biases(c) | {"ropes": [_rope(c)], "head_dim": c.get("head_dim", 128), "qk_norm": True}


def _qwen3_back(m: ModelConfig) -> Document:
    types = _types_back(m)
    own = {"head_dim": m.head_dim, "attention_bias": m.attention_bias, "rope_parameters": _rope_back(m, m.layers[0].position)}
    return own | (types | {"use_sliding_window": True} if types["sliding_window"] else {})


def _smollm3(c: Document) -> Document:
    n, every = c["num_hidden_layers"], c.get("no_rope_layer_interval", 4)
    turns = c.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(n)]
    slides = c.get("sliding_window") if c.get("use_sliding_window", False) else None
    types = c.get("layer_types") or [SLIDING if slides and not turn else FULL for turn in turns]
    layers = _layers(c, [slides if t == SLIDING else None for t in types], ["rope" if t else "none" for t in turns], ["swiglu"] * n)
    own = {"ropes": [_rope(c)], "head_dim": _head_dim(c), "qk_norm": False, "ffn_bias": c.get("mlp_bias", False)}
    return layers | _biases(c) | own


def _smollm3_back(m: ModelConfig) -> Document:
    types, turning = _types_back(m), [k.position != "none" for k in m.layers]
    position = next((k.position for k in m.layers if k.position != "none"), "rope")
    return types | {
        "use_sliding_window": types["sliding_window"] is not None,
        "no_rope_layers": [int(t) for t in turning],
        "attention_bias": m.attention_bias,
        "mlp_bias": m.ffn_bias,
        "head_dim": m.head_dim,
        "rope_parameters": _rope_back(m, position),
    }


def _olmo3(c: Document) -> Document:
    types = _types(c, 4)
    ropes = [_rope(c, "full", FULL), _rope(c, "sliding", SLIDING)]
    positions = ["sliding" if t == SLIDING else "full" for t in types]
    own = {"norm_place": "post", "qk_norm_width": "full", "head_dim": _head_dim(c), "ropes": ropes}
    return _layers(c, _windows(c, types), positions, ["swiglu"] * len(types)) | _biases(c) | own


def _olmo3_back(m: ModelConfig) -> Document:
    by_kind = {SLIDING if k.window else FULL: _rope_back(m, k.position) for k in m.layers}
    for body in by_kind.values():
        body.pop("truncate", None)
    return _types_back(m) | {"attention_bias": m.attention_bias, "head_dim": m.head_dim, "rope_parameters": by_kind}


def _gemma2(c: Document) -> Document:
    types = _types(c, 2)
    n = len(types)
    return (
        _layers(c, _windows(c, types), ["rope"] * n, ["geglu"] * n)
        | _biases(c)
        | {
            "ropes": [_rope(c)],
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
    return _types_back(m) | {
        "head_dim": m.head_dim,
        "attention_bias": m.attention_bias,
        "query_pre_attn_scalar": round(m.scale**-2),
        "attn_logit_softcapping": m.attention_softcap,
        "final_logit_softcapping": m.logit_softcap,
        "rope_parameters": _rope_back(m, m.layers[0].position),
    }


def _glm4_moe(c: Document) -> Document:
    n = c["num_hidden_layers"]
    found = c.get("rope_parameters") or {}
    share = found.get("partial_rotary_factor", c.get("partial_rotary_factor", 0.5))
    moe = _table(c, MOE) | {"shared_dim": c["moe_intermediate_size"] * c.get("n_shared_experts", 1)}
    return _layers(c, [None] * n, ["rope"] * n, _ffns(c, c.get("first_k_dense_replace", 1))) | {
        "ropes": [_rope(c, fraction=share)],
        "head_dim": _head_dim(c),
        "qk_norm": c.get("use_qk_norm", False),
        "attention_bias": c.get("attention_bias", False),
        "moe": moe,
    }


def _glm4_moe_back(m: ModelConfig) -> Document:
    position = m.layers[0].position
    return _routing(m) | {
        "head_dim": m.head_dim,
        "first_k_dense_replace": _dense(m),
        "use_qk_norm": m.qk_norm,
        "attention_bias": m.attention_bias,
        "rope_parameters": _rope_back(m, position) | {"partial_rotary_factor": m.rope(position).fraction},
        "num_nextn_predict_layers": 0,
    }


def _routing(m: ModelConfig) -> Document:
    """The routed experts, their shared companions as one."""
    return _back(m.moe, MOE) | {"n_shared_experts": m.moe.shared_dim // m.moe.dim}


def _gpt_oss(c: Document) -> Document:
    types = _types(c, 2)
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
        _layers(c, _windows(c, types), ["rope"] * len(types), ["moe"] * len(types))
        | _biases(c)
        | {"ropes": [_rope(c)], "head_dim": c.get("head_dim", 64), "qk_norm": False, "attention_sinks": True, "moe": moe}
    )


def _gpt_oss_back(m: ModelConfig) -> Document:
    return _types_back(m) | {
        "intermediate_size": m.moe.dim,
        "num_local_experts": m.moe.experts,
        "num_experts_per_tok": m.moe.top_k,
        "swiglu_alpha": m.moe.alpha,
        "swiglu_limit": m.moe.limit,
        "head_dim": m.head_dim,
        "attention_bias": m.attention_bias,
        "rope_parameters": _rope_back(m, m.layers[0].position),
    }


def _afmoe(c: Document) -> Document:
    types = _types(c, c.get("global_attn_every_n_layers", 4))
    moe = {
        "experts": c.get("num_experts", 64),
        "top_k": c.get("num_experts_per_tok", 6),
        "dim": c["moe_intermediate_size"],
        "shared_dim": c["moe_intermediate_size"] * c.get("num_shared_experts", 2),
        "scale": c.get("route_scale", 1.0),
        "router_cast": "logits",
    }
    positions = ["rope" if t == SLIDING else "none" for t in types]
    layers = _layers(c, _windows(c, types), positions, _ffns(c, c.get("num_dense_layers", 1)))
    own = {
        "ropes": [_rope(c)],
        "head_dim": c.get("head_dim", 128),
        "norm_place": "sandwich",
        "attention_gate": True,
        "embedding_scale": c["hidden_size"] ** 0.5 if c.get("mup_enabled", False) else 1.0,
        "moe": moe,
    }
    return layers | _biases(c) | own


def _afmoe_back(m: ModelConfig) -> Document:
    position = next((k.position for k in m.layers if k.position != "none"), "rope")
    return _types_back(m) | {
        "head_dim": m.head_dim,
        "attention_bias": m.attention_bias,
        "moe_intermediate_size": m.moe.dim,
        "num_dense_layers": _dense(m),
        "num_experts": m.moe.experts,
        "num_experts_per_tok": m.moe.top_k,
        "num_shared_experts": m.moe.shared_dim // m.moe.dim,
        "route_scale": m.moe.scale,
        "mup_enabled": m.embedding_scale != 1.0,
        "rope_parameters": _rope_back(m, position),
    }


def _latent(c: Document, attention: str, layout: str) -> Document:
    n = c["num_hidden_layers"]
    given = c.get("mlp_layer_types")
    ffns = ["moe" if t == "sparse" else "swiglu" for t in given] if given else _ffns(c, c.get("first_k_dense_replace", 3))
    moe = _table(c, MOE) | {"shared_dim": c["moe_intermediate_size"] * c.get("n_shared_experts", 1)}
    own = {"ropes": [_rope(c, layout=layout)], "mla": _table(c, MLA), "moe": moe}
    return _layers(c, [None] * n, ["rope"] * n, ffns, attention) | _biases(c) | own


def _latent_back(m: ModelConfig) -> Document:
    own = {"first_k_dense_replace": _dense(m), "attention_bias": m.attention_bias, "num_key_value_heads": m.n_heads}
    return _routing(m) | _back(m.mla, MLA) | own | {"rope_parameters": _rope_back(m, m.layers[0].position)}


def _deepseek_v3(c: Document) -> Document:
    return _latent(c, "mla", "interleaved" if c.get("rope_interleave", True) else "half")


def _deepseek_v3_back(m: ModelConfig) -> Document:
    interleaved = m.rope(m.layers[0].position).layout == "interleaved"
    return _latent_back(m) | {"rope_interleave": interleaved, "num_nextn_predict_layers": 0}


def _sparse(layout: str) -> Callable[[Document], Document]:
    """DeepSeek-V3.2 and GLM-5 differ in how their indexers turn."""

    def read(c: Document) -> Document:
        if "shared" in (c.get("indexer_types") or ()):
            raise ConfigError("expected indexer_types to be all 'full', got 'shared' ones; no layer here borrows another's keys")
        return _latent(c, "dsa", "interleaved") | {"dsa": _table(c, DSA) | {"layout": layout}}

    return read


def _sparse_back(m: ModelConfig) -> Document:
    kinds = ["sparse" if k.ffn == "moe" else "dense" for k in m.layers]
    return _latent_back(m) | _back(m.dsa, DSA) | {"mlp_layer_types": kinds}


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
