"""Commands that are killed: what they ordered ends, what others ordered goes on, and the same order can be put again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gymsmith import jobs, orders
from gymsmith.attach import attached
from gymsmith.schema import Run, State
from gymsmith.store import Store
from gymsmith.supervisor import Supervisor

import job_doors  # isort: skip # noqa: F401  registers the kinds

pytestmark = pytest.mark.parametrize("store", ["sqlite"], indirect=True)

COMMAND = """
import sys, time
import job_doors
from gymsmith.attach import attached
from gymsmith.config import settings
with attached(settings()) as house:
    run = house.start_run("rl")
    at_work = house.submit("test-slow", {"seconds": 60, "log": sys.argv[1]}, key="k", run_id=run.id)
    waiting = house.submit("test-single", {"i": 1}, run_id=run.id)
    print(run.id, at_work.id, waiting.id, flush=True)
    time.sleep(120)
"""


def command(store: Store, log: Path) -> tuple[subprocess.Popen[str], list[str]]:
    """A command that waits for a running and a queued job; (process, [run, running job, queued job])."""
    environment = {**os.environ, **store.settings.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", COMMAND, str(log)]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    ids = process.stdout.readline().split()
    deadline = time.monotonic() + 20
    while not log.exists():
        assert time.monotonic() < deadline, "the job did not start"
        time.sleep(0.05)
    return process, ids


def test_what_a_killed_command_ordered_ends_with_it(store: Store, crew, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    crew.hire(1)
    other = jobs.submit(store, "test-single", {"through": "the API"})
    process, (run, at_work, waiting) = command(store, tmp_path / "log")
    try:
        assert orders.sweep(store) == 0, "the command lives"
        assert store.job(at_work).state is State.RUNNING
    finally:
        process.kill()
        process.wait()
    assert orders.sweep(store, settle_s=10.0) == 2
    assert {store.job(i).state for i in (at_work, waiting)} == {State.CANCELLED}
    assert store.run(run).state is State.CANCELLED
    assert store.job(other.id).state is State.QUEUED, "nobody's job was cancelled"
    assert orders.sweep(store) == 0 and not list((store.settings.home / orders.FOLDER).iterdir())


def test_the_house_sees_to_it_while_it_works(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with Supervisor(store.settings, api=False, learner=False, include=["job_doors"]):
        process, (_, at_work, waiting) = command(store, tmp_path / "log")
        process.kill()
        process.wait()
        done = jobs.wait(store, [at_work, waiting], timeout_s=20)
    assert {job.state for job in done.values()} == {State.CANCELLED}


def test_a_command_killed_with_its_workers_can_be_run_again(store: Store, crew, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Nobody waits for the lease of a dead worker: the same key is a fresh order at once."""
    (worker,) = crew.hire(1)
    store.put_run(Run(id="r", kind="rl"))
    process, (_, at_work, _) = command(store, tmp_path / "log")
    for each in (worker, process):
        os.kill(each.pid, signal.SIGKILL)
        each.wait()
    start = time.monotonic()
    with attached(store.settings) as house:
        assert store.job(at_work).state is State.CANCELLED
        again = house.submit("test-slow", {"seconds": 60, "log": str(tmp_path / "log")}, key="k")
        assert (again.id, again.state) == (at_work, State.QUEUED)
        files = list((store.settings.home / orders.FOLDER).iterdir())
        assert len(files) == 1 and files[0].read_text().split() == [at_work]
    assert time.monotonic() - start < store.settings.lease_s
    assert not list((store.settings.home / orders.FOLDER).iterdir()), "a command that ended well leaves no file"
