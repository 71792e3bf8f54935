"""A small byte-level tokenizer in the product's form, trained in the test process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from context_mgmt.chat import SPECIALS, Chat

WORDS = (
    "write the code from file to note find value of key cat grep echo exit omitted doc task act obs end pad apple river stone "
    * 20
)


def make_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE over letters, single digits, single spaces and single symbols."""
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
    tokenizer.train_from_iterator([WORDS], trainer)
    return tokenizer


@pytest.fixture(name="make_tokenizer", scope="session")
def _make_tokenizer() -> Callable[[], Tokenizer]:
    """Makes a fresh tokenizer of the small kind."""
    return make_tokenizer


@pytest.fixture(scope="session")
def chat() -> Chat:
    """A chat over the small tokenizer."""
    return Chat(make_tokenizer(), "small.json")
