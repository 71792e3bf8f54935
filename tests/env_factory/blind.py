"""Labelled tasks by people who had not read the gates: `blind.jsonl`, `blind_third.jsonl` and so on to `blind_sixth.jsonl`.

Each was judged once before the gates were tuned on it. `write(folder)` makes what `gymsmith env judge` reads;
`python -m tests.env_factory.blind FOLDER [blind_third]` does so from a terminal. A line of a file is one task: its name, its
label, perhaps why, and the files of its folder (in base64 if no text).
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any


def read(name: str) -> list[dict[str, Any]]:
    """The tasks of one file."""
    return [json.loads(line) for line in Path(__file__).with_name(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


TASKS = read("blind")
THIRD, FOURTH, FIFTH, SIXTH = (read(f"blind_{which}") for which in ("third", "fourth", "fifth", "sixth"))


def write(folder: Path, names: Collection[str] = (), tasks: Sequence[dict[str, Any]] = TASKS) -> Path:
    """The folder, with labels.toml and every task, or those that are named."""
    chosen = [task for task in tasks if not names or task["name"] in names]
    for task in chosen:
        for member, text in task["files"].items():
            path = folder / task["name"] / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(text[4:]) if text.startswith("b64:") else text.encode())
            path.chmod(0o755 if member in ("tests/test.sh", "solution/solve.sh") else 0o644)
    folder.joinpath("labels.toml").write_text("".join(f"{task['name']} = {json.dumps(task['label'])}\n" for task in chosen))
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]), tasks=read(sys.argv[2] if len(sys.argv) > 2 else "blind"))
