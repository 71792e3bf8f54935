"""A state folder of its own and a way to run the factory's doors in it, as a Celery thread would."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from env_factory import package_index
from gymsmith.config import Settings
from gymsmith.errors import GymsmithError, NoNetwork
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


def lacking(reason: str) -> NoReturn:
    """Skip aloud; where nothing may be skipped, fail."""
    if os.environ.get("GYMSMITH_REQUIRE_ALL") == "1":
        pytest.fail(f"GYMSMITH_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def doorway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doorway]:
    settings = Settings.load(home=tmp_path_factory.mktemp("home"))
    worker = process_worker(settings)
    try:
        worker.run(worker.provider())
    except GymsmithError as error:
        lacking(f"this machine makes no sandboxes: {error}")
    with Store.open(settings) as store:
        yield Doorway(settings, store)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Doorway]:
    """An empty installation, where nothing runs."""
    settings = Settings.load(home=tmp_path / "elsewhere")
    with Store.open(settings) as store:
        yield Doorway(settings, store)


@pytest.fixture(scope="session")
def index_reachable() -> None:
    """For tests that need the package index."""
    try:
        package_index.Index.configured().sdists("inflection")
    except NoNetwork as error:
        lacking(str(error))


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Settings:
    """Settings of an empty state folder, for tests that only fetch."""
    return Settings.load(home=tmp_path / "home")
