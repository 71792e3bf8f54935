"""A sandbox of another machine, and the jobs, shells and snapshots made there: each method is a call to its host."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gymsmith.errors import GymsmithError, HostLost, NotFound, PolicyRefused, SandboxError, SandboxGone, ShellEnded
from sandboxes.background import begin
from sandboxes.base import (
    MIB,
    CommandLine,
    ExecResult,
    Exported,
    Job,
    JobState,
    Sandbox,
    SandboxSpec,
    Shell,
    Snapshot,
)
from sandboxes.checks import (
    check_forks,
    check_line,
    check_output,
    check_put_size,
    check_run,
    check_terminal,
    check_timeout,
    words_of,
)
from sandboxes.remote.layer_transfer import pack_layer, unpack_layer
from sandboxes.remote.link import HostLink

log = logging.getLogger(__name__)

_PIECE_BYTES = 4 * MIB


class Keeper(Protocol):
    """The provider that a sandbox belongs to."""

    def keep(self, link: HostLink, name: str, spec: SandboxSpec, upper: Path | None) -> RemoteSandbox: ...

    def forget(self, box: RemoteSandbox) -> None: ...


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
        check_line(line)
        check_timeout(timeout_s)
        check_output(max_output_bytes)
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
        making = link.call("start", {"spec": spec}, epoch=self._box.epoch, on=self.id)
        (name,) = await unless_cancelled(link, making)
        return self._box.provider.keep(link, name, spec or self.spec, None)

    async def discard(self) -> None:
        if not self._discarded:
            self._discarded = True
            with contextlib.suppress(SandboxGone, HostLost):
                await self._box.link.call("discard", {}, epoch=self._box.epoch, on=self.id)


class RemoteSandbox:
    """A sandbox on another machine."""

    def __init__(self, provider: Keeper, link: HostLink, name: str, spec: SandboxSpec, upper: Path | None) -> None:
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
        check_run(words_of(command), cwd, env, stdin, timeout_s, max_output_bytes)
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
        check_run(words_of(command), cwd, env, b"", 1, max_output_bytes)
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
        check_terminal(rows, cols)
        check_run((), cwd, env, b"", 1, 0)
        return RemoteShell(self, await self.ask("shell", cwd=cwd, env=env, user=user, rows=rows, cols=cols))

    async def snapshot(self) -> Snapshot:
        return RemoteSnapshot(self, await self.ask("snapshot"))

    async def fork(self, n: int = 1) -> list[Sandbox]:
        check_forks(n)
        names = await unless_cancelled(self.link, self.ask("fork", n=n))
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
        check_put_size(sum(map(len, files.values())))
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
        await receive_layer(self.link, self.epoch, blob, dest, keep_root=True)
        result: Exported = exported
        return result

    async def destroy(self) -> None:
        if self._ending is None:
            self._ending = begin(self._end(), f"end of sandbox {self.id}")
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        """End it there, and bring back what it wrote where a directory of ours is to have that."""
        try:
            blob = await self.link.call("destroy", {"name": self._name}, epoch=self.epoch)
            if self._upper is not None:
                if blob is None:
                    raise SandboxGone(f"sandbox {self.id} was gone before what it wrote could be fetched")
                await asyncio.to_thread(_emptied, self._upper)
                await receive_layer(self.link, self.epoch, blob, self._upper)
        except (SandboxGone, HostLost):
            if self._upper is not None:
                raise
        finally:
            self.provider.forget(self)


async def unless_cancelled(link: HostLink, making: Coroutine[Any, Any, list[str]]) -> list[str]:
    """The names of sandboxes that a host makes. When the caller gives up meanwhile, they are destroyed once they are there."""
    epoch, task = link.epoch, asyncio.ensure_future(making)

    async def destroy_later() -> None:
        with contextlib.suppress(GymsmithError):
            for name in await task:
                await link.call("destroy", {"name": name}, epoch=epoch)

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        begin(destroy_later(), f"end of what nobody wanted on {link.address}")
        raise


async def send_layer(link: HostLink, key: str, folder: Path) -> None:
    """Send a layer to a host, which keeps it under `key`."""
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


async def receive_layer(link: HostLink, epoch: int, blob: tuple[str, str, int], folder: Path, *, keep_root: bool = False) -> None:
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
