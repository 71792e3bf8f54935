"""The memory of the house: environments, runs, trajectories, reports, jobs and events.

The only door to the database and the trajectory files; nobody else knows SQL. Synchronous, safe to share between threads, one per
process. It hands out schema objects. Task folders, images and checkpoints are files of the rooms that make them, not rows here.
"""

from __future__ import annotations

from functools import lru_cache

from gymsmith.config import Settings, settings
from gymsmith.rows.counts import Counts, Outcomes, Total
from gymsmith.rows.database import Database, make_folder
from gymsmith.rows.environments import Environments
from gymsmith.rows.events import Event, Events
from gymsmith.rows.jobs import Jobs, Pulse, QueueDepth
from gymsmith.rows.pages import Page
from gymsmith.rows.runs import Runs
from gymsmith.rows.trajectories import Trajectories, TrajectoryFilter, TrajectoryRow

__all__ = [
    "Event",
    "Outcomes",
    "Page",
    "Pulse",
    "QueueDepth",
    "Store",
    "Total",
    "TrajectoryFilter",
    "TrajectoryRow",
    "process_store",
]


class Store(Environments, Runs, Trajectories, Jobs, Events, Counts):
    """Everything that is kept, by kind in `gymsmith.rows`."""

    def __init__(self, settings: Settings, db: Database) -> None:
        """Use `open`."""
        Events.__init__(self)
        self.settings = settings
        self.db = db

    @classmethod
    def open(cls, settings: Settings) -> Store:
        """Open the store of these settings; a SQLite database is made and migrated when needed.

        Raises:
            StoreError: the database or the state folder cannot be used; the message names it and the next move.
        """
        make_folder(settings.home)
        return cls(settings, Database(settings.resolved_database_url))

    @staticmethod
    def migrate(settings: Settings) -> None:
        """Bring the database to this code's version; what `gymsmith db upgrade` does for PostgreSQL.

        Raises:
            StoreError: unreachable, or written by a newer Gymsmith.
        """
        db = Database(settings.resolved_database_url, check_version=False)
        try:
            db.upgrade()
        finally:
            db.close()

    def close(self) -> None:
        """Write the events that wait and let go of the database."""
        try:
            self._close_events()
        finally:
            self.db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@lru_cache(maxsize=1)
def process_store() -> Store:
    """The store of this process, opened once with the process's settings."""
    return Store.open(settings())
