"""A candidate, from what a synthesizer proposes to the line that remembers what became of it.

A ledger per (source digest, kind, seed, ...) holds one line for every settled candidate, so a run that was killed goes on behind
the last line, and an order for more continues an order for fewer.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gymsmith.config import Settings
from gymsmith.schema import Draft, digest


class Problem(NamedTuple):
    """Why a draft was turned down, for whoever may repair it."""

    reason: str
    detail: str


class Author(Protocol):
    """Writes the draft of one candidate, and repairs it as long as it can. `labels` name it while there is no draft."""

    labels: dict[str, str]

    async def write(self, problem: Problem | None) -> Draft | None:
        """The draft, or after a `problem` with the last one a better one; None: stop the order, nothing more can be paid.

        Raises: Rejected: it cannot be written, or cannot be repaired.
        """
        ...


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate as a synthesizer hands it over."""

    index: int
    """Its place in the synthesizer's order: with the source and the seed it names the candidate."""
    draft: Draft | None
    reason: str = ""
    """Why there is no draft."""
    author: Author | None = None
    """Who writes the draft, where that takes so long that several are written at once."""
    image_id: str = ""
    """An image that is known to be what the draft's Dockerfile says; empty: it is built."""

    @classmethod
    def of(cls, index: int, made: Draft | str) -> Proposal:
        """What came of a candidate: its draft, or the reason why there is none (survived, hang, few-p2p, thin, leak...)."""
        return cls(index, made) if isinstance(made, Draft) else cls(index, None, made)


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a candidate."""

    index: int
    id: str
    """Of the environment; empty when it was turned down before it was built."""
    reason: str
    """Empty when it was admitted."""
    labels: dict[str, str] = field(default_factory=dict)


class Ledger:
    """An append-only file with one JSON line per settled candidate. A torn last line is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[int, Settled] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    settled = Settled(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                self.lines[settled.index] = settled

    @classmethod
    def of(cls, settings: Settings, **key: Any) -> Ledger:
        """The ledger of an order; `key` is everything that its candidates follow from."""
        name = digest(json.dumps(key, sort_keys=True).encode())[:24]
        return cls(settings.home / "factory" / f"{name}.jsonl")

    def add(self, settled: Settled) -> None:
        """Remember one; a single write, so two writers cannot mix their lines."""
        self.lines[settled.index] = settled
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = {"index": settled.index, "id": settled.id, "reason": settled.reason, "labels": settled.labels}
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, b"\n" + json.dumps(row).encode() + b"\n")
        finally:
            os.close(handle)
