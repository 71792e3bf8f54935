"""Removes what killed workers leave behind: owner directories, work directories, control groups.

Processes need no sweeping: they die with their launcher. Whatever can outlive it is registered under an owner directory named
after the process (pid, start time, boot id) before it is made; a directory whose owner is dead may be removed by anyone. That
happens when a provider starts and, by its `Janitor`, every few seconds while it lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sandboxes import cgroups
from sandboxes.background import begin
from sandboxes.registry import OWNER_LEASE_S, Registry, heartbeat_age

log = logging.getLogger(__name__)
OWNERS = "sandboxes"
PERIOD_S = 10.0
"""Between two rounds of a janitor."""
_count = itertools.count(1)


class Janitor:
    """Every period: show that this owner lives, and remove what dead ones left. A task on the running loop."""

    def __init__(self, beat: Callable[[], None], sweep: Callable[[], object], period_s: float = PERIOD_S) -> None:
        self._beat, self._sweep, self._period_s = beat, sweep, period_s
        self._task = begin(self._rounds(), "sandbox janitor")

    async def _rounds(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            try:
                self._beat()
                await asyncio.to_thread(self._sweep)
            except Exception as error:  # a full disk or an engine that is away: the next round tries again
                log.warning("event=janitor_failed error=%s", error)

    async def close(self) -> None:
        """Stop; returns when no round is at work."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def register(state_dir: Path) -> tuple[str, Path]:
    """A new owner: its name, unique on this machine, and its existing directory."""
    owner = f"{os.getpid()}-{start_time(os.getpid())}-{boot_id()}.{pid_namespace()}-{next(_count)}"
    folder = state_dir.absolute() / OWNERS / owner
    folder.mkdir(parents=True)
    return owner, folder


def enrol(state_dir: Path) -> tuple[str, Path, Registry]:
    """A new owner with its registry, or nothing at all. Raises: OSError."""
    owner, folder = register(state_dir)
    try:
        return owner, folder, Registry(folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def make_work(folder: Path, upper: Path) -> str:
    """Make and record the overlay work directory beside `upper`, on the same file system. Returns its path."""
    work = f"{os.path.abspath(upper)}.work"
    (folder / f"work.{os.path.basename(work)}").write_text(work)
    os.mkdir(work, 0o700)
    return work


def remove_work(folder: Path, work: str) -> None:
    """Remove a work directory and its record; a private upper directory that the provider made goes with it."""
    with contextlib.suppress(OSError):  # the kernel makes a directory in it that not even its owner may read
        os.chmod(os.path.join(work, "work"), 0o700)
    shutil.rmtree(work, ignore_errors=True)
    upper = work.removesuffix(".work")
    if os.path.dirname(upper) == os.fspath(folder):
        shutil.rmtree(upper, ignore_errors=True)
    with contextlib.suppress(OSError):
        (folder / f"work.{os.path.basename(work)}").unlink()


def sweep(state_dir: Path) -> list[str]:
    """Remove what dead owners left below `state_dir` and in the control groups; the names of the owners swept.

    One process sweeps at a time; another one that comes meanwhile does nothing. A group whose last process is only just dead may
    be busy for a moment more: it goes with the next sweep.
    """
    with _alone(state_dir) as alone:
        return _sweep(state_dir) if alone else []


def _sweep(state_dir: Path) -> list[str]:
    owners = state_dir / OWNERS
    dead = [folder for folder in _folders(owners) if not alive(folder.name, folder)]
    busy = _remove_groups({folder.name for folder in dead})
    for folder in dead:
        if folder.name in busy and alive(folder.name):
            continue  # without this folder its groups would count as a living owner's for ever
        for record in folder.glob("work.*"):
            with contextlib.suppress(OSError):
                remove_work(folder, record.read_text())
        shutil.rmtree(folder, ignore_errors=True)
        log.info("event=swept owner=%s", folder.name)
    return [folder.name for folder in dead]


def _remove_groups(dead: set[str]) -> set[str]:
    """Remove the control groups of these owners and of any other dead one, whose registry may be lost; those still busy."""
    busy = set()
    _, roots = cgroups.hierarchies()
    for root in roots:
        for folder in _folders(root / cgroups.PARENT):
            if folder.name in dead or not alive(folder.name):
                cgroups.kill_tree(folder)
                if not cgroups.remove_tree(folder):
                    busy.add(folder.name)
    return busy


@contextlib.contextmanager
def _alone(state_dir: Path) -> Iterator[bool]:
    """Whether no other process sweeps this state folder now."""
    try:
        lock = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True  # nothing below it; control groups may be left all the same
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(lock)


def alive(owner: str, folder: Path | None = None) -> bool:
    """Whether the process of that name still runs.

    One that cannot be seen from here (it belongs to another pid namespace, or another machine that shares the folder) counts as
    alive as long as its heartbeat in `folder` is fresh; without a folder to look at, it does when it is of this boot. Names that
    are not ours always do: they are not ours to remove.
    """
    parts = owner.split("-")
    if len(parts) != 4 or not parts[0].isdigit():
        return True
    boot, _, namespace = parts[2].partition(".")
    if boot == boot_id() and namespace == pid_namespace():
        return start_time(int(parts[0])) == parts[1]
    if folder is None:
        return boot == boot_id()
    return heartbeat_age(folder) < OWNER_LEASE_S


def pid_namespace() -> str:
    """The inode of this process's pid namespace: pids mean something only within it."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is none or it only waits for its parent to take notice.

    With the pid it names a process for good.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat[stat.rindex(")") + 2 :].split()
    return "" if fields[0] in "ZX" else fields[19]


def boot_id() -> str:
    """First characters of this boot's id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _folders(path: Path) -> list[Path]:
    try:
        return [folder for folder in path.iterdir() if folder.is_dir()]
    except OSError:
        return []
