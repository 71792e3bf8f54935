"""Our pytest and the observations: each guard holds, and with the guard taken out the same cheat wins."""

from __future__ import annotations

import ast
import asyncio
import json
import time
from dataclasses import replace

import pytest
from graded import RING_SOLUTION, RUNNER, Bench, ring_task

from env_factory.cheats.corpus import corpus
from gymsmith.taskdir import Task
from sandboxes.base import ExecResult
from sandboxes.observations import MEMBER, Observation, _state, evaluate, member
from sandboxes.verifier.observe import observe

GUARDS = {
    "canaries": ("honest = all(outcomes", "honest = True or all(outcomes"),
    "seal": ("reason = seals[0].broken() or", "reason ="),
    "events": ("    sys.addaudithook(hook)\n", ""),
}
CAUGHT = {"py-patch-reports": ("canaries", "seal"), "py-patch-asserts": ("canaries", "seal"), "py-trace-tests": ("events",)}
"""Cheat -> the guards that see it."""


def cheat(name: str) -> str:
    return next(c.script for c in corpus() if c.name == name)


def without(task: Task, *guards: str) -> Task:
    """The task with a runner that lacks these guards."""
    text = task.files["tests/run.py"].decode()
    for guard in guards:
        old, new = GUARDS[guard]
        assert old in text
        text = text.replace(old, new)
    return replace(task, files={**task.files, "tests/run.py": text.encode()})


@pytest.mark.parametrize("name", CAUGHT)
def test_patched_pytest_is_seen_by_each_guard_alone(bench: Bench, name: str) -> None:
    task = ring_task(observed=False)
    script = cheat(name)
    tasks = {guard: without(task, *(g for g in GUARDS if g != guard)) for guard in CAUGHT[name]}
    for guard, alone in tasks.items():
        reward = bench.attempt(script, alone)
        word = {"canaries": "canary", "seal": "was exchanged", "events": "was called"}[guard]
        assert reward.value == 0.0 and word in reward.detail, (guard, reward)
    assert bench.attempt(script, without(task, *GUARDS)).value == 1.0, "the control arm: nobody looks"


FRAMES = """cat >> /work/src/ring/core.py <<'PY'


def _forge():
    import os, sys
    frame = sys._getframe()
    while frame is not None:
        for value in list(frame.f_locals.values()):
            names = getattr(value, "items", None)
            if type(value).__name__ == "Session" and names:
                reporter = next(p for p in value.config.pluginmanager.get_plugins() if type(p).__name__ == "Reporter")
                cells = type(reporter).pytest_sessionfinish.__closure__
                send = next(c.cell_contents for c in cells if getattr(c.cell_contents, "__name__", "") == "send")
                for item in names[1:-1]:
                    send("PASS", item.nodeid)
                send("FAIL", names[-1].nodeid)
                send("END", "")
                os._exit(0)
        frame = frame.f_back


Ring.at = lambda self, index: _forge()
PY
sed -i 's/items = list(items)/items = list(items)/' /work/src/ring/core.py"""


@pytest.mark.parametrize("script", [cheat("py-equal-to-all"), FRAMES], ids=["equal-to-all", "frames"])
def test_what_stays_open_in_one_interpreter_is_closed_by_observations(bench: Bench, script: str) -> None:
    """The first line states the hole: without observations these two win. It is a defect of this test when they no longer do."""
    assert bench.attempt(script, ring_task(observed=False)).value == 1.0
    caught = bench.attempt(script, ring_task())
    assert caught.value == 0.0 and caught.tests["observed-1"] == "failed", caught


def test_observations_see_honest_work_and_nothing_but_values(bench: Bench) -> None:
    task = ring_task()
    solved = bench.attempt(RING_SOLUTION, task)
    assert (solved.value, solved.tests["observed-1"], solved.tests["observed-2"]) == (1.0, "passed", "passed"), solved
    forged = bench.attempt(
        "cat >> /work/src/ring/core.py <<'PY'\nprint('[0, \"value\", \"[7, 8, 9, 7, 8, 9]\"]')\n"
        'import os\nfor fd in range(3, 20):\n    try:\n        os.write(fd, b\'[0, "value", "[7, 8, 9, 7, 8, 9]"]\\n\')\n'
        "    except OSError:\n        pass\nPY",
        task,
    )
    assert forged.value == 0.0 and forged.tests["observed-1"] in ("duplicate", "failed"), forged


def test_neither_tests_nor_expected_values_are_there_while_the_host_observes(bench: Bench) -> None:
    """Control arm: the tests proper find both of the files that they were given."""
    look = "import os\ndef seen():\n    return sorted(os.listdir('/tests')) if os.path.isdir('/tests') else []\n"
    task = ring_task()
    rows = [Observation("observed-1", "seen()", "[]", imports=(("seen", "ring.look:seen"),))]
    suite = "from ring.look import seen\ndef test_seen():\n    assert 'suite' in seen() and 'observations.json' not in seen()\n"
    files = {
        **task.files,
        MEMBER: member(rows, ["/work/src"], ["/opt/site"]),
        "tests/suite/test_ring.py": suite.encode(),
        "tests/select.txt": b"test_ring.py::test_seen\n",
    }
    spec = task.spec.model_copy(update={"expected": ("test_ring.py::test_seen", "observed-1")})
    script = f"cat > /work/src/ring/look.py <<'PY'\n{look}PY"
    reward = bench.attempt(script, replace(task, files=files, spec=spec))
    assert reward.value == 1.0, reward


