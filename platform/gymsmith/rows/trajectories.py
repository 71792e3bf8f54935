"""Trajectories: one index row each, bodies in chunk files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from gymsmith.config import Settings
from gymsmith.errors import NotFound
from gymsmith.rows import chunks
from gymsmith.rows import tables as t
from gymsmith.rows.database import Database
from gymsmith.rows.jobs import hold
from gymsmith.rows.pages import Page, newest_first
from gymsmith.schema import Trajectory, Word

_LOOKUP = 500
"""Ids per query; SQLite takes 32,766 variables, PostgreSQL 65,535."""


class TrajectoryRow(Word):
    """What lists show of a trajectory; its body is read by `Store.trajectory`."""

    id: str
    run_id: str
    environment_id: str
    group: str
    attempt: int
    seed: int
    policy_version: str
    reward: float | None
    finish: str
    looked: bool | None
    commands: int
    """Actions that were run, refused ones not counted."""
    tokens: int
    """Ids over all segments, prompts included."""
    error: str
    created_at: datetime


class TrajectoryFilter(Word):
    """Which trajectories a list shows; None does not choose."""

    run_id: str | None = None
    environment_id: str | None = None
    group: str | None = None
    policy_version: str | None = None
    finish: str | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    looked: bool | None = None
    failed: bool | None = None
    """Attempts lost to an error of ours, or all others."""

    def where(self) -> list[sa.ColumnElement[bool]]:
        """Conditions on the index rows, to be joined by AND."""
        r = t.trajectories.c
        equal = ("run_id", "environment_id", "group", "policy_version", "finish", "looked")
        found = [r[name] == value for name in equal if (value := getattr(self, name)) is not None]
        if self.min_reward is not None:
            found.append(r.reward >= self.min_reward)
        if self.max_reward is not None:
            found.append(r.reward <= self.max_reward)
        if self.failed is not None:
            found.append(r.error != "" if self.failed else r.error == "")
        return found


EVERY = TrajectoryFilter()

_COLUMNS = [t.trajectories.c[name] for name in TrajectoryRow.model_fields if name != "created_at"]


class Trajectories:
    """Part of the Store."""

    db: Database
    settings: Settings

    def put_trajectories(self, trajectories: Sequence[Trajectory], *, fence: tuple[str, int] | None = None) -> None:
        """Store trajectories: one chunk file, made durable first, then all index rows in one transaction.

        The same id again replaces the row. `fence` is (job id, attempt): the rows are only written while that attempt owns the
        job.

        Raises:
            Fenced: the attempt lost its job; nothing of it can be seen.
            StoreError: the folder or the database cannot be written.
        """
        if not trajectories:
            return
        places = chunks.write(self.settings.trajectories_dir, trajectories)
        insert = self.db.insert(t.trajectories)
        columns = {c.name: insert.excluded[c.name] for c in t.trajectories.columns if c.name != "id"}
        rows = [_row(x, place) for x, place in zip(trajectories, places, strict=True)]
        with self.db.write() as c:
            if fence is not None:
                hold(c, *fence)
            c.execute(insert.on_conflict_do_update(index_elements=["id"], set_=columns), rows)

    def trajectory(self, trajectory_id: str) -> Trajectory:
        """Get one, body and all.

        Raises:
            NotFound: there is none.
            StoreError: its body is damaged.
        """
        return self.trajectories([trajectory_id])[0]

    def trajectories(self, ids: Sequence[str]) -> list[Trajectory]:
        """Get many, in the order asked.

        Raises:
            NotFound: one of them is not there.
        """
        r = t.trajectories.c
        places: dict[str, chunks.Place] = {}
        with self.db.read() as c:
            for start in range(0, len(ids), _LOOKUP):
                query = sa.select(r.id, r.file, r.offset, r.length).where(r.id.in_(ids[start : start + _LOOKUP]))
                places.update((i, chunks.Place(file, offset, length)) for i, file, offset, length in c.execute(query))
        for i in ids:
            if i not in places:
                raise NotFound(f"no trajectory {i!r}; the page of its run lists what there is")
        return chunks.read(self.settings.trajectories_dir, [places[i] for i in ids])

    def chunk_files(self) -> set[str]:
        """Every chunk file that some row names, relative to the trajectories folder."""
        with self.db.read() as c:
            return set(c.execute(sa.select(t.trajectories.c.file).distinct()).scalars())

    def trajectory_rows(self, wanted: TrajectoryFilter = EVERY, *, cursor: str = "", limit: int = 50) -> Page[TrajectoryRow]:
        """A page of index rows, newest first."""
        return newest_first(self.db, t.trajectories, _COLUMNS, wanted.where(), _hand_out, cursor, limit)


def _row(x: Trajectory, place: chunks.Place) -> dict[str, Any]:
    return {
        "id": x.id,
        "run_id": x.run_id,
        "environment_id": x.environment_id,
        "group": x.group,
        "attempt": x.attempt,
        "seed": x.seed,
        "policy_version": x.policy_version,
        "reward": None if x.reward is None else x.reward.value,
        "finish": x.finish,
        "looked": x.looked,
        "commands": sum(1 for step in x.steps if not step.refused),
        "tokens": sum(len(segment.ids) for segment in x.segments),
        "error": x.error,
        "file": place.file,
        "offset": place.offset,
        "length": place.length,
        "created_us": t.to_us(x.created_at),
    }


def _hand_out(row: Any) -> TrajectoryRow:
    fields = dict(row._mapping)
    del fields["_id"]
    created_at = t.from_us(fields.pop("_us"))
    assert created_at is not None
    return TrajectoryRow(created_at=created_at, **fields)
