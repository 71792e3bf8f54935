"""The `remote` provider: sandboxes of other machines, through the sandbox hosts (`host.py`) that run there.

One worker has one connection to each host. A sandbox goes to the host with the most room left. A connection that breaks is made
again, and what was asked goes on there meanwhile; a host that stays away for longer than the lease has destroyed what it had, so
every call on it raises SandboxGone from then on. Images are sent as layers, by digest, when a host does not have them.

Configuration: GYMSMITH_SANDBOX_HOSTS, GYMSMITH_SANDBOX_CERTIFICATES, GYMSMITH_SANDBOX_TOKEN (`gymsmith/config.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import ssl
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gymsmith.config import Settings
from gymsmith.errors import (
    Capacity,
    ConfigError,
    ExecTimeout,
    GymsmithError,
    ImageMissing,
    NotFound,
    PolicyRefused,
    SandboxError,
    SandboxGone,
    ShellEnded,
)
from sandboxes import image_base
from sandboxes.base import (
    MIB,
    Capabilities,
    CommandLine,
    ExecResult,
    Exported,
    Image,
    ImageSource,
    Job,
    JobState,
    Sandbox,
    SandboxSpec,
    Shell,
    Snapshot,
)
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
    unpack,
    unpack_error,
)
from sandboxes.layer_transfer import pack_layer, unpack_layer

log = logging.getLogger(__name__)

LEASE_S = 60.0
_CONNECT_S = 15.0
_PIECE_BYTES = 4 * MIB
_PATIENCE_S = 180.0
"""How long past its own deadline a call may take before the sandbox counts as broken."""
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a sandbox host listens."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Address:
        """From NAME:PORT or [ADDRESS]:PORT. Raises: ConfigError."""
        host, _, port = text.strip().rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
            raise ConfigError(f"a sandbox host must be given as NAME:PORT, got {text!r}")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(slots=True)
class _Call:
    future: asyncio.Future[Any]
    data: bytes


class HostLink:
    """One host, connected or being connected to again. Belongs to one event loop."""

    def __init__(self, address: Address, tls: ssl.SSLContext, token: str, lease_s: float) -> None:
        self.address = address
        self.epoch = 0
        """Counts sessions; what was made in an earlier one is gone."""
        self.capabilities: Capabilities | None = None
        self.usage: dict[str, Any] = {"live": 0, "reserved": 0, "memory_bytes": 0}
        self.reserved = 0
        """Bytes that this worker's own sandboxes reserve there."""
        self.why_not = "it was not reached yet"
        self.sent: dict[str, asyncio.Task[None]] = {}
        """Layers that are there or on their way, by key."""
        self._tls = tls
        self._token = token
        self._lease_s = lease_s
        self._session = secrets.token_hex(16)
        self._calls: dict[int, _Call] = {}
        self._last = 0
        self._channel: Channel | None = None
        self._heard = 0.0
        self._ready = asyncio.Event()
        self._tried = asyncio.Event()
        self._keeper = asyncio.ensure_future(self._keep())

    @property
    def connected(self) -> bool:
        return self._channel is not None

    async def tried(self) -> None:
        """Returns after the first attempt to connect."""
        await self._tried.wait()

    async def call(self, do: str, args: dict[str, Any], *, epoch: int, on: str = "", within_s: float = 0.0) -> Any:
        """What the host answers: to `do`, or to `do` of the thing named `on`. Calls survive a broken connection.

        epoch: in which session; within_s: how long the deed itself may take.

        Raises: what the host raised; SandboxGone (it was away for longer than the lease, or is another one now); ExecTimeout.
        """
        if epoch != self.epoch:
            raise SandboxGone(f"host {self.address} has lost its sandboxes of before: {self.why_not}")
        self._last += 1
        number = self._last
        call = _Call(asyncio.get_running_loop().create_future(), pack({"do": do, "on": on, "args": args}))
        self._calls[number] = call
        try:
            if self._channel is not None:
                with contextlib.suppress(OSError):  # it is sent again once there is another connection
                    await self._channel.send(CALL, number, call.data)
            async with asyncio.timeout(within_s + _PATIENCE_S + self._lease_s):
                return await call.future
        except TimeoutError:
            raise ExecTimeout(f"host {self.address} must answer {do}, it did not") from None
        finally:
            if self._calls.pop(number, None) is not None and self._channel is not None:
                with contextlib.suppress(OSError):
                    await self._channel.send(CANCEL, number)

    async def _keep(self) -> None:
        """Connect, listen, connect again."""
        pause = _FIRST_PAUSE_S
        while True:
            try:
                channel = await self._connect()
                pause = _FIRST_PAUSE_S
                await self._listen(channel)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, GymsmithError) as error:
                self.why_not = str(error) or type(error).__name__
            finally:
                if self._channel is not None:
                    self._channel.close()
                self._channel = None
                self._tried.set()
            if self._heard and time.monotonic() - self._heard > self._lease_s:
                self._lost(f"it was away for more than {self._lease_s:g} s ({self.why_not})")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MOST_PAUSE_S, self._lease_s / 4)

    async def _connect(self) -> Channel:
        async with asyncio.timeout(min(_CONNECT_S, self._lease_s)):
            reader, writer = await asyncio.open_connection(
                self.address.host, self.address.port, ssl=self._tls, server_hostname=self.address.host
            )
            channel = Channel(reader, writer)
            try:
                hello = {
                    "protocol": PROTOCOL, "token": self._token, "session": self._session, "resume": bool(self._heard),
                    "lease_s": self._lease_s, "outstanding": list(self._calls),
                }  # fmt: skip
                await channel.send(HELLO, 0, pack(hello))
                message = await channel.receive()
                if message.kind == ERROR:
                    raise unpack_error(message.data)
                if message.kind != WELCOME:
                    raise Broken(f"a host must say welcome, it said {message.kind}")
                welcome = unpack(message.data)
            except BaseException:
                channel.close()
                raise
        if self._heard and not welcome["resumed"]:
            session = self._session
            self._lost("it was started anew, or did not hear from us for too long")
            self._session = session  # under which it knows us now
        self._heard = time.monotonic()
        self.capabilities, self.usage = welcome["capabilities"], welcome["usage"]
        self._channel = channel
        self._ready.set()
        self._tried.set()
        known = set(welcome["known"])
        for number, call in list(self._calls.items()):
            if number not in known:
                await channel.send(CALL, number, call.data)
        return channel

    async def _listen(self, channel: Channel) -> None:
        pinging = asyncio.ensure_future(self._ping(channel))
        try:
            while True:
                message = await channel.receive()
                self._heard = time.monotonic()
                if message.kind in (ANSWER, ERROR):
                    channel.post(ACK, message.number)
                    call = self._calls.pop(message.number, None)
                    if call is not None and not call.future.done():
                        _settle(call.future, message)
                elif message.kind == PONG:
                    self.usage = unpack(message.data)
                elif message.kind == BYE:
                    raise Broken("the session was closed")
                else:
                    raise Broken(f"message kind {message.kind}")
        finally:
            pinging.cancel()

    async def _ping(self, channel: Channel) -> None:
        """Say that we live; cut a connection on which nothing comes back, which the kernel may take for whole for minutes."""
        with contextlib.suppress(OSError):
            while True:
                await channel.send(PING, 0)
                await asyncio.sleep(self._lease_s / 6)
                if time.monotonic() - self._heard > self._lease_s / 2:
                    channel.close()
                    return

    def _lost(self, why: str) -> None:
        """What was made there is gone."""
        self.why_not = why
        log.warning("event=host_lost host=%s why=%r", self.address, why)
        self.epoch += 1
        self.reserved = 0
        self.sent.clear()
        self._session = secrets.token_hex(16)
        self._heard = 0.0
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if not call.future.done():
                call.future.set_exception(SandboxGone(f"host {self.address} has lost its sandboxes: {why}"))
                call.future.exception()  # marks it as seen: nobody may be waiting any more

    async def close(self) -> None:
        """Say goodbye: the host destroys what is left."""
        if self._channel is not None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(30):
                    await self._channel.send(BYE, 0)
                    await asyncio.wait([self._keeper], timeout=0.01)
                    while self._channel is not None:
                        await asyncio.sleep(0.01)
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        self._heard = 0.0
        self._lost("the provider was closed")


