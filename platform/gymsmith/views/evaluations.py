"""`/evaluations`: the list, and one report beside the one it should be compared with."""

from __future__ import annotations

import json
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from gymsmith import render
from gymsmith.endpoints.envelope import StoreDep
from gymsmith.errors import NotFound
from gymsmith.schema import EvalReport, Run, Score
from gymsmith.store import Store

router = APIRouter()
PER_PAGE = 30
CANDIDATES = 100


class Line(NamedTuple):
    """One group of the report."""

    name: str
    before: Score | None
    after: Score

    @property
    def gain(self) -> float | None:
        """Points gained, of 100."""
        return None if self.before is None else 100 * (self.after.rate - self.before.rate)

    @property
    def disjoint(self) -> bool:
        """The two intervals do not touch."""
        return self.before is not None and (self.after.low > self.before.high or self.after.high < self.before.low)


@router.get("/evaluations")
def listing(request: Request, store: StoreDep, run_id: str = "", cursor: Annotated[str, Query(max_length=400)] = "") -> Response:
    """All reports, newest first."""
    found = store.reports(run_id or None, cursor=cursor, limit=PER_PAGE)
    base = f"/evaluations?run_id={run_id}&" if run_id else "/evaluations?"
    return render.page(
        request,
        "evaluations.html",
        "/evaluations",
        reports=found.items,
        total=store.report_total(run_id or None),
        run_id=run_id,
        next=f"{base}cursor={found.cursor}" if found.cursor else "",
        first=base if cursor else "",
    )


@router.get("/evaluations/{report_id}")
def detail(request: Request, report_id: str, store: StoreDep, against: str | None = None) -> Response:
    """One report. `against` names the one to compare with; empty for none, left out for the most likely one."""
    report = store.report(report_id)
    candidates = [r for r in store.reports(limit=CANDIDATES).items if r.id != report_id]
    other = _likely(report, candidates) if against is None else store.report(against) if against else None
    if other and other not in candidates:
        candidates.append(other)
    before = other.groups if other else {}
    lines = [Line(name, before.get(name), score) for name, score in sorted(report.groups.items())]
    return render.page(
        request,
        "evaluation.html",
        "/evaluations",
        r=report,
        run=_run(store, report.run_id),
        other=other,
        overall=Line("All", other.overall if other else None, report.overall),
        lines=lines,
        candidates=candidates,
        config=json.dumps(report.config, indent=2, sort_keys=True, ensure_ascii=False),
    )


def _run(store: Store, run_id: str) -> Run | None:
    try:
        return store.run(run_id)
    except NotFound:
        return None


def _likely(report: EvalReport, candidates: list[EvalReport]) -> EvalReport | None:
    """The newest earlier report of the same mode over the same groups, by another policy."""

    def fits(r: EvalReport) -> bool:
        return (
            r.created_at < report.created_at
            and (r.mode, r.seed) == (report.mode, report.seed)
            and r.policy_version != report.policy_version
            and set(r.groups) == set(report.groups)
        )

    return next((r for r in candidates if fits(r)), None)
