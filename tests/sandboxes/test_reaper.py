"""A worker that dies leaves nothing: no process, no mount, and nothing that the sweep does not remove."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gymsmith.errors import Capacity
from sandboxes import cgroups, reaper
from sandboxes.launcher import probe

MARK = f"5{os.getpid()}"
"""How long everything in these sandboxes sleeps: a number that no other run of these tests uses."""
WORKER = """
import asyncio, sys
from pathlib import Path
from sandboxes.base import SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr

async def main():
    folder = Path(sys.argv[1])
    (folder / "root").mkdir(mode=0o755)
    provider = await NamespaceProvider.start(HostUsr(folder / "root"), folder / "state")
    boxes = []
    for i in range(20):
        upper = folder / f"upper{i}" if i % 4 == 0 else None
        if upper:
            upper.mkdir()
        boxes.append(await provider.create(SandboxSpec(image="base"), upper=upper))
        asyncio.ensure_future(boxes[-1].exec(f"sleep {sys.argv[2]} & setsid sleep {sys.argv[2]}", timeout_s=600))
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    if not probe()["works"]:
        pytest.skip("no namespaces here")


def sleepers() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(b"sleep\0" + MARK.encode()):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def runs(pid: int) -> bool:
    """Whether a process lives; one that only waits for its parent to take notice does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("victim", ["worker", "launcher"])
def test_sigkill_leaves_nothing(tmp_path: Path, victim: str) -> None:
    paths = os.pathsep.join(sys.path)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path), MARK],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    started = time.monotonic() + 20
    while len(sleepers()) < 40 and time.monotonic() < started:
        time.sleep(0.05)
    assert len(sleepers()) == 40
    (launcher,) = children_of(worker.pid)
    mounts = Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in mounts, "mounts of sandboxes must not be the host's"

    os.kill(launcher if victim == "launcher" else worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 2
    while sleepers() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sleepers() == []
    worker.kill()
    worker.wait()
    while runs(launcher) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(launcher)

    state = tmp_path / "state"
    (owner,) = [folder.name for folder in (state / reaper.OWNERS).iterdir()]
    assert not reaper.alive(owner)
    assert reaper.sweep(state) == [owner]
    assert list((state / reaper.OWNERS).iterdir()) == []
    assert list(tmp_path.glob("*.work")) == []
    groups = [root / cgroups.PARENT / owner for root in cgroups.hierarchies()[1]]
    deadline = time.monotonic() + 2
    while any(group.exists() for group in groups) and time.monotonic() < deadline:
        time.sleep(0.1)
        reaper.sweep(state)
    assert not any(group.exists() for group in groups)


def test_the_living_are_spared(tmp_path: Path) -> None:
    owner, folder = reaper.register(tmp_path)
    strange = tmp_path / reaper.OWNERS / "not-ours"
    strange.mkdir()
    assert reaper.sweep(tmp_path) == []
    assert folder.is_dir() and strange.is_dir() and reaper.alive(owner)


def test_a_reused_process_id_is_somebody_else(tmp_path: Path) -> None:
    pid, start, boot, count = reaper.register(tmp_path)[0].split("-")
    assert not reaper.alive(f"{pid}-{int(start) + 1}-{boot}-{count}")
    assert not reaper.alive(f"{pid}-{start}-00000000-{count}")


def test_probe_names_a_reason_without_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sandboxes import launcher

    broken = tmp_path / "gymsmith-box"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(launcher, "find_binary", lambda: broken)
    with pytest.raises(Capacity, match="cannot make namespaces"):
        launcher.Launcher.start(tmp_path)
    report = probe()
    assert not report["works"] and report["next_move"]
