"""Changes of files as shell scripts that need python3 and nothing else: images hold neither git nor patch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping


def edit_script(path: str, before: str, after: str) -> str:
    """A script that turns `before` into `after` in the file `path`, touching the lines that differ only."""
    old, new = before.split("\n"), after.split("\n")
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    lines = "".join(f"    {line!a},\n" for line in new[head : len(new) - tail])
    return (
        "#!/bin/sh\n"
        "python3 - <<'PATCH'\n"
        "from pathlib import Path\n\n"
        f"path = Path({path!a})\n"
        "lines = path.read_bytes().decode().split('\\n')\n"
        f"lines[{head}:{len(old) - tail}] = [\n{lines}]\n"
        "path.write_bytes('\\n'.join(lines).encode())\n"
        "PATCH\n"
    )


def change_script(changes: Mapping[str, tuple[str | None, str | None]]) -> str:
    """A script for several places of several files: path -> (text before, text after), None where there is no such file."""
    steps = ["#!/bin/sh\n", "python3 - <<'PATCH'\n", "from pathlib import Path\n"]
    for path, (before, after) in sorted(changes.items()):
        steps.append(f"\npath = Path({path!a})\n")
        if after is None:
            steps.append("path.unlink()\n")
            continue
        old, new = (before or "").split("\n"), after.split("\n")
        if before is None:
            steps.append("path.parent.mkdir(parents=True, exist_ok=True)\nlines = ['']\n")
        else:
            steps.append("lines = path.read_bytes().decode().split('\\n')\n")
        matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
        # From the end, so that the numbers of the lines before stay what they are.
        for tag, start, end, new_start, new_end in reversed(matcher.get_opcodes()):
            if tag != "equal":
                lines = "".join(f"    {line!a},\n" for line in new[new_start:new_end])
                steps.append(f"lines[{start}:{end}] = [\n{lines}]\n")
        steps.append("path.write_bytes('\\n'.join(lines).encode())\n")
    return "".join([*steps, "PATCH\n"])
