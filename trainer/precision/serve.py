"""Weights for serving, in the layouts that transformers, vLLM and SGLang read; names are those of a Hugging Face state dict.

    fp8, block     NAME.weight e4m3, NAME.weight_scale_inv float32 per 128 x 128 block (DeepSeek-V3's layout)
    fp8, channel   NAME.weight e4m3, NAME.weight_scale per output (compressed-tensors, float-quantized)
    int4           NAME.weight_packed int32 of eight values, NAME.weight_scale per group, NAME.weight_shape (pack-quantized)

Activations are cast by the server, token by token. INT4 is what training computed with (`int4.py`), FP8 is rounded here. Only the
matrices that MATCH finds are touched: not embeddings, head, norms or routers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer.precision import int4
from trainer.precision.fp8 import E4M3, cast, scale_for

MATCH = r"model\.layers\.\d+\.(self_attn|mlp)\.(?!(gate|router)\.)(.+)\.weight$"
BLOCK = 128


@dataclass(slots=True)
class Served:
    """What goes into the folder."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    """`quantization_config` of config.json."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Matrix that MATCH finds -> why it stayed as it was."""


def fp8(weights: Mapping[str, Tensor], layout: str = "block") -> Served:
    """Matrices in e4m3 with a scale per block or per output channel."""
    done = Served()
    left: list[str] = []
    for name, w in weights.items():
        obstacle = _not_a_matrix(w) or (layout == "block" and _not_in_blocks(w)) or ""
        if not _chosen(done, left, name, w, obstacle):
            continue
        if layout == "block":
            amax = _blocks(w).abs().amax((1, 3))
            scale = scale_for(amax, E4M3)
            done.tensors[name] = cast(_blocks(w), scale[:, None, :, None], E4M3).reshape(w.shape)
            done.tensors[f"{name}_scale_inv"] = scale.reciprocal()
        else:
            scale = scale_for(w.abs().amax(1, keepdim=True), E4M3)
            done.tensors[name] = cast(w, scale, E4M3)
            done.tensors[f"{name}_scale"] = scale.reciprocal()
    if layout == "block":
        kept = {"modules_to_not_convert": left}
        done.config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
        done.config |= kept
    else:
        by_channel = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
        done.config = _compressed("float-quantized", by_channel, {**by_channel, "strategy": "token", "dynamic": True}, left)
    return done


def packed_int4(weights: Mapping[str, Tensor], group: int = 32) -> Served:
    """Matrices in four bits with a scale per group of inputs."""
    done = Served()
    left: list[str] = []
    for name, w in weights.items():
        odd = f"inputs are {w.size(-1)}, no multiple of the group {group}" if w.ndim == 2 and w.size(1) % group else ""
        if not _chosen(done, left, name, w, _not_a_matrix(w) or odd):
            continue
        q, scale = int4.quantise(w, group)
        shifts = torch.arange(0, 32, 4)
        done.tensors[f"{name}_packed"] = ((q.int() + 8).unflatten(1, (-1, 8)) << shifts).sum(-1).to(torch.int32)
        done.tensors[f"{name}_scale"] = scale
        done.tensors[f"{name}_shape"] = torch.tensor(w.shape)
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group, "dynamic": False}
    done.config = _compressed("pack-quantized", scheme, None, left)
    return done


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that served tensors of any of the layouts stand for."""
    found: dict[str, Tensor] = {}
    for name, t in tensors.items():
        if name.endswith("_packed"):
            base = name.removesuffix("_packed")
            q = (t[..., None] >> torch.arange(0, 32, 4)).bitwise_and(15).flatten(1).to(torch.int8) - 8
            found[base] = int4.dequantise(q, tensors[f"{base}_scale"])
        elif f"{name}_scale_inv" in tensors:
            found[name] = (_blocks(t.float()) * tensors[f"{name}_scale_inv"][:, None, :, None]).reshape(t.shape)
        elif f"{name}_scale" in tensors:
            found[name] = t.float() * tensors[f"{name}_scale"]
        elif not name.endswith(("weight_scale", "weight_scale_inv", "weight_shape")):
            found[name] = t
    return found


def _chosen(done: Served, left: list[str], name: str, w: Tensor, obstacle: str) -> bool:
    """Whether a tensor is to be converted; if not, it goes over as it is."""
    matched = re.match(MATCH, name) is not None and w.ndim > 1
    if matched and not obstacle:
        return True
    done.tensors[name] = w
    if matched:
        done.reasons[name] = obstacle
    if w.ndim > 1 and "embed" not in name:
        left.append(name.removesuffix(".weight"))
    return False


def _not_a_matrix(w: Tensor) -> str:
    return "" if w.ndim == 2 else f"stacked experts have no layout here, got shape {tuple(w.shape)}"


def _not_in_blocks(w: Tensor) -> str:
    fits = all(size % BLOCK == 0 or size < BLOCK for size in w.shape)
    return "" if fits else f"readers want multiples of {BLOCK}, got {tuple(w.shape)}; layout channel takes any"


def _blocks(w: Tensor) -> Tensor:
    """(out, in) -> (out blocks, rows, in blocks, columns)."""
    rows, columns = (min(BLOCK, size) for size in w.shape)
    return w.reshape(w.size(0) // rows, rows, w.size(1) // columns, columns)


def _compressed(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None, left: list[str]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    scheme = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "format": layout}
    return {**scheme, "config_groups": {"group_0": group}, "ignore": left, "kv_cache_scheme": None}
