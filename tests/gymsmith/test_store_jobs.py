"""The jobs table on both engines: one owner at a time, stale attempts fenced, nothing lost and nothing flooded."""

from __future__ import annotations

import threading
import time

import pytest
import sqlalchemy as sa

from gymsmith.errors import Conflict, Fenced, NotFound
from gymsmith.ids import ulid
from gymsmith.rows import tables
from gymsmith.schema import Job, State, Trajectory
from gymsmith.store import Store


def put(store: Store, **fields: object) -> Job:
    job, created = store.put_job(Job.model_validate({"id": ulid(), "kind": "rollout", "queue": "rollouts", **fields}))
    assert created
    return job


def test_a_job_lives_and_ends(store: Store) -> None:
    job = put(store, payload={"items": [1, 2]}, run_id="r", parent="p")
    assert store.job(job.id) == job
    claimed = store.claim(job.id, "me")
    assert claimed and (claimed.state, claimed.attempt, claimed.owner) == (State.RUNNING, 1, "me")
    assert claimed.lease_until and claimed.started_at
    assert store.set_progress(job.id, 1, {"done": 1, "total": 2}) is False
    store.set_progress(job.id, 1, {"done": 2})
    store.finish(job.id, 1, {"answer": 42})
    ended = store.job(job.id)
    assert (ended.state, ended.result, ended.progress) == (State.SUCCEEDED, {"answer": 42}, {"done": 2, "total": 2})
    assert ended.finished_at and not ended.lease_until
    assert store.claim(job.id, "me") is None
    assert store.states([job.id, "nope"]) == {job.id: State.SUCCEEDED}
    with pytest.raises(NotFound):
        store.job("nope")


def test_the_same_key_never_makes_a_second_job(store: Store) -> None:
    job = put(store, key="k", payload={"a": 1, "b": 2})
    again, created = store.put_job(Job(id=ulid(), kind="rollout", queue="rollouts", key="k", payload={"b": 2, "a": 1}))
    assert (again.id, created) == (job.id, False)
    with pytest.raises(Conflict, match="the key 'k' already names"):
        store.put_job(Job(id=ulid(), kind="rollout", queue="rollouts", key="k", payload={"a": 2}))
    assert len(store.jobs().items) == 1


