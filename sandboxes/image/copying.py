"""COPY and ADD: from sources and a destination to the entries of one layer.

Sources are the build context or the layers of another stage or image; both are read without following a link out of them.
Rules are Docker's: a directory gives its contents, a link among the contents stays a link, a link that is itself named is
followed, what exists keeps its mode and owner, names of the destination are resolved inside the image.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from gymsmith.errors import BuildError
from sandboxes.image import dockerfile, unpack
from sandboxes.image import dockerfile_words as words_of
from sandboxes.image import host_base as image_base
from sandboxes.image.build_context import BuildContext, Member, matches, mode_given, source_path
from sandboxes.image.build_state import State
from sandboxes.image.dockerfile import Step
from sandboxes.image.layer import Entry, LayerWriter, child, inside_ids, lookup, names


class Source(Protocol):
    """Where COPY takes from."""

    def __getitem__(self, name: str) -> Member: ...

    def below(self, folder: str) -> Sequence[tuple[str, Member]]: ...

    def matching(self, source: str, step: Step) -> Sequence[tuple[str, str]]: ...

    def some(self) -> str: ...


class LayersSource:
    """The merged view of layers, names without their first slash."""

    def __init__(self, state: State) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Member:
        entry = lookup(self.state.layers, "/" + name, follow_last=False)[1]
        assert entry is not None
        return _member(entry)

    def below(self, folder: str) -> list[tuple[str, Member]]:
        found: list[tuple[str, Member]] = []
        top = lookup(self.state.layers, "/" + folder)[1]
        pending = [("", top)] if top is not None and top.is_dir else []
        while pending:
            prefix, entry = pending.pop()
            for name in names(entry):
                inner = child(entry.places, name)
                if inner is None or not (inner.is_dir or inner.is_link or stat.S_ISREG(inner.status.st_mode)):
                    continue
                found.append((prefix + name, _member(inner)))
                if inner.is_dir:
                    pending.append((f"{prefix}{name}/", inner))
        return sorted(found, key=lambda row: row[0])

    def matching(self, source: str, step: Step) -> list[tuple[str, str]]:
        pattern = source_path(source, step)
        if (host := self.state.bound("/" + pattern)) is not None:
            raise step.refused(f"cannot take {source[:80]!r} from {host}, the host's own; copy it with RUN in that stage")
        found = [pattern] if not any(letter in pattern for letter in "*?[") else self._names(pattern)
        resolved = [(name, *lookup(self.state.layers, "/" + name)) for name in found]
        return [(name, path[1:]) for name, path, entry in resolved if entry is not None]

    def _names(self, pattern: str) -> list[str]:
        level = [""]
        for part in pattern.split("/"):
            grown = []
            for prefix in level:
                entry = lookup(self.state.layers, "/" + prefix)[1]
                listed = names(entry) if entry is not None and entry.is_dir else []
                grown += [f"{prefix}/{name}".lstrip("/") for name in listed if matches(name, part)]
            level = grown
        return level

    def some(self) -> str:
        top = lookup(self.state.layers, "/")[1]
        return ", ".join(names(top)[:8]) if top is not None else "no files"


@dataclass(frozen=True, slots=True)
class Row:
    """One entry to write."""

    path: str
    member: Member
    archive: bool = False
    """ADD: unpack it into the directory `path`."""


def documents(step: Step, variables: Mapping[str, str]) -> dict[str, Member]:
    """The here-documents of a step as files, by their word."""
    found: dict[str, Member] = {}
    for document in step.documents:
        text = words_of.expand_text(document.text, variables, step.line) if document.expands else document.text
        found[document.word] = Member(0o644, text.encode("utf-8", "surrogateescape"))
    return found


def rows(
    step: Step, state: State, context: BuildContext, origin: State | None, fetched: Mapping[str, Member]
) -> tuple[list[Row], bytes]:
    """What one COPY or ADD writes, and what goes into its layer's key besides the parent's.

    origin: the stage or image of --from. fetched: URL -> what ADD got from it. Raises: PolicyRefused, BuildError.
    """
    *sources, given = dockerfile.words(step, state.variables)
    source: Source = LayersSource(origin) if origin is not None else context
    top, entry = lookup(state.layers, given if given.startswith("/") else f"{state.workdir}/{given}")
    into = given.endswith(("/", "/.")) or given == "." or (entry is not None and entry.is_dir)
    loose = {**documents(step, state.variables), **fetched}
    found: list[tuple[str, Member, str | None]] = []
    for word in sources:
        if word in loose:
            name = next((d.name for d in step.documents if d.word == word), posixpath.basename(urlsplit(word).path))
            found.append((name, loose[word], None))
            continue
        matched = source.matching(word, step)
        if not matched:
            where = "in that stage" if origin is not None else "in the build context"
            raise BuildError(f"Dockerfile line {step.line}: {step.name} {word[:80]!r} is not {where}, which has {source.some()}")
        found += [(name, source[key], key) for name, key in matched]
    placed = _placed(step, found, source, top, into)
    chown = words_of.expand(step.flags.get("chown", ""), state.variables, step.line)
    owner = state.owner_named(chown, step) if chown else None
    mode = mode_given(step)
    done: dict[str, Row] = {}
    resolved: dict[str, str] = {}
    for path, member in placed:
        parent, _, last = path.rpartition("/")
        if parent not in resolved:
            resolved[parent] = lookup(state.layers, parent)[0].rstrip("/")
        inside = f"{resolved[parent]}/{last}"
        if member.is_dir:
            inside = lookup(state.layers, inside)[0]
        if (host := state.bound(inside)) is not None:
            raise BuildError(
                f"Dockerfile line {step.line}: {inside} lies in {host}, which is the host's own and read-only under "
                f"{image_base.NAME}; use /opt or /work"
            )
        if owner is not None:
            member = replace(member, uid=owner[0], gid=owner[1], mode=_given_away(member))
        if mode is not None and not member.is_dir and member.target is None:
            member = replace(member, mode=mode)
        archive = step.name == "ADD" and origin is None and member.data is not None and unpack.is_archive(member.data)
        done[inside] = Row(top if archive else inside, member, archive and last not in fetched)
    ordered = [done[path] for path in sorted(done)]
    return ordered, _key(ordered, origin)


def _given_away(member: Member) -> int:
    """The mode of a file after chown, which takes set-user-ID and set-group-ID bits of programs away."""
    if member.is_dir or member.target is not None:
        return member.mode
    return member.mode & ~(0o6000 if member.mode & 0o010 else 0o4000)


def _placed(
    step: Step, found: Sequence[tuple[str, Member, str | None]], source: Source, top: str, into: bool
) -> list[tuple[str, Member]]:
    placed: list[tuple[str, Member]] = []
    for name, member, key in found:
        if member.is_dir:
            placed.append((top, replace(member, mode=0o755, uid=0, gid=0)))
            placed += [(f"{top.rstrip('/')}/{below}", inner) for below, inner in source.below(key or "")]
        elif not into and len(found) > 1:
            raise BuildError(f"Dockerfile line {step.line}: {step.name} of several files needs a destination that ends with '/'")
        else:
            placed.append((f"{top.rstrip('/')}/{name.rpartition('/')[2]}" if into else top, member))
    return placed


def write(placed: Sequence[Row], writer: LayerWriter, *, owners: bool = True) -> None:
    """Write the entries; without `owners` everything is root's inside, and is given away afterwards."""
    first: dict[tuple[int, int], str] = {}
    for row in placed:
        member = row.member
        ids = (member.uid, member.gid) if owners else (0, 0)
        if row.archive:
            assert member.data is not None
            unpack.unpack(io.BytesIO(member.data), writer, row.path)
        elif member.is_dir:
            writer.directory(row.path, member.mode, *ids)
        elif member.target is not None:
            writer.link(row.path, member.target, *ids)
        elif member.inode is not None and member.inode in first:
            writer.same(row.path, first[member.inode])
        elif member.source is not None:
            writer.copy(row.path, member.source, member.mode, *ids)
        else:
            writer.file(row.path, member.data or b"", member.mode, *ids)
        if member.inode is not None:
            first.setdefault(member.inode, row.path)


