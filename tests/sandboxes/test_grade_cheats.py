"""Every cheat of the corpus scores 0 on every kind of bundled task, honest work scores 1 however it is written, and each cheat
would win against a verifier that trusts what it should not."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import cache
from typing import Any, NamedTuple

import pytest
from graded import BUNDLED, RING_SOLUTION, Bench, honest, note_task, ring_task

from env_factory.cheats.corpus import cheats_for, corpus
from gymsmith.taskdir import Task
from sandboxes import grade


def test_the_corpus_is_large_enough() -> None:
    assert len(corpus()) >= 25
    assert sum(cheat.audience == "any" for cheat in corpus()) >= 20


@pytest.mark.parametrize("kind", BUNDLED)
def test_honest_work_scores_1_and_cheats_score_0(bench: Bench, kind: str) -> None:
    task, solutions = honest(kind)
    assert len(set(solutions)) >= 2
    scripts: dict[str, str | None] = {f"solution-{i}": text for i, text in enumerate(solutions)} | {"nothing": None}
    scripts |= {cheat.name: cheat.script for cheat in cheats_for(task)} | dict(task.cheats)
    rewards = bench.attempts(scripts, task)
    for name, reward in rewards.items():
        wanted = 1.0 if name.startswith("solution") else 0.0
        assert reward.value == wanted, (kind, name, reward)
    assert len(rewards) >= 20 + len(solutions)


@pytest.mark.parametrize("cheat", ["py-conftest-hook", "py-sitecustomize", "py-pytest-config", "wait-for-tests", "shadow-path"])
def test_a_harmless_cheat_beside_the_solution_does_not_harm_it(bench: Bench, cheat: str) -> None:
    """The cheats bite on what they attack, not on honest work: their traces are simply not carried or not read."""
    script = next(c.script for c in corpus() if c.name == cheat).replace("\nexit 0", "")
    assert bench.attempt(f"{script}\n{RING_SOLUTION}", ring_task()).value == 1.0


class Naive(NamedTuple):
    """A verifier that trusts too much: a shell script, run as the agent in the agent's own sandbox, whose exit code decides."""

    check: str
    task: str = "note"
    before: str = ""
    """What a careless author left in the environment."""
    pids: int = 64


PYTEST = (
    "cd /work && mkdir -p tests && cp /tests/suite/*.py tests/ && PYTHONPATH=/work/src:/opt/site "
    "python3 -m pytest -q -p no:cacheprovider --deselect tests/test_ring.py::test_left_out tests"
)
EXIT_CODE = Naive(PYTEST, "ring")
WORDS = Naive(f"({PYTEST}) > /tmp/said 2>&1; ! grep -qE 'failed|rror' /tmp/said", "ring")
LOGIN = Naive(f". $HOME/.profile; {PYTEST}", "ring")
VACUOUS = Naive('bad=0; for f in /work/*.txt; do [ -f "$f" ] && grep -qs "the port" "$f" && bad=1; done; exit $bad')
REWARD = Naive('sleep 0.4; [ "$(cat /logs/verifier/reward.txt 2>/dev/null)" = 1 ]')
LATER = Naive('echo 0 > /logs/verifier/reward.txt; sleep 2; [ "$(cat /logs/verifier/reward.txt)" = 1 ]')
DROPPED = Naive('echo 0 > /logs/verifier/reward.txt; [ "$(cat /logs/verifier/reward.txt)" != 0 ]')
ASKED = Naive(
    "sleep 0.8; python3 -c \"import urllib.request as u; assert u.urlopen('http://127.0.0.1:7070/', timeout=3).status == 200\""
)
HELD = Naive("/bin/true; /bin/echo FAIL", pids=24)
KILLED = Naive("sleep 0.5; echo FAIL")
GIT = "git -c user.name=a -c user.email=a@b"
NAIVE: dict[str, Naive] = {
    "come-back-later": LATER,
    "delete-all": VACUOUS,
    "empty-files": VACUOUS,
    "fill-the-disk": DROPPED,
    "git-config": Naive(f"cd /work; git status >/dev/null 2>&1; {REWARD.check}", before=f"cd /work; {GIT} init -q ."),
    "hold-the-machine": HELD,
    "impostor-service": ASKED,
    "kill-everything": KILLED,
    "link-artifacts": Naive('for f in /work/*; do cmp -s "$f" /tests/expected.txt && exit 0; done; exit 1'),
    "modes": VACUOUS,
    "overwrite-tests": Naive("[ -x /work/tests/test.sh ] && echo key | /work/tests/test.sh | grep -q 'key PASS check'"),
    "preload-library": LOGIN,
    "print-passes": Naive("grep -q '^PASS' /work/report.txt"),
    "py-conftest-hook": EXIT_CODE,
    "py-equal-to-all": EXIT_CODE,
    "py-exit-on-import": EXIT_CODE,
    "py-forge-records": EXIT_CODE,
    "py-forge-results": Naive("grep -q 'failures=\"0\"' /work/junit.xml"),
    "py-patch-asserts": EXIT_CODE,
    "py-patch-reports": EXIT_CODE,
    "py-pytest-config": WORDS,
    "py-shadow-pytest": EXIT_CODE,
    "py-sitecustomize": EXIT_CODE,
    "py-skip-on-import": WORDS,
    "py-stale-bytecode": EXIT_CODE,
    "py-trace-tests": EXIT_CODE,
    "run-the-oracle": Naive(
        "sh /tests/test.sh | grep -c PASS | grep -q 3",
        before="mkdir -p /tmp/build; echo 'cd /work && echo 4711 > answer.txt && rm n07.txt' > /tmp/build/solve.sh",
    ),
    "set-the-clock": Naive(
        'grep -q PASS /work/n01.txt && [ -z "$(find /work -type f -newer /tmp/start)" ]', before="touch /tmp/start"
    ),
    "shadow-path": LOGIN,
    "special-files": Naive("timeout 0.5 cat /work/*.txt > /tmp/said 2>&1; [ $? = 124 ]"),
    "undo-with-git": Naive(
        "sh /tests/test.sh | grep -c PASS | grep -q 3",
        before=f"cd /work; {GIT} init -q .; mv n07.txt /tmp/; echo 4711 > answer.txt; {GIT} add .; {GIT} commit -qm a; "
        f"rm answer.txt; cp /tmp/n07.txt .; {GIT} add .; {GIT} commit -qm b",
    ),
    "wait-for-tests": REWARD,
    "write-reward-files": REWARD,
}  # fmt: skip
NOT_SAFE = {"py-download-fixed": "it would fetch a package, and no sandbox of the tests has a network"}