def _settle(future: asyncio.Future[Any], message: Message) -> None:
    try:
        if message.kind == ANSWER:
            future.set_result(unpack(message.data))
        else:
            future.set_exception(unpack_error(message.data))
    except (Broken, GymsmithError) as error:
        future.set_exception(SandboxError(f"an answer cannot be read: {error}"))


class RemoteJob:
    """A job on another machine."""

    def __init__(self, box: RemoteSandbox, name: str) -> None:
        self.id = name
        self._box = box
        self._ended: JobState | None = None

    async def poll(self) -> JobState:
        return self._ended or self._seen(await self._box.ask("poll", of=self.id))

    async def wait(self, timeout_s: float | None = None) -> JobState:
        began = time.monotonic()
        while self._ended is None:
            left = 60.0 if timeout_s is None else min(60.0, timeout_s - (time.monotonic() - began))
            state = self._seen(await self._box.ask("wait", of=self.id, timeout_s=max(left, 0.0)))
            if left <= 0 or (timeout_s is not None and state.running and time.monotonic() - began >= timeout_s):
                return state
        return self._ended

    async def kill(self) -> None:
        if self._ended is None:
            await self._box.ask("kill", of=self.id)

    def _seen(self, state: JobState) -> JobState:
        if not state.running:
            self._ended = state
        return state