def _key(placed: Sequence[Row], origin: State | None) -> bytes:
    """Names, modes, owners and contents; of another stage its key and the names stand for the contents."""
    total = hashlib.sha256(origin.key.encode() if origin is not None else b"")
    for row in placed:
        member = row.member
        inside = ""
        if member.source is not None and origin is not None:
            layer = next(layer for layer in origin.layers if member.source.startswith(f"{layer}/"))
            inside = f"{layer.parent.name}{member.source.removeprefix(str(layer))}"
        told = (row.path, row.archive, member.mode, member.target, member.uid, member.gid, inside, len(member.data or b""))
        total.update(repr(told).encode("utf-8", "surrogateescape"))
        total.update(member.data or b"")
    return total.digest()


def _member(entry: Entry) -> Member:
    status = entry.status
    uid, gid = inside_ids(status)
    mode = stat.S_IMODE(status.st_mode)
    if entry.is_link:
        return Member(0o777, target=os.readlink(entry.places[0]), uid=uid, gid=gid)
    if entry.is_dir:
        return Member(mode, uid=uid, gid=gid)
    inode = (status.st_dev, status.st_ino) if status.st_nlink > 1 else None
    return Member(mode, source=str(Path(entry.places[0])), uid=uid, gid=gid, inode=inode)
