"""The files that a build may COPY: read once, without following a link out of them, less what .dockerignore names.

A context is held in memory, so what was looked at, hashed and written is the same bytes whatever happens to the folder meanwhile.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pathspec import PathSpec

from gymsmith.errors import NotFound, PolicyRefused
from sandboxes.base import MIB
from sandboxes.image.dockerfile import Step

WHEELHOUSE = "/wheelhouse"
"""Where the steps that name it see the wheels that the host downloaded."""
MAX_CONTEXT_BYTES = 512 * MIB
MAX_MEMBERS = 100_000
MAX_LINKS = 40
IGNORE_FILE = ".dockerignore"


@dataclass(frozen=True, slots=True)
class Member:
    """A file (`data`, or `source` on this host), a symlink (`target`) or, with none of them, a directory."""

    mode: int
    data: bytes | None = None
    target: str | None = None
    source: str | None = None
    uid: int = 0
    gid: int = 0
    inode: tuple[int, int] | None = None
    """Device and number of a file that has several names."""

    @property
    def is_dir(self) -> bool:
        return self.data is None and self.target is None and self.source is None


class BuildContext:
    """Members by their path relative to the context, "" being the context itself."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members: dict[str, Member] = {"": Member(0o755)}
        for name, member in sorted(members.items()):
            for index, letter in enumerate(name):
                if letter == "/":
                    self._members.setdefault(name[:index], Member(0o755))
            self._members[name] = member

    @classmethod
    def of(cls, files: Mapping[str, bytes], executable: Collection[str] = ()) -> BuildContext:
        """Files by name. Those in `executable`, and scripts that begin with `#!`, get mode 0755, the others 0644.

        Raises: PolicyRefused: a name would leave the context.
        """
        for name in files:
            if name.startswith("/") or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
                raise PolicyRefused(
                    f"build context member {name[:200]!r} leaves the context; use a path relative to environment/"
                )
        members = {
            name: Member(0o755 if name in executable or data.startswith(b"#!") else 0o644, data) for name, data in files.items()
        }
        return cls(_kept(members, files.get(IGNORE_FILE, b"")))

    @classmethod
    def read(cls, folder: Path) -> BuildContext:
        """What lies in a folder of this host, links as links. Sockets, FIFOs and devices are refused, like too much of it.

        Raises: NotFound: no such folder; PolicyRefused.
        """
        if not folder.is_dir():
            raise NotFound(f"the build context must be a folder, {folder} is none; check the path")
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            listed = dict(_walk(root, "", [MAX_CONTEXT_BYTES, MAX_MEMBERS]))
        finally:
            os.close(root)
        ignore = listed.get(IGNORE_FILE)
        return cls(_kept(listed, ignore.data if ignore is not None and ignore.data else b""))

    def __getitem__(self, name: str) -> Member:
        return self._members[name]

    def below(self, folder: str) -> list[tuple[str, Member]]:
        """(path relative to `folder`, member) of everything below a directory, parents first."""
        prefix = f"{folder}/" if folder else ""
        return [(name[len(prefix) :], member) for name, member in self._members.items() if name and name.startswith(prefix)]

    def matching(self, source: str, step: Step) -> list[tuple[str, str]]:
        """(name as written, member that it leads to) for one source of COPY or ADD: a path or a pattern of Go's path.Match.

        Links are followed inside the context. Raises: PolicyRefused: it leaves the context, or a loop of links.
        """
        pattern = source_path(source, step)
        if not any(letter in pattern for letter in "*?["):
            found = self._resolved(pattern, step)
            return [] if found is None else [(pattern, found)]
        names = [name for name in self._members if name and matches(name, pattern)]
        return [(name, found) for name in names if (found := self._resolved(name, step)) is not None]

    def _resolved(self, name: str, step: Step) -> str | None:
        pending = [part for part in reversed(name.split("/")) if part]
        at = ""
        links = 0
        while pending:
            part = pending.pop()
            if part in (".", ".."):
                at = at if part == "." else at.rpartition("/")[0]
                continue
            here = f"{at}/{part}" if at else part
            member = self._members.get(here)
            if member is None:
                return None
            if member.target is not None:
                links += 1
                if links > MAX_LINKS:
                    raise step.refused(f"{name[:80]!r} goes through more than {MAX_LINKS} symbolic links; a loop?")
                at = "" if member.target.startswith("/") else at
                pending += [word for word in reversed(member.target.split("/")) if word]
                continue
            at = here
        return at

    def some(self) -> str:
        """A few names, for messages."""
        return ", ".join([name for name, member in self._members.items() if not member.is_dir][:8]) or "no files"


