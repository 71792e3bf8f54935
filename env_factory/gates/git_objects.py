"""Every object of a git repository, read without git: nothing of an untrusted repository's configuration or hooks is ever run.

Loose objects, and packs of version 2 with both kinds of deltas, as Documentation/gitformat-pack describes them. Objects that no
reference leads to are read like all others, for that is where a history that was taken back still lies. Damage is passed over:
what cannot be read here, an agent's git cannot read either.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from sandboxes.base import MIB

MAX_OBJECT_BYTES = 4 * MIB
"""Larger objects are passed over."""
MAX_TOTAL_BYTES = 256 * MIB
"""Unpacked; reading ends here."""
MAX_DEPTH = 60
_KINDS = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
_OFS, _REF = 6, 7


def objects(git: Path) -> Iterator[tuple[str, bytes]]:
    """(kind, content) of every commit, blob and tag below a .git folder; trees are left out."""
    left = MAX_TOTAL_BYTES
    for kind, data in _all(git):
        left -= len(data)
        if left < 0:
            return
        if kind != "tree":
            yield kind, data


def _all(git: Path) -> Iterator[tuple[str, bytes]]:
    top = git / "objects"
    for folder in sorted(_names(top)):
        if re.fullmatch(r"[0-9a-f]{2}", folder):
            for name in sorted(_names(top / folder)):
                raw = _inflate(_read(top / folder / name), 0)[0]
                head, _, content = raw.partition(b"\0")
                if b" " in head:
                    yield head.partition(b" ")[0].decode("ascii", "replace"), content
    for name in sorted(_names(top / "pack")):
        if name.endswith(".pack"):
            yield from _pack(_read(top / "pack" / name))


def _pack(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The objects of one pack: those that stand alone first, then, round by round, the deltas whose base is known by then."""
    if data[:4] != b"PACK" or data[4:8] != b"\0\0\0\2":
        return
    deltas: dict[int, tuple[int | bytes, bytes]] = {}
    known: dict[int | bytes, tuple[str, bytes]] = {}

    def learn(start: int, kind: str, content: bytes) -> tuple[str, bytes]:
        name = hashlib.sha1(f"{kind} {len(content)}\0".encode() + content, usedforsecurity=False).digest()
        known[start] = known[name] = (kind, content)
        return kind, content

    offset = 12
    for _ in range(int.from_bytes(data[8:12], "big")):
        start = offset
        try:
            kind, offset = (data[offset] >> 4) & 7, _end_of_varint(data, offset)
            base: int | bytes = b""
            if kind == _OFS:
                back, offset = _offset(data, offset)
                base = start - back
            elif kind == _REF:
                base, offset = data[offset : offset + 20], offset + 20
            content, end = _inflate(data, offset)
        except IndexError:
            break
        if end <= offset:
            break
        offset = end
        if kind in _KINDS:
            yield learn(start, _KINDS[kind], content)
        elif kind in (_OFS, _REF):
            deltas[start] = (base, content)
    for _ in range(MAX_DEPTH):
        ready = [start for start, (base, _) in deltas.items() if base in known]
        for start in ready:
            base, delta = deltas.pop(start)
            kind_of, before = known[base]
            yield learn(start, kind_of, _apply(before, delta))


def _apply(base: bytes, delta: bytes) -> bytes:
    """The object that a delta makes of its base; what does not fit is left out."""
    at = _end_of_varint(delta, _end_of_varint(delta, 0))
    made = bytearray()
    while at < len(delta) and len(made) <= MAX_OBJECT_BYTES:
        order = delta[at]
        at += 1
        if order & 0x80:
            numbers = [0, 0]
            for bit in range(7):
                if order & (1 << bit) and at < len(delta):
                    part, shift = (0, 8 * bit) if bit < 4 else (1, 8 * (bit - 4))
                    numbers[part] |= delta[at] << shift
                    at += 1
            made += base[numbers[0] : numbers[0] + (numbers[1] or 0x10000)]
        else:
            made += delta[at : at + order]
            at += max(order, 1)
    return bytes(made)


def _end_of_varint(data: bytes, at: int) -> int:
    while at < len(data) and data[at] & 0x80:
        at += 1
    return at + 1


def _offset(data: bytes, at: int) -> tuple[int, int]:
    value = data[at] & 0x7F
    while data[at] & 0x80:
        at += 1
        value = ((value + 1) << 7) | (data[at] & 0x7F)
    return value, at + 1


def _inflate(data: bytes, at: int) -> tuple[bytes, int]:
    """(content, where the stream ends); content is empty when it is damaged or too large."""
    stream = zlib.decompressobj()
    view = memoryview(data)[at:]
    try:
        content = stream.decompress(view, MAX_OBJECT_BYTES + 1)
        while not stream.eof and stream.unconsumed_tail:
            content = b""
            stream.decompress(stream.unconsumed_tail, MAX_OBJECT_BYTES)
    except zlib.error:
        return b"", at
    if len(content) > MAX_OBJECT_BYTES:
        content = b""
    return content, at + len(view) - len(stream.unused_data) if stream.eof else at


def _names(folder: Path) -> list[str]:
    try:
        return [] if folder.is_symlink() else os.listdir(folder)
    except OSError:
        return []


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(handle, "rb") as file:
            return file.read(MAX_TOTAL_BYTES)
    except OSError:
        return b""
