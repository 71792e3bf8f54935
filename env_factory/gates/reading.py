"""What gates read of a task besides its text: its files, the programs that the solution leaves, and which paths are its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from env_factory.gates.effects import Effect
from gymsmith.taskdir import Task


def texts(task: Task, top: str, end: str = "") -> Iterator[str]:
    """The texts among a task's files below `top`, by name."""
    for name in sorted(task.files):
        data = task.files[name]
        if name.startswith(top) and name.endswith(end) and b"\0" not in data[:4096]:
            yield data.decode(errors="replace")


def programs(task: Task, effects: Sequence[Effect]) -> str:
    """The solution's script and every program that it leaves, as one text."""
    return "\n".join([task.solution, *(each.after or "" for each in effects if each.is_source or each.is_script)])


def within(path: str, task: Task) -> bool:
    """Whether a path lies in a folder that crosses to the verifier."""
    return any(path.startswith(f"{root.rstrip('/')}/") for root in task.spec.artifacts)