def source_path(source: str, step: Step) -> str:
    """A source of COPY as a relative path without dots. Raises: PolicyRefused: it leaves where it starts."""
    parts = [part for part in source.split("/") if part not in ("", ".")]
    if ".." in parts and posixpath.normpath("/".join(parts)).startswith(".."):
        raise step.refused(f"{source[:80]!r} leaves the build context; use a path below it")
    return posixpath.normpath("/".join(parts)) if parts and ".." in parts else "/".join(parts)


def matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern part by part."""
    have, want = name.split("/"), pattern.replace("[^", "[!").split("/")
    return len(have) == len(want) and all(fnmatch.fnmatchcase(one, two) for one, two in zip(have, want, strict=True))


def mode_given(step: Step) -> int | None:
    """The number of --chmod. Raises: PolicyRefused: not an octal number."""
    if "chmod" not in step.flags:
        return None
    chmod = step.flags["chmod"]
    if not chmod or len(chmod) > 4 or any(digit not in "01234567" for digit in chmod):
        raise step.refused(f"--chmod takes an octal number such as 755, got {chmod[:20]!r}")
    return int(chmod, 8)


def _kept(members: Mapping[str, Member], ignore: bytes) -> Mapping[str, Member]:
    """Without what .dockerignore names: the last pattern that matches a path or a folder above it decides."""
    if not ignore:
        return members
    patterns: list[str] = []
    for line in ignore.decode("utf-8-sig", "surrogateescape").splitlines():
        text = "" if line.startswith("#") else line.strip()
        kept = text.startswith("!")
        # Docker's patterns all begin at the context; gitignore's do so when they begin with a slash.
        path = posixpath.normpath(text.removeprefix("!").strip().strip("/")) if text.strip("!/ ") else ""
        if path and path != ".":
            patterns.append(f"{'!' if kept else ''}/{path.replace('[^', '[!')}")
    rules = [rule for rule in PathSpec.from_lines("gitignore", patterns).patterns if rule.include is not None]

    def out(name: str) -> bool:
        paths = [name, *(name[:index] for index, letter in enumerate(name) if letter == "/")]
        return next((bool(r.include) for r in reversed(rules) if any(r.match_file(path) for path in paths)), False)

    left = {name: member for name, member in members.items() if not member.is_dir and not out(name)}
    # A folder stays for what stays below it, or when nothing excludes it.
    needed = {name[:index] for name in left for index, letter in enumerate(name) if letter == "/"}
    folders = {name: member for name, member in members.items() if member.is_dir and (name in needed or not out(name))}
    return {**left, **folders}


def _walk(folder: int, prefix: str, left: list[int]) -> Iterator[tuple[str, Member]]:
    """`left`: bytes and members that may still come."""
    for name in sorted(os.listdir(folder)):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        path = prefix + name
        mode = stat.S_IMODE(status.st_mode)
        left[1] -= 1
        if stat.S_ISDIR(status.st_mode):
            yield path, Member(mode)
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                yield from _walk(below, path + "/", left)
            finally:
                os.close(below)
        elif stat.S_ISLNK(status.st_mode):
            yield path, Member(0o777, target=os.readlink(name, dir_fd=folder))
        elif stat.S_ISREG(status.st_mode):
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with open(handle, "rb") as file:
                data = file.read(left[0] + 1)
            left[0] -= len(data)
            yield path, Member(mode, data)
        else:
            raise PolicyRefused(f"build context member {path[:200]!r} is no file, folder or link; name it in {IGNORE_FILE}")
        if min(left) < 0:
            raise PolicyRefused(
                f"a build context may hold {MAX_CONTEXT_BYTES // MIB} MiB in {MAX_MEMBERS} members, this one holds more; "
                f"name what the build does not need in {IGNORE_FILE}"
            )
