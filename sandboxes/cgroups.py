"""Control groups of the `ns` provider: memory, process and CPU limits, version 1 and 2, from a pool.

Making and removing a group costs far more than using one, so a group whose sandbox is dead is used again by the next sandbox
with the same limits. Where this user may not write control groups there is no pool: resource limits stand in.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)
PARENT = "gymsmith"
_CPU_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What a group allows; groups with equal limits are interchangeable."""

    memory_bytes: int
    pids: int
    cpus: float


class Group:
    """The control groups of one sandbox: one directory per hierarchy."""

    def __init__(self, folders: list[Path], version: int, limits: Limits) -> None:
        self.folders = folders
        self.version = version
        self.limits = limits
        self._oom_file = folders[0] / ("memory.events" if version == 2 else "memory.oom_control")
        self._oom_before = 0
        self._oom_before = self.oom_kills()

    @property
    def name(self) -> str:
        """Of its directories, below those of its owner."""
        return self.folders[0].name

    def descriptors(self) -> list[int]:
        """Open descriptors that let the launcher place a child: the caller closes them."""
        if self.version == 2:
            return [os.open(self.folders[0], os.O_RDONLY | os.O_DIRECTORY)]
        return [os.open(folder / "tasks", os.O_WRONLY) for folder in self.folders]

    def oom_kills(self) -> int:
        """Processes killed for want of memory since the group was taken."""
        return read_oom_kills(self._oom_file) - self._oom_before

    def reset(self) -> None:
        self._oom_before += self.oom_kills()


class GroupPool:
    """Groups below `gymsmith/<owner>` of every hierarchy. Use `open_pool` to get one."""

    def __init__(self, roots: list[Path], version: int) -> None:
        self.version = version
        self._roots = roots
        self._free: defaultdict[Limits, list[Group]] = defaultdict(list)
        self._abandoned: list[Group] = []
        self._made = 0

    def take(self, limits: Limits) -> Group:
        """A group with these limits that no process is in. Raises: OSError."""
        free = self._free[limits]
        while free:
            group = free.pop()
            # Someone else may have cleaned up below /sys/fs/cgroup; a worker must outlive that.
            if all(folder.is_dir() for folder in group.folders):
                group.reset()
                return group
        self._made += 1
        folders = []
        for root in self._roots:
            folder = root / str(self._made)
            folder.mkdir(parents=True)
            folders.append(folder)
        for folder in folders:
            for name, value in self._settings(limits):
                if (folder / name).exists():
                    (folder / name).write_text(value)
        return Group(folders, self.version, limits)

    def give(self, group: Group) -> None:
        """Take a group back whose last process is dead."""
        self._free[group.limits].append(group)

    def abandon(self, group: Group) -> None:
        """Take a group back in which processes may still be dying: nobody gets it again, `tidy` removes it."""
        self._abandoned.append(group)

    def tidy(self) -> None:
        """Remove the abandoned groups that are empty by now."""
        self._abandoned = [group for group in self._abandoned if not all([remove_tree(folder) for folder in group.folders])]

    def _settings(self, limits: Limits) -> list[tuple[str, str]]:
        quota = int(limits.cpus * _CPU_PERIOD_US)
        if self.version == 2:
            return [
                ("memory.max", str(limits.memory_bytes)),
                ("memory.swap.max", "0"),
                ("pids.max", str(limits.pids)),
                ("cpu.max", f"{quota} {_CPU_PERIOD_US}"),
            ]
        return [
            ("memory.limit_in_bytes", str(limits.memory_bytes)),
            ("memory.memsw.limit_in_bytes", str(limits.memory_bytes)),
            ("pids.max", str(limits.pids)),
            ("cpu.cfs_quota_us", str(quota)),
        ]

    def close(self) -> None:
        """Remove every group. Those that still hold a process stay for the reaper."""
        self._free.clear()
        for root in self._roots:
            remove_tree(root)


