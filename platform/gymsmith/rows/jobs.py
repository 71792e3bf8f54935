"""Jobs: the truth about what was asked, who works on it and how it ended. Messages only carry ids.

    queued --claim--> running --finish--> succeeded
      ^  ^               | \\--fail------> failed
      |  \\--fail(retry)--+  \\--(cancel)--> cancelled
      \\-----lapsed / release

`attempt` is the fencing token: claim raises it, and every later write of a worker names the attempt it claimed. A write with a
stale one changes nothing and raises Fenced. Each write is one UPDATE that checks and changes at once, so no race is left between
the two. Every change of state is also an event, written soon after the row: a live page reads the row again when one comes, so
events of several processes may stand in another order than they happened.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gymsmith.config import Settings
from gymsmith.errors import Conflict, Fenced, NotFound
from gymsmith.rows import job_statements as q
from gymsmith.rows import tables as t
from gymsmith.rows.database import Database
from gymsmith.rows.events import Events
from gymsmith.rows.pages import Page, newest_first
from gymsmith.schema import Job, State, now

ENDED = (State.SUCCEEDED.value, State.FAILED.value, State.CANCELLED.value)
_J = t.jobs.c
_MAX_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a heartbeat found out: attempts that lost their job, and attempts that were asked to stop."""

    lost: frozenset[str]
    cancelled: frozenset[str]


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """State of one queue for the health page."""

    queue: str
    queued: int
    running: int
    oldest_s: float
    """Age of the oldest queued job, seconds."""


