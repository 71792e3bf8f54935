"""The store: what goes in comes out, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from gymsmith.config import Settings
from gymsmith.errors import NotFound, StoreError, UserError
from gymsmith.ids import ulid
from gymsmith.schema import (
    EvalReport,
    Evidence,
    Gate,
    Metric,
    Run,
    Score,
    State,
    Status,
)
from gymsmith.store import Event, Store, TrajectoryFilter

from made import a_trajectory, an_environment  # isort: skip

# ---------------------------------------------------------------- round trips


def test_environments_come_back_and_can_be_found(store: Store) -> None:
    made = [an_environment(i) for i in range(6)]
    for e in made:
        store.put_environment(e)
    bad = an_environment(9, status=Status.REJECTED, reason="leak", instruction="Paint the azure wall.")
    store.put_environment(bad)
    assert store.environment(made[2].id) == made[2]
    assert store.environments(text="crims file").items == made[::-1]
    assert store.environments(text="azure").items == [bad]
    assert store.environments(text='") OR 1=1 --').items == []
    assert store.environments(labels={"family": "chain"}, status="verified").items == [made[5], made[3], made[1]]
    assert store.environment_ids("shell", labels={"family": "lookup"}) == [made[0].id, made[2].id, made[4].id]
    assert store.reject_counts() == {"leak": 1}
    with pytest.raises(NotFound, match="no environment 'nope'"):
        store.environment("nope")


def test_environment_ids_sort_by_seed_as_a_number(store: Store) -> None:
    for i in (10, 9, 100):
        store.put_environment(an_environment(i, id=f"{1000 - i:032x}"))
    assert [int(store.environment(i).spec.labels["seed"]) for i in store.environment_ids()] == [9, 10, 100]


def test_proving_again_replaces_status_labels_words_and_evidence(store: Store) -> None:
    first = an_environment(1, status=Status.DRAFT)
    store.put_environment(first)
    assert store.evidence(first.id) is None
    gates = (Gate(name="noop", passed=True, rewards=(0.0,) * 3), Gate(name="oracle", passed=True, rewards=(1.0,) * 3))
    evidence = Evidence(environment_id=first.id, gates=gates, image_id="i")
    spec = first.spec.model_copy(update={"labels": {"family": "other"}})
    second = first.model_copy(update={"status": Status.VERIFIED, "spec": spec, "instruction": "Now violet."})
    store.put_environment(second, evidence)
    assert store.environment(first.id) == second
    assert store.evidence(first.id) == evidence
    assert store.environments(text="crimson").items == store.environments(labels={"family": "chain"}).items == []
    assert store.environments(text="violet").items == [second]


def test_runs_metrics_and_reports(store: Store) -> None:
    run = Run(id="r", kind="rl", config={"lr": 1e-3}, seed=7)
    store.put_run(run)
    changed = store.update_run("r", state=State.RUNNING, engine_url="http://127.0.0.1:1", summary={"reward": 0.5})
    assert (
        store.run("r")
        == changed
        == run.model_copy(update={"state": State.RUNNING, "engine_url": "http://127.0.0.1:1", "summary": {"reward": 0.5}})
    )
    with pytest.raises(ValueError, match="no_such_field"):
        store.update_run("r", no_such_field=1)
    assert store.runs("rl", state="running").items == [changed]
    assert store.runs("sft").items == []
    store.put_metrics([Metric(run_id="r", step=i, name=n, value=i / 3) for i in range(5) for n in ("loss", "reward")])
    store.put_metrics([Metric(run_id="r", step=4, name="loss", value=9.0)])
    assert [(m.step, m.value) for m in store.metrics("r", ["loss"], after_step=2)] == [(3, 1.0), (4, 9.0)]
    score = Score(n=4, passed=3, rate=0.75, low=0.3, high=0.95)
    report = EvalReport(
        id="p", run_id="r", name="held out", policy_version="1", mode="greedy", overall=score, groups={"a": score}
    )
    store.put_report(report)
    assert store.report("p") == report
    assert store.reports("r").items == [report]


def test_what_is_no_number_is_kept_as_such_and_breaks_nothing(store: Store) -> None:
    store.put_metrics(
        [Metric(run_id="r", step=1, name="loss", value=math.nan), Metric(run_id="r", step=2, name="loss", value=-math.inf)]
    )
    one, two = store.metrics("r")
    assert math.isnan(one.value)
    assert two.value == -math.inf
    store.add_events([Event(kind="e", data={"loss": math.nan, "list": [1.5, math.inf], "text": "a\x00b"})])
    assert store.events_after(0)[0].data == {"loss": None, "list": [1.5, None], "text": "a\ufffdb"}


def test_events_are_tailed_in_order_without_loss(store: Store) -> None:
    store.add_events([Event(kind="a", job_id="j", data={"n": 0})])
    for n in range(1, 300):
        store.emit("a" if n % 2 else "b", job_id="j", run_id="r" if n % 3 == 0 else "", n=n)
    store.flush_events()
    everything, after = [], 0
    while page := store.events_after(after, limit=64):
        everything += page
        after = page[-1].id
    assert [e.data["n"] for e in everything] == list(range(300))
    assert store.last_event_id() == after
    assert len(store.events_after(0, run_id="r")) == 99
    store.emit("late")
    deadline = time.monotonic() + 5
    while store.last_event_id() == after and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [e.kind for e in store.events_after(after)] == ["late"]


# ---------------------------------------------------------------- pages


def test_pages_hold_every_row_once_also_while_rows_are_added(store: Store) -> None:
    for i in range(45):
        store.put_run(Run(id=f"r{i:03d}", kind="rl"))
    seen, cursor = [], ""
    while True:
        page = store.runs(cursor=cursor, limit=10)
        seen += [r.id for r in page.items]
        store.put_run(Run(id=ulid(), kind="rl"))
        cursor = page.cursor
        if not cursor:
            break
    assert seen == [f"r{i:03d}" for i in range(44, -1, -1)]


def test_a_foreign_cursor_and_an_absurd_limit_are_the_users_error(store: Store) -> None:
    for cursor in ("x", "W10", "bm90IGpzb24"):
        with pytest.raises(UserError, match="is not one that a page handed out"):
            store.runs(cursor=cursor)
    with pytest.raises(UserError, match="limit must be 1 to 1000, got 0"):
        store.runs(limit=0)


# ---------------------------------------------------------------- trajectories


def test_trajectories_come_back_bit_for_bit_in_the_order_asked(store: Store) -> None:
    made = [a_trajectory() for _ in range(7)] + [a_trajectory(reward=None, error="sandbox gone", finish="error")]
    store.put_trajectories(made[:3])
    store.put_trajectories(made[3:])
    order = [made[i] for i in (6, 0, 7, 3)]
    assert store.trajectories([x.id for x in order]) == order
    rows = store.trajectory_rows(TrajectoryFilter(run_id="run", failed=False)).items
    assert {r.id for r in rows} == {x.id for x in made[:7]}
    assert (rows[0].tokens, rows[0].commands, rows[0].reward) == (150, 1, 1.0)
    assert [r.error for r in store.trajectory_rows(TrajectoryFilter(failed=True)).items] == ["sandbox gone"]
    with pytest.raises(NotFound, match="no trajectory 'nope'"):
        store.trajectories([made[0].id, "nope"])


def test_one_trajectory_is_read_without_its_neighbours(store: Store) -> None:
    made = [a_trajectory() for _ in range(5)]
    store.put_trajectories(made)
    (file,) = store.settings.trajectories_dir.rglob("*.zjl")
    with store.db.read() as c:
        where = {i: (o, n) for i, o, n in c.execute(sa.text('SELECT id, "offset", length FROM trajectories'))}
    raw = bytearray(file.read_bytes())
    offset, length = where[made[2].id]
    raw[:offset] = bytes(offset)
    raw[offset + length :] = b""
    file.write_bytes(raw)
    assert store.trajectory(made[2].id) == made[2]
    for hurt in (made[0], made[4]):
        with pytest.raises(StoreError, match="is damaged near byte"):
            store.trajectory(hurt.id)


_WRITER = """
import sys
from gymsmith.config import Settings
from gymsmith.store import Store
sys.path.insert(0, sys.argv[2])
from made import a_trajectory
store = Store.open(Settings.load(home=sys.argv[1]))
while True:
    batch = [a_trajectory() for _ in range(40)]
    store.put_trajectories(batch)
    print(*(x.id for x in batch), flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_it_confirmed(settings: Settings, tmp_path: Path) -> None:
    confirmed: list[str] = []
    Store.open(settings).close()
    for i in range(5):
        with (tmp_path / "out").open("w+") as out:
            command = [sys.executable, "-c", _WRITER, str(settings.home), str(Path(__file__).parent)]
            writer = subprocess.Popen(command, stdout=out, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
            while out.tell() == 0 and writer.poll() is None:
                time.sleep(0.01)
                out.seek(0, os.SEEK_END)
            time.sleep(0.017 * i)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            out.seek(0)
            confirmed += [i for line in out if line.endswith("\n") for i in line.split()]
    torn = settings.trajectories_dir / "run" / f"{ulid()}.zjl"
    torn.write_bytes(b"x\x9ctorn")
    with Store.open(settings) as store:
        stored, cursor = [], ""
        while True:
            page = store.trajectory_rows(cursor=cursor, limit=1000)
            stored += [r.id for r in page.items]
            if not (cursor := page.cursor):
                break
        assert set(confirmed) <= set(stored)
        assert len(confirmed) >= 5 * 40
        assert len(store.trajectories(stored)) == len(stored)


# ---------------------------------------------------------------- writers side by side


def _write_much(settings: Settings, who: int) -> None:
    with Store.open(settings) as store:
        for i in range(60):
            store.put_metrics([Metric(run_id="r", step=i, name=f"m{who}", value=i)])
            store.update_run("r", summary={**store.run("r").summary, "last": who})
            store.add_events([Event(kind="e", data={"who": who, "i": i})] * 20)


def test_four_processes_write_without_a_locked_database(store: Store) -> None:
    store.put_run(Run(id="r", kind="rl"))
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_much, args=(store.settings, who)) for who in range(4)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    assert [w.exitcode for w in writers] == [0] * 4
    assert len(store.metrics("r")) == 240
    assert store.last_event_id() == 4800
