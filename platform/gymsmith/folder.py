"""A task folder as seen by people: which files it has and what is in one of them. Links are neither listed nor followed.

Not the format itself: `taskdir` knows the keys.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pydantic import BaseModel

from gymsmith.errors import NotFound, PolicyRefused

MAX_FILES = 2000
MAX_BYTES = 4 * 1024 * 1024


class Member(BaseModel):
    """A file of the folder."""

    name: str
    """Path inside the folder, with `/`."""
    size: int
    executable: bool


def members(home: Path, path: str) -> list[Member]:
    """Regular files below `path` (relative to the state folder), by name; at most MAX_FILES.

    Raises:
        NotFound: the folder is gone.
    """
    root = home / path
    if not root.is_dir():
        raise NotFound(f"the task folder {root} is gone; generate the environment again from its source")
    found = []
    for where, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            full = Path(where, name)
            info = full.lstat()
            if stat.S_ISREG(info.st_mode):
                found.append(Member(name=str(full.relative_to(root)), size=info.st_size, executable=bool(info.st_mode & 0o100)))
        if len(found) >= MAX_FILES:
            break
    found.sort(key=lambda m: (_rank(m.name), m.name))
    return found[:MAX_FILES]


def content(home: Path, path: str, name: str) -> bytes:
    """Bytes of one listed file.

    Raises:
        NotFound: there is no such file in the folder (a link counts as none).
        PolicyRefused: it is larger than MAX_BYTES.
    """
    # Only names that the walk itself produced are opened, so a name cannot lead out of the folder.
    for member in members(home, path):
        if member.name == name:
            if member.size > MAX_BYTES:
                raise PolicyRefused(
                    f"{name} is {member.size} bytes and at most {MAX_BYTES} are shown; read it on disk in {home / path}"
                )
            try:
                descriptor = os.open(home / path / name, os.O_RDONLY | os.O_NOFOLLOW)
            except OSError as e:
                raise NotFound(f"{name[:200]!r} cannot be read: {e.strerror}; list the files again") from e
            with os.fdopen(descriptor, "rb") as f:
                return f.read(MAX_BYTES)
    raise NotFound(f"no file {name[:200]!r} in this environment; its list of files shows what there is")


def _rank(name: str) -> int:
    first = name.split("/")[0]
    order = ("instruction.md", "task.toml", "environment", "tests", "solution")
    return order.index(first) if first in order else len(order)
