"""A change of one file as a shell script that needs python3 and nothing else: images hold neither git nor patch."""

from __future__ import annotations


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
