"""What travels between a worker and a sandbox host: messages in frames, values in messages.

A frame is the header of `link.py` (length, number, kind) and as many bytes. A message is its last frame, before which a long body
goes in PART frames, so that a transfer of megabytes does not hold up the commands beside it. Values are JSON with the few data
classes of the seam by name and bytes beside it: nothing that is received can name code to run.
"""

from __future__ import annotations

import asyncio
import errno
import json
import struct
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from gymsmith.errors import GymsmithError, SandboxError, named
from sandboxes.base import MAX_FRAME_BYTES, MIB, Capabilities, ExecResult, Exported, JobState, SandboxSpec
from sandboxes.network import NetworkPolicy

PROTOCOL = 1
HELLO, WELCOME, CALL, ANSWER, ERROR, PART, ACK, CANCEL, PING, PONG, BYE = range(1, 12)
PART_BYTES = 128 * 1024
MAX_MESSAGE_BYTES = MAX_FRAME_BYTES + 4 * MIB
MAX_UNFINISHED_BYTES = 4 * MAX_MESSAGE_BYTES
_FRAME = struct.Struct("<III")
_WORDS = {kind.__name__: kind for kind in (Capabilities, ExecResult, Exported, JobState, NetworkPolicy, SandboxSpec)}


class Broken(ConnectionError):
    """The other side did not keep to the protocol; the connection is of no use any more."""


class Message(NamedTuple):
    """One whole message."""

    kind: int
    number: int
    data: bytes


class Channel:
    """Messages over one connection. Any number of tasks may send; one receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parts: dict[int, bytearray] = {}
        self._unfinished = 0
        self._drained = asyncio.Lock()
        self.heard = time.monotonic()
        """When the last frame came, also one in the middle of a long message."""

    async def send(self, kind: int, number: int, data: bytes = b"") -> None:
        """Send a message, at the pace of the other side. Raises: ConnectionError."""
        view, at = memoryview(data), 0
        while len(view) - at > PART_BYTES:
            await self._write(PART, number, view[at : at + PART_BYTES])
            at += PART_BYTES
        await self._write(kind, number, view[at:])

    async def _write(self, kind: int, number: int, data: memoryview) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._writer.write(_FRAME.pack(len(data), number, kind) + data)
        if self._writer.transport.get_write_buffer_size() > PART_BYTES:
            async with self._drained:
                await self._writer.drain()

    def post(self, kind: int, number: int, data: bytes = b"") -> None:
        """Send a short message without waiting for anybody: what a receiving loop may do."""
        if not self._writer.is_closing():
            self._writer.write(_FRAME.pack(len(data), number, kind) + data)

    async def receive(self) -> Message:
        """The next message. Raises: ConnectionError, asyncio.IncompleteReadError at the end."""
        while True:
            length, number, kind = _FRAME.unpack(await self._reader.readexactly(_FRAME.size))
            if length > PART_BYTES:
                raise Broken(f"a frame must be at most {PART_BYTES} bytes, got {length}")
            data = await self._reader.readexactly(length)
            self.heard = time.monotonic()
            if kind != PART:
                before = self._parts.pop(number, None)
                if before is not None:
                    self._unfinished -= len(before)
                    data = bytes(before + data)
                return Message(kind, number, data)
            so_far = self._parts.setdefault(number, bytearray())
            so_far += data
            self._unfinished += length
            if len(so_far) > MAX_MESSAGE_BYTES or self._unfinished > MAX_UNFINISHED_BYTES:
                raise Broken(f"a message must be at most {MAX_MESSAGE_BYTES} bytes, got more")

    @property
    def closed(self) -> bool:
        return self._writer.is_closing()

    def close(self) -> None:
        """Close; what was not sent yet is lost."""
        self._writer.transport.abort()


def pack(value: Any) -> bytes:
    """A value as bytes: None, numbers, texts, bytes, lists, tuples, mappings and the data classes of the seam."""
    blobs: list[bytes] = []
    text = json.dumps(_laid(value, blobs), separators=(",", ":")).encode()
    return b"".join((struct.pack("<I", len(text)), text, *blobs))


def unpack(data: bytes) -> Any:
    """What was packed. Raises: Broken; PolicyRefused (a spec that says what no spec may)."""
    try:
        (length,) = struct.unpack_from("<I", data)
        laid = json.loads(data[4 : 4 + length])
        reader = _Blobs(data, 4 + length)
        return _taken(laid, reader)
    except GymsmithError:
        raise
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Broken(f"a value cannot be read: {error}") from error


def _laid(value: Any, blobs: list[bytes]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray)):
        blobs.append(bytes(value))
        return {"b": len(value)}
    if isinstance(value, (list, tuple)):
        items = [_laid(item, blobs) for item in value]
        return {"t": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {"m": [[_laid(key, blobs), _laid(item, blobs)] for key, item in value.items()]}
    if is_dataclass(value) and type(value).__name__ in _WORDS:
        return {"d": type(value).__name__, "f": [_laid(getattr(value, field.name), blobs) for field in fields(value)]}
    raise TypeError(f"a value of type {type(value).__name__} does not travel")


class _Blobs:
    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at

    def take(self, length: int) -> bytes:
        start, self._at = self._at, self._at + length
        if length < 0 or self._at > len(self._data):
            raise ValueError("bytes are missing")
        return self._data[start : self._at]


def _taken(laid: Any, blobs: _Blobs) -> Any:
    if isinstance(laid, list):
        return [_taken(item, blobs) for item in laid]
    if not isinstance(laid, dict):
        return laid
    if "b" in laid:
        return blobs.take(laid["b"])
    if "t" in laid:
        return tuple(_taken(item, blobs) for item in laid["t"])
    if "m" in laid:
        return {_taken(key, blobs): _taken(item, blobs) for key, item in laid["m"]}
    kind = _WORDS[laid["d"]]
    names = [field.name for field in fields(kind)]
    return kind(**dict(zip(names, [_taken(item, blobs) for item in laid["f"]], strict=True)))


def pack_error(error: BaseException) -> bytes:
    """What a caller on the other side shall see raised."""
    if isinstance(error, GymsmithError):
        return pack({"code": error.code, "text": str(error)})
    if isinstance(error, OSError) and error.errno:
        return pack({"errno": error.errno, "text": error.strerror or str(error), "file": str(error.filename or "")})
    return pack({"code": SandboxError.code, "text": f"the sandbox host failed: {type(error).__name__}: {error}"})


def unpack_error(data: bytes) -> Exception:
    """The error to raise."""
    said = unpack(data)
    if "errno" in said:
        return OSError(said["errno"] or errno.EIO, said["text"], said["file"] or None)
    return named(said["code"], SandboxError)(said["text"])
