"""Events: what happened, in the order of `id`. A reader tails them by id; rows are never changed, only forgotten when old.

`emit` hands an event to one background thread, which writes what has gathered every 50 ms, so a busy worker pays one transaction
for many events. `close` writes the rest. In PostgreSQL writers take turns, or a reader could see id 8 before id 7 and skip it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import Field

from gymsmith.errors import StoreError
from gymsmith.rows import tables as t
from gymsmith.rows.database import Database
from gymsmith.schema import Word, now

log = logging.getLogger(__name__)

FLUSH_S = 0.05
MAX_WAITING = 20_000
"""Events held while the database refuses them; beyond that some are given up."""
_FORGET = 5000
"""Rows removed in one transaction."""
_TURN = 0x67796D73
"""Key of PostgreSQL's advisory lock."""


class Event(Word):
    """Something that happened to a job or a run. `id` is 0 until it is stored."""

    id: int = 0
    kind: str
    """job.state, job.progress, run.state, run.metrics, ..."""
    job_id: str = ""
    run_id: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime = Field(default_factory=now)


class Events:
    """Part of the Store."""

    db: Database

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._writer: threading.Thread | None = None
        self._closing = False

    def add_events(self, events: Sequence[Event]) -> None:
        """Store events now, in one transaction."""
        if not events:
            return
        rows = [
            {"kind": e.kind, "job_id": e.job_id, "run_id": e.run_id, "data": e.data, "created_us": t.to_us(e.created_at)}
            for e in events
        ]
        with self.db.write() as c:
            if not self.db.sqlite:
                c.execute(sa.select(sa.func.pg_advisory_xact_lock(_TURN)))
            c.execute(sa.insert(t.events), rows)

    def emit(self, kind: str, *, job_id: str = "", run_id: str = "", **data: Any) -> None:
        """Store an event soon (within about 50 ms), from the background thread. Returns at once."""
        self._waiting.append(Event.model_construct(id=0, kind=kind, job_id=job_id, run_id=run_id, data=data, created_at=now()))
        if self._writer is None:
            with self._writing:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write_in_batches, name="events", daemon=True)
                    self._writer.start()
        self._wake.set()

    def flush_events(self) -> None:
        """Write everything that was emitted so far.

        Raises:
            StoreError: the database refuses; the events are kept for the next try.
        """
        with self._writing:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            try:
                self.add_events(batch)
            except StoreError:
                self._waiting.extendleft(reversed(batch))
                raise

    def events_after(self, after: int, *, job_id: str | None = None, run_id: str | None = None, limit: int = 1000) -> list[Event]:
        """Events with an id above `after`, in order; of one job or one run when asked."""
        e = t.events.c
        query = sa.select(e.id, e.kind, e.job_id, e.run_id, e.data, e.created_us).where(e.id > after).order_by(e.id).limit(limit)
        if job_id is not None:
            query = query.where(e.job_id == job_id)
        if run_id is not None:
            query = query.where(e.run_id == run_id)
        with self.db.read() as c:
            return [
                Event.model_construct(id=i, kind=kind, job_id=job, run_id=run, data=data, created_at=t.from_us(us))
                for i, kind, job, run, data, us in c.execute(query)
            ]

    def last_event_id(self) -> int:
        """Id of the newest event, 0 when there is none: where a live page starts to tail."""
        with self.db.read() as c:
            return int(c.execute(sa.select(sa.func.coalesce(sa.func.max(t.events.c.id), 0))).scalar_one())

    def count_events(self, before: datetime) -> int:
        """How many events are older."""
        with self.db.read() as c:
            return int(c.execute(sa.select(sa.func.count()).where(t.events.c.created_us < t.to_us(before))).scalar_one())

    def forget_events(self, before: datetime) -> int:
        """Remove older events, a few thousand per transaction so that writers get their turn; how many there were."""
        old = sa.select(t.events.c.id).where(t.events.c.created_us < t.to_us(before)).limit(_FORGET)
        total = 0
        while True:
            with self.db.write() as c:
                n = c.execute(sa.delete(t.events).where(t.events.c.id.in_(old))).rowcount
            total += n
            if n < _FORGET:
                return total

    def _write_in_batches(self) -> None:
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            time.sleep(FLUSH_S)
            try:
                self.flush_events()
            except StoreError as e:
                log.error("event=events_kept waiting=%d error=%s", len(self._waiting), e)
                time.sleep(1.0)
                self._wake.set()

    def _close_events(self) -> None:
        self._closing = True
        self._wake.set()
        self.flush_events()
