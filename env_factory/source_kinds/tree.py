"""Files of a project as they stood at one moment: bytes by path, checked on the way in and on the way out."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gymsmith.errors import Conflict, NotFound, PolicyRefused, SourceError
from gymsmith.schema import digest

MAX_TOTAL_BYTES = 256 * 1024 * 1024
"""A tree larger than this is no source for environments."""
MAX_FILES = 50_000


@dataclass(frozen=True, slots=True)
class Tree:
    """A project's files by path with "/" between the parts, sorted."""

    files: Mapping[str, bytes]
    executable: frozenset[str] = frozenset()
    """Paths with the execute bit."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Symbolic links, path -> target as written; they are never followed and are not among `files`."""
    submodules: tuple[str, ...] = ()
    """Where other repositories would lie; they are not fetched."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of everything above but the submodules."""
        parts = [part for path, data in sorted(self.files.items()) for part in (path.encode(), data)]
        parts += [b"x", *(path.encode() for path in sorted(self.executable)), b"l"]
        parts += [part for path, target in sorted(self.links.items()) for part in (path.encode(), target.encode())]
        return digest(*parts)

    def below(self, folder: str) -> Tree:
        """What lies below a folder, by its path inside it."""
        start = f"{folder}/"
        return Tree(
            {path.removeprefix(start): data for path, data in self.files.items() if path.startswith(start)},
            frozenset(path.removeprefix(start) for path in self.executable if path.startswith(start)),
            {path.removeprefix(start): target for path, target in self.links.items() if path.startswith(start)},
        )

    def folders(self) -> list[str]:
        """Names of the folders at the top."""
        return sorted({path.partition("/")[0] for path in self.files if "/" in path})

    def checked(self, what: str) -> Tree:
        """Itself, when it can be written to a folder without reaching out of it.

        Raises:
            PolicyRefused: a path climbs, is absolute, or lies below .git.
            SourceError: a name is both a file and a folder.
        """
        folders = set()
        for path in [*self.files, *self.links]:
            check_path(path, what)
            for at, letter in enumerate(path):
                if letter == "/":
                    folders.add(path[:at])
        if both := sorted(folders & (self.files.keys() | self.links.keys())):
            raise SourceError(f"{what} holds {both[0]!r} as a file and as a folder; it cannot be written down")
        return self


def check_path(path: str, what: str) -> None:
    """Raise unless `path` is plain and relative. Raises: PolicyRefused."""
    parts = path.split("/")
    odd = any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
    if odd or "\\" in path or any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in path):
        raise PolicyRefused(
            f"{what} holds {path[:200]!r}; expected plain relative paths, without '..', '.git' or control characters"
        )


def check_size(files: int, total: int, what: str) -> None:
    """Raise when it is too much. Raises: PolicyRefused."""
    if files > MAX_FILES or total > MAX_TOTAL_BYTES:
        raise PolicyRefused(
            f"{what} holds {files} files and {total} bytes so far; at most {MAX_FILES} and {MAX_TOTAL_BYTES} are taken"
        )


def read_folder(folder: Path) -> Tree:
    """A folder's files. Links are told, never followed, and .git is passed over.

    Raises:
        NotFound: there is no such folder.
        PolicyRefused: it holds a special file, is too large, or a name in it is not plain.
    """
    if not folder.is_dir():
        raise NotFound(f"expected a folder at {folder}, there is none; check the path")
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    executable: set[str] = set()
    total = 0
    pending = [str(folder)]
    while pending:
        for entry in sorted(os.scandir(pending.pop()), key=lambda each: each.name):
            if entry.name == ".git":
                continue
            path = os.path.relpath(entry.path, folder)
            check_path(path, str(folder))
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                pending.append(entry.path)
            elif stat.S_ISLNK(info.st_mode):
                links[path] = os.readlink(entry.path)
            elif stat.S_ISREG(info.st_mode):
                total += info.st_size
                check_size(len(files) + 1, total, str(folder))
                # Between the look and the opening it may have become a link.
                with os.fdopen(os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
                    files[path] = opened.read(MAX_TOTAL_BYTES)
                if info.st_mode & 0o100:
                    executable.add(path)
            else:
                raise PolicyRefused(f"{entry.path} is a special file; expected plain files, folders and links")
    return Tree(dict(sorted(files.items())), frozenset(executable), dict(sorted(links.items())))


def write_folder(tree: Tree, folder: Path) -> None:
    """Write a tree's files to a folder that does not exist yet, whole or not at all. Links are not written.

    Raises:
        Conflict: something is there already.
        PolicyRefused, SourceError: see `Tree.checked`.
    """
    tree.checked(str(folder))
    if os.path.lexists(folder):
        raise Conflict(f"expected a new folder, {folder} exists; choose another one or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for path, data in tree.files.items():
            target = scratch / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(0o755 if path in tree.executable else 0o644)
        scratch.chmod(0o755)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
