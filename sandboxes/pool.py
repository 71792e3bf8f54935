"""Warm sandboxes: made before anybody asks, so that taking one costs nothing.

`WarmPool` is a provider in front of another. A shelf holds sandboxes of one image and one spec (labels apart), as many as were
lately asked for within a second, once they were asked for again. One task refills each shelf, one sandbox at a time, never faster
than the rate and never while somebody waits for room; a shelf that nobody asks is emptied. What is taken never comes back: no
sandbox is used twice.

It pays where a start is slow (a container engine: a third of a second) or somebody waits for it. It does not where starts take a
millisecond or two of a processor that is busy anyway: made before or made now, the work is the same.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gymsmith.errors import SandboxGone
from sandboxes.admission import Admission
from sandboxes.background import begin
from sandboxes.base import Capabilities, Sandbox, SandboxSpec

log = logging.getLogger(__name__)

MAX_WARM = 64
"""Warm sandboxes of a pool, over all shelves."""
TTL_S = 60.0
"""How long a shelf that nobody asks stays filled."""
REFILLS_PER_S = 100.0
_WINDOW_S = 1.0
_BACK_OFF_S = 1.0
_MOST_BACK_OFF_S = 60.0


class Warmable(Sandbox, Protocol):
    """A sandbox that can wait on a shelf."""

    @property
    def alive(self) -> bool: ...

    def adopt(self, spec: SandboxSpec) -> None: ...


@runtime_checkable
class Maker(Protocol):
    """A provider whose sandboxes can wait on a shelf."""

    name: str
    admission: Admission

    @property
    def capabilities(self) -> Capabilities: ...

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> Warmable: ...

    async def close(self) -> None: ...


class _Shelf:
    """Warm sandboxes of one kind, and how many of them are asked for."""

    def __init__(self, spec: SandboxSpec, half_life_s: float) -> None:
        self.spec = replace(spec, labels={"warm": "yes"})
        self.warm: deque[tuple[Warmable, float]] = deque()
        """With the time at which each was made, oldest first."""
        self.asked = time.monotonic()
        self.refill: asyncio.Task[None] | None = None
        self.failures = 0
        self._half_life_s = half_life_s
        self._window = deque[float]()
        self._peak = 0.0
        self._first = self.asked
        self._again = False

    def ask(self) -> None:
        """Somebody asks for one."""
        now = time.monotonic()
        self._peak, self.asked = self._faded(now), now
        self._again = self._again or now - self._first > _WINDOW_S
        self._window.append(now)
        while self._window[0] < now - _WINDOW_S:
            self._window.popleft()
        self._peak = max(self._peak, len(self._window))

    def expect(self, count: int) -> None:
        """So many will be asked for at once."""
        now = time.monotonic()
        self._peak, self.asked, self._again = max(self._faded(now), count), now, True

    def wanted(self) -> int:
        """How many should be warm: the most that were asked for within a second, fading by half in each half-life.

        None after a first burst: many environments are visited once in a long while, and what was made for them would be wasted.
        """
        return math.ceil(self._faded(time.monotonic()) - 0.25) if self._again else 0

    def _faded(self, now: float) -> float:
        return self._peak * 0.5 ** ((now - self.asked) / self._half_life_s)


class WarmPool:
    """A provider whose sandboxes may be there before they are asked for. Belongs to the event loop that made it."""

    def __init__(
        self, provider: Maker, *, max_warm: int = MAX_WARM, ttl_s: float = TTL_S, refills_per_s: float = REFILLS_PER_S
    ) -> None:
        self.provider = provider
        self.admission = provider.admission
        self.admission.make_room = self._give_one_up
        self.name = self.provider.name
        self._max_warm, self._ttl_s, self._pause_s = max_warm, ttl_s, 1.0 / refills_per_s
        self._shelves: OrderedDict[tuple[Any, ...], _Shelf] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()
        self._next_refill = 0.0
        self._closed = False
        self._janitor = begin(self._empty_old_shelves(), "warm sandboxes")
        self.hits = self.misses = 0

    @property
    def capabilities(self) -> Capabilities:
        return self.provider.capabilities

    @property
    def warm(self) -> int:
        """How many are ready."""
        return sum(len(shelf.warm) for shelf in self._shelves.values())

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> Sandbox:
        """As the provider's own; from the shelf when one of that kind is ready."""
        if self._closed:
            raise SandboxGone("the pool is closed; start another one")
        if layers or upper is not None or spec.role != "workload":
            return await self.provider.create(spec, layers=layers, upper=upper)
        shelf = self._shelf(spec)
        shelf.ask()
        while shelf.warm:
            box, _ = shelf.warm.popleft()
            if box.alive:
                self.hits += 1
                box.adopt(spec)
                self._fill(shelf)
                return box
            self._end(box)  # it ended on its shelf; this gives back what it had
        self.misses += 1
        try:
            return await self.provider.create(spec)
        finally:
            self._fill(shelf)

    def expect(self, spec: SandboxSpec, count: int) -> None:
        """Have `count` sandboxes made ahead: so many are about to be asked for."""
        shelf = self._shelf(spec)
        shelf.expect(count)
        self._fill(shelf)

    async def close(self) -> None:
        """Destroy the warm ones, and close the provider with all that was taken."""
        await self.drain()
        await self.provider.close()

    async def drain(self) -> None:
        """Destroy the warm ones and make no more; what was taken lives on, and so does the provider."""
        if self._closed:
            return
        self._closed = True
        self.admission.make_room = None
        tasks = [self._janitor, *(shelf.refill for shelf in self._shelves.values() if shelf.refill)]
        for task in tasks:
            task.cancel()
        for shelf in self._shelves.values():
            while shelf.warm:
                self._end(shelf.warm.popleft()[0])
        self._shelves.clear()
        await asyncio.gather(*tasks, *self._ending, return_exceptions=True)

    def _shelf(self, spec: SandboxSpec) -> _Shelf:
        key = kind(spec)
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = _Shelf(spec, half_life_s=self._ttl_s / 4)
        self._shelves.move_to_end(key)
        return shelf

    def _fill(self, shelf: _Shelf) -> None:
        """Have the shelf's one task at work when there is something to do."""
        if (shelf.refill is None or shelf.refill.done()) and not self._closed and len(shelf.warm) < shelf.wanted():
            shelf.refill = begin(self._refill(shelf), f"refill {shelf.spec.image[:12]}")

    async def _refill(self, shelf: _Shelf) -> None:
        while len(shelf.warm) < shelf.wanted() and self.warm < self._max_warm:
            await self._turn()
            if self.admission.waiting:
                return  # the next take tries again
            try:
                box = await self.provider.create(shelf.spec)
            except Exception as error:  # whatever a provider raises: nobody asked for this one yet
                shelf.failures += 1
                pause_s = min(_MOST_BACK_OFF_S, _BACK_OFF_S * 2 ** (shelf.failures - 1))
                log.warning("event=refill_failed image=%s pause_s=%g error=%s", shelf.spec.image, pause_s, error)
                await asyncio.sleep(pause_s)
                continue
            shelf.failures = 0
            shelf.warm.append((box, time.monotonic()))

    async def _turn(self) -> None:
        """Wait until the rate, which all shelves share, allows one more."""
        now = time.monotonic()
        self._next_refill = max(now, self._next_refill + self._pause_s)
        await asyncio.sleep(self._next_refill - now)

    def _give_one_up(self) -> None:
        """Somebody waits for room: end a warm sandbox of the shelf that was asked longest ago."""
        if self._ending:
            return
        for shelf in self._shelves.values():
            if shelf.warm:
                self._end(shelf.warm.popleft()[0])
                return

    def _end(self, box: Warmable) -> None:
        task = begin(box.destroy(), "end of a warm sandbox")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _empty_old_shelves(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 4)
            now = time.monotonic()
            for key, shelf in list(self._shelves.items()):
                unused = now - shelf.asked > self._ttl_s
                # one that is old would soon end by its own lease, under whoever takes it
                too_old = now - min(self._ttl_s, shelf.spec.lease_s / 4)
                spare = len(shelf.warm) - shelf.wanted()
                while shelf.warm and (unused or spare > 0 or shelf.warm[0][1] < too_old):
                    self._end(shelf.warm.popleft()[0])
                    spare -= 1
                if unused and (shelf.refill is None or shelf.refill.done()):
                    del self._shelves[key]
                else:
                    self._fill(shelf)


def kind(spec: SandboxSpec) -> tuple[Any, ...]:
    """What a warm sandbox must have in common with what is asked for: everything but the labels."""
    return (
        spec.image, spec.workdir, tuple(sorted(spec.env.items())), spec.user, spec.memory_bytes, spec.pids, spec.cpus,
        spec.disk_bytes, spec.lease_s, spec.role, spec.network, spec.trusted,
    )  # fmt: skip
