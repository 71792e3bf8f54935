"""A tree of files as data, the difference of two, its telling in words, and its check as a POSIX shell script.

What a command computed is compared apart from blanks (a reader may format as he likes); what was copied or moved must be the same
byte for byte.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Literal, NamedTuple

from env_factory.posix_tests import HARBOR, cksum

MAX_LINES = 6


class Node(NamedTuple):
    """One entry of a tree."""

    kind: Literal["file", "dir", "link"]
    mode: int
    data: bytes = b""
    """Content of a file, target of a link."""


Tree = dict[str, Node]


def changes(start: Mapping[str, Node], end: Mapping[str, Node]) -> dict[str, Node | None]:
    """Path -> what is there at the end, None for gone, for every path that differs."""
    differing = {path: end.get(path) for path in sorted({*start, *end}) if start.get(path) != end.get(path)}
    # Below a folder that is gone, its members need no mention.
    return {
        path: node
        for path, node in differing.items()
        if node is not None or not any(path.startswith(f"{other}/") for other, gone in differing.items() if gone is None)
    }


def describe(start: Mapping[str, Node], changed: Mapping[str, Node | None]) -> str:
    """The end state as a table in Markdown."""
    rows = ["| path | at the end |", "|---|---|"]
    for path, node in changed.items():
        rows.append(f"| `{path}` | {_words(path, node, start)} |")
    return "\n".join(rows)


def _words(path: str, node: Node | None, start: Mapping[str, Node]) -> str:
    before = start.get(path)
    if node is None:
        return "does not exist"
    mode = f", with mode {node.mode:o}" if before is not None and before.kind == node.kind and before.mode != node.mode else ""
    if node.kind == "dir":
        return f"is a folder{mode}"
    if node.kind == "link":
        return f"is a symbolic link to `{node.data.decode(errors='replace')}`"
    if before is not None and before.data == node.data:
        return f"is unchanged{mode}"
    if source := _origin(node, start):
        return f"is a file with exactly the content that `{source}` has at the beginning{mode}"
    if not node.data:
        return f"is an empty file{mode}"
    lines = [" ".join(line.split()) for line in node.data.decode(errors="replace").splitlines()]
    if len(lines) <= MAX_LINES and all(len(line) <= 80 and "`" not in line and "|" not in line for line in lines):
        shown = ", ".join(f"`{line}`" if line else "an empty line" for line in lines)
        return f"is a file of {len(lines)} line(s), apart from blanks: {shown}{mode}"
    first, last = (re.sub(r"[`|]", "", line)[:60] for line in (lines[0], lines[-1]))
    return f"is a file of {len(lines)} lines, the first `{first}`, the last `{last}`, apart from blanks{mode}"


def _origin(node: Node, start: Mapping[str, Node]) -> str:
    """A file of the beginning with this content."""
    return next((path for path, other in start.items() if other.kind == "file" and other.data == node.data and node.data), "")


def script(start: Mapping[str, Node], changed: Mapping[str, Node | None]) -> tuple[str, tuple[str, ...]]:
    """(tests/test.sh, ids it reports): one check per change, `kept` for what must be as before, `only` for nothing besides."""
    end: Tree = {
        p: n
        for p, n in start.items()
        if p not in changed and not any(p.startswith(f"{q}/") for q, m in changed.items() if m is None)
    }
    kept = dict(end)
    end.update({path: node for path, node in changed.items() if node is not None})
    rows = [
        "#!/bin/sh",
        "cd /work || exit 1",
        "LC_ALL=C; export LC_ALL",
        'say() { if [ $? = 0 ]; then echo "PASS $1"; else echo "FAIL $1"; bad=1; fi; }',
        'same() { [ -f "$1" ] && [ ! -L "$1" ] && [ "$(cksum < "$1")" = "$2" ]; }',
        "plain() { sed 's/[[:space:]]\\{1,\\}/ /g; s/^ //; s/ $//' \"$1\" | cksum; }",
        'alike() { [ -f "$1" ] && [ ! -L "$1" ] && [ "$(plain "$1")" = "$2" ]; }',
    ]
    expected: list[str] = []
    for number, (path, node) in enumerate(changed.items(), 1):
        name = path if re.fullmatch(r"[\w./+-]+", path) else f"path-{number}"
        expected.append(name)
        rows.append(f"{_check(path, node, start)}; say {name}")
    sums = "\\n".join(f"{cksum(n.data)} {p}" for p, n in sorted(kept.items()) if n.kind == "file")
    names = " ".join(shlex.quote(p) for p, n in sorted(kept.items()) if n.kind == "file")
    if names:
        rows.append(f'[ "$(cksum {names} 2>&1)" = "$(printf {shlex.quote(sums.replace("%", "%%"))})" ]; say kept')
        expected.append("kept")
    listing = "".join(f"./{path}\n" for path in end) + ".\n"
    total = cksum("".join(sorted(listing.splitlines(keepends=True))).encode())
    rows.append(f'[ "$(find . | sort | cksum)" = "{total}" ]; say only')
    expected.append("only")
    rows.append(HARBOR)
    return "\n".join(rows) + "\n", tuple(expected)


def _check(path: str, node: Node | None, start: Mapping[str, Node]) -> str:
    quoted = shlex.quote(path)
    if node is None:
        return f"[ ! -e {quoted} ] && [ ! -L {quoted} ]"
    before = start.get(path)
    mode = ""
    if before is not None and before.kind == node.kind and before.mode != node.mode:
        mode = f' && [ "$(stat -c %a {quoted})" = {node.mode:o} ]'
    if node.kind == "dir":
        return f"[ -d {quoted} ] && [ ! -L {quoted} ]{mode}"
    if node.kind == "link":
        return f'[ "$(readlink {quoted})" = {shlex.quote(node.data.decode(errors="replace"))} ]'
    if _origin(node, start) or b"\0" in node.data or (before is not None and before.data == node.data):
        return f'same {quoted} "{cksum(node.data)}"{mode}'
    lines = node.data.decode("utf-8", "surrogateescape").split("\n")
    plain = "\n".join(re.sub(r"[ \t\r\f\v]+", " ", line).removeprefix(" ").removesuffix(" ") for line in lines)
    return f'alike {quoted} "{cksum(plain.encode("utf-8", "surrogateescape"))}"{mode}'
