"""`/jobs`: what was asked, how far it is, why it failed; cancel, wait, follow."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from gymsmith import streams
from gymsmith.endpoints.envelope import Cursor, Envelope, Limit, StoreDep
from gymsmith.rows.jobs import ENDED
from gymsmith.schema import Job, State

router = APIRouter(tags=["jobs"])
_LOOK_S = 0.1


@router.get("/jobs", operation_id="listJobs")
def list_jobs(
    store: StoreDep,
    kind: str | None = None,
    state: State | None = None,
    parent: str | None = None,
    run_id: str | None = None,
    top_level: Annotated[bool, Query(description="Leave out jobs that another job made.")] = False,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> Envelope[Job]:
    """Jobs, newest first."""
    filters = {"kind": kind, "state": state, "parent": parent, "run_id": run_id, "top_level": top_level}
    page = store.jobs(**filters, cursor=cursor, limit=limit)  # type: ignore[arg-type]
    return Envelope.of(page.items, page.cursor, store.job_total(**filters))  # type: ignore[arg-type]


@router.get("/jobs/{job_id}", operation_id="getJob")
async def get_job(
    job_id: str,
    request: Request,
    store: StoreDep,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the job to end before answering.")] = 0,
) -> Job:
    """One job; with `wait`, the answer comes when it ended or the time is over."""
    until = time.monotonic() + wait
    while True:
        job = await run_in_threadpool(store.job, job_id)
        if job.state.value in ENDED or time.monotonic() >= until or await request.is_disconnected():
            return job
        await asyncio.sleep(_LOOK_S)


@router.post("/jobs/{job_id}:cancel", operation_id="cancelJob", status_code=202)
def cancel_job(job_id: str, store: StoreDep) -> Job:
    """Ask a job and all that it made to stop; doing so twice is harmless."""
    return store.cancel(job_id)


@router.get("/jobs/{job_id}/events", operation_id="followJob", response_class=Response)
async def follow_job(
    job_id: str, request: Request, store: StoreDep, after: Annotated[int | None, Query(ge=0)] = None
) -> Response:
    """Server-sent events of one job until it ends; resumes after `Last-Event-ID`.

    Without `Accept: text/event-stream` the same as a JSON list.
    """
    await run_in_threadpool(store.job, job_id)
    return await streams.respond(request, after=after, job_id=job_id)


@router.get("/events", operation_id="followEvents", response_class=Response)
async def follow_all(request: Request, after: Annotated[int | None, Query(ge=0)] = None) -> Response:
    """Every event of every job and run, from now on or after an id: one stream for a page that shows many things."""
    return await streams.respond(request, after=after)
