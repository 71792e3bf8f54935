"""Run by Alembic; `gymsmith.migrate` hands the open connection over. Transactions are the caller's."""

from __future__ import annotations

from alembic import context

from gymsmith.rows import tables


def ours(_object: object, name: str | None, kind: str, _reflected: bool, _compare_to: object) -> bool:
    """Leave the search table out of comparisons: FTS5 keeps shadow tables that no metadata describes."""
    return not (kind == "table" and (name or "").startswith("environment_search"))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    render_as_batch=True,
    include_object=ours,
    compare_type=True,
)
context.run_migrations()
