"""`/runs`: the list, and one run with its curves, lineage, checkpoints, evaluations and jobs."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gymsmith import render
from gymsmith.config import Settings
from gymsmith.endpoints.envelope import SettingsDep, StoreDep
from gymsmith.errors import NotFound
from gymsmith.schema import Run, State
from gymsmith.store import Store
from gymsmith.views.overview import run_line

router = APIRouter()
PER_PAGE = 30
ANCESTORS = 12
_CHECKPOINT = re.compile(r"(?:^|/)runs/([^/]+)/checkpoints/")


class Checkpoint(NamedTuple):
    """A folder of weights on disk."""

    name: str
    size: int
    at: datetime


class Phase(NamedTuple):
    """A phase of a demo: how long it took and what it left behind."""

    name: str
    seconds: float | None
    budget_s: float | None
    run_id: str
    reports: dict[str, str]
    """Label of a measurement -> report id."""


@router.get("/runs")
def listing(
    request: Request,
    store: StoreDep,
    kind: str = "",
    state: State | None = None,
    cursor: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """All runs, newest first."""
    last_event = store.last_event_id()
    filters = {"kind": kind or None, "state": state}
    found = store.runs(**filters, cursor=cursor, limit=PER_PAGE)  # type: ignore[arg-type]
    chosen = f"kind={kind}&" * bool(kind) + f"state={state.value if state else ''}&" * bool(state)
    return render.page(
        request,
        "runs.html",
        "/runs",
        last_event=last_event,
        lines=[run_line(store, run) for run in found.items],
        total=store.run_total(**filters),  # type: ignore[arg-type]
        kind=kind,
        state=state.value if state else "",
        next=f"/runs?{chosen}cursor={found.cursor}" if found.cursor else "",
        first=f"/runs?{chosen}" if cursor else "",
    )


@router.get("/runs/{run_id}")
def detail(request: Request, run_id: str, store: StoreDep, settings: SettingsDep) -> Response:
    """One run."""
    last_event = store.last_event_id()
    run = store.run(run_id)
    return render.page(
        request,
        "run.html",
        "/runs",
        run=run,
        last_event=last_event,
        phases=_phases(run),
        promises=_promises(settings, run),
        summary={k: v for k, v in run.summary.items() if k != "phases"},
        config=json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False),
        ancestors=_ancestors(store, run),
        children=store.runs(parent=run_id, limit=50).items,
        checkpoints=_checkpoints(settings, run_id),
        reports=store.reports(run_id, limit=20).items,
        jobs=store.jobs(run_id=run_id, top_level=True, limit=10).items,
        outcomes=store.trajectory_outcomes(run_id=run_id),
        has_metrics=bool(store.metrics(run_id, after_step=-1)),
    )


def _ancestors(store: Store, run: Run) -> list[Run]:
    """Oldest first: where the weights came from, and at the end of that line what owns it."""
    line: list[Run] = []
    seen = {run.id}
    while (before := _before(run)) and before not in seen and len(line) < ANCESTORS:
        try:
            run = store.run(before)
        except NotFound:
            break
        seen.add(run.id)
        line.insert(0, run)
    return line


def _before(run: Run) -> str:
    """The run whose checkpoint this one started from, else its parent; empty for a first one."""
    started = _CHECKPOINT.search(str(run.config.get("start") or ""))
    return started.group(1) if started else run.parent


def _phases(run: Run) -> list[Phase]:
    """In the order in which they began; empty for a run that is no demo."""
    phases = run.summary.get("phases")
    budgets = (run.config.get("plan") or {}).get("budget_s") or {}
    out = []
    for name, found in phases.items() if isinstance(phases, dict) else ():
        evaluated = {k: v for k, v in found.items() if isinstance(v, str)} if name in ("before", "after") else {}
        out.append(Phase(name, found.get("seconds"), budgets.get(name), str(found.get("run") or ""), evaluated))
    return out


def _promises(settings: Settings, run: Run) -> list[dict[str, Any]]:
    """What a finished demo promised and measured, out of its report; empty before."""
    try:
        document = json.loads((settings.runs_dir / Path(run.id).name / "report.json").read_text(encoding="utf-8"))
        return [p for p in document["promises"] if {"text", "value", "relation", "bound", "kept"} <= set(p)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _checkpoints(settings: Settings, run_id: str) -> list[Checkpoint]:
    """Newest first."""
    root = settings.runs_dir / Path(run_id).name / "checkpoints"
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            size = sum(f.stat().st_size for f in path.iterdir() if f.is_file())
            found.append(Checkpoint(path.name, size, datetime.fromtimestamp(path.stat().st_mtime, UTC)))
    return sorted(found, key=lambda c: c.at, reverse=True)