class RemoteShell:
    """A shell on another machine."""

    def __init__(self, box: RemoteSandbox, name: str) -> None:
        self.id = name
        self._box = box
        self._ended = False
        self._turn = asyncio.Lock()

    @property
    def ended(self) -> bool:
        return self._ended or self._box.gone

    async def run(self, line: str, *, timeout_s: float = 30.0, max_output_bytes: int = 65_536) -> ExecResult:
        async with self._turn:
            return await self._do("run", line=line, timeout_s=timeout_s, max_output_bytes=max_output_bytes)

    async def send(self, data: bytes) -> None:
        await self._do("send", data=data)

    async def close(self) -> None:
        if not self.ended:
            await self._do("close")
        self._ended = True

    async def _do(self, do: str, **args: Any) -> Any:
        try:
            result, self._ended = await self._box.ask(do, of=self.id, **args)
            return result
        except ShellEnded:
            self._ended = True
            raise


class RemoteSnapshot:
    """A snapshot on another machine."""

    def __init__(self, box: RemoteSandbox, name: str) -> None:
        self.id = name
        self.spec = box.spec
        self._box = box
        self._discarded = False

    async def start(self, spec: SandboxSpec | None = None) -> Sandbox:
        if self._discarded:
            raise NotFound(f"snapshot {self.id} was discarded; take another one")
        if spec is not None and spec.image != self.spec.image:
            raise PolicyRefused(f"a snapshot starts with its own image {self.spec.image}, got {spec.image}")
        link = self._box.link
        (name,) = await link.call("start", {"spec": spec}, epoch=self._box.epoch, on=self.id)
        return self._box.provider.keep(link, name, spec or self.spec, None)

    async def discard(self) -> None:
        if not self._discarded:
            self._discarded = True
            with contextlib.suppress(SandboxGone):
                await self._box.link.call("discard", {}, epoch=self._box.epoch, on=self.id)


