"""One worker on a sandbox host: the sandboxes, jobs, shells and snapshots that it has there, and what it may do with them.

A session outlives connections. Calls name their method; only those of the seam (`base.py`) are there to be called.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gymsmith.errors import PolicyRefused, SandboxError, SandboxGone
from sandboxes.base import UID_SHIFT, Provider
from sandboxes.remote.channel import Channel
from sandboxes.remote.layer_transfer import OWN, pack_layer, unpack_layer
from sandboxes.remote.shelf import Shelf

log = logging.getLogger(__name__)

MAX_BLOB_BYTES = 4 * 1024 * 1024
_METHODS = {
    "sandbox": frozenset(
        ("exec", "spawn", "shell", "snapshot", "fork", "kill_agents", "disconnect", "renew", "put_files", "get", "freeze")
    ),
    "job": frozenset(("poll", "wait", "kill")),
    "shell": frozenset(("run", "send", "close")),
    "snapshot": frozenset(("start", "discard")),
}
"""What a worker may call on what it made."""
_MAKES = {"spawn": "job", "shell": "shell", "snapshot": "snapshot", "start": "sandbox", "fork": "sandbox"}
_KEPT_JOBS = 10_000


@dataclass(slots=True)
class Live:
    """A sandbox of a session, and what it alone uses of this machine."""

    box: Any
    layers: list[str] = field(default_factory=list)
    upper: Path | None = None
    bytes: int = 0


@dataclass(slots=True)
class Thing:
    """A job, shell or snapshot of a session; `layers` are those that a snapshot still needs."""

    kind: str
    itself: Any
    layers: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Session:
    """What one worker has here. `channel` is None while it is away."""

    id: str
    lease_s: float
    heard: float
    """time.monotonic() of the last message."""
    provider: Provider
    shelf: Shelf
    channel: Channel | None = None
    running: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    done: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """Answers that the worker has not acknowledged."""
    live: dict[str, Live] = field(default_factory=dict)
    things: dict[str, Thing] = field(default_factory=dict)
    uploads: dict[str, Path] = field(default_factory=dict)
    blobs: dict[str, Path] = field(default_factory=dict)
    last: int = 0
    ended: bool = False

    def name(self, kind: str) -> str:
        self.last += 1
        return f"{kind}{self.last}"

    async def do(self, call: dict[str, Any]) -> Any:
        do, on, args = call["do"], call["on"], call["args"]
        if not on:
            deeds: dict[str, Callable[..., Awaitable[Any]]] = {
                "create": self._create, "layer": self._layer, "destroy": self._destroy, "export": self._export,
                "blob": self._blob,
            }  # fmt: skip
            if do not in deeds:
                raise PolicyRefused(f"a sandbox host does {', '.join(deeds)}, not {do!r}")
            return await deeds[do](**args)
        known = self.things.get(on)
        if known is None:
            live = self._live(on)
            known = Thing("sandbox", live.box, live.layers)
        if do not in _METHODS[known.kind]:
            raise PolicyRefused(f"a {known.kind} does {', '.join(sorted(_METHODS[known.kind]))}, not {do!r}")
        if do == "start" and args["spec"] is not None:
            args["spec"] = replace(args["spec"], image=known.itself.spec.image)
        result = await getattr(known.itself, do)(**args)
        made = _MAKES.get(do)
        if made == "sandbox":
            boxes = result if isinstance(result, list) else [result]
            self.shelf.hold(known.layers * len(boxes))
            result = [self._keep(Live(box, layers=list(known.layers))) for box in boxes]
        elif made:
            layers = list(known.layers) if made == "snapshot" else []
            self.shelf.hold(layers)
            name = self.name(made)
            self.things[name] = Thing(made, result, layers)
            if made == "job" and len(self.things) > _KEPT_JOBS:
                del self.things[next(key for key, thing in self.things.items() if thing.kind == "job")]
            result = name
        elif do == "discard":
            self.shelf.drop(self.things.pop(on, known).layers)
        return (result, known.itself.ended) if known.kind == "shell" else result

    def _live(self, name: str) -> Live:
        live = self.live.get(name)
        if live is None:
            raise SandboxGone(f"sandbox {name} is not on this host any more")
        return live

    def _keep(self, live: Live) -> str:
        live.bytes = live.box.spec.memory_bytes + live.box.spec.disk_bytes
        name = self.name("box")
        self.live[name] = live
        return name

    async def _create(self, image: dict[str, Any], spec: Any, layers: list[str], upper: str | None) -> Any:
        """The new sandbox's name, or the list of layers that must be sent first."""
        if upper and not upper.startswith(OWN):
            raise PolicyRefused(f"an upper layer is the sandbox's own, its name begins with {OWN!r}, got {upper[:100]!r}")
        wanted = [*layers, *image["layers"], *([upper] if upper else [])]
        missing = [key for key in dict.fromkeys(wanted) if not self.shelf.path(key).is_dir()]
        if missing:
            return missing
        known = self.shelf.image(image)
        live = Live(None, layers=list(layers))
        self.shelf.hold(layers)
        try:
            if upper:
                live.upper = Path(tempfile.mkdtemp(prefix="upper.", dir=self.shelf.scratch), "upper")
                os.rename(self.shelf.path(upper), live.upper)
            paths = [self.shelf.path(key) for key in layers]
            live.box = await self.provider.create(replace(spec, image=known.id), layers=paths, upper=live.upper)
        except BaseException:
            self._forget(live)
            raise
        if self.ended:
            await live.box.destroy()
            self._forget(live)
            raise SandboxGone("the session ended while a sandbox was being made")
        return self._keep(live)

    def _forget(self, live: Live) -> None:
        self.shelf.drop(live.layers)
        if live.upper is not None:
            shutil.rmtree(live.upper.parent, ignore_errors=True)

    async def _destroy(self, name: str) -> Any:
        """End a sandbox; where it wrote into an upper layer, the blob of that."""
        live = self.live.pop(name, None)
        if live is None:
            return None
        try:
            await live.box.destroy()
            return await self._pack(live.upper) if live.upper is not None else None
        finally:
            self._forget(live)

    async def _layer(self, key: str, sha256: str, offset: int, data: bytes, last: bool) -> None:
        """Take a piece of a layer. What others share is named by its digest, so that nobody can put another in its place."""
        path = self.shelf.path(key)
        if key != sha256 and not key.startswith(OWN):
            raise PolicyRefused(f"a layer is named by its digest {sha256}, not {key}")
        if offset == 0:
            descriptor, name = tempfile.mkstemp(prefix="layer.", dir=self.shelf.scratch)
            os.close(descriptor)
            self.uploads[key] = Path(name)
        upload = self.uploads[key]
        with open(upload, "ab") as file:
            if file.tell() != offset:
                raise SandboxError(f"a layer's pieces must come in order, got {offset} at {file.tell()}")
            file.write(data)
        if last:
            del self.uploads[key]
            await asyncio.to_thread(self._unpack, upload, sha256, path)

    def _unpack(self, upload: Path, sha256: str, path: Path) -> None:
        folder = Path(tempfile.mkdtemp(prefix="unpacked.", dir=self.shelf.scratch))
        try:
            with open(upload, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise SandboxError("a layer arrived damaged; send it again")
                file.seek(0)
                (folder / "layer").mkdir()
                unpack_layer(file, folder / "layer")
            with contextlib.suppress(OSError):  # another worker sent the same layer first
                os.rename(folder / "layer", path)
        finally:
            upload.unlink()
            shutil.rmtree(folder, ignore_errors=True)

    async def _export(self, name: str, paths: list[str], max_bytes: int, max_files: int) -> Any:
        """(what was exported, the blob of it)."""
        folder = Path(tempfile.mkdtemp(prefix="export.", dir=self.shelf.scratch))
        try:
            if os.geteuid() == 0:
                os.chown(folder, UID_SHIFT, UID_SHIFT)
            exported = await self._live(name).box.export(paths, folder, max_bytes=max_bytes, max_files=max_files)
            return exported, await self._pack(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _pack(self, folder: Path) -> tuple[str, str, int]:
        """A layer as a blob: (its name, its digest, its length)."""
        descriptor, path = tempfile.mkstemp(prefix="blob.", dir=self.shelf.scratch)
        with open(descriptor, "wb") as file:
            sha256, size = await asyncio.to_thread(pack_layer, folder, file)
        name = self.name("blob")
        self.blobs[name] = Path(path)
        return name, sha256, size

    async def _blob(self, name: str, offset: int, size: int) -> bytes:
        """A piece of a blob; size 0 removes it."""
        path = self.blobs[name]
        if size == 0:
            del self.blobs[name]
            path.unlink()
            return b""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(min(size, MAX_BLOB_BYTES))

    async def end(self, why: str) -> None:
        """Everything that it made ends."""
        if self.ended:
            return
        self.ended = True
        log.info("event=session_ended session=%s sandboxes=%d why=%r", self.id[:8], len(self.live), why)
        for task in list(self.running.values()):
            task.cancel()
        lives, self.live = list(self.live.values()), {}
        for outcome in await asyncio.gather(*(live.box.destroy() for live in lives), return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.warning("event=destroy_failed why=%r", outcome)
        for live in lives:
            self._forget(live)
        for thing in self.things.values():
            if thing.kind == "snapshot":
                try:
                    await thing.itself.discard()
                except Exception as error:  # the rest must end all the same
                    log.warning("event=discard_failed why=%r", error)
                self.shelf.drop(thing.layers)
        for path in (*self.uploads.values(), *self.blobs.values()):
            path.unlink(missing_ok=True)
