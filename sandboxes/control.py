"""How a person ends a sandbox of a running worker: a socket in the owner's folder, at which the owner itself does it.

The owner alone knows what it holds and can say so to whoever waits for that sandbox (`SandboxGone`). Only this user and root get
to the socket. What it does not offer, on purpose, is to run something in a live sandbox: that would stand in an agent's record
as if the agent had done it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gymsmith.errors import NotFound, SandboxError
from sandboxes.background import begin
from sandboxes.base import Sandbox

log = logging.getLogger(__name__)
SOCKET = "control"
ANSWER_S = 10.0


class Control:
    """The owner's end. Belongs to the running loop; `find` gives the sandbox of a number, or None."""

    def __init__(self, folder: Path, find: Callable[[int], Sandbox | None]) -> None:
        self._find = find
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._door.setblocking(False)
        with _short(folder) as path:
            self._door.bind(path)
            os.chmod(path, 0o600)
        self._door.listen(8)
        self._loop.add_reader(self._door.fileno(), self._knock)

    def close(self) -> None:
        """Answer nobody any more."""
        if self._door.fileno() >= 0:
            self._loop.remove_reader(self._door.fileno())
            self._door.close()
        for task in self._tasks:
            task.cancel()

    def _knock(self) -> None:
        try:
            visitor, _ = self._door.accept()
        except OSError:
            return
        _, uid, _ = struct.unpack("3i", visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            visitor.close()
            return
        visitor.setblocking(False)
        task = begin(self._serve(visitor), "a visitor of gymsmith sandbox")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, visitor: socket.socket) -> None:
        with visitor:
            try:
                async with asyncio.timeout(ANSWER_S):
                    asked = json.loads(await self._loop.sock_recv(visitor, 4096))
                    box = self._find(int(asked["kill"]))
                    if box is not None:
                        log.warning("event=killed_by_hand sandbox=%s", box.id)
                        await box.destroy()
                    await self._loop.sock_sendall(visitor, json.dumps({"killed": box is not None}).encode())
            except (OSError, ValueError, KeyError, TypeError, TimeoutError) as error:
                log.warning("event=control_failed error=%s", error)


def kill(folder: Path, number: int) -> None:
    """Have the owner of this folder end its sandbox of that number; returns when its last process is dead.

    Raises: NotFound (it holds no such sandbox any more), SandboxError (it does not answer).
    """
    owner = folder.name.partition("-")[0]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(ANSWER_S)
            with _short(folder) as path:
                line.connect(path)
            line.sendall(json.dumps({"kill": number}).encode())
            answer: dict[str, Any] = json.loads(line.recv(4096))
    except (OSError, ValueError) as error:
        raise SandboxError(
            f"process {owner} must answer within {ANSWER_S:g} s, it did not ({error}); its sandboxes end with it: kill {owner}"
        ) from error
    if not answer["killed"]:
        raise NotFound(f"sandbox {folder.name}.{number} has ended already")


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path, short enough for the kernel's 108 bytes wherever the state folder lies."""
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)
