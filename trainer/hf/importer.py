"""A Hugging Face folder becomes a checkpoint of ours, tokenizer included. As a program:
`python -m trainer.hf.importer --folder FOLDER --out CHECKPOINTS`, which prints its report as JSON.

Nothing in the folder is executed. Its small text files (chat template, generation settings, tokenizer settings) travel in the
checkpoint's meta data, so that an export gives them back.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from tokenizers import Tokenizer

from context_mgmt.chat import SPECIALS
from gymsmith import lifeline
from gymsmith.errors import ConfigError, CorruptCheckpoint, GymsmithError, UserError
from trainer import checkpoint
from trainer.data import tokenizer as tokenizers
from trainer.hf.document import read
from trainer.hf.families import Family
from trainer.hf.folder import SCALE, Folder
from trainer.hf.names import moves
from trainer.hf.vocabulary import Rule, add_special_tokens, shares
from trainer.model.transformer import Transformer

log = logging.getLogger(__name__)
KEPT = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Text files that travel along."""
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(slots=True)
class Imported:
    """What a folder held."""

    family: Family
    model: Transformer
    words: str
    """The tokenizer's JSON."""
    meta: dict[str, Any]
    """What an export wants back."""
    skipped: list[str]
    """Tensors of the folder that the model has no use for."""


def bring_in(path: Path) -> Imported:
    """Read a folder.

    Raises:
        NotFound, UserError: it is no such folder, or of an architecture or format that is not ours.
        CorruptCheckpoint: shards or tensors are missing, cut off or of other shapes.
    """
    folder = Folder(path)
    family, config = read(folder.document, str(path / "config.json"))
    words = folder.text("tokenizer.json")
    if words is None:
        raise UserError(f"expected a tokenizer.json in {path}, got none; save the tokenizer there with transformers first")
    _check_words(words, config.vocab_size, path)
    model = Transformer(config)
    skipped = fill(model, folder, family)
    texts = {name: text for name in KEPT if (text := folder.text(name)) is not None}
    ids = {key: folder.document.get(key) for key in IDS}
    return Imported(family, model, words, {"hf": {"family": family.name, "ids": ids, "texts": texts}}, skipped)


@torch.no_grad()
def fill(model: Transformer, folder: Folder, family: Family) -> list[str]:
    """Copy a folder's tensors into the model; the names of those that have no place in it and need none.

    Raises:
        CorruptCheckpoint: tensors are missing, of other shapes, or nobody knows them.
    """
    own = checkpoint.own_weights(model)
    travelling = moves(own, family.name, model.config.moe.experts)
    expected = {name for move in travelling for name in move.theirs}
    missing = sorted(expected - folder.shard_of.keys())
    if missing:
        some = ", ".join(missing[:4])
        raise CorruptCheckpoint(
            f"{folder.path}: expected {len(expected)} tensors, {len(missing)} are missing: {some}; copy it again"
        )
    left = sorted(folder.shard_of.keys() - expected)
    unknown = [name for name in left if not _dispensable(name, model)]
    if unknown:
        some = ", ".join(unknown[:4])
        raise CorruptCheckpoint(
            f"{folder.path}: {len(unknown)} tensors have no place in {family.architecture}: {some}; wrong config?"
        )
    for move in travelling:
        theirs = [folder.read(name) for name in move.theirs]
        if len({t.shape for t in theirs}) > 1:
            raise CorruptCheckpoint(f"{move.theirs[0]} and its like: expected one shape, got {sorted({*map(_shape, theirs)})}")
        try:
            arrived = move.back(theirs)
        except (RuntimeError, IndexError) as e:
            raise CorruptCheckpoint(f"{move.theirs[0]}: expected experts' matrices, got shape {_shape(theirs[0])} ({e})") from e
        for name, tensor in zip(move.ours, arrived, strict=True):
            if own[name].shape != tensor.shape:
                expected_shape, got = _shape(own[name]), _shape(tensor)
                raise CorruptCheckpoint(
                    f"{move.theirs[0]}: expected shape {expected_shape}, got {got}; config.json is another model's"
                )
            own[name].copy_(tensor)
    return left


def _shape(tensor: torch.Tensor) -> str:
    return str(tuple(tensor.shape))


def _dispensable(name: str, model: Transformer) -> bool:
    """Tables that are computed anyway, factors of FP8 blocks, a tied head stored twice, layers that predict further tokens."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    further = layer is not None and int(layer[1]) >= model.config.n_layers
    return further or name.endswith(("rotary_emb.inv_freq", SCALE)) or (name == "lm_head.weight" and model.config.tied_head)


def _check_words(words: str, vocab_size: int, path: Path) -> None:
    try:
        tokenizer = Tokenizer.from_str(words)
    except Exception as e:  # the library raises nothing more specific
        raise CorruptCheckpoint(f"{path / 'tokenizer.json'} is no tokenizer: {e}; copy it again") from e
    top = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if top >= vocab_size:
        raise ConfigError(
            f"{path}: expected token ids below vocab_size {vocab_size}, got {top}; tokenizer and model do not match"
        )


def report(found: Imported, special: list[str], path: Path, words_name: str) -> dict[str, Any]:
    """What came in."""
    return {
        "checkpoint": str(path),
        "tokenizer": words_name,
        "architecture": found.family.architecture,
        **shares(found.model),
        "special_tokens": special,
        "skipped": found.skipped[:8],
        "skipped_tensors": len(found.skipped),
    }


def main(arguments: list[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="Import a Hugging Face folder as a checkpoint.")
    parser.add_argument("--folder", type=Path, required=True, help="folder with config.json and safetensors")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints to make")
    parser.add_argument("--tokenizers", type=Path, help="folder where the tokenizer is filed under its hash")
    parser.add_argument("--special", action="append", default=[], help="special token to add; may be repeated")
    parser.add_argument("--chat", action="store_true", help="add the special tokens of our chat format")
    parser.add_argument("--rule", choices=get_args(Rule), default="mean", help="how the rows of new tokens begin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--multiple", type=int, default=1, help="round the vocabulary up to a multiple of this")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    given = parser.parse_args(arguments)
    if given.lifeline:
        lifeline.hold_on(grace_s=1.0)
    try:
        found = bring_in(given.folder)
        special = [*(SPECIALS if given.chat else ()), *given.special]
        if special or given.multiple > 1:
            found.model, found.words = add_special_tokens(
                found.model, found.words, special, given.rule, given.seed, given.multiple
            )
        path = checkpoint.save(given.out, 0, found.model, tokenizer=found.words, meta={"stage": "import", **found.meta})
        name = tokenizers.store(Tokenizer.from_str(found.words), given.tokenizers) if given.tokenizers else ""
    except GymsmithError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    print(json.dumps(report(found, special, path, name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
