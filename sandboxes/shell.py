"""A persistent shell, as `Sandbox.shell` hands it out; `box/shell.c` tells how its status stays beyond a workload's reach."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import struct
from typing import TYPE_CHECKING

from gymsmith.errors import ExecTimeout, PolicyRefused, SandboxError, SandboxGone, ShellEnded
from sandboxes.base import ExecResult
from sandboxes.checks import check_line, check_output, check_timeout, encoded
from sandboxes.link import CLOSE, EXIT, KILL, LINE, PEEK, TYPE
from sandboxes.outcome import SHELL_ENDED, decode

if TYPE_CHECKING:
    from sandboxes.resident import ResidentSandbox

GRACE_S = 5.0
_TYPE_BYTES = 2048
_TYPE_S = 10.0
_LINE = struct.Struct("<3I")


class ResidentShell:
    """Implements `Shell`."""

    def __init__(self, sandbox: ResidentSandbox, number: int) -> None:
        self.id = f"{sandbox.id}/{number}"
        self._sandbox = sandbox
        self._number = number
        self._turn = asyncio.Lock()
        self._ended = False
        self._line: int | None = None

    @property
    def ended(self) -> bool:
        return self._ended

    async def run(self, line: str, *, timeout_s: float = 30.0, max_output_bytes: int = 65_536) -> ExecResult:
        check_line(line)
        check_timeout(timeout_s)
        check_output(max_output_bytes)
        text = encoded("line", line)
        async with self._turn:
            while True:
                if self._ended:
                    raise self._gone()
                await self._sandbox.settled()
                head = _LINE.pack(self._number, max(1, int(timeout_s * 1000)), max_output_bytes)
                kind, payload = await self._answer(timeout_s, head, text)
                if kind == EXIT:
                    outcome = decode(payload)
                    self._ended = bool(outcome.state & SHELL_ENDED)
                    return outcome.result("sh", "", max_output_bytes, self._sandbox.ran_out(outcome.ended_badly))
                code = struct.unpack_from("<i", payload)[0]
                if code == errno.ESRCH:
                    self._ended = True
                elif code == errno.EBUSY:  # a line whose caller gave up is just being ended
                    await asyncio.sleep(0.01)
                else:
                    raise SandboxError(f"shell {self.id} cannot run a line: {os.strerror(code)}")

    async def _answer(self, timeout_s: float, head: bytes, text: bytes) -> tuple[int, bytes]:
        sandbox = self._sandbox
        number, future = sandbox.link.request(LINE, head, text)
        self._line = number
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await future
        except TimeoutError:
            await sandbox.destroy()
            raise ExecTimeout(
                f"sandbox {sandbox.id} must answer {timeout_s} s + {GRACE_S} s after a line started, it did not; destroyed"
            ) from None
        except asyncio.CancelledError:
            sandbox.link.forget(number)
            sandbox.link.tell(KILL, number)
            raise

    async def take(self) -> bytes:
        """What the running line has printed since the last take, with its cap; `run` does not tell that again."""
        if self._line is None:
            return b""
        kind, payload, _ = await self._sandbox.ask(PEEK, struct.pack("<I", self._line))
        return decode(payload).so_far().output if kind == EXIT else b""

    async def send(self, data: bytes) -> None:
        if not isinstance(data, bytes | bytearray):
            raise PolicyRefused(f"data must be bytes, got {data!r:.100}")
        view = memoryview(data)
        deadline = asyncio.get_running_loop().time() + _TYPE_S
        while view:
            if self._ended:
                raise self._gone()
            _, payload, _ = await self._sandbox.ask(TYPE, struct.pack("<I", self._number), bytes(view[:_TYPE_BYTES]))
            code, taken = struct.unpack_from("<iI", payload)
            if code == errno.ESRCH:
                self._ended = True
            elif code:
                raise SandboxError(f"the terminal of shell {self.id} must take input, it said: {os.strerror(code)}")
            view = view[taken:]
            if not taken and not self._ended:
                if asyncio.get_running_loop().time() > deadline:
                    raise SandboxError(f"the terminal of shell {self.id} took no input for {_TYPE_S:.0f} s; nobody reads it")
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(SandboxGone):
            await self._sandbox.ask(CLOSE, struct.pack("<I", self._number))

    def _gone(self) -> ShellEnded:
        return ShellEnded(f"shell {self.id} has exited; open another one")
