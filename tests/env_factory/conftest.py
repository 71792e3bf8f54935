"""A state folder of its own and a way to run the factory's doors in it, as a Celery thread would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import GymsmithError
from gymsmith.schema import Job
from gymsmith.store import Store
from sandboxes.worker import Worker, process_worker


class Doorway:
    """A job context of one state folder; keeps what the doors report."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self.job = Job(id="test", kind="generate", queue="factory")
        self.settings = settings
        self.store = store
        self.reported: dict[str, Any] = {}

    def progress(self, **fields: Any) -> None:
        self.reported |= fields

    def check(self) -> None:
        """Nobody cancels a test."""

    @property
    def worker(self) -> Worker:
        return process_worker(self.settings)


@pytest.fixture(scope="session")
def doorway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doorway]:
    settings = Settings.load(home=tmp_path_factory.mktemp("home"))
    store = Store.open(settings)
    try:
        process_worker(settings)
        yield Doorway(settings, store)
    except GymsmithError as error:
        pytest.skip(f"no sandboxes on this machine: {error}")
    finally:
        store.close()


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Settings:
    """Settings of an empty state folder, for tests that only fetch."""
    return Settings.load(home=tmp_path / "home")
