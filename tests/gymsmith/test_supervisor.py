"""The supervisor: what dies comes back, what cannot live is told, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from gymsmith import jobs
from gymsmith.config import Settings
from gymsmith.errors import Conflict, InfrastructureError, StoreError
from gymsmith.schema import State
from gymsmith.store import Store
from gymsmith.supervisor import Supervisor, running
from sandboxes import reaper

import job_doors  # isort: skip # noqa: F401  registers the kinds


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children import this checkout and the test doors."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def alive(pid: int) -> bool:
    """The process runs (an unreaped one does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_it_restarts_what_dies_and_the_job_goes_on_at_once(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"lease_s": 60.0})
    with Store.open(settings) as store, Supervisor(settings, api=False, include=["job_doors"]) as supervisor:
        assert running(settings)
        log = tmp_path / "log"
        job = jobs.submit(store, "test-slow", {"seconds": 0.5, "log": str(log)})
        deadline = time.monotonic() + 15
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(int(log.read_text().split()[1]), signal.SIGKILL)
        done = jobs.wait(store, [job.id], timeout_s=20)[job.id]
        assert (done.state, done.attempt) == (State.SUCCEEDED, 2)
        pids = [child.process.pid for child in supervisor.children if child.process]
        assert len(pids) == 2
    assert not running(settings)
    assert not any(alive(pid) for pid in pids)


def test_the_api_answers_on_the_port_that_was_bound(settings: Settings) -> None:
    with Supervisor(settings, workers=0, learner=False) as supervisor:
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(supervisor.url + "healthz", timeout=5) as answer:
                    assert answer.status == 200
                break
            except OSError:
                assert time.monotonic() < deadline, supervisor.children[-1].tail()
                time.sleep(0.1)


def test_it_removes_what_a_killed_house_left(settings: Settings) -> None:
    code = "import sys; from pathlib import Path; from sandboxes import reaper; print(reaper.register(Path(sys.argv[1]))[1])"
    command = [sys.executable, "-c", code, str(settings.sandboxes_dir)]
    left = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    _, ours = reaper.register(settings.sandboxes_dir)
    assert left.is_dir()
    with Supervisor(settings, workers=0, api=False, learner=False):
        assert not left.exists() and ours.is_dir()


def test_a_port_in_use_is_told_and_nothing_is_started(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = settings.model_copy(update={"port": other.getsockname()[1]})
        supervisor = Supervisor(settings)
        with pytest.raises(Conflict, match=f"cannot listen on 127.0.0.1:{settings.port}: Address already in use; choose another"):
            supervisor.start()
    assert all(child.process is None for child in supervisor.children)
    assert not running(settings)


def test_one_supervisor_per_state_folder(settings: Settings) -> None:
    with Supervisor(settings, workers=0, api=False, learner=False):
        with pytest.raises(Conflict, match=f"process {os.getpid()}\\) already works on {settings.home}"):
            Supervisor(settings).start()
    with Supervisor(settings, workers=0, api=False, learner=False):
        pass


def test_a_child_that_cannot_live_is_told_with_its_last_words(settings: Settings) -> None:
    with Supervisor(settings, api=False, learner=False, include=["no_such_module"]) as supervisor:
        with pytest.raises(InfrastructureError, match=r"worker-1 ended with code 1 3 times in a row(.|\n)*no_such_module"):
            supervisor.run_forever()


def test_a_bad_state_folder_is_told_before_anything_starts(settings: Settings) -> None:
    settings.home.mkdir()
    (settings.home / "gymsmith.db").write_bytes(b"not a database, but long enough to be looked at" * 50)
    with pytest.raises(StoreError, match="not a database"):
        Supervisor(settings).start()
