"""Special tokens for a model that has none of ours: the tokenizer learns the words, the tables get rows.

New rows are the mean of the rows that are in use, so a new token begins as an average one: its logit is the average logit and it
disturbs the text around it least. Or they are drawn as fresh weights are. Both are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer

from gymsmith.errors import UserError
from trainer.model.transformer import Transformer

Rule = Literal["mean", "normal"]


def add_special_tokens(
    model: Transformer, words: str, tokens: Sequence[str], rule: Rule = "mean", seed: int = 0, multiple: int = 1
) -> tuple[Transformer, str]:
    """A model and a tokenizer (as JSON) that know the tokens; those it knows already keep their ids and rows.

    Args:
        multiple: the table's rows are rounded up to a multiple of this, as FP8 products want.
    Raises:
        UserError: a token is empty, or the tokenizer has ids outside the table.
    """
    if not all(tokens):
        raise UserError(f"expected special tokens to have a name, got {list(tokens)}; leave the empty one out")
    tokenizer = Tokenizer.from_str(words)
    used = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    old = model.config.vocab_size
    if used and used[-1] >= old:
        raise UserError(f"expected token ids below {old}, the rows of the table, got {used[-1]}; it is another model's tokenizer")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    known = tokenizer.get_vocab(with_added_tokens=True)
    ids = [known[token] for token in tokens]
    size = max(old, 1 + max(ids, default=0))
    size += -size % multiple
    fresh = sorted({i for i in ids if i not in set(used)} | set(range(old, size)))
    grown = Transformer(model.config.model_copy(update={"vocab_size": size}), seed)
    source = dict(model.state_dict())
    with torch.no_grad():
        for name, target in grown.state_dict().items():
            have = source[name]
            if not _is_table(name):
                target.copy_(have)
                continue
            drawn = target[fresh].clone()
            target[:old] = have
            target[fresh] = have[used].double().mean(0).to(target.dtype) if rule == "mean" else drawn
    return grown, str(tokenizer.to_str())


def shares(model: Transformer) -> dict[str, Any]:
    """How many parameters a model has, and what part of them its vocabulary takes."""
    total = sum(p.numel() for p in model.parameters())
    rows = sum(p.numel() for name, p in model.named_parameters() if _is_table(name))
    return {
        "parameters": total,
        "embedding_parameters": rows,
        "embedding_share": round(rows / total, 4),
        "tied": model.config.tied_head,
        "vocab_size": model.config.vocab_size,
    }


def _is_table(name: str) -> bool:
    """Whether a tensor has a row per token."""
    return name == "head.weight" or name.startswith(("embedding.token.", "embedding.smear."))
