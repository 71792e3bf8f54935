"""Jobs through real workers: none lost, none doubled, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gymsmith import jobs
from gymsmith.errors import ConfigError, Conflict, InfrastructureError
from gymsmith.schema import Job, State
from gymsmith.store import Store

import job_doors  # isort: skip # noqa: F401  registers the kinds


def attempts(log: Path, n: int, timeout_s: float = 15.0) -> list[tuple[int, int]]:
    """(attempt, pid) of the starts noted by the door `slow`, once there are `n`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= n:
            return [(int(a), int(b)) for a, b in (line.split() for line in lines)]
        time.sleep(0.02)
    raise AssertionError(f"{n} starts expected in {log}, got {lines}")


def one(store: Store, job: Job, timeout_s: float = 20.0) -> Job:
    return jobs.wait(store, [job.id], timeout_s=timeout_s)[job.id]


def test_two_hundred_jobs_through_two_workers(store: Store, crew, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    crew.hire(2)
    # More at once than one worker has threads, until both are there: on a busy machine one may start seconds after the other.
    members, seen_pids, log = {member.pid for member in crew.members}, set(), tmp_path / "log"
    deadline = time.monotonic() + 60
    while seen_pids != members:
        assert time.monotonic() < deadline, f"of the workers {members} only {seen_pids} took jobs"
        crowd = jobs.submit_many(store, "test-slow", [{"seconds": 0.3, "log": str(log)}] * 12)
        jobs.wait(store, [job.id for job in crowd], timeout_s=60)
        seen_pids = {pid for _, pid in attempts(log, 1)}
    ordered = jobs.submit_many(store, "test-noop", [{"i": i} for i in range(200)])
    seen: list[tuple[int, int]] = []
    done = jobs.wait(store, [job.id for job in ordered], timeout_s=60, on_progress=lambda n, total: seen.append((n, total)))
    assert Counter(job.state for job in done.values()) == {State.SUCCEEDED: 200}
    assert [done[job.id].result["echo"] for job in ordered] == [{"i": i} for i in range(200)]
    assert {job.attempt for job in done.values()} == {1}, "a job ran twice"
    assert {job.result["pid"] for job in done.values()} <= members
    assert seen[-1] == (200, 200)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_lost_and_doubled_messages_change_nothing(store: Store, crew) -> None:  # type: ignore[no-untyped-def]
    ordered = jobs.submit_many(store, "test-noop", [{"i": i} for i in range(40)])
    messages = sorted((store.settings.broker_dir / "rollouts").iterdir())
    for path in messages[:20]:
        path.unlink()
    jobs.publish(store, [(job.id, job.queue) for job in ordered[20:]])
    crew.hire(2)
    done = jobs.wait(store, [job.id for job in ordered], timeout_s=30)
    assert {(job.state, job.attempt) for job in done.values()} == {(State.SUCCEEDED, 1)}


def test_a_worker_killed_in_the_middle_costs_time_and_nothing_else(store: Store, crew, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    crew.hire(2)
    job = jobs.submit(store, "test-slow", {"seconds": 1.0, "log": str(tmp_path / "log")})
    (_, pid) = attempts(tmp_path / "log", 1)[0]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    done = one(store, job)
    assert (done.state, done.result) == (State.SUCCEEDED, {"attempt": 2})
    assert [a for a, _ in attempts(tmp_path / "log", 2)] == [1, 2]
    assert time.monotonic() - killed < store.settings.lease_s + 1.0 + 4.0


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_worker_that_was_frozen_finds_itself_fenced(store: Store, crew, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    crew.hire(2)
    job = jobs.submit(store, "test-slow", {"seconds": 2.0, "log": str(tmp_path / "log")})
    (_, pid) = attempts(tmp_path / "log", 1)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        attempts(tmp_path / "log", 2)
    finally:
        os.kill(pid, signal.SIGCONT)
    done = one(store, job)
    assert (done.state, done.attempt, done.result) == (State.SUCCEEDED, 2, {"attempt": 2})


@pytest.mark.parametrize("kind", ["test-slow", "test-deaf"])
@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_sigterm_puts_jobs_back_within_seconds(store: Store, crew, tmp_path: Path, kind: str) -> None:  # type: ignore[no-untyped-def]
    (worker,) = crew.hire(1)
    job = jobs.submit(store, kind, {"seconds": 60, "log": str(tmp_path / "log")})
    while store.job(job.id).state is not State.RUNNING:
        time.sleep(0.02)
    start = time.monotonic()
    worker.terminate()
    assert worker.wait(12) == 0
    assert time.monotonic() - start < 8
    put_back = store.job(job.id)
    assert (put_back.state, put_back.max_attempts) == (State.QUEUED, 6)


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_cancel_reaches_a_running_door(store: Store, crew, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    crew.hire(1)
    job = jobs.submit(store, "test-slow", {"seconds": 60, "log": str(tmp_path / "log")})
    attempts(tmp_path / "log", 1)
    store.cancel(job.id)
    assert one(store, job, 5.0).state is State.CANCELLED


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_how_doors_fail(store: Store, crew) -> None:  # type: ignore[no-untyped-def]
    crew.hire(1)
    flaky, refuse, crash = (
        jobs.submit(store, "test-flaky", {"good": 2}),
        jobs.submit(store, "test-refuse", {}),
        jobs.submit(store, "test-crash", {}),
    )
    done = jobs.wait(store, [flaky.id, refuse.id, crash.id], timeout_s=20)
    assert (done[flaky.id].state, done[flaky.id].result) == (State.SUCCEEDED, {"attempt": 2})
    assert (done[refuse.id].state, done[refuse.id].attempt) == (State.FAILED, 1)
    assert done[refuse.id].error == "no such thing; ask for another"
    assert (done[crash.id].state, done[crash.id].error) == (State.FAILED, "ZeroDivisionError: a bug in a door")
    store_events = {e.job_id: e.data["state"] for e in store.events_after(0) if e.kind == "job.state"}
    assert store_events[refuse.id] == "failed"


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_key_names_one_job_and_a_cancelled_one_is_queued_again(store: Store) -> None:
    first = jobs.submit(store, "test-noop", {"a": 1}, key="k")
    assert jobs.submit(store, "test-noop", {"a": 1}, key="k").id == first.id
    with pytest.raises(Conflict):
        jobs.submit(store, "test-noop", {"a": 2}, key="k")
    assert len(list((store.settings.broker_dir / "rollouts").iterdir())) == 1
    store.cancel(first.id)
    again = jobs.submit(store, "test-noop", {"a": 1}, key="k")
    assert (again.id, again.state, again.cancel) == (first.id, State.QUEUED, False)
    assert len(list((store.settings.broker_dir / "rollouts").iterdir())) == 2


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_waiting_has_an_end_and_an_unknown_kind_is_refused(store: Store) -> None:
    job = jobs.submit(store, "test-noop", {})
    with pytest.raises(InfrastructureError, match=r"1 of 1 jobs had not ended after 0\.1 s"):
        jobs.wait(store, [job.id], timeout_s=0.1)
    with pytest.raises(ConfigError, match="unknown kind of job 'nope'"):
        jobs.submit(store, "nope", {})


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_worker_ends_with_whoever_started_it(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys, time; from gymsmith import lifeline\n"
        "p = lifeline.spawn([sys.executable, '-m', 'gymsmith.worker', '--lifeline'])\n"
        "print(p.pid, flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, **store.settings.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 12
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """The process runs (an unreaped one does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_importing_the_switchboard_loads_nothing_heavy() -> None:
    code = "import sys, gymsmith.jobs, gymsmith.worker, gymsmith.supervisor; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "torch",
        "docker",
        "playwright",
        "alembic",
        "fastapi",
        "uvicorn",
        "transformers",
        "sandboxes",
        "trainer",
        "env_factory",
    }
    assert heavy.isdisjoint(loaded)
    assert "celery" in loaded