def read_oom_kills(path: Path) -> int:
    """The count in a memory.events (v2) or memory.oom_control (v1) file; 0 when it cannot be read."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def hierarchies() -> tuple[int, list[Path]]:
    """(version, root directories in which this process may make groups with memory and pids limits), or (0, [])."""
    mounts: dict[str, Path] = {}
    unified: Path | None = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4])
        kind, _, options = right.split(" ")[:3]
        if kind == "cgroup2":
            unified = point
        elif kind == "cgroup":
            for option in options.split(","):
                mounts.setdefault(option, point)
    if unified and {"memory", "pids"} <= set(_words(unified / "cgroup.controllers")):
        return (2, [unified]) if os.access(unified, os.W_OK) else (0, [])
    v1 = [mounts[name] for name in ("memory", "pids", "cpu") if name in mounts]
    v1 = list(dict.fromkeys(v1))
    if {"memory", "pids"} <= set(mounts) and all(os.access(root, os.W_OK) for root in v1):
        return 1, v1
    return 0, []


def open_pool(owner: str) -> GroupPool | None:
    """A pool of groups for this owner, or None where control groups cannot be written."""
    version, roots = hierarchies()
    if not version:
        return None
    mine = []
    try:
        for root in roots:
            parent = root / PARENT
            if version == 2:
                _enable(root)
                parent.mkdir(exist_ok=True)
                _enable(parent)
            (parent / owner).mkdir(parents=True)
            _weigh(parent)
            if version == 2:
                _enable(parent / owner)
            mine.append(parent / owner)
    except OSError as error:
        log.info("control groups cannot be used: %s", error)
        for folder in mine:
            remove_tree(folder)
        return None
    return GroupPool(mine, version)


def usage(owner: str, name: str) -> tuple[int, int] | None:
    """(bytes of memory, processes) in use by a group of an owner; None where it cannot be read."""
    version, roots = hierarchies()
    memory = "memory.current" if version == 2 else "memory.usage_in_bytes"
    found: dict[str, int] = {}
    for root in roots:
        for kind in (memory, "pids.current"):
            with contextlib.suppress(OSError, ValueError):
                found[kind] = int((root / PARENT / owner / name / kind).read_text())
    return (found[memory], found["pids.current"]) if len(found) == 2 else None


def group_file(pid: int, controller: str, old: str, unified: str) -> Path | None:
    """A file in the control group of a process: `old` in version 1's hierarchy of the controller, `unified` in version 2's."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for candidate in (
            Path(f"/sys/fs/cgroup/{controller}{path}", old) if controller in controllers.split(",") else None,
            Path(f"/sys/fs/cgroup{path}", unified) if not controllers else None,
        ):
            if candidate is not None and candidate.exists():
                return candidate
    return None


def kill_tree(folder: Path) -> None:
    """Kill whatever still runs in a directory of groups."""
    for listing in folder.rglob("cgroup.procs"):
        for word in _words(listing):
            if word == "0":  # a process of another pid namespace; kill(0) would mean ourselves
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(word), signal.SIGKILL)


def remove_tree(folder: Path) -> bool:
    """Remove a directory of groups, deepest first; False when something in it is still alive."""
    try:
        for child in folder.iterdir():
            if child.is_dir():
                remove_tree(child)
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _weigh(parent: Path) -> None:
    """Let all sandboxes together weigh as much as one busy process per core.

    The kernel's default is the weight of one process for all of them, spread over every core: on a busy machine a hundred
    sandboxes would share a single turn, the smaller the more cores there are.
    """
    cores = os.cpu_count() or 1
    for name, value in (("cpu.shares", min(262_144, 1024 * cores)), ("cpu.weight", min(10_000, 100 * cores))):
        if (parent / name).exists():
            (parent / name).write_text(str(value))


def _enable(folder: Path) -> None:
    wanted = {"memory", "pids", "cpu"} & set(_words(folder / "cgroup.controllers"))
    have = set(_words(folder / "cgroup.subtree_control"))
    for name in sorted(wanted - have):
        (folder / "cgroup.subtree_control").write_text(f"+{name}")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