def test_a_value_is_told_in_built_in_types_only() -> None:
    class Sly(str):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = str.__hash__

        def __repr__(self) -> str:
            return "'right'"

    def told(value: object) -> tuple[str, str]:
        import sandboxes.verifier.observe as module

        module.sly = value  # type: ignore[attr-defined]
        return observe({"imports": {"v": "sandboxes.verifier.observe:sly"}, "expression": "v"})

    assert told(Sly("wrong")) == ("value", "'wrong'")
    assert told([Sly("x"), {1: (True, None)}, {2.5}]) == ("value", "['x', {1: (True, None)}, {2.5}]")
    assert told(object()) == ("type", "object")
    assert observe({"expression": "1 / 0"}) == ("error", "ZeroDivisionError")
    assert observe({"setup": ["x = 2"], "expression": "x + 1"}) == ("value", "3")


@pytest.mark.parametrize(
    ("answers", "state"),
    [
        ([("value", "[1, 2]")], "passed"),
        ([("value", "[1, 2.0]")], "passed"),
        ([("value", "[2, 1]")], "failed"),
        ([("type", "[1, 2]")], "failed"),
        ([("value", "__import__('os')")], "failed"),
        ([("value", "[" * 100000)], "failed"),
        ([("value", "[1, 2]" + " " * 65_536)], "failed"),  # longer than observe.py ever says, and perhaps slow to read
        ([("value", "[1, 2]"), ("value", "[1, 2]")], "duplicate"),
        ([], "missing"),
    ],
)
def test_the_host_compares_literals(answers: list[tuple[str, str]], state: str) -> None:
    assert _state(answers, [1, 2]) == state


class Answers:
    """A sandbox whose process of observations was taken over by the code under test."""

    def __init__(self, output: bytes) -> None:
        self.output = output

    async def exec(self, command: object, **how: object) -> ExecResult:
        return ExecResult(exit_code=0, signal=None, output=self.output)


@pytest.mark.parametrize(
    ("output", "states"),
    [
        (b'[0, "value", "2"]\n', ["passed"]),
        (b'[Infinity, "value", "2"]\n[NaN, "value", "2"]\n[1e999, 1, 2]\n', ["missing"]),
        (b'{"0": 1, "1": 2, "2": 3}\n[0]\nnull\n[[], {}, ""]\n\xff\xfe\n' + b"[" * 100_000, ["failed"]),
    ],
)
def test_no_line_of_a_forger_breaks_the_host(output: bytes, states: list[str]) -> None:
    said = evaluate(Answers(output), [Observation("o", "f(1)", "2")], [], [], user="tester", timeout_s=1.0)  # type: ignore[arg-type]
    assert asyncio.run(said) == states


def test_the_host_is_not_made_to_compare_for_hours() -> None:
    """A set of numbers with one hash costs its square to read; control arm: the text that the bound stops does."""
    text = "{" + ",".join(str(1 + n * (2**61 - 1)) for n in range(8000)) + "}"
    began = time.process_time()
    assert _state([("value", text)], {1}) == "failed"
    bounded = time.process_time() - began
    began = time.process_time()
    ast.literal_eval(text)
    assert time.process_time() - began > 20 * bounded


def test_the_file_of_observations_says_what_it_was_given() -> None:
    row = json.loads(member([Observation("o", "f(1)", "2", ("x = 1",), (("f", "m:f"),))], ["/work"], ["/s"]))["observations"][0]
    assert row == {"id": "o", "expression": "f(1)", "expected": "2", "setup": ["x = 1"], "imports": {"f": "m:f"}}


def test_code_under_test_cannot_read_the_secret_of_the_runner(bench: Bench) -> None:
    """Control arm: with a parent that stays readable, the same look succeeds."""
    look = """import os
def test_parent():
    for name in ("mem", "environ", "fd/0"):
        try:
            open(f"/proc/{os.getppid()}/{name}", "rb").close()
        except PermissionError:
            continue
        assert 0, name
"""
    task = ring_task(observed=False)
    files = {**task.files, "tests/suite/test_ring.py": look.encode(), "tests/select.txt": b"test_ring.py::test_parent\n"}
    spec = task.spec.model_copy(update={"expected": ("test_ring.py::test_parent",)})
    assert bench.attempt(None, replace(task, files=files, spec=spec)).value == 1.0
    readable = RUNNER.read_text().replace("prctl(PR_SET_DUMPABLE, 0,", "prctl(PR_SET_DUMPABLE, 1,").encode()
    assert bench.attempt(None, replace(task, files={**files, "tests/run.py": readable}, spec=spec)).value == 0.0
