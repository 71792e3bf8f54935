"""Frames between the host and a resident agent: the wire format of `box/box.h`, and one connection that speaks it.

A frame is a header of three little-endian integers (length, request id, type) and as many bytes. Answers carry the id of their
request and come in any order. What the requests mean is told in `resident.py`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

from gymsmith.errors import SandboxGone
from sandboxes.base import MAX_FRAME_BYTES

EXEC, PUT, GET, KILL, FREEZE, EXPORT, REMOVE, LISTEN = 1, 2, 3, 4, 5, 6, 7, 40
PEEK, KILL_ALL, LEASE, SHELL, LINE, TYPE, CLOSE, STILL, MOVE = 8, 9, 10, 11, 12, 13, 14, 15, 16
HELLO, FAILED, EXIT, REPLY, CHUNK = 64, 65, 66, 67, 68
_FRAME = struct.Struct("<III")
_PUT = struct.Struct("<4IQ")


class Link:
    """Frames over a stream socket. Owned by one event loop; `close` fails whatever is still waiting."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._sock = sock
        self._loop = loop
        self._received = bytearray()
        self._unsent = bytearray()
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._chunks: dict[int, bytearray] = {}
        self._last_id = 0
        self.awaiting_descriptor = False
        """The next answer may bring one; at any other time the kernel drops what comes with bytes."""
        self.descriptors: list[int] = []
        """Those that came; whoever asked for one takes it out and owns it."""
        self.closing: Callable[[], None] | None = None
        """Called once when it closes, whoever closes it."""
        self.closed: str | None = None
        """Why it is closed; None while it is open."""
        self._kind = SandboxGone
        sock.setblocking(False)
        self.hello = self._waiting[0] = loop.create_future()
        loop.add_reader(sock.fileno(), self._readable)

    def request(self, kind: int, *parts: bytes) -> tuple[int, asyncio.Future[tuple[int, bytes]]]:
        """Send a frame; its id and the future of (type, payload) of the answer. Raises: SandboxGone, or as `close` was told."""
        if self.closed is not None:
            raise self._kind(self.closed)
        self._last_id = number = (self._last_id + 1) & 0xFFFFFFFF or 1
        future: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._waiting[number] = future
        self._send(_FRAME.pack(sum(map(len, parts)), number, kind), *parts)
        return number, future

    def tell(self, kind: int, number: int) -> None:
        """Send a frame without content that has no answer."""
        if self.closed is None:
            self._send(_FRAME.pack(0, number, kind))

    def taken(self, number: int) -> bytearray:
        """The chunks that came for a request, once."""
        return self._chunks.pop(number, bytearray())

    def forget(self, number: int) -> None:
        """No longer wait for an answer; it is dropped when it comes."""
        self._waiting.pop(number, None)

    def close(self, reason: str, kind: type[SandboxGone] = SandboxGone) -> None:
        """Close and fail everything that waits, and whatever is asked later, with kind(reason)."""
        if self.closed is not None:
            return
        self.closed, self._kind = reason, kind
        if self.closing is not None:
            self.closing()
        self._loop.remove_reader(self._sock.fileno())
        if self._unsent:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(kind(reason))
                future.exception()  # marks it as seen: nobody may be waiting any more
        self._chunks.clear()

    def _send(self, *parts: bytes) -> None:
        if self._unsent:
            self._unsent += b"".join(parts)
            return
        data = b"".join(parts)
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.close(f"the sandbox ended: {error}")
            raise SandboxGone(self.closed) from error
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"the sandbox ended: {error}")
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            if self.awaiting_descriptor:
                data, came, _, _ = socket.recv_fds(self._sock, 262_144, 1)
                self.descriptors += came
            else:
                data = self._sock.recv(262_144)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"the sandbox ended: {error}")
            return
        if not data:
            self.close("the sandbox ended")
            return
        self.feed(data)

    def feed(self, data: bytes) -> None:
        """Take bytes of the resident's stream and settle the answers that are whole."""
        received = self._received
        received += data
        start, end = 0, len(received)
        while end - start >= _FRAME.size:
            length, number, kind = _FRAME.unpack_from(received, start)
            if length > MAX_FRAME_BYTES:
                self.close("the sandbox broke its protocol")
                return
            stop = start + _FRAME.size + length
            if stop > end:
                break
            if kind == CHUNK:
                if number in self._waiting:
                    self._chunks.setdefault(number, bytearray()).extend(received[start + _FRAME.size : stop])
            else:
                future = self._waiting.pop(number, None)
                if future is not None and not future.done():
                    future.set_result((kind, bytes(received[start + _FRAME.size : stop])))
            start = stop
        del received[:start]


def put_record(path: str, data: bytes, mode: int, uid: int, gid: int) -> bytes:
    """One file for PUT; the type bits of `mode` may make it a directory or a link, whose target is `data`."""
    name = path.encode("utf-8", "surrogateescape") + b"\0"
    return b"".join((_PUT.pack(mode, uid, gid, len(name), len(data)), name, data))
