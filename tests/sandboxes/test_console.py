"""`gymsmith sandbox`: what lives is listed, a command runs in a new sandbox, and a person can end one of a worker's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import select
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import NotFound, SandboxError, SandboxGone
from sandboxes import console, control
from sandboxes.base import SandboxSpec
from sandboxes.worker import Worker

pytestmark = pytest.mark.usefixtures("namespaces")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), provider="ns")


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Any:
    worker = Worker(settings)
    yield worker
    worker.close()


def gymsmith(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **settings.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-m", "gymsmith.cli", "sandbox", *words], capture_output=True, text=True, env=env)


def test_what_lives_is_listed_and_can_be_ended(settings: Settings, worker: Worker) -> None:
    async def made() -> Any:
        spec = SandboxSpec(image="gymsmith/host", pids=48, lease_s=120, labels={"run": "r1"})
        box = await (await worker.provider()).create(spec)
        return box, asyncio.ensure_future(box.exec("sleep 60", timeout_s=90))

    box, running = worker.run(made())
    listed = gymsmith(settings, "ls", "--json")
    (row,) = json.loads(listed.stdout)
    assert row["full_id"] == box.id and row["labels"] == {"run": "r1"} and row["owner_pid"] == os.getpid()
    assert row["lease_s"] == 120 and row["pids_limit"] == 48 and 0 <= row["age_s"] < 60 and row["heartbeat_age_s"] < 60
    if worker.run(worker.provider()).capabilities.memory_limit:
        assert 1 <= row["pids"] <= 4 and 4096 < row["memory_bytes"] < 16 << 20
    text = gymsmith(settings, "ls").stdout
    assert row["id"] in text and "run=r1" in text and text.endswith("1 sandboxes of 1 processes\n")

    ended = gymsmith(settings, "kill", row["id"])
    assert (ended.returncode, ended.stdout) == (0, f"killed {box.id}\n"), ended.stderr

    async def waits() -> None:
        with pytest.raises(SandboxGone):
            await running

    worker.run(waits())
    assert console.listing(settings) == []
    again = gymsmith(settings, "kill", row["id"])
    assert again.returncode == 2 and "sandbox ls" in again.stderr


def test_a_command_runs_in_a_new_sandbox_that_is_gone_afterwards(settings: Settings) -> None:
    done = gymsmith(settings, "exec", "gymsmith/host", "--user", "root", "--", "id -u; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "0\n", "err\n")
    assert gymsmith(settings, "exec", "gymsmith/host", "touch /work/here").returncode == 0
    done = gymsmith(settings, "exec", "gymsmith/host", "--", "ls", "-A", "/work")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    done = gymsmith(settings, "exec", "--json", "--timeout", "0.5", "gymsmith/host", "sleep 20")
    assert done.returncode == 124 and json.loads(done.stdout)["timed_out"] is True
    assert console.listing(settings) == []


def test_a_target_that_is_nothing_is_told(settings: Settings) -> None:
    done = gymsmith(settings, "exec", "nosuch", "true")
    assert done.returncode == 2 and "'nosuch'" in done.stderr and "env list" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_owner_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER_S", 0.2)
    folder = tmp_path / "1234-5-6-7"
    folder.mkdir()
    with pytest.raises(SandboxError, match="kill 1234"):
        control.kill(folder, 1)

    async def deaf() -> None:
        door = control.Control(folder, lambda number: None)
        mode = stat.S_IMODE((folder / control.SOCKET).stat().st_mode)
        assert mode == 0o600
        with pytest.raises(NotFound, match="ended already"):
            await asyncio.to_thread(control.kill, folder, 1)
        blocked = threading.Event()
        asker = threading.Thread(target=lambda: (expect_no_answer(folder), blocked.set()))
        asker.start()
        blocked.wait(5)  # the loop hangs meanwhile, as that of a worker in trouble would
        asker.join()
        door.close()

    asyncio.run(deaf())


def expect_no_answer(folder: Path) -> None:
    with pytest.raises(SandboxError, match="kill 1234"):
        control.kill(folder, 1)


def test_a_shell_is_a_terminal(settings: Settings) -> None:
    """A person types: a command whose output comes at once, Ctrl-C on one that hangs, and the exit code at the end."""
    ours, theirs = pty.openpty()
    env = {**os.environ, **settings.environment(), "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}
    words = [sys.executable, "-m", "gymsmith.cli", "sandbox", "shell", "gymsmith/host"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    seen = bytearray()

    def until(wanted: bytes) -> None:
        start = len(seen)
        deadline = time.monotonic() + 30
        while wanted not in seen[start:]:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], bytes(seen)
            seen.extend(os.read(ours, 4096))

    def type_in(text: bytes) -> None:
        os.write(ours, text)

    try:
        until(b"sandbox:/work$ ")
        type_in(b"echo $((6*7)); tty; id -un\n")
        until(b"42\r\n/dev/pts/")
        type_in(b"echo now; sleep 60\n")
        until(b"\nnow\r\n")  # it hangs, and what it printed is here
        type_in(b"\x03")
        until(b"sandbox:/work$ ")
        type_in(b"(sleep 0.1; exit 5) & wait $!; echo job $?\n")
        until(b"job 5\r\n")
        type_in(b"exit 3\n")
        with contextlib.suppress(OSError):  # the terminal is closed at its end
            while True:
                seen.extend(os.read(ours, 4096))
        assert process.wait(20) == 3, bytes(seen)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert console.listing(settings) == []


def test_a_shell_takes_a_script_from_a_pipe(settings: Settings) -> None:
    env = {**os.environ, **settings.environment(), "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}
    words = [sys.executable, "-m", "gymsmith.cli", "sandbox", "shell", "gymsmith/host"]
    done = subprocess.run(words, input=b"cd /tmp; pwd; exit 4\n", capture_output=True, env=env, timeout=60)
    assert done.returncode == 4 and b"/tmp\r\n" in done.stdout, done
