"""What a shell family makes up: a folder, an order, ways to fulfil it, and the changes that prove it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class Kind(Enum):
    """What the verifier wants of one path after the episode."""

    TEXT = "text"
    """A regular file with exactly this text."""
    ABSENT = "absent"
    """Nothing under this name."""
    FOLDER = "folder"
    """A folder."""
    ANY = "any"
    """A regular file, whatever is in it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between the folder at the start and the folder of a solved task."""

    path: str
    kind: Kind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a family makes up: the folder, the order, the ways to fulfil it."""

    instruction: str
    files: dict[str, str]
    """Path relative to the working folder -> text."""
    changes: tuple[Change, ...]
    solution: tuple[str, ...]
    """Commands, without the closing `exit`."""
    alternatives: tuple[tuple[str, ...], ...]
    """Other honest ways, each a list of commands."""
    hidden: tuple[str, ...]
    """Tokens on which the answer depends and which the instruction does not contain."""
    memorised: tuple[tuple[str, ...], ...] = field(default=())
    """What somebody who knows the family by heart, but does not look, would type; must never pass."""


class Draw(Protocol):
    """Gives `count` fresh words, none a part of another."""

    def __call__(self, count: int) -> list[str]: ...


Family = Callable[[random.Random, Draw, int], Scene]


def number(rng: random.Random, count: int) -> list[str]:
    """`count` different three-digit numbers."""
    return [str(n) for n in rng.sample(range(100, 1000), count)]


def text(*lines: str) -> str:
    """Lines as the text of a file."""
    return "".join(f"{line}\n" for line in lines)


def write(value: str, path: str) -> tuple[str, Change]:
    """The command that writes one line, and the change it makes."""
    return f"echo {value} > {path}", Change(path, Kind.TEXT, text(value))