class RemoteSandbox:
    """A sandbox on another machine."""

    def __init__(self, provider: RemoteProvider, link: HostLink, name: str, spec: SandboxSpec, upper: Path | None) -> None:
        self.id = f"{link.address}/{name}"
        self.spec = spec
        self.provider = provider
        self.link = link
        self.epoch = link.epoch
        self.bytes = spec.memory_bytes + spec.disk_bytes
        self._name = name
        self._upper = upper
        self._ending: asyncio.Task[None] | None = None

    @property
    def gone(self) -> bool:
        return self._ending is not None or self.epoch != self.link.epoch

    async def ask(self, do: str, *, of: str = "", **args: Any) -> Any:
        """Call a method of this sandbox, or of something that it made, on its host."""
        if self._ending is not None:
            raise SandboxGone(f"sandbox {self.id} was destroyed")
        seconds = args.get("timeout_s") or 0.0
        return await self.link.call(do, args, epoch=self.epoch, on=of or self._name, within_s=float(seconds))

    async def exec(
        self,
        command: CommandLine,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: bytes = b"",
        timeout_s: float = 30.0,
        max_output_bytes: int = 65_536,
        split: bool = False,
    ) -> ExecResult:
        _refuse_large(command, stdin)
        result: ExecResult = await self.ask(
            "exec", command=_line(command), cwd=cwd, env=env, user=user, stdin=stdin, timeout_s=timeout_s,
            max_output_bytes=max_output_bytes, split=split,
        )  # fmt: skip
        return result

    async def spawn(
        self,
        command: CommandLine,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        max_output_bytes: int = 65_536,
    ) -> Job:
        _refuse_large(command, b"")
        name = await self.ask(
            "spawn", command=_line(command), cwd=cwd, env=env, user=user, max_output_bytes=max_output_bytes
        )  # fmt: skip
        return RemoteJob(self, name)

    async def shell(
        self,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        rows: int = 24,
        cols: int = 80,
    ) -> Shell:
        return RemoteShell(self, await self.ask("shell", cwd=cwd, env=env, user=user, rows=rows, cols=cols))

    async def snapshot(self) -> Snapshot:
        return RemoteSnapshot(self, await self.ask("snapshot"))

    async def fork(self, n: int = 1) -> list[Sandbox]:
        names = await self.ask("fork", n=n)
        return [self.provider.keep(self.link, name, self.spec, None) for name in names]

    async def kill_agents(self) -> None:
        await self.ask("kill_agents")

    async def disconnect(self) -> None:
        await self.ask("disconnect")

    async def renew(self, lease_s: float | None = None) -> None:
        await self.ask("renew", lease_s=lease_s)

    async def put(self, path: str, data: bytes, mode: int = 0o644, *, owner: str = "root") -> None:
        await self.put_files({path: data}, mode, owner=owner)

    async def put_files(self, files: Mapping[str, bytes], mode: int = 0o644, *, owner: str = "root") -> None:
        size = sum(map(len, files.values()))
        if size > 64 * MIB:
            raise PolicyRefused(f"files must stay below {64 * MIB} bytes together, got {size}; use a layer")
        await self.ask("put_files", files=files, mode=mode, owner=owner)

    async def get(self, path: str, max_bytes: int = MIB) -> bytes:
        data: bytes = await self.ask("get", path=path, max_bytes=max_bytes)
        return data

    async def freeze(self) -> None:
        await self.ask("freeze")

    async def export(self, paths: Sequence[str], dest: Path, *, max_bytes: int = 64 * MIB, max_files: int = 10_000) -> Exported:
        if self._ending is not None:
            raise SandboxGone(f"sandbox {self.id} was destroyed")
        args = {"name": self._name, "paths": list(paths), "max_bytes": max_bytes, "max_files": max_files}
        exported, blob = await self.link.call("export", args, epoch=self.epoch)
        await _receive(self.link, self.epoch, blob, dest, keep_root=True)
        result: Exported = exported
        return result

    async def destroy(self) -> None:
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        """End it there, and bring back what it wrote where a directory of ours is to have that."""
        try:
            blob = await self.link.call("destroy", {"name": self._name}, epoch=self.epoch)
            if self._upper is not None:
                if blob is None:
                    raise SandboxGone(f"sandbox {self.id} was gone before what it wrote could be fetched")
                await asyncio.to_thread(_emptied, self._upper)
                await _receive(self.link, self.epoch, blob, self._upper)
        except SandboxGone:
            if self._upper is not None:
                raise
        finally:
            self.provider.forget(self)


