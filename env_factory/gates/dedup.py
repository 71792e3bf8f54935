"""Near-duplicates: two tasks that ask for nearly the same and are solved by nearly the same change.

MinHash (Broder 1997) over word shingles, 128 permutations, so an estimate of Jaccard's index has a standard error below 0.05.
Texts and changes are compared apart, and both must be alike: templates make texts alike, whose tasks differ in data, and one-line
changes are alike, where the reports of what is wrong differ. Pairs are found by bands of four rows (locality-sensitive hashing:
at 0.8 all but one pair in ten million share a band) and then compared by their whole signatures.

The index is a file of the state folder that grows by one line for each task that came so far. Orders that run side by side see
one another's lines as they are written; within one order a task is only held against those before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from env_factory.gates.effects import Effect
from gymsmith.schema import Draft, Gate

LIKENESS = 0.8
PERMUTATIONS, ROWS = 128, 4
SHINGLE = 5
_PRIME = (1 << 61) - 1
_rng = random.Random("minhash")
_FACTORS = tuple((_rng.randrange(1, _PRIME), _rng.randrange(_PRIME)) for _ in range(PERMUTATIONS))


class Profile(NamedTuple):
    """What is compared of one task."""

    id: str
    order: str
    place: int
    text: bytes
    change: bytes
    """Signatures."""


def shingles(words: Sequence[str], n: int = SHINGLE) -> set[int]:
    """Hashes of n words in a row; of all of them where there are fewer."""
    runs = (words[start : start + n] for start in range(max(1, len(words) - n + 1)))
    return {int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "big") % _PRIME for run in runs}


def signature(hashes: Iterable[int]) -> bytes:
    """The least value of each permutation, four bytes of it."""
    every = list(hashes)
    return array("I", (min((a * each + b) % _PRIME for each in every) & 0xFFFFFFFF for a, b in _FACTORS)).tobytes()


def likeness(one: bytes, other: bytes) -> float:
    """Estimate of Jaccard's index from two signatures."""
    return sum(a == b for a, b in zip(array("I", one), array("I", other), strict=True)) / PERMUTATIONS


def profile(draft: Draft, effects: Sequence[Effect], order: str, place: int) -> Profile:
    """Of a task whose solution's effects are known; where it has none that files show, its script stands for them."""
    script = draft.files.get("solution/solve.sh", b"").decode(errors="replace")
    lines = [line for effect in effects for line in effect.diff()] or [
        line.strip() for line in script.splitlines() if line.strip()
    ]
    text = signature(shingles(re.findall(r"\w+", draft.instruction.lower())))
    return Profile(draft.id, order, place, text, signature(shingles(lines or [""], 1)))


class Near:
    """The index of one state folder. Belongs to one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0
        self._profiles: list[Profile] = []
        self._ids: set[str] = set()
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def gate(self, mine: Profile) -> Gate:
        """The gate `duplicate`; a task that passes is in the index from now on."""
        self._refresh()
        known = {n for band in _bands(mine.text) for n in self._bands.get(band, ())}
        for other in (self._profiles[n] for n in sorted(known)):
            if other.id == mine.id:
                break  # It came before: those behind it are held against it, not it against them.
            if other.order == mine.order and other.place >= mine.place:
                continue
            text, change = likeness(mine.text, other.text), likeness(mine.change, other.change)
            if text >= LIKENESS and change >= LIKENESS:
                said = f"of {other.id}: texts {text:.2f} alike, changes {change:.2f}; less than {LIKENESS:g} is asked for"
                return Gate(name="duplicate", passed=False, rewards=(text, change), detail=said)
        if mine.id not in self._ids:
            self._write(mine)
        return Gate(name="duplicate", passed=True, detail=f"held against {len(self._profiles)} tasks")

    def _refresh(self) -> None:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read_to += len(line)
                try:
                    row = json.loads(line)
                    text, change = bytes.fromhex(row["text"]), bytes.fromhex(row["change"])
                    read = Profile(str(row["id"]), str(row["order"]), int(row["place"]), text, change)
                except (ValueError, KeyError, TypeError):
                    continue  # A line that a killed process left torn.
                for band in _bands(read.text):
                    self._bands.setdefault(band, []).append(len(self._profiles))
                self._profiles.append(read)
                self._ids.add(read.id)

    def _write(self, mine: Profile) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            row = {**mine._asdict(), "text": mine.text.hex(), "change": mine.change.hex()}
            os.write(handle, b"\n" + json.dumps(row).encode() + b"\n")
        finally:
            os.close(handle)
        self._refresh()


def _bands(signed: bytes) -> list[tuple[int, bytes]]:
    width = 4 * ROWS
    return [(start, signed[start : start + width]) for start in range(0, len(signed), width)]
