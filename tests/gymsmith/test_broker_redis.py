"""The scaled-out configuration: jobs through a real Redis, and PostgreSQL beside it, with the same workers and the same table.

A message is only a hint, so what is tested is that none of the ways to lose one (a killed worker, a Redis that comes back empty,
one that is away) loses or doubles a job.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gymsmith import jobs
from gymsmith.attach import attached
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, GymsmithError, InfrastructureError
from gymsmith.schema import State, Status
from gymsmith.store import Store
from gymsmith.supervisor import Supervisor

import job_doors  # isort: skip # noqa: F401  registers the kinds

pytestmark = pytest.mark.redis


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, settings: Settings, redis) -> Iterator[Store]:  # type: ignore[no-untyped-def]
    """An empty store on each engine, whose jobs travel through Redis."""
    settings = settings.model_copy(update={"broker_url": redis.url})
    if request.param == "postgres":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgres").new_url()})
        Store.migrate(settings)
    with Store.open(settings) as s:
        yield s


def test_each_job_runs_once_and_in_its_own_queue(store: Store, crew) -> None:  # type: ignore[no-untyped-def]
    pooled = crew.hire(2)
    (learner,) = crew.hire(1, "--queues", "train", "--pool", "solo")
    ordered = jobs.submit_many(store, "test-noop", [{"i": i} for i in range(150)])
    single = jobs.submit_many(store, "test-single", [{"i": i} for i in range(10)])
    done = jobs.wait(store, [job.id for job in (*ordered, *single)], timeout_s=90)
    assert {(job.state, job.attempt) for job in done.values()} == {(State.SUCCEEDED, 1)}
    assert [done[job.id].result["echo"] for job in ordered] == [{"i": i} for i in range(150)]
    assert {done[job.id].result["pid"] for job in ordered} <= {member.pid for member in pooled}
    assert {done[job.id].result["pid"] for job in single} == {learner.pid}, "a job left its queue"
    assert not store.settings.broker_dir.exists(), "the embedded broker was used"


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_killed_worker_s_job_is_delivered_again(store: Store, crew, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    crew.hire(2)
    log = tmp_path / "log"
    job = jobs.submit(store, "test-slow", {"seconds": 1.0, "log": str(log)})
    pid = int(started(log, 1)[0].split()[1])
    os.kill(pid, signal.SIGKILL)
    done = jobs.wait(store, [job.id], timeout_s=30)[job.id]
    assert (done.state, done.result) == (State.SUCCEEDED, {"attempt": 2})
    assert int(started(log, 2)[1].split()[1]) != pid


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_redis_that_comes_back_empty_costs_time_only(store: Store, crew, redis, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Also: the worker's keeper lives through it, and an order put while Redis is away is done later."""
    crew.hire(1)
    log = tmp_path / "log"
    running = jobs.submit(store, "test-slow", {"seconds": 3.0, "log": str(log)})
    started(log, 1)
    redis.kill()
    orphans = jobs.submit_many(store, "test-noop", [{"i": i} for i in range(5)])
    time.sleep(1.0)
    assert {store.job(job.id).state for job in orphans} == {State.QUEUED}
    redis.start()
    done = jobs.wait(store, [running.id, *(job.id for job in orphans)], timeout_s=60)
    assert {job.state for job in done.values()} == {State.SUCCEEDED}
    assert done[running.id].attempt == 1, "its lease was not kept while Redis was away"


@pytest.mark.postgres
def test_the_small_loop_on_postgres_and_redis(settings: Settings, redis, postgres) -> None:  # type: ignore[no-untyped-def]
    """Made, proved, stored, attempted, graded: with the cluster's two services and nothing else changed."""
    settings = settings.model_copy(
        update={"broker_url": redis.url, "database_url": postgres.new_url(), "lease_s": 30.0, "heartbeat_s": 10.0}
    )
    Store.migrate(settings)
    with attached(settings) as house:
        made = house.run("generate", {"source": "shell:find", "kind": "shell", "n": 2, "seed": 5}, quiet=True).result
        played = house.rollout(made["admitted"], solution=True, quiet=True)
        assert played["rewards"] == [1.0, 1.0]
        assert {house.store.environment(i).status for i in made["admitted"]} == {Status.VERIFIED}
        assert house.store.trajectory(played["trajectories"][0]).looked
    assert not (settings.home / "gymsmith.db").exists() and not settings.broker_dir.exists()


@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        (
            "redis://:secret@127.0.0.1:1/0",
            InfrastructureError,
            r"redis://:\*\*@127.0.0.1:1/0 does not answer: .*refused; start it",
        ),
        ("carrier-pigeon://loft/", ConfigError, "names a carrier-pigeon broker that cannot be used"),
    ],
)
def test_a_broker_that_is_not_there_is_told_at_once(settings: Settings, url: str, kind: type[GymsmithError], says: str) -> None:
    settings = settings.model_copy(update={"broker_url": url})
    with pytest.raises(kind, match=says) as told, attached(settings):
        pass
    assert "secret" not in str(told.value)
    with pytest.raises(kind, match=says):
        Supervisor(settings).start()


def started(log: Path, n: int, timeout_s: float = 30.0) -> list[str]:
    """Lines that the door `slow` wrote, once there are `n`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        lines = log.read_text().splitlines() if log.exists() else []
        if len(lines) >= n:
            return lines
        time.sleep(0.02)
    raise AssertionError(f"{n} starts expected in {log}, got {lines}")
