"""Runs, their curves, and evaluation reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from gymsmith.errors import NotFound
from gymsmith.rows import tables as t
from gymsmith.rows.database import Database
from gymsmith.rows.pages import Page, newest_first
from gymsmith.schema import EvalReport, Metric, Run, State


class Runs:
    """Part of the Store."""

    db: Database

    def put_run(self, run: Run) -> None:
        """Store or replace a run."""
        insert = self.db.insert(t.runs).values(**_run_row(run))
        with self.db.write() as c:
            c.execute(insert.on_conflict_do_update(index_elements=["id"], set_=_run_row(run)))

    def update_run(self, run_id: str, **fields: Any) -> Run:
        """Change some fields of a run, atomically, and return it.

        Raises:
            NotFound: there is no such run.
            pydantic.ValidationError: a field that a Run does not have, or a value that it refuses.
        """
        with self.db.write() as c:
            query = sa.select(t.runs.c.body).where(t.runs.c.id == run_id)
            body = c.execute(query.with_for_update()).scalar()
            if body is None:
                raise NotFound(f"no run {run_id!r}; `gymsmith run list` shows what there is")
            run = Run.model_validate({**dict(Run.model_validate_json(body)), **fields})
            c.execute(sa.update(t.runs).where(t.runs.c.id == run_id).values(**_run_row(run)))
        return run

    def run(self, run_id: str) -> Run:
        """Get one.

        Raises:
            NotFound: there is none.
        """
        with self.db.read() as c:
            body = c.execute(sa.select(t.runs.c.body).where(t.runs.c.id == run_id)).scalar()
        if body is None:
            raise NotFound(f"no run {run_id!r}; `gymsmith run list` shows what there is")
        return Run.model_validate_json(body)

    def runs(
        self,
        kind: str | None = None,
        *,
        state: State | str | None = None,
        parent: str | None = None,
        cursor: str = "",
        limit: int = 50,
    ) -> Page[Run]:
        """A page of runs, newest first."""
        r = t.runs.c
        where = [
            column == str(value) for column, value in ((r.kind, kind), (r.state, state), (r.parent, parent)) if value is not None
        ]
        return newest_first(self.db, t.runs, [r.body], where, lambda row: Run.model_validate_json(row.body), cursor, limit)

    def put_metrics(self, metrics: Iterable[Metric]) -> None:
        """Store points of curves; the same (run, name, step) again replaces the value, as when a resumed run repeats steps."""
        rows = [{"run_id": m.run_id, "name": m.name, "step": m.step, "value": m.value} for m in metrics]
        if rows:
            insert = self.db.insert(t.metrics)
            with self.db.write() as c:
                c.execute(
                    insert.on_conflict_do_update(
                        index_elements=["run_id", "name", "step"], set_={"value": insert.excluded.value}
                    ),
                    rows,
                )

    def metrics(self, run_id: str, names: Sequence[str] | None = None, after_step: int = -1) -> list[Metric]:
        """Points after a step, sorted by (name, step)."""
        m = t.metrics.c
        query = (
            sa.select(m.run_id, m.step, m.name, m.value).where(m.run_id == run_id, m.step > after_step).order_by(m.name, m.step)
        )
        if names is not None:
            query = query.where(m.name.in_(list(names)))
        with self.db.read() as c:
            # SQLite has no NaN and keeps NULL in its place.
            return [
                Metric.model_construct(run_id=r, step=s, name=n, value=math.nan if v is None else v)
                for r, s, n, v in c.execute(query)
            ]

    def put_report(self, report: EvalReport) -> None:
        """Store or replace an evaluation report."""
        row = {
            "id": report.id,
            "run_id": report.run_id,
            "created_us": t.to_us(report.created_at),
            "body": report.model_dump_json(),
        }
        with self.db.write() as c:
            c.execute(self.db.insert(t.reports).values(**row).on_conflict_do_update(index_elements=["id"], set_=row))

    def report(self, report_id: str) -> EvalReport:
        """Get one.

        Raises:
            NotFound: there is none.
        """
        with self.db.read() as c:
            body = c.execute(sa.select(t.reports.c.body).where(t.reports.c.id == report_id)).scalar()
        if body is None:
            raise NotFound(f"no evaluation report {report_id!r}; the page Evaluations shows what there is")
        return EvalReport.model_validate_json(body)

    def reports(self, run_id: str | None = None, *, cursor: str = "", limit: int = 50) -> Page[EvalReport]:
        """A page of reports, newest first."""
        r = t.reports.c
        where = [] if run_id is None else [r.run_id == run_id]
        return newest_first(
            self.db, t.reports, [r.body], where, lambda row: EvalReport.model_validate_json(row.body), cursor, limit
        )


def _run_row(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "kind": run.kind,
        "state": run.state.value,
        "parent": run.parent,
        "created_us": t.to_us(run.created_at),
        "body": run.model_dump_json(),
    }
