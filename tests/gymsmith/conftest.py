"""Settings, stores and workers for the tests of this room; each test has a state folder and a database of its own."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gymsmith import lifeline
from gymsmith.config import Settings
from gymsmith.store import Store

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))


def missing(what: str) -> None:
    """Skip loudly; a run that requires everything fails instead."""
    if os.environ.get("GYMSMITH_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}, and GYMSMITH_REQUIRE_ALL=1")
    pytest.skip(what)


@dataclass
class Postgres:
    """A server of our own on loopback."""

    port: int
    count: Iterator[int]

    def new_url(self) -> str:
        """The URL of a database made for the caller."""
        import psycopg

        name = f"gymsmith_{next(self.count)}"
        with psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres", autocommit=True) as c:
            c.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"


def _find(program: str) -> str | None:
    found = [shutil.which(program), *map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), reverse=True))]
    return next((path for path in found if path), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server in a temporary folder, run as an unprivileged user."""
    initdb, server = _find("initdb"), _find("postgres")
    if initdb is None or server is None:
        missing("no PostgreSQL server binaries (apt install postgresql)")
    assert initdb and server
    user = pwd.getpwnam("nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name)
    if os.getuid() == 0 and "postgres" in {p.pw_name for p in pwd.getpwall()}:
        user = pwd.getpwnam("postgres")
    switch = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="gymsmith-pg-", dir="/tmp"))
    if os.getuid() == 0:
        os.chown(folder, user.pw_uid, user.pw_gid)
    data = str(folder / "data")
    init = [initdb, "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"]
    subprocess.run(init, check=True, capture_output=True, cwd=folder, **switch)  # type: ignore[call-overload]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    flags = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off", "-c", "shared_buffers=16MB"]
    process = subprocess.Popen([server, "-D", data, *flags], stderr=subprocess.DEVNULL, cwd=folder, **switch)  # type: ignore[call-overload]
    try:
        ready = [_find("pg_isready") or "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "20"]
        for _ in range(100):
            if subprocess.run(ready, capture_output=True).returncode == 0:
                break
            assert process.poll() is None, "the PostgreSQL server ended"
        yield Postgres(port, itertools.count())
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def engine_image() -> str:
    """A base image that a running Docker Engine has."""
    name = "gymsmith/debian:bookworm"
    if shutil.which("docker") is None or subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode:
        missing(f"no Docker Engine with the image {name}")
    return name


@dataclass
class Redis:
    """A server of our own on loopback that keeps nothing on disk."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.process = subprocess.Popen(["redis-server", *flags], stdout=subprocess.DEVNULL)
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5) as s:
                s.sendall(b"PING\r\n")
                if s.recv(16) == b"+PONG\r\n":
                    return
            assert self.process.poll() is None, "the Redis server ended"
            time.sleep(0.05)
        pytest.fail("the Redis server did not answer within 10 s")

    def kill(self) -> None:
        """End it as a crash would: what it held is lost."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    """An empty Redis server."""
    if shutil.which("redis-server") is None:
        missing("no Redis server (apt install redis-server)")
    pytest.importorskip("redis") if os.environ.get("GYMSMITH_REQUIRE_ALL") != "1" else importlib.import_module("redis")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        server = Redis(tmp_path, s.getsockname()[1])
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state folder of its own and short leases."""
    return Settings.load(home=tmp_path / "home", port=0, lease_s=2.0, heartbeat_s=0.4)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Store]:
    """An empty store, once on each engine."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").new_url()
        settings = settings.model_copy(update={"database_url": url})
        Store.migrate(settings)
    with Store.open(settings) as s:
        yield s


@pytest.fixture
def client(store: Store) -> Iterator[Any]:
    """Starlette's client of the application over `store`."""
    from served import HERE
    from starlette.testclient import TestClient

    from gymsmith.api import create_app

    with TestClient(create_app(store.settings, store), base_url=HERE) as c:
        yield c


@dataclass
class Crew:
    """Worker processes on the state folder of one store."""

    settings: Settings
    members: list[subprocess.Popen[bytes]]

    def hire(self, n: int = 1, *flags: str) -> list[subprocess.Popen[bytes]]:
        """Start workers that know the doors of `job_doors`."""
        path = os.pathsep.join((str(ROOT), str(ROOT / "platform"), str(HERE)))
        command = [sys.executable, "-m", "gymsmith.worker", "--include", "job_doors", "--lifeline", "--concurrency", "8", *flags]
        new = []
        for _ in range(n):
            log_file = self.settings.logs_dir / f"worker-{len(self.members)}.log"
            environment = self.settings.environment() | {"PYTHONPATH": path}
            self.members.append(lifeline.spawn(command, log_file=log_file, environment=environment))
            new.append(self.members[-1])
        return new


@pytest.fixture
def crew(store: Store) -> Iterator[Crew]:
    """Workers for `store`; all are gone afterwards."""
    c = Crew(store.settings, [])
    yield c
    lifeline.stop(c.members, 8.0)
