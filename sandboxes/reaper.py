"""Sweeps what killed workers leave behind: owner directories, work directories, control groups.

Processes need no sweeping: they die with their launcher. Whatever can outlive it is registered under an owner directory named
after the process (pid, start time, boot id) before it is made; a directory whose owner is dead may be removed by anyone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path

from sandboxes import cgroups

OWNERS = "sandboxes"
_count = itertools.count(1)


def register(state_dir: Path) -> tuple[str, Path]:
    """A new owner: its name, unique on this machine, and its existing directory."""
    owner = f"{os.getpid()}-{start_time(os.getpid())}-{boot_id()}.{pid_namespace()}-{next(_count)}"
    folder = state_dir.absolute() / OWNERS / owner
    folder.mkdir(parents=True)
    return owner, folder


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

    A group whose last process is only just dead may be busy for a moment more: it goes with the next sweep.
    """
    swept = []
    owners = state_dir / OWNERS
    if owners.is_dir():
        for folder in owners.iterdir():
            if alive(folder.name):
                continue
            for record in folder.glob("work.*"):
                with contextlib.suppress(OSError):
                    remove_work(folder, record.read_text())
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder.name)
    _, roots = cgroups.hierarchies()
    for root in roots:
        parent = root / cgroups.PARENT
        if parent.is_dir():
            for folder in parent.iterdir():
                if folder.is_dir() and not alive(folder.name):
                    cgroups.kill_tree(folder)
                    cgroups.remove_tree(folder)
    return swept


def alive(owner: str) -> bool:
    """Whether the process of that name still runs. Names that are not ours, or whose process would be invisible to us because it
    belongs to another pid namespace, count as alive: they are not ours to remove."""
    parts = owner.split("-")
    if len(parts) != 4 or not parts[0].isdigit():
        return True
    boot, _, namespace = parts[2].partition(".")
    if boot == boot_id() and namespace != pid_namespace():
        return True
    return boot == boot_id() and start_time(int(parts[0])) == parts[1]


def pid_namespace() -> str:
    """The inode of this process's pid namespace: pids mean something only within it."""
    return str(os.stat("/proc/self/ns/pid").st_ino)


def start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty when there is none. With the pid it names a process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat[stat.rindex(")") + 2 :].split()[19]


def boot_id() -> str:
    """First characters of this boot's id."""
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
