"""How much of a disk a container may have, and who sees to it.

Some engines refuse a write beyond a size (overlay2 on xfs with project quotas, btrfs, zfs): `survey` tries that. All others
refuse none, so a `DiskWatch` measures every second what each container has on disk and says which has too much: its writable
layer, its volumes, the few files of the engine that it may write to, and what was deleted while a process still has it open.
A container in which nothing ran since the last look cannot have written and is not looked at. Where this user may not enter the
engine's folder, the engine is asked for sizes instead, which knows neither blocks nor deleted files nor how many files there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gymsmith.errors import Capacity
from sandboxes.background import begin
from sandboxes.base import MIB
from sandboxes.cgroups import group_file

log = logging.getLogger(__name__)
PERIOD_S = 1.0
ASKING_S = 5.0
"""Between two questions to the engine, which walks all layers for each."""
_SHARE = 20
"""A round is followed by a pause of at least so many times what it took of the processor; the walk takes about as much again.
Time that passed is no measure: on a busy machine the watch would put itself to sleep when it is needed."""
_ENGINES_FILES = ("HostsPath", "HostnamePath", "ResolvConfPath")

Way = Literal["quota", "measured", "asked"]


class Survey(NamedTuple):
    """Who limits what a container writes on this engine."""

    way: Way
    text: str


class Use(NamedTuple):
    """What lies on disk."""

    bytes: int
    files: int


def survey(client: Any) -> Survey:
    """How the engine behind a `docker.APIClient` limits disks. Where it may do so itself, one container is made and removed."""
    info = client.info()
    backing = dict(info.get("DriverStatus") or ()).get("Backing Filesystem", "")
    storage = f"{info['Driver']}{f' on {backing}' if backing else ''}"
    if (info["Driver"] in ("btrfs", "zfs") or backing == "xfs") and _takes_a_size(client):
        return Survey("quota", f"the engine refuses a write beyond the limit ({storage})")
    rest = "a sandbox that has more than its limit is ended"
    if os.access(info["DockerRootDir"], os.R_OK | os.X_OK):
        return Survey(
            "measured", f"the engine limits no disk ({storage}); what is written is measured every {PERIOD_S:g} s, {rest}"
        )
    return Survey(
        "asked",
        f"the engine limits no disk ({storage}) and only root may look into {info['DockerRootDir']}; "
        f"the engine is asked for sizes every {ASKING_S:g} s, {rest}",
    )


def _takes_a_size(client: Any) -> bool:
    """Whether the engine makes a container with a limited disk."""
    import docker

    images = client.images(quiet=True)
    if not images:
        return False
    try:
        host = client.create_host_config(storage_opt={"size": str(256 * MIB)})
        made = client.create_container(images[0], "true", host_config=host)
    except docker.errors.APIError:
        return False
    client.remove_container(made["Id"], force=True, v=True)
    return True


@dataclass(slots=True)
class Watched:
    """One container: where it can write, and how much."""

    container: str
    most: Use
    over: Callable[[Use], None]
    """Told, in the event loop, what it has when that is too much; once."""
    places: tuple[str, ...]
    """Directories and files of this host."""
    pid: int
    """Of its PID 1, for the files that are deleted but open."""
    group: Path | None = None
    """A control group that all its processes are in."""
    clock: Path | None = None
    """What the kernel counts of its time on the processor; None: not known, it is looked at every time."""
    ask_engine: bool = False
    _told: bytes = field(default=b"")

    @classmethod
    def of(cls, inspected: Mapping[str, Any], way: Way, most: Use, over: Callable[[Use], None]) -> Watched:
        """A running container, as the engine's inspection describes it."""
        pid = int(inspected["State"]["Pid"])
        places = [mount["Source"] for mount in inspected.get("Mounts") or () if mount.get("Type") == "volume"]
        places += [path for key in _ENGINES_FILES if (path := inspected.get(key))]
        upper = ((inspected.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir", "")
        seen = way == "measured" and os.access(upper, os.R_OK | os.X_OK)
        if seen:
            places.append(upper)
        group = group_file(pid, "memory", "cgroup.procs", "cgroup.procs")
        return cls(
            inspected["Id"], most, over, tuple(places), pid,
            group=group.parent if group else None,
            clock=group_file(pid, "cpuacct", "cpuacct.usage", "cpu.stat"),
            ask_engine=way != "quota" and not seen,
        )  # fmt: skip

    def moved(self) -> bool:
        """Whether anything may have run in it since this was last asked."""
        try:
            told = self.clock.read_bytes().partition(b"\n")[0] if self.clock else b""
        except OSError:
            told = b""
        before, self._told = self._told, told
        return not told or told != before

    def forget(self) -> None:
        """What was asked for last did not come: the next time anything may have run."""
        self._told = b""


class DiskWatch:
    """A task on the running loop that measures the containers of one provider. It must be closed."""

    def __init__(self, ask_sizes: Callable[[], Mapping[str, int]], period_s: float = PERIOD_S) -> None:
        self._ask_sizes = ask_sizes
        self._period_s = period_s
        self._watched: dict[str, Watched] = {}
        self._asked = float("-inf")
        self._took_s = 0.0
        self.failure = ""
        """Why the last round failed; empty when it did not."""
        self._task = begin(self._rounds(), "container disks", self._stopped)

    def add(self, watched: Watched) -> None:
        self._watched[watched.container] = watched

    def drop(self, container: str) -> None:
        self._watched.pop(container, None)

    def check(self) -> None:
        """Raises: Capacity (what containers write cannot be measured now, so no new one may be made)."""
        if self.failure:
            raise Capacity(f"what containers write cannot be measured: {self.failure}")

    def _stopped(self, error: BaseException) -> None:
        self.failure = f"nobody measures any more ({type(error).__name__}: {error})"

    async def _rounds(self) -> None:
        while True:
            try:
                over = await asyncio.to_thread(self._round, list(self._watched.values()))
                self.failure = ""
            except Exception as error:  # the next round tries again; until one works, `check` refuses new containers
                over = []
                for watched in self._watched.values():
                    watched.forget()
                self.failure = f"{type(error).__name__}: {error}"
                log.warning("event=disk_watch_failed error=%s", self.failure)
            for watched, use in over:
                if self._watched.pop(watched.container, None) is watched:
                    watched.over(use)
            await asyncio.sleep(max(self._period_s, _SHARE * self._took_s))

    def _round(self, all_watched: list[Watched]) -> list[tuple[Watched, Use]]:
        """In a thread: those that have more than they may, with what they have."""
        began = time.thread_time()
        try:
            return self._measured(all_watched)
        finally:
            self._took_s = time.thread_time() - began

    def _measured(self, all_watched: list[Watched]) -> list[tuple[Watched, Use]]:
        asking = time.monotonic() - self._asked >= ASKING_S
        moved = [watched for watched in all_watched if (asking or not watched.ask_engine) and watched.moved()]
        sizes: Mapping[str, int] = {}
        if any(watched.ask_engine for watched in moved):
            sizes = self._ask_sizes()
            self._asked = time.monotonic()
        on_disk = measure(place for watched in moved for place in watched.places)
        over = []
        for watched in moved:
            uses = [on_disk.get(place, Use(0, 0)) for place in watched.places]
            uses += [Use(sizes.get(watched.container, 0), 0), deleted(watched.pid, watched.group)]
            use = Use(sum(each.bytes for each in uses), sum(each.files for each in uses))
            if use.bytes > watched.most.bytes or use.files > watched.most.files:
                over.append((watched, use))
        return over

    async def close(self) -> None:
        """Stop; returns when no round is at work."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def measure(places: Iterable[str]) -> dict[str, Use]:
    """Blocks and files below each place, hard links counted once; a place that is gone is left out. Links are not followed.

    `find` does it, because it walks trees of any depth, never leaves them when names are exchanged under it, and leaves this
    process to others meanwhile. Raises: OSError.
    """
    tops = sorted(set(places))
    if not tops:
        return {}
    found: dict[bytes, list[int]] = {}
    linked: set[tuple[bytes, bytes]] = set()
    command = ["find", *tops, "-xdev", "-ignore_readdir_race", "-printf", r"%H\t%b\t%n\t%y\t%i\n"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as walk:
        assert walk.stdout is not None
        for line in walk.stdout:
            top, blocks, links, kind, inode = line.rstrip(b"\n").rsplit(b"\t", 4)
            if links != b"1" and kind != b"d":
                if (top, inode) in linked:
                    continue
                linked.add((top, inode))
            total = found.setdefault(top, [0, 0])
            total[0] += int(blocks) * 512
            total[1] += 1
    return {os.fsdecode(top): Use(*total) for top, total in found.items()}


def deleted(pid: int, group: Path | None) -> Use:
    """What the processes of a container hold open, or mapped, that has no name any more; memory is not counted.

    group: of its processes. Nothing where this user may not look.
    """
    memory = {os.lstat(f"/proc/{pid}/root{place}").st_dev for place in ("/dev", "/dev/shm")} if _enterable(pid) else None
    if memory is None or group is None:
        return Use(0, 0)
    probe = os.memfd_create("probe")
    memory.add(os.fstat(probe).st_dev)
    os.close(probe)
    found: dict[tuple[int, int], int] = {}
    with contextlib.suppress(OSError):
        for process in (group / "cgroup.procs").read_text().split():
            for path in (*_descriptors(process), *_mappings(process)):
                with contextlib.suppress(OSError):
                    status = os.stat(path)
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_dev not in memory:
                        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return Use(sum(found.values()), len(found))


def _enterable(pid: int) -> bool:
    return os.path.isdir(f"/proc/{pid}/root/dev/shm")


def _descriptors(process: str) -> list[str]:
    try:
        return [f"/proc/{process}/fd/{name}" for name in os.listdir(f"/proc/{process}/fd")]
    except OSError:
        return []


def _mappings(process: str) -> list[str]:
    """Those of deleted files: they stay on disk without any descriptor."""
    try:
        with open(f"/proc/{process}/maps", "rb") as maps:
            ranges = [line.split(b" ", 1)[0].decode() for line in maps if line.endswith(b" (deleted)\n")]
    except OSError:
        return []
    return [f"/proc/{process}/map_files/{each}" for each in ranges]
