"""config.json to `ModelConfig` and back. Imports no torch.

A family is chosen for an export by doing: the model is written as its config.json, read again, and compared with what it was. So
a family takes exactly the models that it computes, and none because somebody listed the conditions. What does not change the
function of a model (initialisation, balance losses, prediction of further tokens) is left out of the comparison and of the file.
"""

from __future__ import annotations

from pydantic import ValidationError

from gymsmith.errors import ConfigError
from trainer.hf.families import FAMILIES, Family
from trainer.hf.keys import BASE, Document, read_table, write_table
from trainer.model.config import ModelConfig

NULLABLE = {"q_lora_rank", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"}
"""Keys whose null switches something off; elsewhere null is as good as absent."""
TRAINING = {"init", "mtp", "z_loss", "smear_std"}
"""Fields of `ModelConfig` that do not change what a trained model computes."""
ROUTING = (
    *("experts", "top_k", "dim", "shared_dim", "score", "scale", "groups", "groups_kept"),
    *("router_bias", "expert_bias", "activation"),
)


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
    rounded = document.get("quantization_config") or {}
    if rounded and not (rounded.get("quant_method") == "fp8" and rounded.get("weight_block_size")):
        method = rounded.get("quant_method", "unknown")
        raise ConfigError(f"{where}: expected plain weights or FP8 in blocks, got {method}; save them in bfloat16 first")
    for key in ("hidden_act", "hidden_activation"):
        expected = "gelu_pytorch_tanh" if family.name == "Gemma2" else "silu"
        if document.get(key, expected) not in (expected, "gelu" if family.name == "Gemma2" and key == "hidden_act" else expected):
            raise ConfigError(f"{where}: expected {key} {expected!r}, got {document[key]!r}; no such layer here")
    filled = dict(family.defaults) | {k: v for k, v in document.items() if v is not None or k in NULLABLE}
    try:
        config = read_table(filled, BASE) | {"n_kv_heads": filled.get("num_key_value_heads", filled.get("num_attention_heads"))}
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
    return fixed | write_table(model, BASE) | {"num_key_value_heads": model.n_kv_heads} | act | family.write(model)


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
        (k.attention, k.window, k.ffn, model.scale_of(k), None if k.position == "none" else _turn(model, k.position))
        for k in kinds
    ]
    found["moe"] = {name: getattr(model.moe, name) for name in ROUTING} if routed else None
    if routed and model.moe.activation == "clamped":
        found["clamp"] = (model.moe.alpha, model.moe.limit)
    if routed and model.moe.score != "softmax_top":
        found["normalise"] = model.moe.normalise
    found["mla"] = model.mla if latent else None
    sparse = any(k.attention == "dsa" for k in kinds)
    found["dsa"] = (model.dsa.heads, model.dsa.dim, model.dsa.top_k, model.dsa.layout) if sparse else None
    return found


def _turn(model: ModelConfig, position: str) -> Document | None:
    """A rotary encoding without its name."""
    return None if position == "none" else model.rope(position).model_dump(exclude={"name"})