class RemoteProvider:
    """Makes `RemoteSandbox`es. Use `start`; belongs to the event loop that started it."""

    name = "remote"

    def __init__(self, images: ImageSource, links: list[HostLink]) -> None:
        self.images = images
        self.links = links
        self._boxes: set[RemoteSandbox] = set()
        self._digests: dict[Path, tuple[int, str]] = {}
        self._closed = False

    @classmethod
    async def start(
        cls, images: ImageSource, hosts: Sequence[Address], certificates: Path, token: str, *, name: str = "client",
        lease_s: float = LEASE_S,
    ) -> RemoteProvider:  # fmt: skip
        """A provider on `hosts`, with the certificate `name` of the folder. Hosts that are away may come later.

        Raises: Capacity (none of them can be reached; the message says why), ConfigError.
        """
        if not hosts:
            raise ConfigError("the remote provider needs hosts; set GYMSMITH_SANDBOX_HOSTS to NAME:PORT, separated by commas")
        tls = client_context(certificates, name)
        links = [HostLink(address, tls, token, lease_s) for address in hosts]
        await asyncio.gather(*(link.tried() for link in links))
        provider = cls(images, links)
        if not any(link.connected for link in links):
            why = "; ".join(f"{link.address}: {link.why_not}" for link in links)
            await provider.close()
            raise Capacity(f"a sandbox host must be reached, none is: {why}")
        return provider

    @property
    def capabilities(self) -> Capabilities:
        for link in self.links:
            if link.capabilities is not None:
                return link.capabilities
        raise SandboxGone("no sandbox host was ever reached; start another provider")

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> RemoteSandbox:
        if self._closed:
            raise SandboxGone("the provider is closed; start another one")
        image = self.images.resolve(spec.image)
        refusals: list[str] = []
        tried: set[HostLink] = set()
        size = spec.memory_bytes + spec.disk_bytes
        while len(tried) < len(self.links):
            link = max((link for link in self.links if link not in tried), key=_room)
            tried.add(link)
            if not link.connected:
                refusals.append(f"{link.address}: {link.why_not}")
                continue
            link.reserved += size
            epoch, name = link.epoch, None
            try:
                name = await self._create(link, spec, image, layers, upper)
                return self.keep(link, name, spec, upper, reserved=True)
            except (Capacity, SandboxGone) as error:
                refusals.append(f"{link.address}: {error}")
            finally:
                if name is None and link.epoch == epoch:
                    link.reserved -= size
        raise Capacity(f"no sandbox host can make one more: {'; '.join(refusals)}")

    async def _create(self, link: HostLink, spec: SandboxSpec, image: Image, layers: Sequence[Path], upper: Path | None) -> str:
        epoch = link.epoch
        folders: dict[str, Path] = {}
        keys = [await self._key(layer, folders, kept=True) for layer in image.layers]
        private = [await self._key(layer, folders, kept=False) for layer in layers]
        top = None
        if upper is not None:  # it becomes the sandbox's own: a name that no other sandbox asks for
            top = secrets.token_hex(32)
            folders[top] = upper
        base = image_base.base_digest() if image.binds else ""
        said = {"id": image.id, "layers": keys, "binds": image.binds, "base": base, "env": dict(image.env),
                "workdir": image.workdir, "user": image.user, "engine_ref": image.engine_ref}  # fmt: skip
        for _ in range(5):
            args = {"image": said, "spec": spec, "layers": private, "upper": top}
            answer = await link.call("create", args, epoch=epoch)
            if isinstance(answer, str):
                return answer
            for key in answer:
                await self._send_once(link, key, folders[key])
        raise SandboxError(f"host {link.address} asks again and again for layers that it was sent; look at its log")

    async def _key(self, layer: Path, folders: dict[str, Path], *, kept: bool) -> str:
        """Digest of a layer. An image's never change, so theirs are remembered."""
        try:
            inode = os.stat(layer).st_ino
            known = self._digests.get(layer)
            if not kept or known is None or known[0] != inode:
                known = inode, (await asyncio.to_thread(pack_layer, layer))[0]
                if kept:
                    self._digests[layer] = known
        except FileNotFoundError as error:
            raise ImageMissing(f"a layer is missing: {error.filename}") from error
        folders[known[1]] = layer
        return known[1]

    async def _send_once(self, link: HostLink, key: str, folder: Path) -> None:
        """Send a layer, also when several sandboxes ask for it at once."""
        if key not in link.sent:
            link.sent[key] = asyncio.ensure_future(_send(link, key, folder))
            link.sent[key].add_done_callback(lambda _: link.sent.pop(key, None))
        await asyncio.shield(link.sent[key])

    def keep(self, link: HostLink, name: str, spec: SandboxSpec, upper: Path | None, *, reserved: bool = False) -> RemoteSandbox:
        """Know a sandbox that a host has made."""
        box = RemoteSandbox(self, link, name, spec, upper)
        if not reserved:
            link.reserved += box.bytes
        self._boxes.add(box)
        return box

    def forget(self, box: RemoteSandbox) -> None:
        """It has ended."""
        if box in self._boxes:
            self._boxes.discard(box)
            if box.epoch == box.link.epoch:
                box.link.reserved -= box.bytes

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(link.close() for link in self.links))
        self._boxes.clear()


