"""Environments and their evidence: put, get, search, count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gymsmith.errors import NotFound, UserError
from gymsmith.rows import tables as t
from gymsmith.rows.database import Database
from gymsmith.rows.pages import Page, newest_first
from gymsmith.schema import Environment, Evidence, Status, digest


class Environments:
    """Part of the Store."""

    db: Database

    def put_environment(self, environment: Environment, evidence: Evidence | None = None) -> None:
        """Store or replace an environment, its labels, its words for search and (when given) its evidence, in one transaction."""
        spec = environment.spec
        row = {
            "id": environment.id,
            "kind": spec.kind,
            "status": environment.status.value,
            "reason": environment.reason,
            "seed": _integer(spec.labels.get("seed", "")),
            "created_us": t.to_us(environment.created_at),
            "body": environment.model_dump_json(),
        }
        labels = [{"key": k, "value": v, "environment_id": environment.id} for k, v in spec.labels.items()]
        words = " ".join(
            (
                spec.name,
                spec.kind,
                spec.description,
                *spec.keywords,
                *spec.labels.values(),
                environment.source.uri,
                environment.instruction,
            )
        )
        with self.db.write() as c:
            insert = self.db.insert(t.environments).values(row)
            # The first time of storing stays: proving again must not move the environment in lists.
            changed = {k: insert.excluded[k] for k in row if k not in ("id", "created_us")}
            c.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed))
            c.execute(sa.delete(t.environment_labels).where(t.environment_labels.c.environment_id == environment.id))
            if labels:
                c.execute(sa.insert(t.environment_labels), labels)
            self._put_words(c, environment.id, words)
            if evidence is not None:
                put = self.db.insert(t.evidence).values(environment_id=evidence.environment_id, body=evidence.model_dump_json())
                c.execute(put.on_conflict_do_update(index_elements=["environment_id"], set_={"body": put.excluded.body}))

    def environment(self, environment_id: str) -> Environment:
        """Get one.

        Raises:
            NotFound: there is none.
        """
        with self.db.read() as c:
            body = c.execute(sa.select(t.environments.c.body).where(t.environments.c.id == environment_id)).scalar()
        if body is None:
            raise NotFound(f"no environment {environment_id!r}; `gymsmith env list` shows what there is")
        return Environment.model_validate_json(body)

    def find_environment(self, start: str) -> Environment:
        """Get the one whose id is `start` or begins with it.

        Raises:
            NotFound: there is none.
            UserError: several ids begin so.
        """
        e = t.environments.c
        with self.db.read() as c:
            ids = list(
                c.execute(sa.select(e.id).where(e.id.startswith(start, autoescape=True)).order_by(e.id).limit(3)).scalars()
            )
        if len(ids) > 1 and start not in ids:
            raise UserError(
                f"expected one environment, several ids begin with {start!r} ({ids[0]}, {ids[1]}, ...); write more of it"
            )
        return self.environment(start if start in ids or not ids else ids[0])

    def evidence(self, environment_id: str) -> Evidence | None:
        """The newest evidence, or None before any gate ran."""
        with self.db.read() as c:
            body = c.execute(sa.select(t.evidence.c.body).where(t.evidence.c.environment_id == environment_id)).scalar()
        return None if body is None else Evidence.model_validate_json(body)

    def environments(
        self,
        *,
        kind: str | None = None,
        status: Status | str | None = None,
        labels: Mapping[str, str] | None = None,
        text: str = "",
        cursor: str = "",
        limit: int = 50,
    ) -> Page[Environment]:
        """A page, newest first. Every word of `text` must begin a word of the environment."""
        where = _filters(kind, status, labels)
        if words := re.findall(r"\w+", text):
            where.append(t.environments.c.id.in_(self._matching(words)))
        return newest_first(
            self.db,
            t.environments,
            [t.environments.c.body],
            where,
            lambda row: Environment.model_validate_json(row.body),
            cursor,
            limit,
        )

    def environment_ids(
        self, kind: str | None = None, status: Status | str | None = Status.VERIFIED, labels: Mapping[str, str] | None = None
    ) -> list[str]:
        """Every matching id, sorted by (label `seed` as a number, id); `status=None` takes all."""
        e = t.environments.c
        with self.db.read() as c:
            return list(c.execute(sa.select(e.id).where(*_filters(kind, status, labels)).order_by(e.seed, e.id)).scalars())

    def reject_counts(self, kind: str | None = None) -> dict[str, int]:
        """Typed reason -> how many stored environments were rejected for it, most frequent first."""
        e = t.environments.c
        query = sa.select(e.reason, sa.func.count()).where(*_filters(kind, Status.REJECTED, None)).group_by(e.reason)
        with self.db.read() as c:
            return {reason: n for reason, n in c.execute(query.order_by(sa.func.count().desc(), e.reason))}

    def _put_words(self, c: Connection, environment_id: str, words: str) -> None:
        row: dict[str, Any] = {"i": environment_id, "words": words}
        if not self.db.sqlite:
            insert = self.db.insert(t.environment_search).values(environment_id=environment_id, body=words)
            c.execute(insert.on_conflict_do_update(index_elements=["environment_id"], set_={"body": insert.excluded.body}))
            return
        # FTS5 finds a row by its number and by nothing else, so the number is made from the id: replacing costs no scan.
        row["n"] = int(digest(environment_id.encode())[:15], 16)
        c.execute(sa.text("DELETE FROM environment_search WHERE rowid = :n"), row)
        c.execute(sa.text("INSERT INTO environment_search (rowid, environment_id, body) VALUES (:n, :i, :words)"), row)

    def _matching(self, words: list[str]) -> Any:
        search = t.environment_search.c
        if self.db.sqlite:
            match = " ".join(f'"{word}"*' for word in words)
            return sa.select(search.environment_id).where(sa.text("environment_search MATCH :words").bindparams(words=match))
        match = " & ".join(f"{word}:*" for word in words)
        return sa.select(search.environment_id).where(
            sa.func.to_tsvector(sa.literal_column("'simple'::regconfig"), search.body).op("@@")(
                sa.func.to_tsquery(sa.literal_column("'simple'::regconfig"), match)
            )
        )


def _filters(kind: str | None, status: Status | str | None, labels: Mapping[str, str] | None) -> list[Any]:
    e, label = t.environments.c, t.environment_labels.c
    where: list[Any] = []
    if kind:
        where.append(e.kind == kind)
    if status:
        where.append(e.status == str(status))
    for key, value in (labels or {}).items():
        where.append(e.id.in_(sa.select(label.environment_id).where(label.key == key, label.value == value)))
    return where


def _integer(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else 0
