"""What code under test computes, compared by the host: the boundary that code which shares an interpreter with its tests lacks.

A task may bring `tests/observations.json`: expressions with the values they must have, as literals. The verifier evaluates the
expressions in a process of their own (`verifier/observe.py`) before the hidden tests are in its sandbox, and this file compares.
Neither the expected values nor the tests can be read there, and only built-in values come back, so an object that equals
everything, a patched assert and a forged pytest report gain nothing. Each observation is a test id like any other.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from gymsmith.errors import SourceError
from gymsmith.taskdir import Task
from sandboxes.base import MIB, Sandbox
from sandboxes.verifier.observe import MAX_TEXT

MEMBER = "tests/observations.json"
"""Stays on the host."""
TIMEOUT_S = 60.0


class Observation(NamedTuple):
    """One expression and the value that it must have."""

    id: str
    expression: str
    expected: str
    """A literal."""
    setup: tuple[str, ...] = ()
    """Statements that run before."""
    imports: tuple[tuple[str, str], ...] = ()
    """(name in the expression, "module:attribute")."""


def member(observations: Sequence[Observation], path: Sequence[str], site: Sequence[str]) -> bytes:
    """The text of `MEMBER`. path, site: where the code under test and its dependencies are, as the runner's options say."""
    rows = [{**each._asdict(), "imports": dict(each.imports), "setup": list(each.setup)} for each in observations]
    return (json.dumps({"path": list(path), "site": list(site), "observations": rows}, indent=1) + "\n").encode()


async def look(box: Sandbox, task: Task, timeout_s: float) -> dict[str, str]:
    """The state of each observation, by id; nothing when the task has none. Leaves no process behind.

    Raises: SourceError: the task's file is not what `member` writes. SandboxError: the sandbox did not answer.
    """
    if MEMBER not in task.files:
        return {}
    try:
        document = json.loads(task.files[MEMBER])
        path, site, rows = document["path"], document["site"], document["observations"]
        observed = [Observation(**{**row, "imports": tuple(row["imports"].items())}) for row in rows]
        states = await evaluate(box, observed, path, site, user="tester", timeout_s=timeout_s)
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise SourceError(f"{MEMBER} must be as sandboxes.observations writes it: {error!r}") from error
    await box.kill_agents()
    return dict(zip((each.id for each in observed), states, strict=True))


async def evaluate(
    box: Sandbox, observed: Sequence[Observation], path: Sequence[str], site: Sequence[str], *, user: str, timeout_s: float
) -> list[str]:
    """passed, failed, missing or duplicate for each, in order.

    Raises: ValueError, SyntaxError: an expected value is no literal. SandboxError: the sandbox did not answer.
    """
    wanted = [ast.literal_eval(each.expected) for each in observed]
    rows = [{"imports": dict(each.imports), "setup": list(each.setup), "expression": each.expression} for each in observed]
    result = await box.exec(
        ["python3", "-I", "-S", "-c", _program()],
        user=user,
        stdin=json.dumps({"path": list(path), "site": list(site), "observations": rows}).encode(),
        timeout_s=min(timeout_s, TIMEOUT_S),
        max_output_bytes=4 * MIB,
        split=True,
    )
    answers: dict[int, list[tuple[str, str]]] = {}
    for line in result.output.decode(errors="replace").splitlines():
        try:
            index, kind, text = json.loads(line)
            answers.setdefault(int(index), []).append((str(kind), str(text)))
        except (ValueError, TypeError, OverflowError, RecursionError):
            continue
    return [_state(answers.get(index, []), value) for index, value in enumerate(wanted)]


def _state(answers: list[tuple[str, str]], wanted: Any) -> str:
    if len(answers) != 1:
        return "duplicate" if answers else "missing"
    kind, text = answers[0]
    if kind != "value" or len(text) > MAX_TEXT:  # longer is not from observe.py, and may be made to be slow to read
        return "failed"
    try:
        return "passed" if ast.literal_eval(text) == wanted else "failed"
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return "failed"


@lru_cache(maxsize=1)
def _program() -> str:
    return resources.files("sandboxes.verifier").joinpath("observe.py").read_text(encoding="utf-8")