def _room(link: HostLink) -> float:
    """How much of a host's memory is not reserved, of all of it; a host that is away comes last."""
    if not link.connected:
        return float("-inf")
    return 1.0 - max(link.usage["reserved"], link.reserved) / max(link.usage["memory_bytes"], 1)


async def _send(link: HostLink, key: str, folder: Path) -> None:
    epoch = link.epoch
    with tempfile.TemporaryFile() as file:
        sha256, size = await asyncio.to_thread(pack_layer, folder, file)
        file.seek(0)
        offset = 0
        while offset < size:
            data = file.read(_PIECE_BYTES)
            last = offset + len(data) >= size
            args = {"key": key, "sha256": sha256, "offset": offset, "data": data, "last": last}
            await link.call("layer", args, epoch=epoch)
            offset += len(data)
    log.info("event=layer_sent host=%s key=%s bytes=%d", link.address, key[:12], size)


async def _receive(link: HostLink, epoch: int, blob: tuple[str, str, int], folder: Path, *, keep_root: bool = False) -> None:
    """Fetch a layer that a host has packed, and make it in `folder`."""
    name, sha256, size = blob
    hasher = hashlib.sha256()
    with tempfile.TemporaryFile() as file:
        while file.tell() < size:
            data = await link.call("blob", {"name": name, "offset": file.tell(), "size": _PIECE_BYTES}, epoch=epoch)
            if not data:
                break
            hasher.update(data)
            file.write(data)
        await link.call("blob", {"name": name, "offset": 0, "size": 0}, epoch=epoch)
        if hasher.hexdigest() != sha256:
            raise SandboxError(f"what host {link.address} exported arrived damaged; export it again")
        file.seek(0)
        source: BinaryIO = file  # type: ignore[assignment]
        await asyncio.to_thread(unpack_layer, source, folder, keep_root=keep_root)


def _emptied(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _line(command: CommandLine) -> CommandLine:
    return command if isinstance(command, str) else list(command)


def _refuse_large(command: CommandLine, stdin: bytes) -> None:
    if sum(map(len, command)) + len(stdin) > 63 * MIB:
        raise PolicyRefused(f"command and stdin must stay below {63 * MIB} bytes; put a file instead")


def client_context(certificates: Path, name: str) -> ssl.SSLContext:
    """TLS of a worker: it speaks only to hosts with a certificate of our authority, and shows its own. Raises: ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(certificates / "ca.pem")
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"expected ca.pem, {name}.pem and {name}.key in {certificates}: {error}; gymsmith sandbox-host certificate makes them"
        ) from error
    return context


async def open_remote(settings: Settings, images: ImageSource) -> RemoteProvider:
    """The provider that the settings name. Raises: Capacity, ConfigError."""
    hosts = [Address.read(text) for text in settings.sandbox_hosts.split(",") if text.strip()]
    return await RemoteProvider.start(images, hosts, settings.certificates_dir, settings.sandbox_token)


def survey(settings: Settings) -> list[str]:
    """What each configured host has, for `gymsmith doctor`. Raises: Capacity (none can be reached), ConfigError."""

    async def look() -> list[str]:
        provider = await open_remote(settings, _NoImages())
        try:
            return [f"{link.address}: {_summary(link)}" for link in provider.links]
        finally:
            await provider.close()

    return asyncio.run(look())


class _NoImages:
    def resolve(self, image_id: str) -> Image:
        raise ImageMissing(f"image {image_id} is not looked for in a survey")


def _summary(link: HostLink) -> str:
    if link.capabilities is None:
        return link.why_not
    room = (link.usage["memory_bytes"] - link.usage["reserved"]) // MIB
    return f"isolation {link.capabilities.isolation}, {link.usage['live']} sandboxes live, {room} MiB not reserved"