class Jobs(Events):
    """Part of the Store."""

    db: Database
    settings: Settings

    def put_job(self, job: Job) -> tuple[Job, bool]:
        """Store a job and say whether it is new; with a key that exists, the job that has it is returned instead.

        Raises:
            Conflict: the key exists with another kind or payload.
        """
        return self.put_jobs([job])[0]

    def put_jobs(self, jobs: Sequence[Job]) -> list[tuple[Job, bool]]:
        """Store many jobs in one transaction: all of them or, on Conflict, none."""
        out = []
        with self.db.write() as c:
            for job in jobs:
                row = c.execute(q.PUT[self.db.sqlite], q.job_row(job, self.settings.lease_s)).first()
                if row is not None:
                    out.append((job, True))
                    continue
                match = (_J.key == job.key) if job.key else (_J.id == job.id)
                old = q.hand_out(c.execute(sa.select(*q.COLUMNS).where(match)).one())
                if (old.kind, _canonical(old.payload)) != (job.kind, _canonical(job.payload)):
                    raise Conflict(
                        f"the key {job.key or job.id!r} already names the {old.kind} job {old.id} with another payload; "
                        "use a new key for a new job"
                    )
                out.append((old, False))
        for job, new in out:
            if new:
                self._changed(job.id, job.run_id, job.state, job.attempt)
        return out

    def job(self, job_id: str) -> Job:
        """Get one.

        Raises:
            NotFound: there is none.
        """
        with self.db.read() as c:
            row = c.execute(sa.select(*q.COLUMNS).where(_J.id == job_id)).first()
        if row is None:
            raise NotFound(f"no job {job_id!r}; the page Jobs lists what there is")
        return q.hand_out(row)

    def jobs(
        self,
        *,
        kind: str | None = None,
        queue: str | None = None,
        state: State | str | None = None,
        parent: str | None = None,
        run_id: str | None = None,
        top_level: bool = False,
        cursor: str = "",
        limit: int = 50,
    ) -> Page[Job]:
        """A page of jobs, newest first. `top_level` leaves out those that another job made."""
        equal = ((_J.kind, kind), (_J.queue, queue), (_J.state, state), (_J.parent, parent), (_J.run_id, run_id))
        where = [column == str(value) for column, value in equal if value is not None]
        if top_level:
            where.append(_J.parent == "")
        return newest_first(self.db, t.jobs, q.COLUMNS, where, q.hand_out, cursor, limit)

    def claim(self, job_id: str, owner: str, lease_s: float | None = None) -> Job | None:
        """Take a queued job, or one whose lease lapsed; None when somebody else has it, it ended or it was cancelled."""
        now_us = t.to_us(now())
        with self.db.write() as c:
            row = c.execute(q.CLAIM, {"i": job_id, "o": owner, "now": now_us, "lease": now_us + self._lease_us(lease_s)}).first()
        if row is None:
            return None
        self._changed(row.id, row.run_id, State.RUNNING, row.attempt)
        return q.hand_out(row)

    def heartbeat(self, job_id: str, attempt: int, lease_s: float | None = None) -> bool:
        """Extend one lease; True when the job was asked to stop.

        Raises:
            Fenced: another attempt owns the job.
        """
        pulse = self.heartbeats([(job_id, attempt)], lease_s)
        if pulse.lost:
            raise _fenced(job_id, attempt)
        return bool(pulse.cancelled)

    def heartbeats(self, held: Iterable[tuple[str, int]], lease_s: float | None = None) -> Pulse:
        """Extend the leases of (job id, attempt) pairs in one transaction."""
        lease_us = t.to_us(now()) + self._lease_us(lease_s)
        lost, cancelled = set(), set()
        with self.db.write() as c:
            for job_id, attempt in held:
                cancel = c.execute(q.BEAT, {"i": job_id, "a": attempt, "lease": lease_us}).scalar()
                if cancel is None:
                    lost.add(job_id)
                elif cancel:
                    cancelled.add(job_id)
        return Pulse(frozenset(lost), frozenset(cancelled))

    def set_progress(self, job_id: str, attempt: int, fields: Mapping[str, Any]) -> bool:
        """Merge fields into the job's progress; True when the job was asked to stop.

        Raises:
            Fenced: another attempt owns the job.
        """
        with self.db.write() as c:
            row = hold(c, job_id, attempt)
            c.execute(sa.update(t.jobs).where(_J.id == job_id).values(progress={**row.progress, **fields}))
        return bool(row.cancel)

    def finish(self, job_id: str, attempt: int, result: Mapping[str, Any]) -> None:
        """The job succeeded.

        Raises:
            Fenced: another attempt owns the job; the result is thrown away.
        """
        self._end(job_id, attempt, State.SUCCEEDED, dict(result), "")

    def fail(self, job_id: str, attempt: int, error: str, retry: bool = False, code: str = "") -> State:
        """The attempt failed: with `retry` and attempts left the job is queued again after a pause, else it is failed.

        `code` is that of the error's class; it becomes the result of a failed job, so that whoever waits can tell kinds apart.

        Raises:
            Fenced: another attempt owns the job.
        """
        with self.db.write() as c:
            row = hold(c, job_id, attempt)
            again = retry and attempt < row.max_attempts and not row.cancel
            if again:
                pause_s = min(0.25 * 2**attempt, _MAX_RETRY_S)
                c.execute(sa.update(t.jobs).where(_J.id == job_id).values(error=error, **q.queued(pause_s)))
        if again:
            self._changed(job_id, row.run_id, State.QUEUED, attempt, error=error[:200])
            return State.QUEUED
        self._end(job_id, attempt, State.FAILED, {"code": code} if code else {}, error)
        return State.FAILED

    def release(self, job_id: str, attempt: int) -> None:
        """Give a job back unharmed, because its worker is going away: queued again at once, and the attempt does not count.

        One that was cancelled meanwhile ends instead.

        Raises:
            Fenced: another attempt owns the job.
        """
        with self.db.write() as c:
            row = hold(c, job_id, attempt)
            values = {"max_attempts": _J.max_attempts + 1, **q.queued(0.0)}
            if row.cancel:
                values = {"state": State.CANCELLED.value, "finished_us": t.to_us(now()), "lease_us": None}
            c.execute(sa.update(t.jobs).where(_J.id == job_id).values(**values))
        self._changed(job_id, row.run_id, State.CANCELLED if row.cancel else State.QUEUED, attempt)

    def abandon(self, owner: str) -> int:
        """End the leases of a worker that is known to be dead, so that its jobs go on at once; how many there were."""
        with self.db.write() as c:
            return c.execute(
                sa.update(t.jobs).where(_J.state == State.RUNNING.value, _J.owner == owner).values(lease_us=0)
            ).rowcount

    def revive(self, job_id: str) -> tuple[Job, bool]:
        """Queue a failed or cancelled job again, with as many attempts as a new one; says whether it was in such a state."""
        values = q.queued(self.settings.lease_s) | {"publishes": 1, "cancel": False, "error": "", "finished_us": None}
        ended_badly = _J.state.in_((State.FAILED.value, State.CANCELLED.value))
        attempts = _J.attempt + Job.model_fields["max_attempts"].default
        with self.db.write() as c:
            n = c.execute(sa.update(t.jobs).where(_J.id == job_id, ended_badly).values(max_attempts=attempts, **values)).rowcount
        job = self.job(job_id)
        if n:
            self._changed(job.id, job.run_id, State.QUEUED, job.attempt)
        return job, n == 1

    def to_cancel(self, ids: Sequence[str]) -> list[str]:
        """Those of these running jobs that were asked to stop."""
        with self.db.read() as c:
            return list(c.execute(sa.select(_J.id).where(_J.id.in_(ids), _J.cancel)).scalars())

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and all that it made: queued ones end now, running ones are told by their next heartbeat. Ended ones stay.

        Raises:
            NotFound: there is no such job.
        """
        end = {"state": State.CANCELLED.value, "finished_us": t.to_us(now()), "cancel": True}
        told = (_J.id, _J.run_id, _J.state, _J.attempt)
        changed: list[Any] = []
        with self.db.write() as c:
            wave = [job_id]
            while wave:
                for state, values in ((State.RUNNING, {"cancel": True}), (State.QUEUED, end)):
                    update = sa.update(t.jobs).where(_J.id.in_(wave), _J.state == state.value).values(**values).returning(*told)
                    changed += c.execute(update).all()
                wave = list(
                    c.execute(
                        sa.select(_J.id).where(_J.parent.in_(wave), _J.state.in_(("queued", "running")), ~_J.cancel)
                    ).scalars()
                )
        for row in changed:
            self._changed(row.id, row.run_id, State(row.state), row.attempt, cancel=True)
        return self.job(job_id)

    def cancelled(self, job_id: str, attempt: int) -> None:
        """The attempt stopped because it was asked to.

        Raises:
            Fenced: another attempt owns the job.
        """
        self._end(job_id, attempt, State.CANCELLED, {}, "")

    def lapsed(self) -> list[tuple[str, str]]:
        """(job id, queue) of what must be published again; taking it from here is atomic, so only one reaper gets each.

        Running jobs whose lease ran out go back to queued; without attempts left they fail, and cancelled ones end. Queued jobs
        come when they are due: after a retry's pause, or when no worker claimed them for a while, which doubles each time. A
        queue that moves is not flooded: a job waiting its turn is left alone until a later one of the same queue overtook it.
        """
        now_us = t.to_us(now())
        with self.db.read() as c:
            if not c.execute(q.ANY_LAPSED, {"now": now_us}).first():
                return []
        out = []
        changed: list[tuple[Any, State]] = []
        with self.db.write() as c:
            for row in c.execute(q.LAPSED, {"now": now_us}).all():
                update = sa.update(t.jobs).where(_J.id == row.id)
                state = State.CANCELLED if row.cancel else State.FAILED if row.attempt >= row.max_attempts else State.QUEUED
                changed.append((row, state))
                if state is State.QUEUED:
                    c.execute(update.values(**{**q.queued(0.0), "due_us": now_us}))
                    continue
                error = f"its worker died or fell silent in each of {row.attempt} attempts; see the workers' logs"
                values = {"error": row.error or error} if state is State.FAILED else {}
                c.execute(update.values(state=state.value, finished_us=now_us, lease_us=None, **values))
            overtaken: dict[str, int] = {}
            for due in c.execute(q.DUE, {"now": now_us}).all():
                if due.cancel:
                    ended = {"state": State.CANCELLED.value, "finished_us": now_us, "due_us": None}
                    c.execute(sa.update(t.jobs).where(_J.id == due.id).values(**ended))
                    changed.append((due, State.CANCELLED))
                    continue
                waits_its_turn = False
                if due.publishes:
                    if due.queue not in overtaken:
                        overtaken[due.queue] = self._newest_claimed_us(c, due.queue, now_us)
                    waits_its_turn = overtaken[due.queue] >= 0 and due.created_us >= overtaken[due.queue]
                pause_us = self._lease_us(None) * 2 ** min(due.publishes, 6)
                c.execute(q.POSTPONE, {"i": due.id, "due": now_us + pause_us, "p": due.publishes + (not waits_its_turn)})
                if not waits_its_turn:
                    out.append((due.id, due.queue))
        for row, state in changed:
            self._changed(row.id, row.run_id, state, row.attempt)
        return out

    def due_again(self, ids: Sequence[str], pause_s: float) -> None:
        """No message of these queued jobs got through: they are due for publishing after the pause, as if none had been tried."""
        due_us = t.to_us(now()) + int(pause_s * 1e6)
        with self.db.write() as c:
            for start in range(0, len(ids), q.SWEEP):
                mine = (_J.id.in_(ids[start : start + q.SWEEP]), _J.state == State.QUEUED.value)
                c.execute(sa.update(t.jobs).where(*mine).values(due_us=due_us, publishes=0))

    def states(self, ids: Sequence[str]) -> dict[str, State]:
        """Job id -> state, for ids that exist."""
        out: dict[str, State] = {}
        with self.db.read() as c:
            for start in range(0, len(ids), 500):
                query = sa.select(_J.id, _J.state).where(_J.id.in_(ids[start : start + 500]))
                out.update((i, State(state)) for i, state in c.execute(query))
        return out

    def unfinished(self, ids: Sequence[str]) -> int:
        """How many of these jobs have not ended; cheaper than `states`."""
        n = 0
        with self.db.read() as c:
            for start in range(0, len(ids), 500):
                query = sa.select(sa.func.count()).where(_J.id.in_(ids[start : start + 500]), _J.state.not_in(ENDED))
                n += int(c.execute(query).scalar_one())
        return n

    def jobs_by_id(self, ids: Sequence[str]) -> dict[str, Job]:
        """Job id -> job, for ids that exist."""
        out: dict[str, Job] = {}
        with self.db.read() as c:
            for start in range(0, len(ids), 500):
                out.update(
                    (row.id, q.hand_out(row))
                    for row in c.execute(sa.select(*q.COLUMNS).where(_J.id.in_(ids[start : start + 500])))
                )
        return out

    def queue_depths(self) -> list[QueueDepth]:
        """Queues that have work, for the health page and metrics."""
        counts: Counter[tuple[str, str]] = Counter()
        oldest: dict[str, int] = {}
        query = sa.select(_J.queue, _J.state, sa.func.count(), sa.func.min(_J.created_us)).where(
            _J.state.in_(("queued", "running"))
        )
        with self.db.read() as c:
            for queue, state, n, first in c.execute(query.group_by(_J.queue, _J.state)):
                counts[queue, state] = n
                if state == State.QUEUED.value:
                    oldest[queue] = first
        now_us = t.to_us(now())
        return [
            QueueDepth(q, counts[q, "queued"], counts[q, "running"], (now_us - oldest[q]) / 1e6 if q in oldest else 0.0)
            for q in sorted({queue for queue, _ in counts})
        ]

    def _newest_claimed_us(self, c: Connection, queue: str, now_us: int) -> int:
        """Making time of the newest job of `queue` that some worker has or lately had; -1 when the queue stands still."""
        recent = sa.or_(_J.state == State.RUNNING.value, _J.finished_us > now_us - self._lease_us(None))
        return int(
            c.execute(sa.select(sa.func.coalesce(sa.func.max(_J.created_us), -1)).where(_J.queue == queue, recent)).scalar_one()
        )

    def _end(self, job_id: str, attempt: int, state: State, result: dict[str, Any], error: str) -> None:
        values = {
            "i": job_id,
            "a": attempt,
            "s": state.value,
            "r": result,
            "e": error.replace("\x00", "\ufffd"),
            "now": t.to_us(now()),
        }
        with self.db.write() as c:
            row = c.execute(q.END, values).first()
        if row is None:
            raise _fenced(job_id, attempt)
        self._changed(job_id, row.run_id, state, attempt, seconds=round((values["now"] - row.started_us) / 1e6, 4))

    def _changed(self, job_id: str, run_id: str, state: State, attempt: int, **more: Any) -> None:
        """Tell who watches; after the transaction, or a reader would find the row as it was."""
        self.emit("job.state", job_id=job_id, run_id=run_id, state=state.value, attempt=attempt, **more)

    def _lease_us(self, lease_s: float | None) -> int:
        return int((self.settings.lease_s if lease_s is None else lease_s) * 1e6)


def owner(pid: int) -> str:
    """Name of a worker process of this machine, as written into the rows of its jobs."""
    return f"{socket.gethostname()}:{pid}"


def hold(c: Connection, job_id: str, attempt: int) -> Any:
    """Inside a write transaction: the job's row, which stays this attempt's until the transaction ends.

    Raises:
        Fenced: another attempt owns the job.
    """
    row = c.execute(q.HOLD, {"i": job_id, "a": attempt}).first()
    if row is None:
        raise _fenced(job_id, attempt)
    return row


def _fenced(job_id: str, attempt: int) -> Fenced:
    return Fenced(f"attempt {attempt} of job {job_id} no longer owns it; its work is dropped, the newer attempt's counts")


def _canonical(payload: Any) -> str:
    return json.dumps(payload, sort_keys=True)
