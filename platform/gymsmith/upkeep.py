"""What a state folder gathers and nobody needs any more: found, counted, and removed when asked.

    chunk files    of trajectories that no row names: a writer was killed between the file and its rows
    events         older than a number of days
    logs           of ended runs beyond a number of newest ones; logs of the house itself are turned over by the supervisor
    checkpoints    of ended runs, older than the newest so many of each; one that a row names stays

Safe beside a working house: whatever a running job may still be at is too young or belongs to a run that has not ended. Layers
and images are the image store's to remove; task folders and wheels are never removed, because evidence refers to them.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from gymsmith.rows.jobs import ENDED
from gymsmith.schema import Run, now
from gymsmith.store import Store

YOUNG_S = 3600.0
"""A chunk file's rows follow it within seconds; one so young may still get them."""


@dataclass(slots=True)
class Litter:
    """What may go."""

    chunks: list[Path] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    events: int = 0

    def table(self) -> list[tuple[str, int, int]]:
        """(what, how many, bytes on disk); events lie inside the database and have no bytes of their own."""
        kinds = (("chunk files", self.chunks), ("logs", self.logs), ("checkpoints", self.checkpoints))
        return [(name, len(paths), sum(map(_size, paths))) for name, paths in kinds] + [("events", self.events, 0)]


def find(store: Store, *, events_days: float = 30.0, logs: int = 50, checkpoints: int = 1, young_s: float = YOUNG_S) -> Litter:
    """Look for litter; nothing is changed.

    Raises:
        StoreError: the database cannot be read.
    """
    # Files first, rows after: what is written in between has its rows by then, or is young.
    found = list(_old_chunks(store.settings.trajectories_dir, young_s))
    named = store.chunk_files() if found else set()
    runs = list(_runs(store))
    return Litter(
        chunks=[path for path in found if str(path.relative_to(store.settings.trajectories_dir)) not in named],
        logs=_old_logs(store.settings.logs_dir, runs, logs),
        checkpoints=_old_checkpoints(store, runs, checkpoints),
        events=store.count_events(now() - timedelta(days=events_days)),
    )


def remove(store: Store, litter: Litter, *, events_days: float = 30.0) -> None:
    """Remove what `find` found with the same `events_days`.

    Raises:
        OSError, StoreError: something cannot be removed; what was removed until then is gone.
    """
    for path in (*litter.chunks, *litter.logs):
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in litter.chunks}:
        with contextlib.suppress(OSError):  # it holds other chunks
            folder.rmdir()
    for path in litter.checkpoints:
        shutil.rmtree(path)
    if litter.events:
        store.forget_events(now() - timedelta(days=events_days))


def _old_chunks(folder: Path, young_s: float) -> Iterator[Path]:
    border = time.time() - young_s
    for path in folder.glob("*/*.zjl"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < border:
                yield path


def _runs(store: Store) -> Iterator[Run]:
    """All runs, newest first."""
    cursor: str | None = ""
    while cursor is not None:
        page = store.runs(cursor=cursor, limit=500)
        yield from page.items
        cursor = page.cursor or None


def _old_logs(folder: Path, runs: list[Run], kept: int) -> list[Path]:
    ended = [run.id for run in runs if run.state.value in ENDED]
    names = [f"{process}-{run_id}.log" for run_id in ended[kept:] for process in ("learner", "engine")]
    return [path for path in (folder / name for name in names) if path.is_file()]


def _old_checkpoints(store: Store, runs: list[Run], kept: int) -> list[Path]:
    named = {store.settings.home / run.checkpoint for run in runs if run.checkpoint}
    named |= {
        store.settings.home / str(run.config.get(key)) for run in runs for key in ("start", "checkpoint") if run.config.get(key)
    }
    out = []
    for run in runs:
        folder = store.settings.runs_dir / run.id / "checkpoints"
        if run.state.value in ENDED and folder.is_dir():
            steps = sorted((path for path in folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
            out += [path for path in steps[: max(0, len(steps) - kept)] if path not in named]
    return out


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total
