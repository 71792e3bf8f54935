"""Exports a checkpoint as a Hugging Face folder that `transformers` loads with equal logits.

A stock model becomes a Qwen3ForCausalLM and needs nothing of ours. A model with extra parts brings its own modeling file and is
loaded with trust_remote_code=True; its README and config.json say so. As a program:
`python -m trainer.export --checkpoint DIR --out FOLDER`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gymsmith import lifeline
from gymsmith.errors import Conflict, GymsmithError
from trainer.checkpoint import Checkpoint, load, weights_digest
from trainer.model.config import ModelConfig

QWEN3 = {
    "embedding.token.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "attention_norm": "input_layernorm",
    "attention.q.": "self_attn.q_proj.",
    "attention.k.": "self_attn.k_proj.",
    "attention.v.": "self_attn.v_proj.",
    "attention.o.": "self_attn.o_proj.",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
"""Our names (or parts of them) and Qwen3's."""

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<|doc|><|task|>{{ m.content }}<|end|><|act|>"
    "{% elif m.role == 'assistant' %}{{ m.content }}<|end|>"
    "{% elif m.role == 'tool' %}<|obs|>{{ m.content }}<|end|><|act|>{% endif %}{% endfor %}"
)


def export(checkpoint: Path, folder: Path) -> Path:
    """Write the folder, complete or not at all.

    Raises:
        Conflict: the folder exists.
        NotFound, CorruptCheckpoint: about the checkpoint.
    """
    if folder.exists():
        raise Conflict(f"expected {folder} not to exist, it does; name another folder or remove it")
    found = load(checkpoint)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    stock = found.model.stock
    weights = qwen3_weights(found.weights) if stock else found.weights
    save_file({name: t.contiguous() for name, t in weights.items()}, scratch / "model.safetensors", metadata={"format": "pt"})
    documents = {
        "config.json": qwen3_config(found.model) if stock else own_config(found.model),
        "generation_config.json": {"eos_token_id": _id(found, "<|end|>"), "pad_token_id": _id(found, "<|pad|>")},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|doc|>",
            "eos_token": "<|end|>",
            "pad_token": "<|pad|>",
            "model_max_length": found.model.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, body in documents.items():
        (scratch / name).write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    (scratch / "tokenizer.json").write_text(found.tokenizer, encoding="utf-8")
    (scratch / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (scratch / "README.md").write_text(readme(found), encoding="utf-8")
    if not stock:
        shutil.copyfile(Path(__file__).parent / "hf" / "modeling_gymsmith.py", scratch / "modeling_gymsmith.py")
    scratch.rename(folder)
    return folder


def qwen3_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under Qwen3's names."""
    out = {}
    for name, tensor in weights.items():
        if name in QWEN3:
            out[QWEN3[name]] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        part = next(p for p in QWEN3 if rest.startswith(p))
        out[f"model.layers.{layer}.{QWEN3[part]}{rest[len(part) :]}"] = tensor
    return out


def qwen3_config(model: ModelConfig) -> dict[str, Any]:
    """config.json of a stock model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "float32",
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_positions,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "tie_word_embeddings": model.tied_head,
        "hidden_act": "silu",
        "attention_bias": False,
    }


def own_config(model: ModelConfig) -> dict[str, Any]:
    """config.json of a model that brings its own code; `auto_map` points at it."""
    return {
        "architectures": ["GymsmithForCausalLM"],
        "model_type": "gymsmith",
        "dtype": "float32",
        "auto_map": {
            "AutoConfig": "modeling_gymsmith.GymsmithConfig",
            "AutoModelForCausalLM": "modeling_gymsmith.GymsmithForCausalLM",
        },
        "gymsmith": model.model_dump(mode="json"),
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def readme(found: Checkpoint) -> str:
    """What it is and how to load it."""
    stock = found.model.stock
    how = "" if stock else ", trust_remote_code=True"
    why = (
        "A stock Qwen3 architecture; no code beside the weights."
        if stock
        else "This model has parts that no stock architecture has (see `modeling_gymsmith.py`, which is loaded with it), so "
        "`trust_remote_code=True` is needed. Read the file first: it is 150 lines."
    )
    return (
        f"# A model trained by Gymsmith\n\n{why}\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained(FOLDER{how})\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```\n\n"
        f"Step {found.step}; {sum(t.numel() for t in found.weights.values()):,} parameters; weights digest "
        f"`{weights_digest(found.weights)}`.\n\nFormat: `<|doc|><|task|>INSTRUCTION<|end|><|act|>COMMAND<|end|><|obs|>OUTPUT"
        "<|end|><|act|>...exit<|end|>`. Text that comes from files or people must be encoded without special tokens "
        "(`split_special_tokens=True`), or it could forge a turn.\n"
    )


def _id(found: Checkpoint, token: str) -> int | None:
    """Id of a special token, None when the tokenizer has none."""
    added = json.loads(found.tokenizer).get("added_tokens", [])
    return next((entry["id"] for entry in added if entry["content"] == token), None)


def main(arguments: list[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="Export a checkpoint as a Hugging Face folder.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    given = parser.parse_args(arguments)
    if given.lifeline:
        lifeline.hold_on(grace_s=1.0)
    try:
        print(export(given.checkpoint, given.out))
    except GymsmithError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
