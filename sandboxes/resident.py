"""The host's side of a running sandbox, under any provider.

`ResidentSandbox` implements the `Sandbox` protocol of base.py on top of a `Link`; a provider adds how a sandbox is made and
ended. Payloads mirror `box/box.h`. A reply is data from PID 1, which workloads cannot trace or speak for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from gymsmith.errors import Capacity, ExecTimeout, OutputLimit, PolicyRefused, SandboxError, SandboxGone
from sandboxes.base import (
    MIB,
    CommandLine,
    ExecResult,
    Exported,
    Image,
    Job,
    Sandbox,
    SandboxSpec,
    Shell,
    Snapshot,
    check_path,
    user_ids,
)
from sandboxes.changes import write_layer
from sandboxes.checks import (
    check_forks,
    check_get,
    check_lease,
    check_put,
    check_put_size,
    check_run,
    check_terminal,
    encoded,
    words_of,
)
from sandboxes.egress import Egress, checked_listener
from sandboxes.job import ResidentJob
from sandboxes.link import (
    EXEC,
    EXIT,
    EXPORT,
    FREEZE,
    GET,
    KILL,
    KILL_ALL,
    LEASE,
    LISTEN,
    MOVE,
    PUT,
    SHELL,
    STILL,
    Link,
    put_record,
)
from sandboxes.network import Gate
from sandboxes.outcome import decode
from sandboxes.shell import ResidentShell

EXEC_SPLIT, EXEC_BUILD = 1, 2
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE_S = 5.0
"""How long past a command's deadline the resident may take to answer before the sandbox counts as broken."""
TRANSFER_S = 120.0
_LOOP_BYTES = 256 * 1024  # larger trees are written by a thread, so that other sandboxes are not kept waiting
_EXEC = struct.Struct("<8I")
CHDIR_FAILED = 1 << 16


