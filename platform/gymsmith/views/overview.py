"""`/`: counts, the latest runs and evaluations, what is in flight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from gymsmith import curves, render
from gymsmith.endpoints.envelope import StoreDep
from gymsmith.schema import Run, State
from gymsmith.store import Store

router = APIRouter()
LATEST = 8
SPARK_POINTS = 60
_TELLING = ("reward", "reward_mean", "pass_rate", "reward/mean", "val_loss", "loss", "train_loss")
"""Which curve stands for a run: the first of these that it has."""


class RunLine(NamedTuple):
    """A run with one small curve, scaled to 0..100 with y downwards."""

    run: Run
    metric: str
    points: list[tuple[float, float]]
    last: float | None


@router.get("/")
def overview(request: Request, store: StoreDep) -> Response:
    """The first page."""
    # Before anything else is read, so that what happens meanwhile is told again and not missed.
    last_event = store.last_event_id()
    environments, runs, jobs = store.environment_states(), store.run_states(), store.job_states()
    running = store.jobs(state=State.RUNNING, top_level=True, limit=10).items
    queued = store.jobs(state=State.QUEUED, top_level=True, limit=10).items
    return render.page(
        request,
        "overview.html",
        "/",
        environments=_counts(environments, "verified", "unproven", "rejected"),
        trajectories=store.trajectory_outcomes(),
        run_counts=_counts(runs, "succeeded", "running", "failed"),
        job_counts=_counts(jobs, "succeeded", "running", "queued", "failed", "cancelled"),
        runs=[run_line(store, run) for run in _telling_runs(store)],
        reports=store.reports(limit=LATEST).items,
        jobs_in_flight=(running + queued)[:10],
        last_event=last_event,
    )


def _telling_runs(store: Store) -> list[Run]:
    """The newest, without those that only serve weights to others."""
    return [run for run in store.runs(limit=4 * LATEST).items if run.kind != "serve"][:LATEST]


def run_line(store: Store, run: Run) -> RunLine:
    """The run with its most telling curve."""
    series = curves.by_name(store.metrics(run.id, names=_TELLING))
    metric = next((name for name in _TELLING if name in series), "")
    points = [(s, v) for s, v in curves.finite(curves.thin(series.get(metric, []), SPARK_POINTS)) if v is not None]
    if not points:
        return RunLine(run, metric, [], None)
    low, high = min(v for _, v in points), max(v for _, v in points)
    first, last = points[0][0], points[-1][0]
    scaled = [(100 * (s - first) / max(1, last - first), 96 - 92 * (v - low) / ((high - low) or 1)) for s, v in points]
    return RunLine(run, metric, scaled, points[-1][1])


def _counts(counts: Mapping[str, int], *names: str) -> dict[str, Any]:
    named = {name: counts.get(name, 0) for name in names}
    total = sum(counts.values())
    return {**named, "total": total, "other": total - sum(named.values())}
