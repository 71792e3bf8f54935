"""Server-sent events out of the events table.

One task per process tails the table by id and wakes the streams; a stream that starts late or was cut off reads what it
missed from the table, so nothing is lost or sent twice. New points of a run's curves travel in the same stream. Nobody
watching, nothing polled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from gymsmith.errors import InfrastructureError, UserError
from gymsmith.rows.jobs import ENDED
from gymsmith.schema import Metric, State
from gymsmith.store import Event, Store

TICK_S = 0.15
METRICS_S = 0.5
HEARTBEAT_S = 15.0
KEPT = 4000
"""Newest events held in memory for the streams that keep up."""
BATCH = 500
ALL = "*"
"""In a resume id: the step up to which every curve is known that has no entry of its own."""
LATE_STEPS = 64
"""A point may be written this many steps after a later one and is still sent."""


class Tail:
    """The newest events of the store, shared by every stream of this process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._from = 0
        self._last = 0
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._starting = asyncio.Lock()
        self._reads: dict[tuple[str, int], tuple[float, asyncio.Task[list[Metric]]]] = {}

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Keep the tail running while a stream is open."""
        self._watchers += 1
        try:
            async with self._starting:
                if self._task is None:
                    self._last = self._from = await run_in_threadpool(self.store.last_event_id)
                    self._kept.clear()
                    self._task = asyncio.create_task(self._run(), name="events tail")
            yield
        finally:
            self._watchers -= 1
            if self._watchers == 0 and self._task is not None:
                self._task.cancel()
                self._task = None

    async def since(self, after: int, job_id: str | None, run_id: str | None) -> tuple[list[Event], int]:
        """Events above `after`, from memory where it reaches back far enough, and the id up to which none is left out."""
        upto = self._last
        if after >= self._from:
            newer = [e for e in self._kept if e.id > after] if after < upto else []
            return [e for e in newer if job_id in (None, e.job_id) and run_id in (None, e.run_id)], max(after, upto)
        events = await run_in_threadpool(self.store.events_after, after, job_id=job_id, run_id=run_id, limit=BATCH)
        return events, events[-1].id if len(events) == BATCH else max(after, upto, events[-1].id if events else 0)

    async def points(self, run_id: str, after_step: int) -> list[Metric]:
        """Points of a run after a step. Streams that stand at the same step share one read of the table."""
        now = time.monotonic()
        self._reads = {key: read for key, read in self._reads.items() if now - read[0] < METRICS_S * 0.9}
        key = (run_id, after_step)
        if key not in self._reads:
            read = run_in_threadpool(self.store.metrics, run_id, after_step=after_step)
            self._reads[key] = (now, asyncio.create_task(read))
        return await asyncio.shield(self._reads[key][1])

    async def changed(self, within_s: float) -> None:
        """Wait for news, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), within_s)

    async def _run(self) -> None:
        while True:
            try:
                news = await run_in_threadpool(self.store.events_after, self._last, limit=BATCH)
            except InfrastructureError:
                news = []  # the store says so in the log; the streams stay open until it is back
            if news:
                dropped = len(self._kept) + len(news) - KEPT
                if dropped > 0:
                    self._from = [*self._kept, *news][dropped - 1].id
                self._kept.extend(news)
                self._last = news[-1].id
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(TICK_S)


async def respond(
    request: Request, *, after: int | None, job_id: str | None = None, run_id: str | None = None, step: int = -1
) -> Response:
    """A stream for who accepts one, else the events after `after` as JSON. Points up to `step` are known to the client.

    Raises:
        UserError: a Last-Event-ID that this server did not send.
    """
    store: Store = request.app.state.store
    if "text/event-stream" not in request.headers.get("accept", ""):
        events = await run_in_threadpool(store.events_after, after or 0, job_id=job_id, run_id=run_id, limit=BATCH)
        items = [e.model_dump(mode="json") for e in events]
        return JSONResponse({"items": items, "next_cursor": str(events[-1].id) if len(events) == BATCH else None})
    last, steps = _resume(request.headers.get("last-event-id", ""))
    if last is None:
        # A stream of one thing starts at its beginning, the stream of everything now.
        last = after if after is not None else 0 if job_id or run_id else await run_in_threadpool(store.last_event_id)
    stream = _stream(store, request.app.state.tail, last, steps or {ALL: step}, job_id, run_id)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _stream(
    store: Store, tail: Tail, last: int, steps: dict[str, int], job_id: str | None, run_id: str | None
) -> AsyncIterator[str]:
    spoke = looked = time.monotonic()
    known = steps
    shown: tuple[State, int] | None = None
    yield "retry: 1000\n\n"
    async with tail.watching():
        while True:
            events, last = await tail.since(last, job_id, run_id)
            for event in events:
                body = {"job_id": event.job_id, "run_id": event.run_id, "at": event.created_at.isoformat(), **event.data}
                yield _message(event.kind, body, event.id, known)
                spoke = time.monotonic()
            if len(events) == BATCH:
                continue
            if run_id and time.monotonic() - looked >= METRICS_S:
                looked = time.monotonic()
                found = await tail.points(run_id, max(-1, max(known.values()) - LATE_STEPS))
                if points := _new_points(found, known):
                    yield _message("metrics", {"run_id": run_id, "points": points}, last, known)
                    spoke = looked
            if job_id and not events:
                job = await run_in_threadpool(store.job, job_id)
                if job.state.value in ENDED:
                    yield _message("end", job.model_dump(mode="json"), last, known)
                    return
                if (job.state, job.attempt) != shown:
                    # The events of several processes may come in another order than they happened; the row is the truth.
                    shown = (job.state, job.attempt)
                    yield _message("job.state", {"job_id": job.id, "state": job.state.value, "attempt": job.attempt}, last, known)
            if time.monotonic() - spoke >= HEARTBEAT_S:
                yield ": still here\n\n"
                spoke = time.monotonic()
            await tail.changed(METRICS_S)


def _new_points(found: list[Metric], known: dict[str, int]) -> list[tuple[str, int, float | None]]:
    """Points not sent yet; `known` (name -> last step sent, ALL for names not in it) is brought up to date."""
    points = []
    for m in found:
        if m.step > known.get(m.name, known[ALL]):
            points.append((m.name, m.step, m.value if math.isfinite(m.value) else None))
            known[m.name] = m.step
    return points


def _message(kind: str, body: dict[str, Any], last: int, known: dict[str, int]) -> str:
    ident = f"{last};{urlencode(known)}"
    return f"id: {ident}\nevent: {kind}\ndata: {json.dumps(body, separators=(',', ':'), default=str)}\n\n"


def _resume(ident: str) -> tuple[int | None, dict[str, int] | None]:
    if not ident:
        return None, None
    number, _, known = ident.partition(";")
    try:
        return int(number), {ALL: -1} | {name: int(step) for name, step in parse_qsl(known, strict_parsing=bool(known))}
    except ValueError as e:
        raise UserError(
            f"Last-Event-ID {ident[:80]!r} is not one that this server sent; leave the header out to start anew"
        ) from e
