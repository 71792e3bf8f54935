"""What cannot be split, said before a process starts. Imports no torch.

A split that does not come out even is refused rather than padded: padded heads or experts would train differently from one
process, and everything here promises to train the same.
"""

from __future__ import annotations

from gymsmith.errors import ConfigError
from trainer.config import ParallelConfig
from trainer.model.config import ModelConfig


def check_rows(parallel: ParallelConfig, rows: int, length: int) -> None:
    """Whether batches of `rows` rows of `length` tokens can be shared out.

    Raises:
        ConfigError: names the axis, what it must divide, and both numbers.
    """
    _divides("dp x fsdp x ep", parallel.data, "the rows of a batch", rows)
    if parallel.cp > 1:
        _divides("2 x cp", 2 * parallel.cp, "the tokens of a row", length)


def check_model(parallel: ParallelConfig, model: ModelConfig) -> None:
    """Whether the model can be shared out.

    Raises:
        ConfigError: names the axis, what it must divide, and both numbers; or what of the model cannot be split that way.
    """
    if parallel.tp > 1:
        _tensor(parallel.tp, model)
    if parallel.cp > 1:
        _context(parallel.cp, model)
    if parallel.ep > 1:
        if not any(kind.ffn == "moe" for kind in model.layers):
            raise ConfigError(f"ep splits experts, the model has none, got ep = {parallel.ep}; set ep = 1")
        _divides("ep", parallel.ep, "model.moe.experts", model.moe.experts)


def _tensor(tp: int, model: ModelConfig) -> None:
    kinds = model.layers
    _divides("tp", tp, "model.vocab_size", model.vocab_size)
    _divides("tp", tp, "model.n_heads", model.n_heads)
    if any(kind.attention == "gqa" for kind in kinds):
        _divides("tp", tp, "model.n_kv_heads", model.n_kv_heads)
    if any(kind.ffn != "moe" for kind in kinds):
        _divides("tp", tp, "model.ffn_dim", model.ffn_dim)
    if any(kind.ffn == "moe" for kind in kinds):
        _divides("tp", tp, "model.moe.shared_dim", model.moe.shared_dim)
    if any(kind.attention == "dsa" for kind in kinds):
        raise ConfigError(f"an indexer learns from all heads at once, so tp does not fit dsa, got tp = {tp}; set tp = 1")


def _context(cp: int, model: ModelConfig) -> None:
    """What looks across the cut in ways other than attention."""
    reasons = {
        f"smear = {model.smear}": bool(model.smear),
        "mtp": model.mtp is not None,
        "dsa layers": any(kind.attention == "dsa" for kind in model.layers),
        f"moe.sequence_loss = {model.moe.sequence_loss}": bool(model.moe.sequence_loss),
    }
    for what, present in reasons.items():
        if present:
            raise ConfigError(f"cp cuts rows, and {what} needs them whole, got cp = {cp}; set cp = 1 or leave that out")


def _divides(axis: str, parts: int, what: str, count: int) -> None:
    if count % parts:
        raise ConfigError(f"{axis} must divide {what}, got {parts} and {count}; change one of them")