class ResidentSandbox:
    """A sandbox spoken to over a Link. Providers subclass it: `destroy`, `_oom_kills`, and what files are owned by."""

    has_upper = True
    owner_shift: int | None = None
    """Added to ids when an exported tree is written on the host; None: the tree stays this user's."""

    def __init__(self, number: str, spec: SandboxSpec, image: Image, link: Link) -> None:
        self.id = number
        self.spec = spec
        self.workdir = spec.workdir or image.workdir
        self.user = spec.user or image.user
        self.link = link
        self.frozen = False
        self.gate: Gate | None = None
        """The way out that its network policy gives it; None: there is none."""
        self._environment = {"PATH": PATH, "LANG": "C.UTF-8", **image.env, **spec.network.environment, **spec.env}
        self._encoded: dict[int, tuple[int, bytes]] = {}
        self._oom_seen = 0
        self._standing_still: asyncio.Event | None = None

    @property
    def alive(self) -> bool:
        """It can still be asked."""
        return self.link.closed is None

    def adopt(self, spec: SandboxSpec) -> None:
        """From here on this warm sandbox, which nobody has used, is what `spec` asked for; only labels may differ."""
        self.spec = spec

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
        words = words_of(command)
        check_run(words, cwd, env, stdin, timeout_s, max_output_bytes)
        await self.settled()
        flags = EXEC_SPLIT if split else 0
        number, future = self._begin(words, cwd, env, user, stdin, max(1, int(timeout_s * 1000)), max_output_bytes, flags)
        try:
            async with asyncio.timeout(timeout_s + GRACE_S):
                kind, payload = await future
        except TimeoutError:
            await self.destroy()
            raise ExecTimeout(
                f"sandbox {self.id} must answer {timeout_s} s + {GRACE_S} s after a command started, it did not; destroyed"
            ) from None
        except asyncio.CancelledError:
            self.link.forget(number)
            self.link.tell(KILL, number)
            raise
        return self._result(kind, payload, words[0], cwd, max_output_bytes)

    async def spawn(
        self,
        command: CommandLine,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        max_output_bytes: int = 65_536,
    ) -> Job:
        words = words_of(command)
        check_run(words, cwd, env, b"", 1, max_output_bytes)
        await self.settled()
        number, future = self._begin(words, cwd, env, user, b"", 0, max_output_bytes, 0)
        return ResidentJob(
            self, number, future, lambda kind, payload: self._result(kind, payload, words[0], cwd, max_output_bytes)
        )

    def _begin(
        self,
        words: list[str],
        cwd: str | None,
        env: Mapping[str, str] | None,
        user: str | None,
        stdin: bytes,
        timeout_ms: int,
        max_output_bytes: int,
        flags: int,
    ) -> tuple[int, asyncio.Future[tuple[int, bytes]]]:
        uid, gid = user_ids(user or self.user)
        count, environment = self._environment_of(uid, env)
        if self.spec.role == "build":
            flags |= EXEC_BUILD
        head = _EXEC.pack(timeout_ms, max_output_bytes, uid, gid, flags, len(words), count, len(stdin))
        body = encoded("command", "\0".join([cwd or self.workdir, *words]))
        return self.link.request(EXEC, head, body, b"\0", environment, stdin)

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
        await self.settled()
        uid, gid = user_ids(user or self.user)
        count, environment = self._environment_of(uid, {"TERM": "dumb", **(env or {}), "PS1": ""})
        flags = EXEC_BUILD if self.spec.role == "build" else 0
        head = _EXEC.pack(rows << 16 | cols, 65_536, uid, gid, flags, 0, count, 0)
        place = encoded("cwd", cwd or self.workdir) + b"\0"
        number, future = self.link.request(SHELL, head, place, environment)
        try:
            async with asyncio.timeout(TRANSFER_S):
                _, payload = await future
        except TimeoutError:
            await self.destroy()
            raise ExecTimeout(f"sandbox {self.id} must open a shell within {TRANSFER_S} s, it did not; destroyed") from None
        code = struct.unpack_from("<i", payload)[0]
        if code & CHDIR_FAILED:
            reason = os.strerror(code & ~CHDIR_FAILED)
            raise PolicyRefused(f"cwd must be a directory that the user may enter, got {cwd or self.workdir} ({reason})")
        if code == errno.ENOENT:
            raise PolicyRefused(f"image {self.spec.image} has neither bash nor sh; run programs with exec")
        if code:
            raise self._refusal(payload, "open a shell")
        return ResidentShell(self, number)

    async def settled(self) -> None:
        """Wait until no snapshot is being taken: what starts or writes now would be half in it."""
        while self._standing_still is not None:
            await self._standing_still.wait()

    @contextlib.asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """No process but PID 1 moves, nothing is started or written through this object, until the block ends."""
        await self.settled()
        self._standing_still = asyncio.Event()
        try:
            _, payload, _ = await self.ask(STILL)
            if payload[:4] != b"\0\0\0\0":
                raise Capacity(f"the processes of sandbox {self.id} must stop for a snapshot, they did not within 2 s")
            try:
                yield
            finally:
                with contextlib.suppress(SandboxGone):
                    await self.ask(MOVE)
        finally:
            moving, self._standing_still = self._standing_still, None
            moving.set()

    async def snapshot(self) -> Snapshot:
        raise NotImplementedError

    async def fork(self, n: int = 1) -> list[Sandbox]:
        check_forks(n)
        snapshot = await self.snapshot()
        try:
            made = await asyncio.gather(*(snapshot.start() for _ in range(n)), return_exceptions=True)
        finally:
            await snapshot.discard()
        boxes = [box for box in made if not isinstance(box, BaseException)]
        for failure in made:
            if isinstance(failure, BaseException):
                await asyncio.gather(*(box.destroy() for box in boxes))
                raise failure
        return boxes

    async def kill_agents(self) -> None:
        await self.settled()
        await self.ask(KILL_ALL)

    async def renew(self, lease_s: float | None = None) -> None:
        length = self.spec.lease_s if lease_s is None else lease_s
        check_lease(length)
        await self.ask(LEASE, struct.pack("<I", int(length)))

    def _environment_of(self, uid: int, extra: Mapping[str, str] | None) -> tuple[int, bytes]:
        if not extra and uid in self._encoded:
            return self._encoded[uid]
        merged = {"HOME": "/root" if uid == 0 else "/tmp", **self._environment}
        if extra:
            merged.update(extra)
        block = encoded("env", "".join(f"{key}={value}\0" for key, value in merged.items()))
        if not extra:
            self._encoded[uid] = len(merged), block
        return len(merged), block

    def _result(self, kind: int, payload: bytes, program: str, cwd: str | None, limit: int) -> ExecResult:
        if kind != EXIT:
            raise self._refusal(payload, "run a command")
        outcome = decode(payload)
        return outcome.result(program, cwd or self.workdir, limit, self.ran_out(outcome.ended_badly))

    def ran_out(self, ended_badly: bool) -> bool:
        """Whether a command that ended badly did so while the kernel killed here for want of memory. Counts each kill once."""
        if not ended_badly:
            return False
        kills = self._oom_kills()
        newly, self._oom_seen = kills > self._oom_seen, max(kills, self._oom_seen)
        return newly

    def _oom_kills(self) -> int:
        """How often the kernel has killed in this sandbox for want of memory."""
        return 0

    def _refusal(self, payload: bytes, deed: str, path: str = "") -> Exception:
        code = struct.unpack_from("<i", payload)[0]
        if code == errno.EPERM and self.frozen:
            return PolicyRefused(f"cannot {deed}: sandbox {self.id} is frozen")
        if code == errno.EAGAIN:
            return Capacity(f"cannot {deed}: sandbox {self.id} already runs as many commands as it can")
        if code == errno.EPROTO:
            return SandboxError(f"cannot {deed}: the resident agent did not understand; reinstall gymsmith")
        return OSError(code, os.strerror(code), path)

    async def put(self, path: str, data: bytes, mode: int = 0o644, *, owner: str = "root") -> None:
        await self.put_files({path: data}, mode, owner=owner)

    async def put_files(self, files: Mapping[str, bytes], mode: int = 0o644, *, owner: str = "root") -> None:
        check_put(files, mode)
        uid, gid = user_ids(owner)
        parts: list[bytes] = []
        size = 0
        for path, data in files.items():
            parts.append(put_record(path, data, mode, uid, gid))
            size += len(parts[-1])
        check_put_size(size)
        await self.settled()
        _, payload, _ = await self.ask(PUT, *parts)
        if payload[:4] != b"\0\0\0\0":
            raise self._refusal(payload, "write files", ", ".join(list(files)[:3]))

    async def get(self, path: str, max_bytes: int = MIB) -> bytes:
        check_get(path, max_bytes)
        name = path.encode("utf-8", "surrogateescape") + b"\0"
        _, payload, _ = await self.ask(GET, struct.pack("<Q", max_bytes), name)
        code = struct.unpack_from("<i", payload)[0]
        if code == errno.EFBIG:
            raise OutputLimit(f"{path} must be at most {max_bytes} bytes, it is larger")
        if code in (errno.EACCES, errno.ELOOP, errno.ENXIO):
            raise PolicyRefused(f"path must be a regular file outside /proc, got {path} ({os.strerror(code)})")
        if code:
            raise self._refusal(payload, "read a file", path)
        return payload[4:]

    async def freeze(self) -> None:
        if self.frozen:
            return
        await self.ask(FREEZE)
        self.frozen = True
        if self.gate is not None:
            self.gate.close()

    async def export(self, paths: Sequence[str], dest: Path, *, max_bytes: int = 64 * MIB, max_files: int = 10_000) -> Exported:
        if not self.frozen:
            raise PolicyRefused(f"export needs a frozen sandbox, {self.id} still runs; call freeze() first")
        names = b"".join(check_path("paths", path).encode("utf-8", "surrogateescape") + b"\0" for path in paths)
        if not names:
            return Exported(0, 0, 0, ())
        _, payload, chunks = await self.ask(EXPORT, struct.pack("<QI4x", max_bytes, max_files), names)
        code = struct.unpack_from("<i", payload)[0]
        if code == errno.EFBIG:
            raise OutputLimit(f"{', '.join(paths)} must hold at most {max_bytes} bytes in {max_files} files, they hold more")
        if code in (errno.ENAMETOOLONG, errno.EMFILE):
            raise OutputLimit(f"{', '.join(paths)} must have paths below 4096 characters and 200 levels, some are longer")
        if code:
            raise self._refusal(payload, "export", ", ".join(paths))
        if len(chunks) > _LOOP_BYTES:
            return await asyncio.to_thread(write_layer, chunks, dest, self.owner_shift)
        return write_layer(chunks, dest, self.owner_shift)

    async def open_network(self, egress: Egress) -> None:
        """Give a new sandbox what its policy names; for providers, before anybody else has it. Raises: SandboxError."""
        self.gate = await egress.open(self, self.spec.network)
        if self.gate is not None:
            self.link.closing = self.gate.close

    async def disconnect(self) -> None:
        if self.gate is not None:
            self.gate.close()

    async def listener(self, port: int) -> socket.socket:
        """A socket that listens on the sandbox's own loopback. Raises: SandboxError."""
        self.link.awaiting_descriptor = True
        try:
            await self._hand_over(port, "")
        finally:
            self.link.awaiting_descriptor = False
            came, self.link.descriptors = self.link.descriptors, []
        if len(came) != 1:
            raise SandboxError(f"sandbox {self.id} must hand over one listening socket, it handed over {len(came)}")
        return checked_listener(came[0], port)

    async def _hand_over(self, port: int, place: str) -> None:
        _, payload, _ = await self.ask(LISTEN, struct.pack("<I", port), place.encode() + b"\0")
        code = struct.unpack_from("<i", payload)[0]
        if code:
            raise SandboxError(f"sandbox {self.id} must listen on 127.0.0.1:{port}, it cannot: {os.strerror(code)}")

    async def ask(self, kind: int, *parts: bytes) -> tuple[int, bytes, bytearray]:
        """Send one request to the resident agent; the type and payload of its answer, and the chunks before it."""
        number, future = self.link.request(kind, *parts)
        try:
            async with asyncio.timeout(TRANSFER_S):
                answer, payload = await future
        except TimeoutError:
            await self.destroy()
            raise ExecTimeout(f"sandbox {self.id} must answer within {TRANSFER_S} s, it did not; destroyed") from None
        except asyncio.CancelledError:
            self.link.forget(number)
            self.link.taken(number)
            raise
        return answer, payload, self.link.taken(number)

    async def destroy(self) -> None:
        raise NotImplementedError
