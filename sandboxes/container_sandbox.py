"""One container with the resident agent in it, as the `docker` provider (`container.py`) has made it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gymsmith.errors import SandboxError
from sandboxes.admission import Need
from sandboxes.base import MIB, SandboxSpec, Snapshot
from sandboxes.cgroups import read_oom_kills
from sandboxes.changes import layer_records
from sandboxes.egress import checked_listener
from sandboxes.link import PUT, REMOVE, Link
from sandboxes.resident import ResidentSandbox
from sandboxes.snapshot import Kept

if TYPE_CHECKING:
    from sandboxes.container import ContainerProvider

HANDOVER = "/.gymsmith-handover"
"""Where a container whose network policy is not none sees, for a moment, a socket of this process."""
START_S = 60.0
KILL_S = 5.0
_BATCH_BYTES = 8 * MIB


class ContainerLink(Link):
    """Frames inside the engine's own framing: one byte of stream, three of nothing, four of length, then the bytes."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(sock, loop)
        self._wrapped = bytearray()
        self.said = b""
        """What the agent wrote to its standard error, the reason when it could not start."""

    def feed(self, data: bytes) -> None:
        self._wrapped += data
        while len(self._wrapped) >= 8:
            stream, length = self._wrapped[0], int.from_bytes(self._wrapped[4:8], "big")
            if len(self._wrapped) < 8 + length:
                return
            payload = bytes(self._wrapped[8 : 8 + length])
            del self._wrapped[: 8 + length]
            if stream == 1:
                super().feed(payload)
            else:
                self.said = (self.said + payload)[-2000:]


class ContainerSandbox(ResidentSandbox):
    """One container."""

    provider: ContainerProvider
    container: str
    number: int
    need: Need | None = None
    oom_file: Path | None = None
    pid: int = 0
    """Of its PID 1, on this host."""
    handover: Path | None = None
    """The directory shown at HANDOVER."""
    process: int = -1
    """A descriptor of its PID 1; -1 where there is none."""
    removed = False
    """Its last process is dead."""
    kept: tuple[Kept, ...] = ()
    """The snapshot it started from."""

    async def listener(self, port: int) -> socket.socket:
        """As ResidentSandbox, over a socket in a shown directory, because the engine's streams carry no descriptors."""
        assert self.handover is not None
        folder = os.open(self.handover, os.O_PATH | os.O_DIRECTORY)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            place = f"/proc/self/fd/{folder}/s"
            door.bind(place)
            os.chmod(place, 0o666)  # the container's root may be another id of this host; who comes is checked below
            door.listen(1)
            door.setblocking(False)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(START_S):
                await self._hand_over(port, f"{HANDOVER}/s")
                channel, _ = await loop.sock_accept(door)  # it waits in the backlog already
            with channel:
                peer = int.from_bytes(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
                if peer != self.pid:
                    raise SandboxError(f"the listening socket of sandbox {self.id} must come from process {self.pid}, not {peer}")
                channel.setblocking(True)
                channel.settimeout(START_S)
                _, came, _, _ = socket.recv_fds(channel, 1, 1)
            if len(came) != 1:
                raise SandboxError(f"sandbox {self.id} must hand over one listening socket, it handed over {len(came)}")
            return checked_listener(came[0], port)
        except TimeoutError:
            raise SandboxError(f"sandbox {self.id} must hand over a listening socket, it did not") from None
        finally:
            door.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink("s", dir_fd=folder)
            os.close(folder)
            os.rmdir(self.handover)  # what the container still sees is empty and can never be anything else

    def _oom_kills(self) -> int:
        return read_oom_kills(self.oom_file) if self.oom_file else 0

    def adopt(self, spec: SandboxSpec) -> None:
        super().adopt(spec)
        self.provider.registry.changed(self.number, {"labels": dict(spec.labels)})

    async def snapshot(self) -> Snapshot:
        async with self.standing_still():
            return await self.provider.snapshot(self)

    async def destroy(self) -> None:
        self.link.close(f"sandbox {self.id} was destroyed")
        if not self.removed:
            await asyncio.shield(self.provider.remove(self))

    async def kill(self) -> bool:
        """Kill PID 1, and with it everything inside, past an engine that does not answer; whether all of it is dead now."""
        if self.process < 0:
            return False
        try:
            signal.pidfd_send_signal(self.process, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        ending = select.poll()
        ending.register(self.process, select.POLLIN)
        return bool(await asyncio.to_thread(ending.poll, KILL_S * 1000))

    def let_go(self) -> None:
        """Close what is open for it."""
        if self.process >= 0:
            os.close(self.process)
            self.process = -1

    async def apply(self, layer: Path) -> None:
        """Do to the file system what stacking `layer` on it would do."""
        batch: list[bytes] = []
        size = 0
        for removed, record in layer_records(layer):
            if removed:
                if batch:
                    await self._do(PUT, batch)
                await self._do(REMOVE, [removed])
                batch, size = [], 0
            if record:
                batch.append(record)
                size += len(record)
                if size > _BATCH_BYTES:
                    await self._do(PUT, batch)
                    batch, size = [], 0
        if batch:
            await self._do(PUT, batch)

    async def _do(self, kind: int, parts: list[bytes]) -> None:
        _, payload, _ = await self.ask(kind, *parts)
        if payload[:4] != b"\0\0\0\0":
            raise self._refusal(payload, "apply a layer")
