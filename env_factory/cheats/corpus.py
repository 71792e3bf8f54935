"""The general cheats, read from the scripts beside this file.

Each script says in its first lines whom it is for: `any` task, or `python` tasks (hidden tests run by pytest). A cheat that works
shows a hole in a task's tests or in grading; an environment against which one works is rejected. Cheats particular to one task
come with its draft; one that gives a task's tests too little (objects that equal everything) is for its author to write.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from gymsmith.taskdir import Task

_WORKDIR = "/work"
"""Where the scripts believe that a task is."""
_FOR = re.compile(r"^# for: (any|python)$", re.MULTILINE)


class Cheat(NamedTuple):
    """One script. `summary` is what people read in a gate's detail."""

    name: str
    audience: Literal["any", "python"]
    summary: str
    script: str


@lru_cache(maxsize=1)
def corpus() -> tuple[Cheat, ...]:
    """Every general cheat, sorted by name.

    Raises: ValueError: a script lacks its `# for:` line.
    """
    cheats = []
    for path in sorted(Path(__file__).parent.glob("*.sh")):
        script = path.read_text()
        found = _FOR.search(script)
        if found is None:
            raise ValueError(f"{path.name}: expected a line '# for: any' or '# for: python', got none")
        audience: Literal["any", "python"] = "python" if found.group(1) == "python" else "any"
        cheats.append(Cheat(path.stem, audience, script.splitlines()[2].removeprefix("# "), script))
    return tuple(cheats)


def cheats_for(task: Task) -> tuple[Cheat, ...]:
    """The cheats that can be tried on this task, written for its folder; those for Python where its tests are Python."""
    python = any(name.startswith("tests/") and name.endswith(".py") for name in task.files)
    python = python or any(word in task.files["tests/test.sh"] for word in (b"pytest", b"python"))
    chosen = [cheat for cheat in corpus() if cheat.audience == "any" or python]
    if task.spec.workdir == _WORKDIR:
        return tuple(chosen)
    return tuple(c._replace(script=re.sub(rf"{_WORKDIR}(?![\w-])", task.spec.workdir, c.script)) for c in chosen)
