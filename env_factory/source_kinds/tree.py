"""Files of a project as they stood at one moment: bytes by path, checked on the way in, never on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gymsmith.errors import PolicyRefused, SourceError
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
