"""One database: engine, transactions, and errors in words that name the next move.

SQLite runs in WAL mode; writers start with BEGIN IMMEDIATE, so that a read inside a write transaction is never stale and never
fails half-way; readers are in autocommit. Writers of one process queue on a lock, because SQLite's own lock is not fair.
PostgreSQL uses its ordinary transactions.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from gymsmith.errors import StoreError
from gymsmith.rows.tables import VERSION

BUSY_S = 30.0
"""How long a writer waits for writers of other processes."""
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre"}


class Database:
    """An open, migrated database."""

    def __init__(self, url: str, *, check_version: bool = True) -> None:
        """Open `url`. SQLite is created and migrated when needed; PostgreSQL must already be at this code's version.

        Raises:
            StoreError: unreachable, unwritable, corrupted, on a network file system, or of another version.
        """
        parsed = sa.make_url(url)
        self.sqlite = parsed.get_backend_name() == "sqlite"
        self.file = Path(parsed.database or "") if self.sqlite else None
        self.name = str(self.file) if self.sqlite else parsed.render_as_string(hide_password=True)
        self._lock = threading.Lock()
        self._observing = threading.Lock()
        self._observer: sqlite3.Connection | None = None
        if self.file is not None:
            _prepare_file(self.file)
            self.engine = sa.create_engine(
                parsed,
                json_serializer=to_json,
                connect_args={"timeout": BUSY_S, "check_same_thread": False},
                pool_size=8,
                max_overflow=120,
            )
            sa.event.listen(self.engine, "connect", _configure_sqlite)
        else:
            try:
                self.engine = sa.create_engine(parsed, json_serializer=to_json, pool_size=8, max_overflow=120, pool_pre_ping=True)
            except ModuleNotFoundError as e:
                raise StoreError(f"the database {self.name} needs the Python package {e.name}; install gymsmith[postgres]") from e
        self._reader = self.engine.execution_options(isolation_level="AUTOCOMMIT") if not self.sqlite else self.engine
        if check_version:
            self._check_version()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading; each statement sees the newest committed state."""
        try:
            with self._reader.connect() as connection:
                yield connection
        except sa.exc.DBAPIError as e:
            raise self.explain(e) from e

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed at the end of the block, rolled back by an exception."""
        try:
            if self.sqlite:
                with self._lock, self.engine.connect() as connection:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                    yield connection
                    connection.commit()
            else:
                with self.engine.begin() as connection:
                    yield connection
        except sa.exc.DBAPIError as e:
            raise self.explain(e) from e

    def insert(self, table: sa.Table) -> Any:
        """An INSERT with `on_conflict_*` in the dialect of this database."""
        from sqlalchemy.dialects import postgresql, sqlite

        return sqlite.insert(table) if self.sqlite else postgresql.insert(table)

    def changes(self) -> int | None:
        """A number that differs whenever somebody committed since it was last asked; None where that costs a query."""
        if self.file is None:
            return None
        with self._observing:
            if self._observer is None:
                # A connection of its own that never writes: SQLite does not count a connection's own commits.
                self._observer = sqlite3.connect(self.file, check_same_thread=False, isolation_level=None)
            return int(self._observer.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Close every connection. In SQLite the last one folds the WAL back into the file."""
        with self._observing:
            if self._observer is not None:
                self._observer.close()
                self._observer = None
        self.engine.dispose()

    def explain(self, error: sa.exc.DBAPIError) -> StoreError:
        """The same failure as a StoreError that names the file and the next move."""
        text = str(error.orig)
        low = text.lower()
        for sign, advice in (
            ("readonly", "the state folder is read-only; make it writable or choose another one with GYMSMITH_HOME"),
            ("disk is full", "free some space, nothing half-written was kept"),
            ("disk i/o error", "the disk failed or is full; check free space and the system log"),
            (
                "malformed",
                "the file is corrupted; move it away and run `gymsmith doctor`, task folders and checkpoints are not in it",
            ),
            ("not a database", "the file is corrupted or is no database; move it away, a new one is made at the next start"),
            ("unable to open", "the state folder is missing or not ours; create it or set GYMSMITH_HOME"),
            ("locked", f"another process held the write lock for over {BUSY_S:g} s; see which one, then try again"),
            ("no such table", "the database is not migrated; run `gymsmith db upgrade`"),
        ):
            if sign in low:
                return StoreError(f"database {self.name}: {text}; {advice}")
        return StoreError(f"database {self.name}: {text or type(error.orig).__name__}")

    def upgrade(self) -> None:
        """Bring the database to this code's version.

        Raises:
            StoreError: it was written by a newer Gymsmith.
        """
        from gymsmith import migrate

        migrate.upgrade(self.engine, self.name)

    def _check_version(self) -> None:
        """Migrate SQLite to VERSION; refuse another database that is not there."""
        try:
            found = self._version()
            if found == VERSION:
                return
            if not self.sqlite:
                raise StoreError(
                    f"database {self.name} is at version {found or 'none'}, this code needs {VERSION}; run `gymsmith db upgrade`"
                )
            assert self.file is not None
            with _exclusive(self.file.with_suffix(".migrating")):
                if self._version() != VERSION:
                    self.upgrade()
        except sa.exc.DBAPIError as e:
            raise self.explain(e) from e

    def _version(self) -> str:
        with self._reader.connect() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return ""
            return str(connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or "")


def to_json(value: Any) -> str:
    """JSON as both engines take it: what is no number (NaN, infinity) becomes null, and NUL a visible mark."""
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:
        text = json.dumps(_numbers_only(value), allow_nan=False)
    return text.replace("\\u0000", "\\ufffd")


def _numbers_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers_only(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers_only(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _configure_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    # The driver must not open transactions by itself: it would start them deferred, and a deferred writer fails when it upgrades.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={int(BUSY_S * 1000)}",
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def make_folder(folder: Path) -> None:
    """The state folder, made when it is not there. Raises: StoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StoreError(
            f"state folder {folder} cannot be made: {e.strerror}; set GYMSMITH_HOME to a folder that you may write"
        ) from e


def _prepare_file(file: Path) -> None:
    make_folder(file.parent)
    if not os.access(file.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"state folder {file.parent} is read-only for uid {os.getuid()}; make it writable or set GYMSMITH_HOME to another one"
        )
    kind = file_system(file.parent)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{file.parent} lies on {kind}, where SQLite's log corrupts; set GYMSMITH_HOME to a local disk or use PostgreSQL"
        )


def file_system(folder: Path) -> str:
    """Type of the file system that holds `folder`, as the kernel names it; empty when that cannot be told."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    here, best, kind = str(folder.resolve()), -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        # Later mounts cover earlier ones at the same point.
        if (here == point or here.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
