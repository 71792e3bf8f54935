"""What a solution does to the files of its task: the difference between the image and what crosses into the verifier.

A solution is a program, and may be written in a thousand ways; its effect is data, and parts of it can be taken back or changed.
An `Effect` is one path that differs. `Effects.variant` makes artifacts in which some effects are undone or altered; they are
graded like any agent's. Caches, histories of shells and the inside of .git (one effect as a whole) are not looked into.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from sandboxes.artifacts import Artifacts
from sandboxes.base import MIB, Image
from sandboxes.image.layer import is_whiteout, lookup

MAX_READ_BYTES = 2 * MIB
CACHES = re.compile(
    r"(^|/)(__pycache__|\.pytest_cache|\.mypy_cache|\.cache|\.[a-z]*_history|\.viminfo)(/|$)|\.py[co]$|\.sw[op]$|~$"
)
SOURCE = re.compile(
    r"\.(pyi?|c|h|cc|cpp|hpp|rs|go|java|kt|m?js|tsx?|jsx|rb|php|pl|lua|cs|scala|swift|hs|ml|ex|r|jl|s?css|vue|svelte)\Z",
    re.IGNORECASE,
)
"""Endings of programs' source: what is changed there is a repair, not data."""


class Hunk(NamedTuple):
    """Lines [start, end) of the new text that replace `old` lines."""

    start: int
    end: int
    old: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """One path that the solution changed. Texts are None where the content is none, too large, or not UTF-8."""

    path: str
    kind: Literal["changed", "created", "removed", "mode", "tree"]
    before: str | None = None
    after: str | None = None

    @property
    def is_source(self) -> bool:
        return bool(SOURCE.search(self.path))

    @property
    def is_script(self) -> bool:
        """A program without an ending to its name, which says in its first line what runs it."""
        return (self.after or "").startswith("#!")

    @property
    def lines(self) -> list[str]:
        """The new text by line, line ends kept."""
        return (self.after or "").splitlines(keepends=True)

    @property
    def hunks(self) -> list[Hunk]:
        """What differs, for a text that was changed."""
        if self.before is None or self.after is None:
            return []
        old = self.before.splitlines(keepends=True)
        blocks = difflib.SequenceMatcher(None, old, self.lines, autojunk=False).get_opcodes()
        return [Hunk(j1, j2, tuple(old[i1:i2])) for tag, i1, i2, j1, j2 in blocks if tag != "equal"]

    def without(self, hunk: Hunk) -> str:
        """The new text with one hunk taken back."""
        return "".join([*self.lines[: hunk.start], *hunk.old, *self.lines[hunk.end :]])

    def diff(self) -> list[str]:
        """Removed and added lines with the path: what the change is, for comparing it with others."""
        removed = [line for hunk in self.hunks for line in hunk.old]
        added = [line for hunk in self.hunks for line in self.lines[hunk.start : hunk.end]]
        if self.before is None:
            added = self.lines
        return [self.path, self.kind, *(f"-{line.strip()}" for line in removed), *(f"+{line.strip()}" for line in added)]


@dataclass(frozen=True, slots=True)
class Effects:
    """All effects of a solution with the artifacts that they were read from; to be closed."""

    artifacts: Artifacts
    found: tuple[Effect, ...]

    def variant(self, writes: Mapping[str, str | None]) -> Artifacts:
        """The artifacts with some paths as they were in the image (None) or with another text; the caller closes them."""
        made = self.artifacts.copy()
        for path, text in writes.items():
            place = Path(f"{made.layer}{path}")
            if text is not None:
                with open(os.open(place, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w", encoding="utf-8", newline="") as file:
                    file.write(text)
            elif place.is_dir() and not place.is_symlink():
                _remove(place)
            else:
                place.unlink()
        return made

    def close(self) -> None:
        """Remove the artifacts."""
        self.artifacts.close()


def effects_of(artifacts: Artifacts, image: Image) -> Effects:
    """Read what crosses. The image's layers must be on this machine; without them every path counts as created."""
    return Effects(artifacts, tuple(effect for root in artifacts.roots for effect in _below(artifacts.layer, root, image)))


def _below(layer: Path, root: str, image: Image) -> Iterator[Effect]:
    above = PurePosixPath(root).parents
    # A solution may have put a link in the way to its artifact: nothing is followed.
    pending = [] if any(os.path.islink(f"{layer}{folder}") for folder in above) else [root]
    while pending:
        path = pending.pop()
        place = f"{layer}{path}"
        try:
            status = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if CACHES.search(path):
            continue
        below = lookup(image.layers, path, follow_last=False)[1] if image.layers else None
        if is_whiteout(status):
            yield Effect(path, "removed", before=_text(below.places[0]) if below else None)
        elif stat.S_ISDIR(status.st_mode):
            if path.endswith("/.git"):
                yield Effect(path, "tree")
                continue
            inside = sorted(os.listdir(place), reverse=True)
            if not inside and below is None:
                yield Effect(path, "created")
            pending += [f"{path}/{name}" for name in inside]
        elif below is None or below.is_dir:
            yield Effect(path, "created", after=_text(place))
        else:
            old, new = _text(below.places[0]), _text(place)
            same = (
                old == new
                if old is not None
                else read_plain(below.places[0], MAX_READ_BYTES) == read_plain(place, MAX_READ_BYTES)
            )
            if not same:
                yield Effect(path, "changed", old, new)
            elif stat.S_IMODE(below.status.st_mode) != stat.S_IMODE(status.st_mode):
                yield Effect(path, "mode")


def read_plain(place: str, most: int) -> bytes | None:
    """A plain file of at most `most` bytes; None for a larger one and for everything else. Follows no link, waits for no pipe."""
    try:
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            return None
        data = file.read(most + 1)
    return data if len(data) <= most else None


def _text(place: str) -> str | None:
    data = read_plain(place, MAX_READ_BYTES)
    if data is None or b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _remove(folder: Path) -> None:
    for entry in sorted(folder.rglob("*"), reverse=True):
        entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    folder.rmdir()
