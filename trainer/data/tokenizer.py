"""Trains the tokenizer: byte-level BPE whose pieces never cross words, digits, blanks or symbols.

Pieces end at every change between letters, single digits, single blanks and single symbols, so that a file name or a value
keeps its spelling wherever it stands, which is what a small model copies by. All 256 bytes are in the alphabet, so nothing is
unknown. The file is stored under the hash of its bytes: a checkpoint names it by that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<|pad|>", "<|doc|>", "<|task|>", "<|act|>", "<|obs|>", "<|end|>")
"""In id order: padding is 0."""


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[A-Za-z]+|[0-9]|\s|[^A-Za-z0-9\s]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def store(tokenizer: Tokenizer, folder: Path) -> str:
    """Write the tokenizer under its content hash, atomically.

    Returns:
        The file's name, `SHA256.json`.
    """
    body = tokenizer.to_str().encode()
    name = f"{hashlib.sha256(body).hexdigest()}.json"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / name
    if not target.exists():
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_bytes(body)
        temporary.rename(target)
    return name
