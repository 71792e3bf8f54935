"""`/runs`: training and evaluation runs, their curves, and their events as they happen."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from gymsmith import curves, streams
from gymsmith.endpoints.envelope import Cursor, Envelope, Limit, StoreDep
from gymsmith.schema import Run, State

router = APIRouter(tags=["runs"])


class Curves(BaseModel):
    """Points of each metric, by step."""

    run_id: str
    series: dict[str, list[tuple[int, float | None]]]
    """Name -> (step, value); null where the value is not a finite number."""
    last_step: int
    """Pass it back as `after` to get what came since; -1 when there is no point."""


@router.get("/runs", operation_id="listRuns")
def list_runs(
    store: StoreDep,
    kind: str | None = None,
    state: State | None = None,
    parent: str | None = None,
    cursor: Cursor = "",
    limit: Limit = 50,
) -> Envelope[Run]:
    """Runs, newest first."""
    page = store.runs(kind, state=state, parent=parent, cursor=cursor, limit=limit)
    return Envelope.of(page.items, page.cursor, store.run_total(kind, state=state, parent=parent))


@router.get("/runs/{run_id}", operation_id="getRun")
def get_run(run_id: str, store: StoreDep) -> Run:
    """One run."""
    return store.run(run_id)


@router.get("/runs/{run_id}/metrics", operation_id="getRunMetrics")
def get_metrics(
    run_id: str,
    store: StoreDep,
    name: Annotated[list[str] | None, Query(description="Only these; repeatable.")] = None,
    after: Annotated[int, Query(ge=-1, description="Only points of later steps.")] = -1,
    points: Annotated[
        int, Query(ge=0, le=100_000, description="Thin each curve to about so many points, keeping its shape; 0 keeps all.")
    ] = 1000,
) -> Curves:
    """Curves of a run."""
    store.run(run_id)
    series = curves.by_name(store.metrics(run_id, name, after))
    last = max((s[-1][0] for s in series.values()), default=after)
    thinned = {n: curves.finite(curves.thin(s, points)) for n, s in series.items()}
    return Curves(run_id=run_id, series=thinned, last_step=last)


@router.get("/runs/{run_id}/events", operation_id="followRun", response_class=Response)
async def follow_run(
    request: Request,
    run_id: str,
    store: StoreDep,
    after: Annotated[int | None, Query(ge=0)] = None,
    step: Annotated[int, Query(ge=-1, description="Points up to this step are known already.")] = -1,
) -> Response:
    """Server-sent events of one run: its own, its jobs', and `metrics` with new points. Resumes after `Last-Event-ID`."""
    await run_in_threadpool(store.run, run_id)
    return await streams.respond(request, after=after, run_id=run_id, step=step)
