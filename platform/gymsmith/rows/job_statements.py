"""Statements of the jobs table, made once, and how a job becomes a row and a row a job.

Parameters are one letter: i(d), a(ttempt), o(wner), s(tate), r(esult), e(rror), p(ublishes). What every job needs is here; what
is rare is written where it is used (`rows/jobs.py`).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from gymsmith.rows import tables as t
from gymsmith.schema import Job, State, now

_J = t.jobs.c
COLUMNS = [c for c in t.jobs.columns if c.name not in ("publishes", "due_us")]
SWEEP = 500
"""Jobs that one look of the reaper takes on."""


def _bound(name: str, kind: Any = None) -> Any:
    return sa.bindparam(name, type_=kind)


OWNED = (_J.id == _bound("i"), _J.attempt == _bound("a"), _J.state == State.RUNNING.value)
HOLD = sa.select(_J.max_attempts, _J.progress, _J.cancel, _J.run_id).where(*OWNED).with_for_update()
CLAIM = (
    sa.update(t.jobs)
    .where(
        _J.id == _bound("i"),
        sa.or_(_J.state == State.QUEUED.value, sa.and_(_J.state == State.RUNNING.value, _J.lease_us < _bound("now"))),
        _J.attempt < _J.max_attempts,
        ~_J.cancel,
    )
    .values(
        state=State.RUNNING.value,
        attempt=_J.attempt + 1,
        owner=_bound("o"),
        lease_us=_bound("lease"),
        started_us=sa.func.coalesce(_J.started_us, _bound("now")),
        due_us=None,
    )
    .returning(*COLUMNS)
)
BEAT = sa.update(t.jobs).where(*OWNED).values(lease_us=_bound("lease")).returning(_J.cancel)
END = (
    sa.update(t.jobs)
    .where(*OWNED)
    .values(state=_bound("s"), result=_bound("r", t.Json), error=_bound("e"), finished_us=_bound("now"), lease_us=None)
    .returning(_J.run_id, _J.started_us)
)
ANY_LAPSED = sa.union_all(
    sa.select(sa.literal(1)).where(_J.state == State.RUNNING.value, _J.lease_us < _bound("now")),
    sa.select(sa.literal(1)).where(_J.state == State.QUEUED.value, _J.due_us <= _bound("now")),
)
LAPSED = (
    sa.select(_J.id, _J.run_id, _J.cancel, _J.attempt, _J.max_attempts, _J.error)
    .where(_J.state == State.RUNNING.value, _J.lease_us < _bound("now"))
    .limit(SWEEP)
    .with_for_update(skip_locked=True)
)
DUE = (
    sa.select(_J.id, _J.run_id, _J.attempt, _J.cancel, _J.queue, _J.publishes, _J.created_us)
    .where(_J.state == State.QUEUED.value, _J.due_us <= _bound("now"))
    .order_by(_J.due_us)
    .limit(SWEEP)
    .with_for_update(skip_locked=True)
)
POSTPONE = sa.update(t.jobs).where(_J.id == _bound("i")).values(due_us=_bound("due"), publishes=_bound("p"))


def _put_statement(sqlite: bool) -> Any:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.dialects import sqlite as sqlite_dialect

    insert = sqlite_dialect.insert(t.jobs) if sqlite else postgresql.insert(t.jobs)
    return insert.on_conflict_do_nothing().returning(_J.id)


PUT = {True: _put_statement(True), False: _put_statement(False)}


def queued(pause_s: float) -> dict[str, Any]:
    """Values of a job that waits for its next attempt and is due for publishing after the pause."""
    return {
        "state": State.QUEUED.value,
        "owner": "",
        "lease_us": None,
        "publishes": 0,
        "due_us": t.to_us(now()) + int(pause_s * 1e6),
    }


def job_row(job: Job, lease_s: float) -> dict[str, Any]:
    """The row of a job that is published at once; a reaper looks at it when nobody claimed it for `lease_s`."""
    created_us = t.to_us(job.created_at)
    return {
        "id": job.id,
        "kind": job.kind,
        "queue": job.queue,
        "payload": job.payload,
        "key": job.key or None,
        "state": job.state.value,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "owner": job.owner,
        "lease_us": None,
        "progress": job.progress,
        "result": job.result,
        "error": job.error,
        "parent": job.parent,
        "run_id": job.run_id,
        "cancel": job.cancel,
        "created_us": created_us,
        "started_us": None,
        "finished_us": None,
        "publishes": 1,
        "due_us": created_us + int(lease_s * 1e6),
    }


def hand_out(row: Any) -> Job:
    """The job of a row of COLUMNS; not validated again, because it was when it went in."""
    return Job.model_construct(
        id=row.id,
        kind=row.kind,
        queue=row.queue,
        payload=row.payload,
        key=row.key or "",
        state=State(row.state),
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        owner=row.owner,
        lease_until=t.from_us(row.lease_us),
        progress=row.progress,
        result=row.result,
        error=row.error,
        parent=row.parent,
        run_id=row.run_id,
        cancel=bool(row.cancel),
        created_at=t.from_us(row.created_us),
        started_at=t.from_us(row.started_us),
        finished_at=t.from_us(row.finished_us),
    )
