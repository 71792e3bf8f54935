"""A sandbox host: one process that offers this machine's sandboxes to workers elsewhere, over mutual TLS.

A worker has one connection, on which the calls of all its sandboxes travel beside each other, and one session, which outlives the
connection for as long as its lease: what was running goes on, what was answered is kept until the worker has it, and a call that
is sent again is not done again. A session whose lease lapses loses everything that it made. What happens inside a sandbox is the
business of the provider of this machine, which this file only passes calls on to.

    python -m sandboxes.host --listen ADDRESS:PORT --certificates FOLDER --name NAME      (gymsmith sandbox-host serve)
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import shutil
import signal
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, GymsmithError, ImageMissing, PolicyRefused, SandboxError, SandboxGone
from gymsmith.schema import digest
from sandboxes import image_base
from sandboxes.admission import machine_memory
from sandboxes.base import UID_SHIFT, Image, Provider
from sandboxes.channel import (
    ACK,
    ANSWER,
    BYE,
    CALL,
    CANCEL,
    ERROR,
    HELLO,
    PING,
    PONG,
    PROTOCOL,
    WELCOME,
    Broken,
    Channel,
    Message,
    pack,
    pack_error,
    unpack,
)
from sandboxes.layer_transfer import pack_layer, unpack_layer

log = logging.getLogger(__name__)

GREETING_S = 10.0
MAX_LEASE_S = 3600.0
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


class Shelf:
    """The layers that workers have sent, by digest, and the images made of them: what the provider here looks images up in."""

    def __init__(self, root: Path) -> None:
        self._layers = root / "layers"
        self.scratch = root / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)
        for folder in (root, self._layers, self.scratch):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._images: dict[str, Image] = {}
        self._users: Counter[str] = Counter()

    def resolve(self, image_id: str) -> Image:
        if image_id not in self._images:
            raise ImageMissing(f"image {image_id} was not sent to this host")
        return self._images[image_id]

    def path(self, key: str) -> Path:
        if not (len(key) == 64 and key.isascii() and key.isalnum()):
            raise PolicyRefused(f"a layer must be named by a SHA-256, got {key[:100]!r}")
        return self._layers / key

    def image(self, said: dict[str, Any]) -> Image:
        """Register what a worker says an image is. Raises: ImageMissing, PolicyRefused (it would show more of this machine)."""
        if said["binds"]:
            if not set(map(tuple, said["binds"])) <= set(image_base.binds()):
                raise PolicyRefused(f"an image may show this host's {image_base.binds()}, not {said['binds']}")
            if said["base"] != image_base.base_digest():
                raise ImageMissing(
                    f"image {said['id']} shows the programs of the machine that it was made on, and this host has others "
                    f"({said['base'][:12]} and {image_base.base_digest()[:12]}); build it on a base of its own"
                )
        key = digest(pack(said))[:32]
        layers = tuple(self.path(name) for name in said["layers"])
        words = {name: said[name] for name in ("env", "workdir", "user", "engine_ref")}
        self._images[key] = Image(id=key, layers=layers, binds=tuple(map(tuple, said["binds"])), **words)
        return self._images[key]

    def hold(self, keys: list[str]) -> None:
        """Layers of one sandbox alone are used by one more."""
        self._users.update(keys)

    def drop(self, keys: list[str]) -> None:
        """And by one less; what nobody uses any more is removed."""
        self._users.subtract(keys)
        for key in set(keys):
            if self._users[key] <= 0:
                del self._users[key]
                shutil.rmtree(self.path(key), ignore_errors=True)


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


class HostServer:
    """Serves sessions out of one provider. Belongs to one event loop."""

    def __init__(self, provider: Provider, shelf: Shelf, token: str, *, memory_bytes: int = 0) -> None:
        if not token:
            raise ConfigError("a sandbox host needs a token; set GYMSMITH_SANDBOX_TOKEN")
        self.provider = provider
        self.shelf = shelf
        self._token = token.encode()
        self._memory_bytes = memory_bytes or machine_memory()
        self._sessions: dict[str, Session] = {}
        self._server: asyncio.Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, address: str, port: int, tls: ssl.SSLContext) -> int:
        """Begin to serve; the port."""
        self._server = await asyncio.start_server(self._connected, address, port, ssl=tls, backlog=256)
        self._watch = asyncio.ensure_future(self._keep_leases())
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End every session. The provider is the caller's."""
        if self._server is not None:
            self._server.close()
        if self._watch is not None:
            self._watch.cancel()
        for session in list(self._sessions.values()):
            await self._end(session, "the host stops")
        for task in list(self._connections):
            task.cancel()

    def _usage(self) -> dict[str, Any]:
        live = [live for session in self._sessions.values() for live in session.live.values()]
        return {"live": len(live), "reserved": sum(one.bytes for one in live), "memory_bytes": self._memory_bytes}

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        channel = Channel(reader, writer)
        session: Session | None = None
        try:
            async with asyncio.timeout(GREETING_S):
                session = await self._greet(channel)
            while session is not None and session.channel is channel:
                message = await channel.receive()
                session.heard = time.monotonic()
                await self._take(session, channel, message)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, GymsmithError, asyncio.CancelledError) as error:
            log.info("event=connection_lost session=%s why=%r", session.id[:8] if session else "", error)
        finally:
            if session is not None and session.channel is channel:
                session.channel = None
            channel.close()
            self._connections.discard(task)

    async def _greet(self, channel: Channel) -> Session:
        message = await channel.receive()
        said = unpack(message.data) if message.kind == HELLO else {}
        if message.kind != HELLO or not hmac.compare_digest(str(said.get("token", "")).encode(), self._token):
            await channel.send(ERROR, 0, pack_error(PolicyRefused("the sandbox host does not know this token")))
            raise Broken("no greeting with our token")
        if said["protocol"] != PROTOCOL:
            await channel.send(
                ERROR, 0, pack_error(SandboxError(f"the sandbox host speaks protocol {PROTOCOL}; update one side"))
            )
            raise Broken(f"protocol {said['protocol']}")
        session = self._sessions.get(said["session"]) if said["resume"] else None
        resumed = session is not None
        if session is None:
            session = Session(said["session"], min(max(float(said["lease_s"]), 1.0), MAX_LEASE_S), time.monotonic())
            self._sessions[session.id] = session
        elif session.channel is not None:
            session.channel.close()
        session.channel, session.heard = channel, time.monotonic()
        wanted = set(said["outstanding"])
        session.done = {number: answer for number, answer in session.done.items() if number in wanted}
        known = wanted & (session.done.keys() | session.running.keys())
        welcome = {
            "resumed": resumed,
            "known": sorted(known),
            "capabilities": self.provider.capabilities,
            "usage": self._usage(),
            "lease_s": session.lease_s,
        }
        await channel.send(WELCOME, 0, pack(welcome))
        for number, (kind, data) in list(session.done.items()):
            await channel.send(kind, number, data)
        log.info("event=session session=%s resumed=%s", session.id[:8], resumed)
        return session

    async def _take(self, session: Session, channel: Channel, message: Message) -> None:
        number = message.number
        if message.kind == CALL:
            if number not in session.running and number not in session.done:
                session.running[number] = asyncio.ensure_future(self._answer(session, number, message.data))
        elif message.kind == ACK:
            session.done.pop(number, None)
        elif message.kind == CANCEL:
            session.done.pop(number, None)
            if number in session.running:
                session.running[number].cancel()
        elif message.kind == PING:
            channel.post(PONG, 0, pack(self._usage()))
        elif message.kind == BYE:
            await self._end(session, "the worker is done")
            await channel.send(BYE, 0)
        else:
            raise Broken(f"message kind {message.kind}")

    async def _answer(self, session: Session, number: int, data: bytes) -> None:
        answer: tuple[int, bytes] | None = None
        try:
            answer = ANSWER, pack(await self._do(session, unpack(data)))
        except asyncio.CancelledError:
            return
        except GymsmithError as error:
            answer = ERROR, pack_error(error)
        except Exception as error:
            if not isinstance(error, OSError):
                log.exception("event=call_failed session=%s", session.id[:8])
            answer = ERROR, pack_error(error)
        finally:
            session.running.pop(number, None)
        session.done[number] = answer
        if session.channel is not None:
            with contextlib.suppress(OSError):
                await session.channel.send(answer[0], number, answer[1])

    async def _do(self, session: Session, call: dict[str, Any]) -> Any:
        do, on, args = call["do"], call["on"], call["args"]
        if not on:
            deeds: dict[str, Callable[..., Awaitable[Any]]] = {
                "create": self._create, "layer": self._layer, "destroy": self._destroy, "export": self._export,
                "blob": self._blob,
            }  # fmt: skip
            if do not in deeds:
                raise PolicyRefused(f"a sandbox host does {', '.join(deeds)}, not {do!r}")
            return await deeds[do](session, **args)
        known = session.things.get(on)
        if known is None:
            live = self._live(session, on)
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
            result = [self._keep(session, Live(box, layers=list(known.layers))) for box in boxes]
        elif made:
            layers = list(known.layers) if made == "snapshot" else []
            self.shelf.hold(layers)
            name = session.name(made)
            session.things[name] = Thing(made, result, layers)
            if made == "job" and len(session.things) > _KEPT_JOBS:
                del session.things[next(key for key, thing in session.things.items() if thing.kind == "job")]
            result = name
        elif do == "discard":
            self.shelf.drop(session.things.pop(on, known).layers)
        return (result, known.itself.ended) if known.kind == "shell" else result

    def _live(self, session: Session, name: str) -> Live:
        live = session.live.get(name)
        if live is None:
            raise SandboxGone(f"sandbox {name} is not on this host any more")
        return live

    def _keep(self, session: Session, live: Live) -> str:
        live.bytes = live.box.spec.memory_bytes + live.box.spec.disk_bytes
        name = session.name("box")
        session.live[name] = live
        return name

    async def _create(self, session: Session, image: dict[str, Any], spec: Any, layers: list[str], upper: str | None) -> Any:
        """The new sandbox's name, or the list of layers that must be sent first."""
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
        if session.ended:
            await live.box.destroy()
            self._forget(live)
            raise SandboxGone("the session ended while a sandbox was being made")
        return self._keep(session, live)

    def _forget(self, live: Live) -> None:
        self.shelf.drop(live.layers)
        if live.upper is not None:
            shutil.rmtree(live.upper.parent, ignore_errors=True)

    async def _destroy(self, session: Session, name: str) -> Any:
        """End a sandbox; where it wrote into an upper layer, the blob of that."""
        live = session.live.pop(name, None)
        if live is None:
            return None
        try:
            await live.box.destroy()
            return await self._pack(session, live.upper) if live.upper is not None else None
        finally:
            self._forget(live)

    async def _layer(self, session: Session, key: str, sha256: str, offset: int, data: bytes, last: bool) -> None:
        """Take a piece of a layer; with the last one it must have its digest."""
        path = self.shelf.path(key)
        if offset == 0:
            descriptor, name = tempfile.mkstemp(prefix="layer.", dir=self.shelf.scratch)
            os.close(descriptor)
            session.uploads[key] = Path(name)
        upload = session.uploads[key]
        with open(upload, "ab") as file:
            if file.tell() != offset:
                raise SandboxError(f"a layer's pieces must come in order, got {offset} at {file.tell()}")
            file.write(data)
        if last:
            del session.uploads[key]
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

    async def _export(self, session: Session, name: str, paths: list[str], max_bytes: int, max_files: int) -> Any:
        """(what was exported, the blob of it)."""
        folder = Path(tempfile.mkdtemp(prefix="export.", dir=self.shelf.scratch))
        try:
            if os.geteuid() == 0:
                os.chown(folder, UID_SHIFT, UID_SHIFT)
            exported = await self._live(session, name).box.export(paths, folder, max_bytes=max_bytes, max_files=max_files)
            return exported, await self._pack(session, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _pack(self, session: Session, folder: Path) -> tuple[str, str, int]:
        """A layer as a blob: (its name, its digest, its length)."""
        descriptor, path = tempfile.mkstemp(prefix="blob.", dir=self.shelf.scratch)
        with open(descriptor, "wb") as file:
            sha256, size = await asyncio.to_thread(pack_layer, folder, file)
        name = session.name("blob")
        session.blobs[name] = Path(path)
        return name, sha256, size

    async def _blob(self, session: Session, name: str, offset: int, size: int) -> bytes:
        """A piece of a blob; size 0 removes it."""
        path = session.blobs[name]
        if size == 0:
            del session.blobs[name]
            path.unlink()
            return b""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(min(size, MAX_BLOB_BYTES))

    async def _keep_leases(self) -> None:
        while True:
            now = time.monotonic()
            for session in list(self._sessions.values()):
                if now - session.heard > session.lease_s:
                    await self._end(session, f"nothing was heard for {session.lease_s:g} s")
            await asyncio.sleep(min([s.lease_s / 8 for s in self._sessions.values()], default=1.0))

    async def _end(self, session: Session, why: str) -> None:
        """Everything that a session made ends."""
        if session.ended:
            return
        session.ended = True
        self._sessions.pop(session.id, None)
        log.info("event=session_ended session=%s sandboxes=%d why=%r", session.id[:8], len(session.live), why)
        for task in list(session.running.values()):
            task.cancel()
        lives, session.live = list(session.live.values()), {}
        for outcome in await asyncio.gather(*(live.box.destroy() for live in lives), return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.warning("event=destroy_failed why=%r", outcome)
        for live in lives:
            self._forget(live)
        for thing in session.things.values():
            if thing.kind == "snapshot":
                with contextlib.suppress(GymsmithError):
                    await thing.itself.discard()
                self.shelf.drop(thing.layers)
        for path in (*session.uploads.values(), *session.blobs.values()):
            path.unlink(missing_ok=True)


def server_context(certificates: Path, name: str) -> ssl.SSLContext:
    """TLS of a host: only clients with a certificate of our authority come in. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
        context.load_verify_locations(certificates / "ca.pem")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"expected ca.pem, {name}.pem and {name}.key in {certificates}: {error}; gymsmith sandbox-host certificate makes them"
        ) from error
    return context


async def serve(settings: Settings, address: str, port: int, certificates: Path, name: str) -> None:
    """Offer this machine's sandboxes until SIGTERM or SIGINT. Prints one line once it listens."""
    from sandboxes.providers import open_provider

    if settings.provider == "remote":
        raise ConfigError("a sandbox host offers the sandboxes of its own machine; set provider to auto, ns or docker there")
    context = server_context(certificates, name)
    shelf = Shelf(settings.home / "hosted")
    provider = await open_provider(settings, shelf)
    server = HostServer(provider, shelf, settings.sandbox_token)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        listening = await server.listen(address, port, context)
        print(f"gymsmith: sandbox host {name} on {address}:{listening}, provider {provider.name}", flush=True)
        await stop.wait()
    finally:
        await server.close()
        await provider.close()


def listening(text: str) -> tuple[str, int]:
    """(address, port) of ADDRESS:PORT. Raises: ConfigError."""
    address, _, port = text.rpartition(":")
    if not address or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"--listen must be ADDRESS:PORT, got {text!r}")
    return address.strip("[]"), int(port)


def main() -> None:
    """Entry point of `python -m sandboxes.host`."""
    parser = argparse.ArgumentParser(description="Offer this machine's sandboxes to workers elsewhere.")
    parser.add_argument("--listen", default="0.0.0.0:8650", help="ADDRESS:PORT")
    parser.add_argument("--certificates", type=Path, required=True, help="folder with ca.pem, NAME.pem and NAME.key")
    parser.add_argument("--name", default="host", help="which certificate of that folder is this host's")
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(Settings.load(), *listening(words.listen), words.certificates, words.name))
    except GymsmithError as error:
        raise SystemExit(f"gymsmith: {error}") from None


if __name__ == "__main__":
    main()
