"""Upkeep: litter goes, everything that a row names or a running job may need stays."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from gymsmith import supervisor, upkeep
from gymsmith.config import Settings
from gymsmith.rows import chunks
from gymsmith.rows.events import Event
from gymsmith.schema import Run, State, Trajectory, now
from gymsmith.store import Store

from spoken import say  # isort: skip


def chunk(store: Store, name: str, *, rows: bool, age_s: float) -> Path:
    """A chunk of one trajectory, written as a worker does, with its row or as a killed worker leaves it."""
    folder = store.settings.trajectories_dir
    before = set(folder.glob("*/*.zjl"))
    body = Trajectory(id=name, run_id=f"run-{name}", environment_id="e")
    if rows:
        store.put_trajectories([body])
    else:
        chunks.write(folder, [body])
    (path,) = set(folder.glob("*/*.zjl")) - before
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_chunk_files_that_no_row_names_go(store: Store) -> None:
    named = chunk(store, "named", rows=True, age_s=7200)
    orphan = chunk(store, "orphan", rows=False, age_s=7200)
    young = chunk(store, "young", rows=False, age_s=60)
    litter = upkeep.find(store)
    assert litter.chunks == [orphan]
    assert litter.table()[0] == ("chunk files", 1, orphan.stat().st_size)
    upkeep.remove(store, litter)
    assert named.exists() and young.exists() and not orphan.parent.exists()
    assert store.trajectory("named").id == "named"


def test_old_events_go_in_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymsmith.rows.events._FORGET", 7)
    old = now() - timedelta(days=40)
    store.add_events([Event(kind="run.state", created_at=old, data={"i": i}) for i in range(20)])
    store.add_events([Event(kind="run.state", data={"i": i}) for i in range(3)])
    litter = upkeep.find(store, events_days=30)
    assert litter.events == 20
    upkeep.remove(store, litter, events_days=30)
    assert [event.data["i"] for event in store.events_after(0)] == [0, 1, 2]
    assert upkeep.find(store, events_days=30).events == 0


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_logs_and_checkpoints_of_ended_runs_go_and_those_in_use_stay(store: Store) -> None:
    home = store.settings.home
    store.settings.logs_dir.mkdir()
    for i, state in enumerate((State.SUCCEEDED, State.FAILED, State.RUNNING)):
        folder = f"runs/r{i}/checkpoints/"
        created = now() - timedelta(days=9 - i)
        store.put_run(Run(id=f"r{i}", kind="sft", state=state, checkpoint=f"{folder}00000030", created_at=created))
        for step in ("00000010", "00000020", "00000030"):
            (home / folder / step).mkdir(parents=True)
            (home / folder / step / "model.safetensors").write_bytes(b"x" * 100)
        (store.settings.logs_dir / f"learner-r{i}.log").write_text("a line\n")
    store.put_run(Run(id="heir", kind="rl", state=State.RUNNING, config={"start": "runs/r0/checkpoints/00000010"}))
    (store.settings.logs_dir / "worker-1.log").write_text("a line\n")
    litter = upkeep.find(store, logs=1, checkpoints=1)
    assert [path.name for path in litter.logs] == ["learner-r0.log"]
    assert sorted(str(path.relative_to(home)) for path in litter.checkpoints) == [
        "runs/r0/checkpoints/00000020",  # 10 is what a run started from, 30 is the run's own
        "runs/r1/checkpoints/00000010",
        "runs/r1/checkpoints/00000020",
    ]
    assert litter.table()[2] == ("checkpoints", 3, 300)
    upkeep.remove(store, litter)
    assert upkeep.find(store, logs=1, checkpoints=1) == upkeep.Litter()
    assert len(list((home / "runs/r2/checkpoints").iterdir())) == 3


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_a_dry_run_removes_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    orphan = chunk(store, "orphan", rows=False, age_s=7200)
    home = str(store.settings.home)
    for words, there in ((["--dry-run"], True), ([], False)):
        code, out, _ = say(capsys, "db", "gc", "--home", home, "--json", *words)
        said = json.loads(out)
        assert (code, said["removed"], said["chunk files"]["count"], orphan.exists()) == (0, not there, 1, there)


def test_a_large_log_is_turned_over_when_its_process_starts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 10)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    settings.logs_dir.mkdir(parents=True)
    (settings.logs_dir / "worker-1.log").write_text("many old lines\n")
    with supervisor.Supervisor(settings, api=False, learner=False):
        assert (settings.logs_dir / "worker-1.log.1").read_text() == "many old lines\n"
        assert "many old lines" not in (settings.logs_dir / "worker-1.log").read_text()
