"""Exports a checkpoint as a Hugging Face folder that `transformers` loads with equal logits.

A model that one of the families of `trainer/hf/families.py` computes is written as that family and needs nothing of ours. A model
with extra parts brings its own modeling file and is loaded with trust_remote_code=True; its README and config.json say so. What
neither computes is refused. As a program: `python -m trainer.export --checkpoint DIR --out FOLDER [--dtype bfloat16]
[--serving fp8]`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gymsmith import lifeline
from gymsmith.errors import Conflict, GymsmithError, UserError
from trainer.checkpoint import Checkpoint, load, weights_digest
from trainer.hf.document import essence, family_of, write
from trainer.hf.families import FAMILIES, Family
from trainer.hf.folder import write_weights
from trainer.hf.names import to_theirs, travels
from trainer.model.config import ModelConfig
from trainer.precision.serve import Served, fp8, packed_int4

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<|doc|><|task|>{{ m.content }}<|end|><|act|>"
    "{% elif m.role == 'assistant' %}{{ m.content }}<|end|>"
    "{% elif m.role == 'tool' %}<|obs|>{{ m.content }}<|end|><|act|>{% endif %}{% endfor %}"
)


ROLES = {"bos_token": "<|doc|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
FORMAT = (
    "\nFormat: `<|doc|><|task|>INSTRUCTION<|end|><|act|>COMMAND<|end|><|obs|>OUTPUT"
    "<|end|><|act|>...exit<|end|>`. Text that comes from files or people must be encoded without special tokens "
    "(`split_special_tokens=True`), or it could forge a turn.\n"
)
"""What the README of a model with our special tokens adds."""
SERVING: dict[str, Callable[[Mapping[str, Tensor]], Served]] = {
    "": lambda weights: Served(dict(weights)),
    "fp8": fp8,
    "fp8-channel": lambda weights: fp8(weights, "channel"),
    "int4": packed_int4,
}
"""How matrices are rounded for a server."""


def export(checkpoint: Path, folder: Path, *, dtype: str = "float32", serving: str = "") -> Path:
    """Write the folder, complete or not at all.

    Args:
        dtype: number format of the weights, float32 or bfloat16.
        serving: one of SERVING, rounded from the float32 weights; empty rounds nothing.
    Raises:
        Conflict: the folder exists.
        NotFound, CorruptCheckpoint: about the checkpoint.
        UserError: no architecture of `transformers` computes this model, and our own modeling file does not either.
    """
    if folder.exists():
        raise Conflict(f"expected {folder} not to exist, it does; name another folder or remove it")
    found = load(checkpoint)
    kept = found.meta.get("hf", {})
    family = family_of(found.model, kept.get("family", ""))
    if family is None and not _ours_computes(found.model):
        raise UserError(
            f"expected a model that {', '.join(FAMILIES)} or our modeling file computes, got a mixture of them; "
            "train one of these architectures where transformers must load the result"
        )
    biased = any(t.any() for name, t in found.weights.items() if name.endswith(".ffn.bias"))
    if family and family.name == "GptOss" and biased:
        raise UserError("expected no selection bias, as gpt-oss has none, got one that moved; train with moe.balance none")
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    weights = found.weights if family is None else to_theirs(found.weights, family.name, found.model.moe.experts)
    served = SERVING[serving](weights)
    as_it_was = {name for name in weights if served.tensors.get(name) is weights[name]}
    write_weights(scratch, {n: t.to(getattr(torch, dtype)) if n in as_it_was else t for n, t in served.tensors.items()})
    ids = kept.get("ids") or {f"{key}_id": _id(found, token) for key, token in ROLES.items()}
    config = own_config(found.model) if family is None else write(family, found.model) | ids
    documents = {
        "config.json": config | {"dtype": dtype} | ({"quantization_config": served.config} if served.config else {}),
        "generation_config.json": {"eos_token_id": ids["eos_token_id"], "pad_token_id": ids["pad_token_id"]},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{key: token for key, token in ROLES.items() if _id(found, token) is not None},
            "model_max_length": found.model.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    }
    texts = {name: json.dumps(body, indent=2) + "\n" for name, body in documents.items()}
    texts |= {"tokenizer.json": found.tokenizer, "chat_template.jinja": CHAT_TEMPLATE, "README.md": readme(found, family)}
    if "texts" in kept:
        # What came with an imported model speaks of its own tokens, not of ours.
        texts = {name: text for name, text in texts.items() if name not in SPOKEN} | kept["texts"]
    for name, text in texts.items():
        (scratch / name).write_text(text, encoding="utf-8")
    if family is None:
        shutil.copyfile(Path(__file__).parent / "hf" / "modeling_gymsmith.py", scratch / "modeling_gymsmith.py")
    scratch.rename(folder)
    return folder


SPOKEN = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")
OURS = (
    *("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "pattern", "first_layers", "last_layers"),
    *("max_positions", "rope_theta", "norm_eps", "norm_weight", "qk_norm", "attention_scale", "smear", "embedding_norm"),
    *("tied_head", "logit_gain"),
)
"""What modeling_gymsmith.py reads of a config."""


def _ours_computes(model: ModelConfig) -> bool:
    """Whether a model is all said by what our modeling file reads."""
    try:
        said = ModelConfig.model_validate({name: getattr(model, name) for name in OURS})
    except ValidationError:
        return False
    known = all(k.attention == "gqa" and k.window is None and k.ffn in ("swiglu", "relu2") for k in model.layers)
    return known and essence(said) == essence(model)


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
        "gymsmith": model.model_dump(mode="json", include=set(OURS)) | {"pattern": [k.model_dump() for k in model.layers]},
        "vocab_size": model.vocab_size,
        "hidden_size": model.dim,
        "num_hidden_layers": model.n_layers,
        "tie_word_embeddings": False,
        "use_cache": False,
    }


def readme(found: Checkpoint, family: Family | None) -> str:
    """What it is and how to load it."""
    how = "" if family else ", trust_remote_code=True"
    why = (
        f"A stock {family.name} architecture; no code beside the weights."
        if family
        else "This model has parts that no stock architecture has (see `modeling_gymsmith.py`, which is loaded with it), so "
        "`trust_remote_code=True` is needed. Read the file first: it is 150 lines."
    )
    behind = sum(t.numel() for name, t in found.weights.items() if family and not travels(name, family.name))
    left = f" {behind:,} of them stayed behind: no place for modules that predict further tokens." if behind else ""
    return (
        f"# A model trained by Gymsmith\n\n{why}\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model = AutoModelForCausalLM.from_pretrained(FOLDER{how})\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\n```\n\n"
        f"Step {found.step}; {sum(t.numel() for t in found.weights.values()):,} parameters; weights digest "
        f"`{weights_digest(found.weights)}`.{left}\n"
    ) + ("" if _id(found, "<|doc|>") is None else FORMAT)


def _id(found: Checkpoint, token: str) -> int | None:
    """Id of a special token, None when the tokenizer has none."""
    added = json.loads(found.tokenizer).get("added_tokens", [])
    return next((entry["id"] for entry in added if entry["content"] == token), None)


def main(arguments: list[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="Export a checkpoint as a Hugging Face folder.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="number format of the weights")
    parser.add_argument("--serving", choices=sorted(SERVING), default="", help="round matrices for a server")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    given = parser.parse_args(arguments)
    if given.lifeline:
        lifeline.hold_on(grace_s=1.0)
    try:
        print(export(given.checkpoint, given.out, dtype=given.dtype, serving=given.serving))
    except GymsmithError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
