"""Migrations, and stores that are broken, full, read-only or from the future: each says so."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from gymsmith.config import Settings
from gymsmith.errors import StoreError
from gymsmith.rows import database, tables
from gymsmith.store import Event, Store

from made import a_trajectory, an_environment  # isort: skip


def test_migrations_build_exactly_the_tables_and_take_them_down_again(store: Store) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from gymsmith import migrate

    def ours(_object: object, name: str | None, kind: str, *_: object) -> bool:
        return not (kind == "table" and (name or "").startswith("environment_search"))

    def differences() -> list[object]:
        with store.db.engine.connect() as c:
            options = {"compare_type": True, "include_object": ours}
            return list(compare_metadata(MigrationContext.configure(c, opts=options), tables.metadata))

    assert migrate.head() == tables.VERSION
    assert differences() == []
    migrate.downgrade(store.db.engine, store.db.name, "base")
    assert set(sa.inspect(store.db.engine).get_table_names()) == {"alembic_version"}
    assert len(differences()) >= len(tables.metadata.tables), "the comparison sees nothing"
    migrate.upgrade(store.db.engine, store.db.name)
    assert differences() == []
    store.put_environment(an_environment(1))
    assert store.environments(text="crimson").items


def test_two_processes_may_open_a_new_store_at_once(settings: Settings) -> None:
    spawn = multiprocessing.get_context("spawn")
    openers = [spawn.Process(target=_open, args=(settings,)) for _ in range(4)]
    for o in openers:
        o.start()
    for o in openers:
        o.join()
    assert [o.exitcode for o in openers] == [0] * 4


def _open(settings: Settings) -> None:
    with Store.open(settings) as store:
        store.add_events([Event(kind="hello")])


def test_a_database_from_the_future_is_refused(store: Store) -> None:
    with store.db.write() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer Gymsmith|is at version 9999"):
        Store.open(store.settings)


@pytest.mark.postgres
def test_postgresql_is_never_migrated_by_itself(settings: Settings, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres").new_url()
    with pytest.raises(StoreError, match=r"is at version none.*gymsmith db upgrade"):
        Store.open(settings.model_copy(update={"database_url": url}))


def test_a_corrupted_file_is_named_and_left_alone(settings: Settings) -> None:
    file = settings.home / "gymsmith.db"
    settings.home.mkdir()
    file.write_bytes(b"this is no database" * 500)
    with pytest.raises(StoreError, match=rf"{file}.*not a database.*move it away"):
        Store.open(settings)
    assert file.read_bytes() == b"this is no database" * 500


def test_pages_that_were_damaged_are_reported_as_corruption(settings: Settings) -> None:
    with Store.open(settings) as store:
        for i in range(50):
            store.put_environment(an_environment(i))
    file = settings.home / "gymsmith.db"
    raw = bytearray(file.read_bytes())
    raw[4096:] = os.urandom(len(raw) - 4096)
    file.write_bytes(raw)
    with pytest.raises(StoreError, match=rf"{file}.*corrupted"), Store.open(settings) as store:
        store.environments(text="crimson")


def test_a_folder_that_cannot_be_made_is_named(settings: Settings) -> None:
    settings.home.write_text("a file is in the way")
    with pytest.raises(StoreError, match="GYMSMITH_HOME"):
        Store.open(settings)


@pytest.fixture
def small_disk(settings: Settings) -> Iterator[Path]:
    """The state folder on a file system of its own, 2 MB large."""
    settings.home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(settings.home)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield settings.home
    subprocess.run(["umount", "-l", str(settings.home)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(settings: Settings, small_disk: Path) -> None:
    with Store.open(settings) as store:
        kept = a_trajectory()
        store.put_trajectories([kept])
        with pytest.raises(StoreError, match=r"No space left|disk is full"):
            for _ in range(100):
                store.put_trajectories([a_trajectory() for _ in range(20)])
        with pytest.raises(StoreError, match="free some space"):
            for i in range(10_000):
                store.put_environment(an_environment(i, instruction="x" * 10_000))
        listed = {r.id for r in store.trajectory_rows(limit=1000).items}
        assert kept.id in listed
        assert len(store.trajectories(sorted(listed))) == len(listed)


def test_a_read_only_folder_is_named(settings: Settings, small_disk: Path) -> None:
    Store.open(settings).close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match=rf"{small_disk} is read-only.*GYMSMITH_HOME"):
        Store.open(settings)


def test_a_network_file_system_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert database.file_system(Path("/proc/self")) == "proc"
    monkeypatch.setattr(database, "_NETWORK_FILE_SYSTEMS", {database.file_system(settings.home.parent)})
    with pytest.raises(StoreError, match="SQLite's log corrupts; set GYMSMITH_HOME to a local disk"):
        Store.open(settings)
