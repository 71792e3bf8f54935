"""The first tables.

Alembic never sees the search table: FTS5 and GIN have no common description, so both are written out here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def number() -> sa.types.TypeEngine[int]:
    """64 bits in both engines."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def json() -> sa.types.TypeEngine[Any]:
    """JSONB where there is one."""
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "environments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("seed", number(), nullable=False),
        sa.Column("created_us", number(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_environments")),
    )
    op.create_index(op.f("ix_environments_created_us_id"), "environments", ["created_us", "id"], unique=False)
    op.create_index(
        op.f("ix_environments_kind_status_created_us_id"), "environments", ["kind", "status", "created_us", "id"], unique=False
    )
    op.create_index(op.f("ix_environments_status_created_us_id"), "environments", ["status", "created_us", "id"], unique=False)
    op.create_table(
        "events",
        sa.Column("id", number(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("data", json(), nullable=False),
        sa.Column("created_us", number(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_job_id_id"), "events", ["job_id", "id"], unique=False)
    op.create_index(op.f("ix_events_run_id_id"), "events", ["run_id", "id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("payload", json(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", number(), nullable=False),
        sa.Column("max_attempts", number(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("lease_us", number(), nullable=True),
        sa.Column("progress", json(), nullable=False),
        sa.Column("result", json(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("cancel", sa.Boolean(), nullable=False),
        sa.Column("created_us", number(), nullable=False),
        sa.Column("started_us", number(), nullable=True),
        sa.Column("finished_us", number(), nullable=True),
        sa.Column("publishes", number(), nullable=False),
        sa.Column("due_us", number(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("key", name=op.f("uq_jobs_key")),
    )
    op.create_index(op.f("ix_jobs_created_us_id"), "jobs", ["created_us", "id"], unique=False)
    op.create_index(op.f("ix_jobs_parent"), "jobs", ["parent"], unique=False)
    op.create_index(op.f("ix_jobs_run_id_created_us_id"), "jobs", ["run_id", "created_us", "id"], unique=False)
    op.create_index(op.f("ix_jobs_state_due_us"), "jobs", ["state", "due_us"], unique=False)
    op.create_index(op.f("ix_jobs_state_lease_us"), "jobs", ["state", "lease_us"], unique=False)
    op.create_table(
        "metrics",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("step", number(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "name", "step", name=op.f("pk_metrics")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reports",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("created_us", number(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reports")),
    )
    op.create_index(op.f("ix_reports_created_us_id"), "reports", ["created_us", "id"], unique=False)
    op.create_index(op.f("ix_reports_run_id_created_us_id"), "reports", ["run_id", "created_us", "id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=False),
        sa.Column("created_us", number(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(op.f("ix_runs_created_us_id"), "runs", ["created_us", "id"], unique=False)
    op.create_index(op.f("ix_runs_parent"), "runs", ["parent"], unique=False)
    op.create_table(
        "trajectories",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("group", sa.Text(), nullable=False),
        sa.Column("attempt", number(), nullable=False),
        sa.Column("seed", number(), nullable=False),
        sa.Column("policy_version", sa.Text(), nullable=False),
        sa.Column("reward", sa.Double(), nullable=True),
        sa.Column("finish", sa.Text(), nullable=False),
        sa.Column("looked", sa.Boolean(), nullable=True),
        sa.Column("commands", number(), nullable=False),
        sa.Column("tokens", number(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("file", sa.Text(), nullable=False),
        sa.Column("offset", number(), nullable=False),
        sa.Column("length", number(), nullable=False),
        sa.Column("created_us", number(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trajectories")),
    )
    op.create_index(op.f("ix_trajectories_created_us_id"), "trajectories", ["created_us", "id"], unique=False)
    op.create_index(
        op.f("ix_trajectories_environment_id_created_us_id"), "trajectories", ["environment_id", "created_us", "id"], unique=False
    )
    op.create_index(op.f("ix_trajectories_run_id_created_us_id"), "trajectories", ["run_id", "created_us", "id"], unique=False)
    op.create_table(
        "environment_labels",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environments.id"], name=op.f("fk_environment_labels_environment_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key", "value", "environment_id", name=op.f("pk_environment_labels")),
    )
    op.create_index(op.f("ix_environment_labels_environment_id"), "environment_labels", ["environment_id"], unique=False)
    op.create_table(
        "evidence",
        sa.Column("environment_id", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["environment_id"], ["environments.id"], name=op.f("fk_evidence_environment_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("environment_id", name=op.f("pk_evidence")),
    )

    if op.get_bind().dialect.name == "sqlite":
        op.execute("CREATE VIRTUAL TABLE environment_search USING fts5(environment_id UNINDEXED, body, prefix='2 3')")
    else:
        op.create_table(
            "environment_search",
            sa.Column("environment_id", sa.Text(), nullable=False),
            sa.Column("body", sa.Text(), nullable=False),
            sa.PrimaryKeyConstraint("environment_id", name="pk_environment_search"),
        )
        op.execute(
            "CREATE INDEX ix_environment_search_words ON environment_search USING gin (to_tsvector('simple'::regconfig, body))"
        )


def downgrade() -> None:
    """Drop every table."""
    op.drop_table("environment_search")
    for name in (
        "evidence",
        "environment_labels",
        "environments",
        "events",
        "jobs",
        "metrics",
        "reports",
        "runs",
        "trajectories",
    ):
        op.drop_table(name)
