"""The whole suite of a task, which the oracle alone has to pass; cheats and mutants meet the selected tests.

A task that selects some tests of a larger suite (those that enter the changed code, found by coverage) may bring the rest as the
member `solution/suite.json`. It stays on the host: `whole` makes the task that the oracle is graded on once more, with the
longer list of ids, its `tests/select.txt`, its own time limit and, where the selected tests name their files, its own test.sh.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from gymsmith.errors import SourceError
from gymsmith.taskdir import Task
from sandboxes import observations

MEMBER = "solution/suite.json"
SELECT = "tests/select.txt"


def member(tests: Sequence[str], *, timeout_s: float, test_sh: str = "") -> bytes:
    """The text of `MEMBER`.

    tests: every id that passes on the repaired code, the selected ones among them. test_sh: in place of tests/test.sh.
    """
    return (json.dumps({"tests": list(tests), "timeout_s": timeout_s, "test_sh": test_sh}) + "\n").encode()


def whole(task: Task) -> Task | None:
    """The task with its whole suite as the hidden tests; None when it brings none.

    Raises: SourceError: the member is not what `member` writes, or lacks a selected test.
    """
    if MEMBER not in task.files:
        return None
    try:
        told = json.loads(task.files[MEMBER])
        tests, timeout_s, test_sh = tuple(map(str, told["tests"])), float(told["timeout_s"]), str(told["test_sh"])
        watched = json.loads(task.files.get(observations.MEMBER, b'{"observations": []}'))
        observed = tuple(str(row["id"]) for row in watched["observations"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{MEMBER} must be as env_factory.swe.suite writes it: {error!r}") from error
    if lost := sorted(set(task.spec.expected) - set(tests) - set(observed)):
        raise SourceError(f"{MEMBER} must name every selected test, {lost[0]!r} is missing; write it from the whole suite's ids")
    files = {**task.files, SELECT: ("\n".join(tests) + "\n").encode()}
    if test_sh:
        files["tests/test.sh"] = test_sh.encode()
    spec = task.spec.model_copy(update={"expected": (*tests, *observed), "verifier_timeout_s": timeout_s})
    return replace(task, spec=spec, files=files)