def test_fifty_equal_orders_at_once_make_one_job(store: Store) -> None:
    made, start = [], threading.Barrier(50)

    def order() -> None:
        start.wait()
        made.append(store.put_job(Job(id=ulid(), kind="verify", queue="factory", key="once")))

    threads = [threading.Thread(target=order) for _ in range(50)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [created for _, created in made].count(True) == 1
    assert len({job.id for job, _ in made}) == 1


def test_only_one_of_many_claims_wins(store: Store) -> None:
    job, won = put(store), []
    start = threading.Barrier(16)

    def claim(who: int) -> None:
        start.wait()
        won.append(store.claim(job.id, str(who)))

    threads = [threading.Thread(target=claim, args=(who,)) for who in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len([w for w in won if w]) == 1


def test_a_stale_attempt_cannot_write_anything(store: Store) -> None:
    job = put(store)
    store.claim(job.id, "first", lease_s=-1.0)
    second = store.claim(job.id, "second")
    assert second and second.attempt == 2
    stale = Trajectory(id=ulid(), environment_id="e", run_id="r")
    for write in (
        lambda: store.heartbeat(job.id, 1),
        lambda: store.set_progress(job.id, 1, {"done": 1}),
        lambda: store.finish(job.id, 1, {"by": "first"}),
        lambda: store.fail(job.id, 1, "oops"),
        lambda: store.fail(job.id, 1, "oops", retry=True),
        lambda: store.release(job.id, 1),
        lambda: store.cancelled(job.id, 1),
        lambda: store.put_trajectories([stale], fence=(job.id, 1)),
    ):
        with pytest.raises(Fenced, match=f"attempt 1 of job {job.id}"):
            write()
    assert store.trajectory_rows().items == []
    store.put_trajectories([stale], fence=(job.id, 2))
    store.finish(job.id, 2, {"by": "second"})
    assert store.job(job.id).result == {"by": "second"}
    with pytest.raises(Fenced):
        store.finish(job.id, 2, {"by": "second, again"})


def test_heartbeats_keep_a_lease_and_tell_who_lost(store: Store) -> None:
    mine, lost, stopped = put(store), put(store), put(store)
    for job in (mine, lost, stopped):
        store.claim(job.id, "me", lease_s=0.05)
    store.cancel(stopped.id)
    pulse = store.heartbeats([(mine.id, 1), (lost.id, 7), (stopped.id, 1)])
    assert (pulse.lost, pulse.cancelled) == ({lost.id}, {stopped.id})
    assert store.to_cancel([mine.id, stopped.id]) == [stopped.id]
    time.sleep(0.06)
    assert store.claim(mine.id, "thief") is None
    assert store.claim(lost.id, "heir") is not None


def test_a_lapsed_job_goes_back_to_the_queue_and_in_the_end_fails(store: Store) -> None:
    job = put(store, max_attempts=2)
    store.claim(job.id, "a", lease_s=-1.0)
    assert store.lapsed() == [(job.id, "rollouts")]
    assert store.job(job.id).state is State.QUEUED
    assert store.lapsed() == [], "published twice in a row"
    store.claim(job.id, "b", lease_s=-1.0)
    assert store.lapsed() == []
    ended = store.job(job.id)
    assert ended.state is State.FAILED
    assert "died or fell silent in each of 2 attempts" in ended.error


def test_retries_pause_and_then_run_out(store: Store) -> None:
    job = put(store, max_attempts=2)
    store.claim(job.id, "a")
    assert store.fail(job.id, 1, "no luck", retry=True) is State.QUEUED
    assert store.lapsed() == [], "it must pause first"
    time.sleep(0.55)
    assert store.lapsed() == [(job.id, "rollouts")]
    store.claim(job.id, "a")
    assert store.fail(job.id, 2, "no luck again", retry=True) is State.FAILED
    assert store.job(job.id).error == "no luck again"


def test_a_released_job_is_due_at_once_and_loses_no_attempt(store: Store) -> None:
    job = put(store, max_attempts=1)
    store.claim(job.id, "a")
    store.release(job.id, 1)
    assert store.lapsed() == [(job.id, "rollouts")]
    assert store.claim(job.id, "b") is not None
    store.cancel(job.id)
    store.release(job.id, 2)
    assert store.job(job.id).state is State.CANCELLED, "queued and cancelled, it would wait for ever"
    with store.db.write() as c:
        c.execute(sa.update(tables.jobs).where(tables.jobs.c.id == job.id).values(state="queued", due_us=0))
    assert store.lapsed() == [] and store.job(job.id).state is State.CANCELLED, "a row of an older version"


def test_the_jobs_of_a_dead_worker_do_not_wait_for_their_lease(store: Store) -> None:
    job, other = put(store), put(store)
    store.claim(job.id, "dead")
    store.claim(other.id, "alive")
    assert store.abandon("dead") == 1
    assert store.lapsed() == [(job.id, "rollouts")]


def test_an_unclaimed_job_is_published_again_ever_more_rarely(store: Store) -> None:
    store.settings = store.settings.model_copy(update={"lease_s": 0.1})
    job = put(store)
    assert store.lapsed() == []
    seen, start = [], time.monotonic()
    while time.monotonic() - start < 1.2:
        if store.lapsed():
            seen.append(time.monotonic() - start)
        time.sleep(0.005)
    assert 3 <= len(seen) <= 4, seen
    assert store.claim(job.id, "a") is not None


def test_a_queue_that_moves_is_not_flooded_but_an_overtaken_job_is_published(store: Store) -> None:
    store.settings = store.settings.model_copy(update={"lease_s": 0.1})
    older, working, waiting = put(store), put(store), put(store)
    elsewhere = put(store, queue="factory")
    store.claim(working.id, "a", lease_s=60)
    time.sleep(0.12)
    assert {i for i, _ in store.lapsed()} == {older.id, elsewhere.id}
    assert store.job(waiting.id).state is State.QUEUED


def test_cancel_ends_queued_children_and_tells_running_ones(store: Store) -> None:
    top = put(store, kind="train", queue="train")
    queued, running = put(store, parent=top.id), put(store, parent=top.id)
    deep = put(store, parent=running.id)
    done = put(store, parent=top.id)
    for job in (top, running, done):
        store.claim(job.id, "a")
    store.finish(done.id, 1, {})
    assert store.cancel(top.id).cancel
    assert store.states([top.id, queued.id, running.id, deep.id, done.id]) == {
        top.id: State.RUNNING,
        queued.id: State.CANCELLED,
        running.id: State.RUNNING,
        deep.id: State.CANCELLED,
        done.id: State.SUCCEEDED,
    }
    assert store.heartbeat(running.id, 1) is True
    store.cancelled(running.id, 1)
    assert store.job(running.id).state is State.CANCELLED
    store.abandon("a")
    assert store.lapsed() == [], "a cancelled job whose worker died must end, not run again"
    assert store.job(top.id).state is State.CANCELLED


def test_a_failed_job_can_be_revived_and_a_running_one_is_left_alone(store: Store) -> None:
    job = put(store, max_attempts=1)
    store.claim(job.id, "a")
    assert store.revive(job.id)[1] is False
    store.fail(job.id, 1, "broken")
    revived, did = store.revive(job.id)
    assert did
    assert (revived.state, revived.error, revived.finished_at) == (State.QUEUED, "", None)
    claimed = store.claim(job.id, "b")
    assert claimed and claimed.attempt == 2


def test_every_change_of_state_is_told(store: Store) -> None:
    job = put(store, max_attempts=3, run_id="r")
    store.claim(job.id, "a")
    store.fail(job.id, 1, "no luck", retry=True)
    store.claim(job.id, "a")
    store.release(job.id, 2)
    store.claim(job.id, "a", lease_s=-1.0)
    store.lapsed()
    store.claim(job.id, "a")
    store.finish(job.id, 4, {})
    with pytest.raises(Fenced):
        store.finish(job.id, 4, {})
    parent = put(store)
    child = put(store, parent=parent.id)
    store.claim(parent.id, "a")
    store.cancel(parent.id)
    store.cancelled(parent.id, 1)
    store.revive(child.id)
    store.flush_events()
    told: dict[str, list[tuple[str, int]]] = {}
    for event in store.events_after(0):
        assert event.kind == "job.state" and event.run_id == ("r" if event.job_id == job.id else "")
        told.setdefault(event.job_id, []).append((event.data["state"], event.data["attempt"]))
    assert told[job.id] == [
        ("queued", 0),
        ("running", 1),
        ("queued", 1),
        ("running", 2),
        ("queued", 2),
        ("running", 3),
        ("queued", 3),
        ("running", 4),
        ("succeeded", 4),
    ]
    assert told[parent.id] == [("queued", 0), ("running", 1), ("running", 1), ("cancelled", 1)]
    assert told[child.id] == [("queued", 0), ("cancelled", 0), ("queued", 0)]


def test_queue_depths(store: Store) -> None:
    first = put(store)
    put(store)
    put(store, queue="train")
    store.claim(first.id, "a")
    assert [(d.queue, d.queued, d.running) for d in store.queue_depths()] == [("rollouts", 1, 1), ("train", 1, 0)]
    assert 0 <= store.queue_depths()[0].oldest_s < 5
