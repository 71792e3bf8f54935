"""What cannot be split, said before a process starts. Imports no torch.

A split that does not come out even is refused rather than padded: padded heads or experts would train differently from one
process, and everything here promises to train the same.
"""

from __future__ import annotations

from gymsmith.errors import ConfigError
from trainer.config import ParallelConfig
from trainer.model.config import ModelConfig


def check(parallel: ParallelConfig, model: ModelConfig, rows: int, length: int, processes: int) -> None:
    """Whether `processes` can train `model` on batches of `rows` rows of `length` tokens as `parallel` says.

    Raises:
        ConfigError: names the axis, what it must divide, and both numbers.
    """
    if parallel.world != processes:
        raise ConfigError(
            f"expected {parallel.world} processes (dp {parallel.dp} x fsdp {parallel.fsdp} x ep {parallel.ep} x cp {parallel.cp}"
            f" x tp {parallel.tp}), got {processes}; start that many, or change [parallel]"
        )
    _divides("dp x fsdp x ep", parallel.data, "the rows of a batch", rows)
    if parallel.tp > 1:
        _tensor(parallel.tp, model)
    if parallel.cp > 1:
        _divides("2 x cp", 2 * parallel.cp, "the tokens of a row", length)
        if model.smear:
            raise ConfigError(f"cp splits rows, smear = {model.smear} looks across the cut, got cp = {parallel.cp}; set cp = 1")
    if parallel.ep > 1:
        raise ConfigError(f"ep splits experts, the model has none, got ep = {parallel.ep}; set ep = 1")


def _tensor(tp: int, model: ModelConfig) -> None:
    for what in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
        _divides("tp", tp, f"model.{what}", getattr(model, what))


def _divides(axis: str, parts: int, what: str, count: int) -> None:
    if count % parts:
        raise ConfigError(f"{axis} must divide {what}, got {parts} and {count}; change one of them")
