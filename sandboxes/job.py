"""A command in the background, as `Sandbox.spawn` hands it out: its end is a future, its output so far is asked for."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from gymsmith.errors import ExecTimeout
from sandboxes.base import ExecResult, JobState
from sandboxes.checks import check_timeout
from sandboxes.link import EXIT, KILL, PEEK
from sandboxes.outcome import decode

if TYPE_CHECKING:
    from sandboxes.resident import ResidentSandbox

_KILL_S = 10.0


class ResidentJob:
    """Implements `Job`."""

    def __init__(
        self,
        sandbox: ResidentSandbox,
        number: int,
        ended: asyncio.Future[tuple[int, bytes]],
        result: Callable[[int, bytes], ExecResult],
    ) -> None:
        self.id = f"{sandbox.id}/{number}"
        self._sandbox = sandbox
        self._number = number
        self._ended = ended
        self._result_of = result
        self._final: JobState | None = None

    async def poll(self) -> JobState:
        if not self._ended.done():
            kind, payload, _ = await self._sandbox.ask(PEEK, struct.pack("<I", self._number))
            if kind == EXIT:
                return decode(payload).so_far()
            await self._ended  # it ended before it was asked for, so its end is here already or never will be
        if self._final is None:
            result = self._result_of(*self._ended.result())
            self._final = JobState(result.output, result.omitted_bytes, result)
        return self._final

    async def wait(self, timeout_s: float | None = None) -> JobState:
        if timeout_s is not None:
            check_timeout(timeout_s)
        await asyncio.wait({self._ended}, timeout=timeout_s)
        return await self.poll()

    async def kill(self) -> None:
        if self._ended.done():
            return
        self._sandbox.link.tell(KILL, self._number)
        await asyncio.wait({self._ended}, timeout=_KILL_S)
        if not self._ended.done():
            await self._sandbox.destroy()
            raise ExecTimeout(f"job {self.id} must be dead {_KILL_S:.0f} s after it was killed, it was not; sandbox destroyed")
