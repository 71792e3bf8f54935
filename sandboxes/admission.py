"""Who may make a sandbox now: reservations against what the machine has, in the order of asking.

Each sandbox reserves its limits. The sum of all reservations may exceed the machine by the overcommit, because limits are worst
cases and most sandboxes use a hundredth of theirs; what they really use is watched too, and nobody is let in while the machine
has no memory left to give. Who finds no room waits in order; who can never fit, finds the queue full or has waited too long gets
`Capacity`. Making sandboxes is work for the processor, so only a few are made at once: more would only make each slower.

It belongs to one provider and one event loop. Other processes are seen only by what they really use.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gymsmith.errors import Capacity
from sandboxes.base import MIB

OVERCOMMIT = 16.0
"""Sum of limits over what the machine has. A thousand sandboxes of 512 MiB were seen to use 0.7 MiB each when idle."""
LIFECYCLES_PER_CORE = 8
"""Sandboxes that are made at once. Two per core made a third fewer a second on a machine that others kept busy."""
QUEUE = 10_000
WAIT_S = 300.0
_LOOK_S = 0.1
"""How old a look at the machine's free memory may be, and how often those who wait for some look again."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one sandbox reserves, or one snapshot of it that lies in memory."""

    memory_bytes: int
    """Its memory limit, and its disk limit where what it writes lies in memory."""
    pids: int = 0
    sandboxes: int = 1
    """0 for a snapshot."""


@dataclass(frozen=True, slots=True)
class Room:
    """What all sandboxes of a provider may reserve together."""

    sandboxes: int
    memory_bytes: int
    pids: int

    @classmethod
    def of_machine(cls, sandboxes: int, overcommit: float = OVERCOMMIT) -> Room:
        """This machine's memory and process ids, `overcommit` times."""
        return cls(sandboxes, int(machine_memory() * overcommit), int(machine_pids() * overcommit))


class Admission:
    """The reservations of one provider. Not thread-safe."""

    def __init__(
        self,
        room: Room,
        *,
        lifecycles: int = 0,
        queue: int = QUEUE,
        wait_s: float = WAIT_S,
        free_memory: Callable[[], int] | None = None,
    ) -> None:
        self.room = room
        self.lifecycle = asyncio.Semaphore(lifecycles or LIFECYCLES_PER_CORE * (os.cpu_count() or 1))
        """Hold one while making a sandbox."""
        self.sandboxes = self.memory_bytes = self.pids = 0
        self.make_room: Callable[[], None] | None = None
        """Called when somebody waits: a pool gives up a sandbox that nobody uses yet."""
        self._queue = queue
        self._wait_s = wait_s
        self._waiting: deque[tuple[Need, asyncio.Future[None]]] = deque()
        self._free_memory = free_memory or available_memory
        self._reserve = min(2048 * MIB, machine_memory() // 20)
        self._looked = 0.0
        self._pressed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    async def admit(self, need: Need) -> None:
        """Reserve; returns when there is room. The caller calls `release` with the same need once.

        Raises: Capacity (it can never fit, the queue is full, or there was no room for too long).
        """
        self._possible(need)
        if not self._waiting and self._fits(need):
            self._reserve_for(need)
            return
        if len(self._waiting) >= self._queue:
            raise Capacity(f"at most {self._queue} may wait for a sandbox, as many do; ask again later or start fewer at once")
        entry = need, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        self._advance()
        try:
            async with asyncio.timeout(self._wait_s):
                await entry[1]
        except BaseException as error:
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._advance()
            elif entry[1].done() and not entry[1].cancelled():
                self.release(need)  # it was granted in the moment in which the caller gave up
            if isinstance(error, TimeoutError):
                raise Capacity(f"no room for a sandbox within {self._wait_s:g} s: {self._held()}; destroy some") from None
            raise

    def release(self, need: Need) -> None:
        """Give back what `admit` reserved."""
        self.sandboxes -= need.sandboxes
        self.memory_bytes -= need.memory_bytes
        self.pids -= need.pids
        if self._waiting:
            self._advance()

    def _possible(self, need: Need) -> None:
        for name, value, most in (
            ("memory_bytes (with disk_bytes where that is memory)", need.memory_bytes, self.room.memory_bytes),
            ("pids", need.pids, self.room.pids),
            ("sandboxes", need.sandboxes, self.room.sandboxes),
        ):
            if value > most:
                raise Capacity(f"{name} of one sandbox must be at most {most} here, got {value}; lower it in the sandbox spec")

    def _fits(self, need: Need) -> bool:
        return (
            self.sandboxes + need.sandboxes <= self.room.sandboxes
            and self.memory_bytes + need.memory_bytes <= self.room.memory_bytes
            and self.pids + need.pids <= self.room.pids
            and not (self.memory_bytes and self._under_pressure())
        )

    def _under_pressure(self) -> bool:
        """Whether the machine has no memory to give. Only while we hold something: else waiting would free nothing."""
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            self._looked, self._pressed = now, self._free_memory() < self._reserve
        return self._pressed

    def _reserve_for(self, need: Need) -> None:
        self.sandboxes += need.sandboxes
        self.memory_bytes += need.memory_bytes
        self.pids += need.pids

    def _advance(self) -> None:
        """Let in whoever fits, strictly in order: a large one is not overtaken for ever by small ones."""
        while self._waiting:
            need, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
            elif self._fits(need):
                self._waiting.popleft()
                self._reserve_for(need)
                future.set_result(None)
            else:
                if self.make_room is not None:
                    self.make_room()
                if self._pressed and self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(_LOOK_S * 1.1, self._look_again)
                return

    def _look_again(self) -> None:
        self._timer = None
        self._advance()

    def _held(self) -> str:
        most = self.room
        free = ", and the machine has no free memory" if self._pressed else ""
        return (
            f"{self.sandboxes} of at most {most.sandboxes} sandboxes live and reserve, with snapshots, "
            f"{self.memory_bytes // MIB} of {most.memory_bytes // MIB} MiB and {self.pids} of {most.pids} processes{free}"
        )


def machine_memory() -> int:
    """Bytes of memory that this process's machine, or the control group it was put into, has."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        total = min(total, _number(path, total))
    return total


def machine_pids() -> int:
    """Process ids that this machine, or the control group of this process, has."""
    total = min(_number("/proc/sys/kernel/pid_max", 32_768), _number("/proc/sys/kernel/threads-max", 32_768))
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        total = min(total, _number(path, total))
    return total


def available_memory() -> int:
    """Bytes that new processes could have without swapping, as the kernel estimates them."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62


def _number(path: str, default: int) -> int:
    """The number in a file; the default where there is none ("max", no such file)."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return default
