"""The verdict: honest work scores 1, nothing scores 0, and what the tests told is read strictly."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from graded import NOTE_SOLUTION, RING_SOLUTION, Bench, ledger_task, note_task, ring_task

from env_factory.cheats.corpus import corpus
from gymsmith.errors import Capacity, ImageMissing
from sandboxes import grade
from sandboxes.artifacts import collect
from sandboxes.base import ExecResult
from sandboxes.image.images import ImageStore

SHELL = note_task()


def test_nothing_scores_0_and_the_solution_1(bench: Bench) -> None:
    nothing = bench.attempt(None)
    assert nothing.value == 0.0
    assert nothing.tests == {"answer": "failed", "removed": "failed", "others": "passed"}
    assert "wrong or missing" in nothing.detail
    assert bench.attempt(NOTE_SOLUTION).value == 1.0
    assert bench.attempt("cd /work; echo 4711 > answer.txt; mv n07.txt /tmp/").value == 1.0


def test_pytest_task_nothing_scores_0_and_the_solution_1(bench: Bench) -> None:
    nothing = bench.attempt(None, ring_task())
    assert nothing.value == 0.0
    assert nothing.tests["test_ring.py::test_at[0-a]"] == "passed", nothing.detail
    assert nothing.tests["test_ring.py::test_at[3-a]"] == "failed"
    assert "missing" not in nothing.tests.values()
    solved = bench.attempt(RING_SOLUTION, ring_task())
    assert solved.value == 1.0, solved.detail
    assert set(solved.tests) == set(ring_task().spec.expected)


@pytest.mark.docker
def test_the_same_verdicts_in_containers(tmp_path: Path) -> None:
    """The engine builds the Dockerfiles; artifacts cross with their deletions, a shared sandbox stays, cheats score 0."""
    from sandboxes.container import ContainerProvider

    async def scenes() -> dict[str, float]:
        images = ImageStore(tmp_path / "images")
        provider = await ContainerProvider.start(images, tmp_path / "state", base_image="gymsmith/debian:bookworm")
        images.provider = provider
        try:
            note, ledger = note_task(), ledger_task()
            few = {c.name: c.script for c in corpus() if c.name in ("delete-all", "wait-for-tests", "hold-the-machine")}
            link = "ln -s /tests/expected.txt /work/answer.txt; rm /work/n07.txt"
            rewards = {}
            for task, solution, more in ((note, NOTE_SOLUTION, {"link": link}), (ledger, ledger.solution, dict(ledger.cheats))):
                try:
                    image = await images.build(task.dockerfile, task.under("environment"))
                except ImageMissing as error:
                    raise Capacity(str(error)) from error
                for name, script in {"nothing": None, "solution": solution, **few, **more}.items():
                    reward = await grade.attempt_script(provider, image, task, script)
                    rewards[f"{task.spec.name} {name}"] = reward.value
            return rewards
        finally:
            await provider.close()

    try:
        rewards = asyncio.run(scenes())
    except Capacity as error:
        assert os.environ.get("GYMSMITH_REQUIRE_ALL") != "1", f"GYMSMITH_REQUIRE_ALL=1, but {error}"
        pytest.skip(str(error))
    assert {name for name, value in rewards.items() if value} == {name for name in rewards if name.endswith(" solution")}, rewards
    assert set(rewards.values()) == {0.0, 1.0}


def report(text: str, **fields: Any) -> ExecResult:
    return ExecResult(exit_code=0, signal=None, output=text.encode(), **fields)


@pytest.mark.parametrize(
    ("text", "value", "tests"),
    [
        ("PASS a\nPASS b c\n", 1.0, {"a": "passed", "b c": "passed"}),
        ("hello\nPASS a\nPASSED x\nPASS b c", 1.0, {"a": "passed", "b c": "passed"}),
        ("PASS a\n", 0.0, {"a": "passed", "b c": "missing"}),
        ("PASS a\nPASS a\nPASS b c\n", 0.0, {"a": "duplicate", "b c": "passed"}),
        ("FAIL a\nPASS a\nPASS b c\n", 0.0, {"a": "duplicate", "b c": "passed"}),
        ("PASS a\nSKIP b c\n", 0.0, {"a": "passed", "b c": "skipped"}),
        ("PASS a\nPASS b c\nPASS d\n", 0.0, {"a": "passed", "b c": "passed", "d": "unexpected"}),
        ("FAIL a because of that\nPASS b c\n", 0.0, {"a": "failed", "b c": "passed"}),
        ("", 0.0, {"a": "missing", "b c": "missing"}),
    ],
)
def test_verdict(text: str, value: float, tests: dict[str, str]) -> None:
    got, states, _ = grade.verdict(("a", "b c"), report(text))
    assert (got, states) == (value, tests)


def test_verdict_counts_only_lines_with_the_secret_and_no_cut_report() -> None:
    assert grade.verdict(("a",), report("PASS a\n"), "k")[0] == 0.0
    assert grade.verdict(("a",), report("FAIL a\nk PASS a\nPASS b\n"), "k")[0] == 1.0
    assert grade.verdict(("a",), report("PASS a\n", truncated=True))[0] == 0.0
    assert grade.verdict(("a",), report("PASS a\n", timed_out=True))[0] == 0.0
    assert grade.verdict((), report("PASS a\n"))[0] == 0.0


def test_verdict_joins_what_the_host_saw_itself() -> None:
    assert grade.verdict(("a", "o"), report("PASS a\n"), seen={"o": "passed"})[0] == 1.0
    assert grade.verdict(("a", "o"), report("PASS a\n"), seen={"o": "failed"})[0] == 0.0
    value, tests, _ = grade.verdict(("a", "o"), report("PASS a\nPASS o\n"), seen={"o": "failed"})
    assert (value, tests["o"]) == (0.0, "duplicate"), "a report that speaks for the host is one too many"


def test_cost_of_a_shell_verdict(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints, never judges: seconds belong to benchmarks."""

    async def rounds(count: int) -> None:
        for _ in range(count):
            box = await bench.provider.create(grade.sandbox_spec(SHELL, bench.image(SHELL), "agent"))
            await box.exec(NOTE_SOLUTION, user="agent")
            artifacts = await collect(box, SHELL)
            await box.destroy()
            reward = await grade.verify(bench.provider, bench.image(SHELL), SHELL, artifacts)
            assert reward.value == 1.0
            artifacts.close()

    bench.run(rounds(2))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    bench.run(rounds(20))
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with capsys.disabled():
        print(f"\none command and its verdict: wall {wall / 20 * 1e3:.1f} ms, CPU of this process {cpu / 20 * 1e3:.1f} ms")
