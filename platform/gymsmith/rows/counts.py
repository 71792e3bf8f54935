"""How many: totals beside a page, facets beside a search, tiles of the overview.

A total is counted up to a cap and then says so: counting a million rows for a page that shows fifty is waste. Facets of a
search leave out their own filter, so that the other choices stay visible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from gymsmith.difficulty import Difficulty, difficulty
from gymsmith.rows import tables as t
from gymsmith.rows.database import Database
from gymsmith.rows.environments import _filters
from gymsmith.rows.trajectories import EVERY, TrajectoryFilter
from gymsmith.schema import State, Status, Word

CAP = 10_000
FACET_VALUES = 24
"""A label with more values than this (a seed, a file) is no facet."""


class Total(Word):
    """A number of rows, or at least so many when `capped`."""

    n: int
    capped: bool = False


class Outcomes(Word):
    """Trajectories by how they ended."""

    total: int
    passed: int
    failed: int
    lost: int
    """Attempts lost to an error of ours."""


class Counts:
    """Part of the Store."""

    db: Database

    def environment_total(
        self,
        *,
        kind: str | None = None,
        status: Status | str | None = None,
        labels: Mapping[str, str] | None = None,
        text: str = "",
    ) -> Total:
        """How many environments a search finds."""
        return self._total(t.environments, self._search(kind, status, labels, text))

    def environment_facets(
        self,
        *,
        kind: str | None = None,
        status: Status | str | None = None,
        labels: Mapping[str, str] | None = None,
        text: str = "",
    ) -> dict[str, dict[str, int]]:
        """Facet name -> value -> how many: `status`, `kind`, then every label key with few values."""
        e, label = t.environments.c, t.environment_labels.c
        labels = dict(labels or {})
        facets: dict[str, dict[str, int]] = {}
        with self.db.read() as c:
            for name, column, where in (
                ("status", e.status, self._search(kind, None, labels, text)),
                ("kind", e.kind, self._search(None, status, labels, text)),
            ):
                query = sa.select(column, sa.func.count()).where(*where).group_by(column).order_by(sa.func.count().desc(), column)
                facets[name] = {value: n for value, n in c.execute(query)}
            keys = c.execute(_FACETS).scalars().all()
            facets |= {key: {} for key in keys}
            # One query for all labels without a choice of their own, one more for each that has one.
            free = [key for key in keys if key not in labels]
            chosen = [([key], {k: v for k, v in labels.items() if k != key}) for key in keys if key in labels]
            for some, others in [(free, labels), *chosen]:
                where = self._search(kind, status, others, text)
                query = sa.select(label.key, label.value, sa.func.count()).where(label.key.in_(some))
                if where:
                    query = query.where(label.environment_id.in_(sa.select(e.id).where(*where)))
                for key, value, n in c.execute(query.group_by(label.key, label.value).order_by(label.key, label.value)):
                    facets[key][value] = n
        return facets

    def trajectory_outcomes(self, *, run_id: str | None = None, environment_id: str | None = None) -> Outcomes:
        """Passed means a reward of 1 or more; anything graded below that failed."""
        r = t.trajectories.c
        where = [
            column == value for column, value in ((r.run_id, run_id), (r.environment_id, environment_id)) if value is not None
        ]
        passed = sa.func.coalesce(sa.func.sum(sa.case((r.reward >= 1, 1), else_=0)), 0)
        failed = sa.func.coalesce(sa.func.sum(sa.case((r.reward < 1, 1), else_=0)), 0)
        lost = sa.func.coalesce(sa.func.sum(sa.case((r.error != "", 1), else_=0)), 0)
        with self.db.read() as c:
            total, p, f, gone = c.execute(sa.select(sa.func.count(), passed, failed, lost).where(*where)).one()
        return Outcomes(total=total, passed=p, failed=f, lost=gone)

    def difficulties(self, environment_ids: Sequence[str]) -> dict[str, Difficulty]:
        """How hard each of these environments was for the policies that tried it; scripted attempts are no policy's."""
        r = t.trajectories.c
        passed = sa.func.sum(sa.case((r.reward >= 1, 1), else_=0))
        query = (
            sa.select(r.environment_id, r.policy_version, sa.func.count(), passed)
            .where(r.environment_id.in_(list(environment_ids)), r.reward.is_not(None), r.error == "", r.policy_version != "")
            .group_by(r.environment_id, r.policy_version)
        )
        attempts: dict[str, list[tuple[str, int, int]]] = {each: [] for each in environment_ids}
        with self.db.read() as c:
            for environment_id, policy, n, good in c.execute(query):
                attempts[environment_id].append((policy, int(n), int(good)))
        return {each: difficulty(each, rows) for each, rows in attempts.items()}

    def environment_states(self) -> dict[str, int]:
        """Status -> how many environments."""
        return self._states(t.environments.c.status)

    def run_states(self) -> dict[str, int]:
        """State -> how many runs."""
        return self._states(t.runs.c.state)

    def job_states(self) -> dict[str, int]:
        """State -> how many jobs."""
        return self._states(t.jobs.c.state)

    def run_total(self, kind: str | None = None, *, state: State | str | None = None, parent: str | None = None) -> Total:
        """How many runs a list of `Store.runs` has."""
        r = t.runs.c
        return self._total(t.runs, _equal((r.kind, kind), (r.state, state), (r.parent, parent)))

    def job_total(
        self,
        *,
        kind: str | None = None,
        state: State | str | None = None,
        parent: str | None = None,
        run_id: str | None = None,
        top_level: bool = False,
    ) -> Total:
        """How many jobs a list of `Store.jobs` has."""
        j = t.jobs.c
        where = _equal((j.kind, kind), (j.state, state), (j.parent, parent), (j.run_id, run_id))
        return self._total(t.jobs, [*where, j.parent == ""] if top_level else where)

    def trajectory_total(self, wanted: TrajectoryFilter = EVERY) -> Total:
        """How many rows a list of `Store.trajectory_rows` has."""
        return self._total(t.trajectories, wanted.where())

    def report_total(self, run_id: str | None = None) -> Total:
        """How many evaluation reports."""
        return self._total(t.reports, [] if run_id is None else [t.reports.c.run_id == run_id])

    def _states(self, column: sa.Column[Any]) -> dict[str, int]:
        with self.db.read() as c:
            return {state: n for state, n in c.execute(sa.select(column, sa.func.count()).group_by(column))}

    def _search(self, kind: str | None, status: Status | str | None, labels: Mapping[str, str] | None, text: str) -> list[Any]:
        where = _filters(kind, status, labels)
        if words := re.findall(r"\w+", text):
            # Beyond the cap more matches change no decision, and a common prefix matches nearly everything.
            where.append(t.environments.c.id.in_(self._matching(words).limit(CAP + 1)))  # type: ignore[attr-defined]
        return where

    def _total(self, table: sa.Table, where: list[Any]) -> Total:
        some = sa.select(sa.literal(1)).select_from(table).where(*where).limit(CAP + 1).subquery()
        with self.db.read() as c:
            n = int(c.execute(sa.select(sa.func.count()).select_from(some)).scalar_one())
        return Total(n=min(n, CAP), capped=n > CAP)


def _equal(*pairs: tuple[Any, Any]) -> list[Any]:
    return [column == str(value) for column, value in pairs if value is not None]


_L = t.environment_labels.c
_FACETS = sa.select(_L.key).group_by(_L.key).having(sa.func.count(_L.value.distinct()) <= FACET_VALUES).order_by(_L.key)
"""Label keys with few values."""
