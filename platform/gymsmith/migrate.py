"""Alembic, kept behind three functions, so that nothing else imports it."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from gymsmith.errors import StoreError

FOLDER = Path(__file__).parent / "migrations"


def config() -> Config:
    """Alembic's configuration; there is no ini file."""
    c = Config()
    c.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    c.set_main_option("path_separator", "os")
    return c


def head() -> str:
    """The newest version that this code knows."""
    return ScriptDirectory.from_config(config()).get_current_head() or ""


def upgrade(engine: sa.Engine, name: str, version: str = "head") -> None:
    """Bring the database called `name` (for messages) up to `version`, in one transaction.

    Raises:
        StoreError: the database was written by a newer Gymsmith.
    """
    _run(engine, name, lambda c: command.upgrade(c, version))


def downgrade(engine: sa.Engine, name: str, version: str) -> None:
    """Take the database back to `version`; "base" removes every table."""
    _run(engine, name, lambda c: command.downgrade(c, version))


def _run(engine: sa.Engine, name: str, step) -> None:  # type: ignore[no-untyped-def]
    c = config()
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        c.attributes["connection"] = connection
        try:
            step(c)
        except CommandError as e:
            raise StoreError(
                f"database {name} cannot be brought to version {head()}: {e}; it was probably written by a newer Gymsmith, "
                "so install that version or choose another database"
            ) from e
        connection.commit()
