"""Whose fault it was: what an agent breaks scores 0, what it cannot cause is an error and never a reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graded import NOTE_SOLUTION, Bench, changed, ledger_task, note_task, ring_task, task_of

from gymsmith.errors import Capacity, InfrastructureError, SandboxError, SandboxGone
from sandboxes import grade
from sandboxes.base import SandboxSpec
from sandboxes.namespace import NamespaceProvider

SHELL = note_task()


def test_agents_that_take_their_sandbox_down_score_0(bench: Bench) -> None:
    assert bench.attempt(":(){ :|:& };:").value == 0.0
    assert bench.attempt("kill -9 -1; kill -9 1").value == 0.0
    hungry = changed(SHELL, memory_mb=64)
    assert bench.attempt("python3 -c 'x = bytearray(1 << 30)'", hungry).value == 0.0
    slow = changed(SHELL, agent_timeout_s=0.3)
    assert "time limit" in bench.attempt("sleep 30", slow).detail


def test_artifacts_that_hang_or_kill_the_tests_score_0(bench: Bench) -> None:
    runs = task_of(
        {"environment/Dockerfile": "FROM gymsmith/host\n", "tests/test.sh": "sh /work/it && echo 'PASS ran'\n"},
        ("ran",),
        verifier_timeout_s=2.0,
        memory_mb=64,
    )
    assert bench.attempt("echo exit 0 > /work/it", runs).value == 1.0
    hung = bench.attempt("echo 'sleep 60' > /work/it", runs)
    assert hung.value == 0.0 and "time limit" in hung.detail
    assert bench.attempt("echo 'kill -9 $PPID; kill -9 -1' > /work/it", runs).value == 0.0
    bomb = "echo 'f() { f | f & }; f; sleep 9' > /work/it"
    assert bench.attempt(bomb, runs).value == 0.0


def test_a_provider_that_fails_is_never_a_reward(bench: Bench, tmp_path: Path) -> None:
    async def closed() -> None:
        provider = await NamespaceProvider.start(bench.images, tmp_path / "other")
        await provider.close()
        await grade.attempt_script(provider, bench.image(SHELL), SHELL, NOTE_SOLUTION)

    with pytest.raises(InfrastructureError):
        bench.run(closed())
    with pytest.raises(InfrastructureError):
        bench.attempt(None, image=replace(bench.image(SHELL), id="0" * 32))


@pytest.mark.parametrize(
    "script",
    [
        "printf 'def broken(:' > /work/src/ring/core.py",
        "rm -r /work/src",
        "printf 'raise SystemExit(0)' > /work/src/ring/__init__.py",
        "printf 'import time; time.sleep(600)' > /work/src/ring/core.py",
        "printf 'import os, signal; os.kill(os.getppid(), signal.SIGKILL)' > /work/src/ring/core.py",
        "printf 'import os; os.abort()' > /work/src/ring/core.py",
        "printf 'x = bytearray(1 << 34)' > /work/src/ring/core.py",
        "printf 'import sys; sys.setrecursionlimit(1 << 30)\\ndef f(): f()\\nf()' > /work/src/ring/core.py",
    ],
)
def test_a_test_suite_that_the_agent_broke_scores_0(bench: Bench, script: str) -> None:
    reward = bench.attempt(script, changed(ring_task(), verifier_timeout_s=3.0))
    assert reward.value == 0.0 and reward.detail


ODDITIES = {
    "names": "touch -- \"$(printf 'new\\nline')\" \"$(printf 'not\\377utf8')\" \"$(printf '\\033[31m')\" -rf "
    "\"$(printf 'x%.0s' $(seq 255))\"",
    "depth": "for i in $(seq 300); do mkdir d && cd d || break; done; touch bottom",
    "length": "n=$(printf 'y%.0s' $(seq 250)); for i in $(seq 20); do mkdir $n && cd $n || break; done; touch bottom",
    "sparse": "truncate -s 20G /work/sparse",
    "times": "touch -d 1901-01-01 old; touch -d 2400-01-01 new; touch -d @-99999999999 older; touch -d @99999999999 newer",
    "links": "ln -s loop loop; ln n01.txt hard; ln -s . here; ln -s $(printf 'z%.0s' $(seq 4000)) long",
    "a link for a folder": "rm -rf /work/* ; cd /; mv /work /tmp/w || ln -sfn /tmp /work/w",
    "attributes": "setfattr -n user.overlay.opaque -v y . ; setfattr -n user.overlay.whiteout -v y n01.txt; touch .wh.n02.txt",
    "sockets": "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"s\")'; mkfifo f",
    "modes": "mkdir closed; touch closed/x; chmod 0 closed; chmod 4777 n01.txt; chmod 1000 n02.txt",
}
"""What scripts leave in /work."""


@pytest.mark.parametrize("oddity", ODDITIES)
def test_oddities_of_file_systems_never_look_like_our_failure(bench: Bench, oddity: str) -> None:
    """The attempt is judged: 0 where the odd files are in the way of the task, 1 where they are not, an error never."""
    reward = bench.attempt(f"cd /work\n{ODDITIES[oddity]}\n({NOTE_SOLUTION})")
    assert reward.value in (0.0, 1.0)
    if oddity in ("names", "times", "sockets"):
        assert reward.value == 1.0, reward
    if oddity in ("depth", "sparse"):
        assert "larger than" in reward.detail, reward


class Failing:
    """A provider whose verifier sandboxes end while they are spoken to, or cannot be had; the agents' work."""

    def __init__(self, inner: Any, error: type[Exception], times: int) -> None:
        self.inner, self.error, self.left = inner, error, times
        self.name, self.capabilities = inner.name, inner.capabilities

    async def create(self, spec: SandboxSpec, **more: Any) -> Any:
        if spec.labels.get("phase") in ("verify", "probe") and self.left:
            self.left -= 1
            if self.error is Capacity:
                raise Capacity("no room for one more")
            box = await self.inner.create(spec, **more)
            await box.destroy()
            return box
        return await self.inner.create(spec, **more)


