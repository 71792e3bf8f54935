"""The tables. SQLAlchemy Core, not the ORM: a job is claimed and finished in well under a millisecond of CPU each.

What is searched or sorted is a column; the rest of a word is its JSON in `body`. Times are integer microseconds since 1970 in
UTC, exact and cheap to compare in both engines. Trajectory bodies are not here (see `chunks`). A change here needs a migration; a
test compares these tables with what the migrations build.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

VERSION = "0001"
"""Newest migration; a test keeps it equal to Alembic's head. A database at this version is opened without importing Alembic."""

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits in both engines; SQLite only makes INTEGER an alias of its row id."""
Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

environments = sa.Table(
    "environments",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("seed", Number, nullable=False),
    sa.Column("created_us", Number, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "created_us", "id"),
    sa.Index(None, "kind", "status", "created_us", "id"),
    sa.Index(None, "status", "created_us", "id"),
)

environment_labels = sa.Table(
    "environment_labels",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, primary_key=True),
    sa.Column("environment_id", sa.Text, sa.ForeignKey("environments.id", ondelete="CASCADE"), primary_key=True),
    sa.Index(None, "environment_id"),
)

evidence = sa.Table(
    "evidence",
    metadata,
    sa.Column("environment_id", sa.Text, sa.ForeignKey("environments.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("parent", sa.Text, nullable=False),
    sa.Column("created_us", Number, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "created_us", "id"),
    sa.Index(None, "parent"),
)

metrics = sa.Table(
    "metrics",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("step", Number, primary_key=True, autoincrement=False),
    sa.Column("value", sa.Double),
    sqlite_with_rowid=False,
)

reports = sa.Table(
    "reports",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("created_us", Number, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Index(None, "run_id", "created_us", "id"),
    sa.Index(None, "created_us", "id"),
)

trajectories = sa.Table(
    "trajectories",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("environment_id", sa.Text, nullable=False),
    sa.Column("group", sa.Text, nullable=False),
    sa.Column("attempt", Number, nullable=False),
    sa.Column("seed", Number, nullable=False),
    sa.Column("policy_version", sa.Text, nullable=False),
    sa.Column("reward", sa.Double),
    sa.Column("finish", sa.Text, nullable=False),
    sa.Column("looked", sa.Boolean),
    sa.Column("commands", Number, nullable=False),
    sa.Column("tokens", Number, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("offset", Number, nullable=False),
    sa.Column("length", Number, nullable=False),
    sa.Column("created_us", Number, nullable=False),
    sa.Index(None, "created_us", "id"),
    sa.Index(None, "run_id", "created_us", "id"),
    sa.Index(None, "environment_id", "created_us", "id"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("payload", Json, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempt", Number, nullable=False),
    sa.Column("max_attempts", Number, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("lease_us", Number),
    sa.Column("progress", Json, nullable=False),
    sa.Column("result", Json, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("parent", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("cancel", sa.Boolean, nullable=False),
    sa.Column("created_us", Number, nullable=False),
    sa.Column("started_us", Number),
    sa.Column("finished_us", Number),
    sa.Column("publishes", Number, nullable=False),
    sa.Column("due_us", Number),
    sa.UniqueConstraint("key"),
    sa.Index(None, "created_us", "id"),
    sa.Index(None, "state", "due_us"),
    sa.Index(None, "state", "lease_us"),
    sa.Index(None, "run_id", "created_us", "id"),
    sa.Index(None, "parent"),
)
"""`publishes` counts messages sent since the job was last queued; `due_us` is when the reaper looks at a queued job again."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Number, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("job_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("data", Json, nullable=False),
    sa.Column("created_us", Number, nullable=False),
    sa.Index(None, "job_id", "id"),
    sa.Index(None, "run_id", "id"),
    sqlite_autoincrement=True,
)

environment_search = sa.Table(
    "environment_search",
    sa.MetaData(),
    sa.Column("environment_id", sa.Text, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)
"""Words of an environment: an FTS5 table in SQLite, a table with a GIN index in PostgreSQL. Made by the migrations alone."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(when: datetime) -> int:
    """Microseconds since 1970; `when` must carry a time zone."""
    return (when - _EPOCH) // _MICROSECOND


def from_us(us: int | None) -> datetime | None:
    """The same moment in UTC, or None."""
    return None if us is None else _EPOCH + timedelta(microseconds=us)
