"""Unified diffs on the host: make one, and apply one to files that are handed over as bytes.

For sandboxes whose image has neither git nor patch, and for writing down a solution as a diff. Hunks must match their context
exactly; they may have moved, as with `git apply`. Nothing here touches a file system.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping

from gymsmith.errors import ConfigError, GymsmithError

NO_NEWLINE = "\\ No newline at end of file\n"


class PatchFailed(GymsmithError):
    """The diff does not apply; the message names the file and the hunk. The policy's doing, not ours."""

    code = "patch-failed"


def unified(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """A diff in git's form from one set of files (path -> content) to another; an absent path is a file that does not exist.

    Raises:
        PatchFailed: a changed file is not UTF-8 text.
    """
    parts: list[str] = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        parts.append(f"diff --git a/{path} b/{path}\n")
        if old is None:
            parts.append("new file mode 100644\n")
        if new is None:
            parts.append("deleted file mode 100644\n")
        lines = difflib.unified_diff(
            _lines(path, old or b""),
            _lines(path, new or b""),
            "/dev/null" if old is None else f"a/{path}",
            "/dev/null" if new is None else f"b/{path}",
        )
        parts += [line if line.endswith("\n") else f"{line}\n{NO_NEWLINE}" for line in lines]
    return "".join(parts)


def sources(diff: str) -> set[str]:
    """Every path that `diff` reads or writes. Raises as `apply`."""
    named = {name for file in _parse(diff) for name in (file.source_file, file.target_file)}
    return {_strip(name) for name in named if name != "/dev/null"}


def apply(diff: str, present: Mapping[str, bytes]) -> dict[str, bytes | None]:
    """What `diff` makes of the files `present`: changed path -> new content, None for a deletion.

    Raises:
        PatchFailed: it is no diff, changes a binary file, or does not fit the files.
        ConfigError: the `swe` extra is not installed.
    """
    files = _parse(diff)
    read = present.get
    result: dict[str, bytes | None] = {}
    for file in files:
        source = None if file.source_file == "/dev/null" else _strip(file.source_file)
        target = None if file.target_file == "/dev/null" else _strip(file.target_file)
        if file.is_binary_file:
            raise PatchFailed(f"{target or source}: binary changes cannot be applied")
        content = b"" if source is None else result.get(source, read(source))
        if content is None:
            raise PatchFailed(f"{source}: the diff changes a file that does not exist")
        if source is None and target is not None and result.get(target, read(target)) is not None:
            raise PatchFailed(f"{target}: the diff creates a file that exists already")
        lines = _lines(source or str(target), content)
        shift = 0
        for number, hunk in enumerate(file, 1):
            old, new = _sides(hunk)
            at = _find(lines, old, max(0, hunk.source_start - (1 if hunk.source_length else 0)) + shift)
            if at is None:
                raise PatchFailed(f"{target or source}: hunk {number} does not match at line {hunk.source_start} or elsewhere")
            lines[at : at + len(old)] = new
            shift += len(new) - len(old)
        if source is not None and source != target:
            result[source] = None
        if target is not None:
            result[target] = "".join(lines).encode()
    return result


def _parse(diff: str):  # type: ignore[no-untyped-def]
    try:
        from unidiff import PatchSet
        from unidiff.errors import UnidiffParseError
    except ModuleNotFoundError as error:
        raise ConfigError("applying a diff needs the package unidiff; install it with: pip install 'gymsmith[swe]'") from error
    try:
        files = PatchSet(io.StringIO(diff, newline="\n"))
    except UnidiffParseError as error:
        raise PatchFailed(f"a unified diff was expected, got something else: {error}") from error
    if diff.strip() and not files:
        raise PatchFailed("a unified diff was expected, got text without a file header")
    return files


def _lines(path: str, content: bytes) -> list[str]:
    """Lines with their ends. Only \\n ends a line in a diff; str.splitlines would also split at form feeds and others."""
    try:
        *whole, rest = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise PatchFailed(f"{path}: not UTF-8 text") from error
    return [line + "\n" for line in whole] + ([rest] if rest else [])


def _strip(name: str) -> str:
    """Path without git's a/ or b/, as `-p1` does. Raises PatchFailed for a path that would leave the tree."""
    path = name.partition("/")[2]
    if not path or path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise PatchFailed(f"a path below a/ or b/ was expected, got {name[:200]!r}")
    return path


def _sides(hunk) -> tuple[list[str], list[str]]:  # type: ignore[no-untyped-def]
    """Lines before and after, with their line ends; the marker for a missing one is applied to the line it follows."""
    sides: dict[str, list[str]] = {"-": [], "+": []}
    touched: tuple[str, ...] = ()
    for line in hunk:
        if line.line_type == "\\":
            for side in touched:
                sides[side][-1] = sides[side][-1].removesuffix("\n")
            continue
        touched = ("-", "+") if line.line_type == " " else (line.line_type,)
        for side in touched:
            sides[side].append(line.value if line.value.endswith("\n") else line.value + "\n")
    return sides["-"], sides["+"]


def _find(lines: list[str], wanted: list[str], near: int) -> int | None:
    """Where `wanted` stands in `lines`, the nearest place to `near` first."""
    last = len(lines) - len(wanted)
    for at in sorted(range(last + 1), key=lambda i: abs(i - near)):
        if lines[at : at + len(wanted)] == wanted:
            return at
    return None
