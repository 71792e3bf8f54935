"""A git diff taken apart by file, and into what changes tests and what changes the rest."""

from __future__ import annotations

import re
from typing import NamedTuple

from gymsmith.errors import SourceError

_TEST_FOLDERS = frozenset({"tests", "test", "testing", "testdata", "__tests__", "spec", "specs", "e2e"})
_TEST_NAME = re.compile(r"(test_.*|.*_tests?|tests?|conftest)\.py\Z|.*[._-](test|spec)\.[a-z]+\Z|.*Tests?\.(java|kt|cs|scala)\Z")
_ESCAPE = re.compile(r"\\([0-7]{3}|.)")


class FileDiff(NamedTuple):
    """What a diff does to one file."""

    path: str
    """After the change; before it where the file is deleted."""
    text: str
    """From `diff --git` on, with its line ends."""


def by_file(diff: str) -> list[FileDiff]:
    """The diff's files in its order.

    Raises:
        SourceError: there is text, but no file header in it, or a header that names no path.
    """
    starts = [match.start() for match in re.finditer(r"^diff --git ", diff, re.M)]
    if not starts:
        if diff.strip():
            raise SourceError(f"expected a diff in git's form (diff --git a/... b/...), got {diff.strip()[:80]!r}")
        return []
    chunks = [diff[start:end] for start, end in zip(starts, [*starts[1:], len(diff)], strict=True)]
    return [FileDiff(_path(chunk), chunk) for chunk in chunks]


def is_test(path: str) -> bool:
    """Whether a file belongs to a test-suite, by its name or its folder."""
    *folders, name = path.split("/")
    return bool(_TEST_FOLDERS & set(folders)) or bool(_TEST_NAME.match(name))


def split(diff: str) -> tuple[str, str]:
    """(what changes the project, what changes its tests). Raises: SourceError: see `by_file`."""
    files = by_file(diff)
    return "".join(f.text for f in files if not is_test(f.path)), "".join(f.text for f in files if is_test(f.path))


def _path(chunk: str) -> str:
    head = chunk.split("\n@@", 1)[0].split("\nGIT binary patch", 1)[0].splitlines()
    for start in ("+++ ", "--- ", "rename to "):
        for line in head:
            name = _plain(line.removeprefix(start).split("\t")[0]) if line.startswith(start) else ""
            if name and name != "/dev/null":
                return name if start == "rename to " else name.partition("/")[2]
    # Neither lines nor a rename: a mode, an empty or a binary file, whose two names are equal but for a/ and b/.
    names = head[0].removeprefix("diff --git ")
    half = names[: len(names) // 2]
    if names.startswith(("a/", '"a/')) and _plain(half)[2:] == _plain(names[len(names) // 2 + 1 :])[2:]:
        return _plain(half)[2:]
    raise SourceError(f"expected the header of a file in a diff, got {head[0][:200]!r}")


def _plain(name: str) -> str:
    """A name as git writes it, its quotes and escapes undone."""
    if not (name.startswith('"') and name.endswith('"') and len(name) > 1):
        return name
    known = {"n": b"\n", "t": b"\t", '"': b'"', "\\": b"\\", "r": b"\r", "a": b"\a", "b": b"\b", "f": b"\f", "v": b"\v"}
    out, at, text = b"", 0, name[1:-1]
    for match in _ESCAPE.finditer(text):
        said = match.group(1)
        out += text[at : match.start()].encode() + (
            bytes([int(said, 8) & 255]) if len(said) == 3 else known.get(said, said.encode())
        )
        at = match.end()
    return (out + text[at:].encode()).decode("utf-8", "replace")
