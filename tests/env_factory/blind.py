"""The other half of the labelled set: tasks that somebody wrote who had not read the gates, as `blind.jsonl` holds them.

`write(folder)` makes what `gymsmith env judge` reads; `python -m tests.env_factory.blind FOLDER` does so from a terminal. A line
of the file is one task: its name, its label, why it has it, and the files of its folder (those that are no text in base64).
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

TASKS: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("blind.jsonl").read_text(encoding="utf-8").splitlines()
]


def write(folder: Path, names: Collection[str] = ()) -> Path:
    """The folder, with labels.toml and every task, or those that are named."""
    chosen = [task for task in TASKS if not names or task["name"] in names]
    for task in chosen:
        for member, text in task["files"].items():
            path = folder / task["name"] / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(text[4:]) if text.startswith("b64:") else text.encode())
            path.chmod(0o755 if member in ("tests/test.sh", "solution/solve.sh") else 0o644)
    folder.joinpath("labels.toml").write_text("".join(f'{task["name"]} = "{task["label"]}"\n' for task in chosen))
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]))
