"""Tiny random models of `transformers`, one per family: the references that parity is measured against.

Nothing is downloaded and nothing in them is patched. Every parameter and buffer that is stored is drawn anew, because the usual
initialisation leaves biases, sinks, gains and selection biases at 0 or 1, where a mistake in them cannot be seen.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from trainer.checkpoint import own_weights
from trainer.hf.document import read
from trainer.hf.names import moves, to_theirs
from trainer.model.transformer import Transformer

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
MOE = {"moe_intermediate_size": 48, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_routed_experts": 8}
GROUPS = {"n_group": 4, "topk_group": 2, "n_shared_experts": 1, "routed_scaling_factor": 1.7}
MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "num_key_value_heads": 4,
    "rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 8, "beta_slow": 1},
}
DSA = {"index_topk": 6, "index_head_dim": 16, "index_n_heads": 16}
"""With few heads all products are negative now and then, scores tie at exactly 0, and which key `topk` takes nobody promises."""


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "SmolLM3": {"tie_word_embeddings": True},
    "Olmo3": {
        "sliding_window": 8,
        "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}},
    },
    "Gemma2": {
        "head_dim": 12,
        "sliding_window": 8,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "Glm4Moe": MOE | GROUPS | {"head_dim": 16, "attention_bias": True, "use_qk_norm": True},
    "GptOss": {
        "head_dim": 16,
        "sliding_window": 8,
        "num_local_experts": 6,
        "num_experts_per_tok": 2,
        "rope_parameters": YARN | {"truncate": False, "beta_fast": 8, "beta_slow": 1},
        "swiglu_limit": 1.5,
    },
    "Afmoe": {
        "head_dim": 16,
        "sliding_window": 8,
        "moe_intermediate_size": 48,
        "num_dense_layers": 1,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "num_shared_experts": 2,
        "route_scale": 1.3,
        "mup_enabled": True,
    },
    "DeepseekV3": MOE | GROUPS | MLA,
    "DeepseekV32": MOE | GROUPS | MLA | DSA,
    "GlmMoeDsa": MOE | GROUPS | MLA | DSA | {"n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5, "v_head_dim": 24},
}
"""Family -> what its tiny config changes in `SMALL`. Windows, top-k and softcaps are small enough to bite within 40 tokens."""


def config_of(family: str, **changes: Any) -> Any:
    """The tiny `transformers` config of a family."""
    import transformers

    return getattr(transformers, f"{family}Config")(**SMALL | CONFIGS[family] | changes)


def oracle(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A random `transformers` model of a family, in evaluation mode; the same weights for every dtype up to rounding."""
    import transformers

    config = config_of(family, **changes)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    randomise(model, seed)
    return model.to(dtype)


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw everything that a checkpoint stores, each tensor from a stream of its own."""
    for i, (name, tensor) in enumerate(sorted(model.state_dict(keep_vars=True).items())):
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1000 * seed + i))
        if tensor.ndim >= 2:
            tensor.copy_(noise * (0.5 if "embed" in name or "lm_head" in name else tensor.shape[-1] ** -0.5))
        elif "norm" in name and not name.endswith("bias"):
            tensor.copy_(1 + 0.3 * noise)
        else:
            tensor.copy_(0.2 * noise)


class _Lifted(TorchFunctionMode):
    """Whoever asks for float32 gets float64."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*args, **kwargs)


@contextlib.contextmanager
def lifted() -> Iterator[None]:
    """Inside, a `transformers` model computes wholly in float64: its own requests for float32 (norms, tables, routers, softmax)
    are answered in float64. Build the model inside too, or its tables are already rounded."""
    with _Lifted():
        yield


def mirror(theirs: Any, dtype: torch.dtype) -> Transformer:
    """Our model with an oracle's configuration and weights."""
    document = json.loads(theirs.config.to_json_string(use_diff=False)) | {"architectures": [type(theirs).__name__]}
    family, config = read(document, type(theirs).__name__)
    ours = Transformer(config).to(dtype)
    own, state = own_weights(ours), theirs.state_dict()
    with torch.no_grad():
        for move in moves(own, family.name, config.moe.experts, "fused"):
            for name, tensor in zip(move.ours, move.back([state[name] for name in move.theirs]), strict=True):
                own[name].copy_(tensor)
    return ours


def gradients(ours: Transformer, theirs: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(ours, theirs) of every parameter that has a gradient in the oracle, under its names."""
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    family = type(theirs).__name__.removesuffix("ForCausalLM")
    translated = to_theirs(found, family, ours.config.moe.experts, "fused")
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    return {name: (translated[name], grad) for name, grad in wanted.items()}