def test_a_verifier_that_is_lost_once_is_asked_again(bench: Bench) -> None:
    provider = Failing(bench.provider, SandboxGone, 1)
    assert bench.run(grade.attempt_script(provider, bench.image(SHELL), SHELL, NOTE_SOLUTION)).value == 1.0


@pytest.mark.parametrize("error", [SandboxGone, Capacity])
def test_a_machine_that_fails_us_is_never_a_reward(bench: Bench, error: type[Exception]) -> None:
    """Honest work under a failing machine: an error to retry. Control arm: the same two deaths, with others that live, are 0."""
    with pytest.raises(SandboxError):
        bench.run(grade.attempt_script(Failing(bench.provider, error, 99), bench.image(SHELL), SHELL, NOTE_SOLUTION))
    if error is SandboxGone:
        twice = Failing(bench.provider, error, 2)
        reward = bench.run(grade.attempt_script(twice, bench.image(SHELL), SHELL, NOTE_SOLUTION))
        assert reward.value == 0.0 and "failed twice" in reward.detail


def test_a_shared_sandbox_that_the_agent_spoiled_scores_0(bench: Bench) -> None:
    """A full disk takes no tests; a service that was broken does not start. Both are the agent's doing."""
    ledger = ledger_task()
    full = bench.attempt("dd if=/dev/zero of=/tmp/full bs=1M; dd if=/dev/zero of=/tmp/rest bs=1; true", ledger)
    place = "others do" if bench.provider.capabilities.users else "larger than"
    assert full.value == 0.0 and place in full.detail, full
    broken = bench.attempt("echo nonsense > /var/lib/ledger/ledger.db", ledger)
    assert broken.value == 0.0 and "service ledger must be ready" in broken.detail, broken