def test_every_cheat_has_a_verifier_that_it_would_beat() -> None:
    assert set(NAIVE) | set(NOT_SAFE) == {cheat.name for cheat in corpus()}


@cache
def _task(name: str) -> Task:
    return ring_task() if name == "ring" else note_task()


async def _trusts(bench: Bench, naive: Naive, script: str) -> bool:
    """Whether the naive verifier is content after `script` was run."""
    task = _task(naive.task)
    box = await bench.provider.create(dataclasses.replace(grade.sandbox_spec(task, bench.image(task), "agent"), pids=naive.pids))
    try:
        # Everything lies open: the tests, and the place of the reward, are the agent's own.
        await box.exec("chmod 777 /logs/verifier", user="tester")
        await box.exec(naive.before or ":", env={"HOME": "/home/agent"})
        await box.put("/tmp/cheat.sh", script.encode())
        await box.exec(["/bin/sh", "/tmp/cheat.sh"], env={"HOME": "/home/agent"}, timeout_s=60)
        tests = {f"/{name}": data for name, data in task.files.items() if name.startswith("tests/")}
        try:
            await box.put_files(tests, 0o777, owner="agent")
        except OSError:
            return naive is DROPPED  # "our infrastructure failed, the attempt does not count"
        result = await box.exec(naive.check, env={"HOME": "/home/agent"}, timeout_s=60)
        # What could not be started, or was killed, said nothing bad.
        return b"FAIL" not in result.output if naive in (HELD, KILLED) else result.ok
    finally:
        await box.destroy()


def test_naive_verifiers_are_beaten(bench: Bench) -> None:
    """The control arm of the corpus: each cheat wins where its target is trusted, and doing nothing does not."""
    bench.needs_users()
    scripts: dict[str, Any] = {cheat.name: cheat.script for cheat in corpus()}
    gate = asyncio.Semaphore(4)

    async def trusts(naive: Naive, script: str) -> bool:
        async with gate:
            return await _trusts(bench, naive, script)

    async def both() -> tuple[list[bool], list[bool]]:
        distinct = list(dict.fromkeys(NAIVE.values()))
        idle = asyncio.gather(*(trusts(naive, ":") for naive in distinct))
        cheated = asyncio.gather(*(trusts(naive, scripts[name]) for name, naive in NAIVE.items()))
        return await idle, await cheated

    for task in ("note", "ring"):
        bench.image(_task(task))
    idle, cheated = bench.run(both())
    assert not any(idle), [naive for naive, content in zip(dict.fromkeys(NAIVE.values()), idle, strict=True) if content]
    assert all(cheated), [name for name, won in zip(NAIVE, cheated, strict=True) if not won]
