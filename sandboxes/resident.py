"""The host's side of a running sandbox, under any provider.

`ResidentSandbox` implements the `Sandbox` protocol of base.py on top of a `Link`; a provider adds how a sandbox is made and
ended. Payloads mirror `box/box.h`. A reply is data from PID 1, which workloads cannot trace or speak for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from gymsmith.errors import Capacity, ExecTimeout, OutputLimit, PolicyRefused, SandboxError
from sandboxes.base import (
    MAX_FRAME_BYTES,
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
    check_env,
    check_path,
    user_ids,
)
from sandboxes.changes import write_layer
from sandboxes.egress import Egress, checked_listener
from sandboxes.link import EXEC, EXIT, EXPORT, FREEZE, GET, KILL, LISTEN, PUT, Link, put_record
from sandboxes.network import Gate

EXEC_SPLIT, EXEC_BUILD = 1, 2
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GRACE_S = 5.0
"""How long past a command's deadline the resident may take to answer before the sandbox counts as broken."""
TRANSFER_S = 120.0
_LOOP_BYTES = 256 * 1024  # larger trees are written by a thread, so that other sandboxes are not kept waiting
_EXEC = struct.Struct("<8I")
_EXIT = struct.Struct("<i6I4xQQQQ")
_CHDIR_FAILED = 1 << 16


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
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        self._check(words, cwd, timeout_s, max_output_bytes, stdin)
        uid, gid = user_ids(user or self.user)
        count, environment = self._environment_of(uid, env)
        flags = (EXEC_SPLIT if split else 0) | (EXEC_BUILD if self.spec.role == "build" else 0)
        texts = [cwd or self.workdir, *words]
        head = _EXEC.pack(int(timeout_s * 1000), max_output_bytes, uid, gid, flags, len(words), count, len(stdin))
        body = "\0".join(texts).encode("utf-8", "surrogateescape")
        number, future = self.link.request(EXEC, head, body, b"\0", environment, stdin)
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
        if kind != EXIT:
            raise self._refusal(payload, "run a command")
        return self._result(payload, words[0], cwd or self.workdir, max_output_bytes)

    def _check(self, words: list[str], cwd: str | None, timeout_s: float, max_output_bytes: int, stdin: bytes) -> None:
        if not words or not words[0]:
            raise PolicyRefused("command must name a program, got nothing")
        for word in words:
            if "\0" in word:
                raise PolicyRefused(f"command must not contain NUL, got {word[:100]!r}")
        if sum(map(len, words)) + len(stdin) > MAX_FRAME_BYTES - MIB:
            raise PolicyRefused(f"command and stdin must stay below {MAX_FRAME_BYTES - MIB} bytes; put a file instead")
        if not 0 < timeout_s <= 7 * 86_400:
            raise PolicyRefused(f"timeout_s must be between 0 and {7 * 86_400}, got {timeout_s}")
        if not 0 <= max_output_bytes <= 16 * MIB:
            raise PolicyRefused(f"max_output_bytes must be between 0 and {16 * MIB}, got {max_output_bytes}")
        if cwd is not None:
            check_path("cwd", cwd)

    def _environment_of(self, uid: int, extra: Mapping[str, str] | None) -> tuple[int, bytes]:
        if not extra and uid in self._encoded:
            return self._encoded[uid]
        merged = {"HOME": "/root" if uid == 0 else "/tmp", **self._environment}
        if extra:
            check_env(extra)
            merged.update(extra)
        encoded = "".join(f"{key}={value}\0" for key, value in merged.items()).encode("utf-8", "surrogateescape")
        if not extra:
            self._encoded[uid] = len(merged), encoded
        return len(merged), encoded

    def _result(self, payload: bytes, program: str, cwd: str, limit: int) -> ExecResult:
        (status, start_error, timed_out, out_length, err_length, out_head, err_head,
         out_total, err_total, wall_us, cpu_us) = _EXIT.unpack_from(payload)  # fmt: skip
        if start_error:
            reason = os.strerror(start_error & ~_CHDIR_FAILED)
            what = f"cannot enter directory {cwd}" if start_error & _CHDIR_FAILED else f"cannot start {program}"
            missing = start_error == errno.ENOENT
            text = f"{what}: {reason}\n".encode(errors="surrogateescape")[: max(limit, 0)]
            return ExecResult(127 if missing else 126, None, text, wall_s=wall_us / 1e6)
        middle = _EXIT.size + out_length
        output, lost = _join(payload[_EXIT.size : middle], out_head, out_total)
        stderr, lost_too = _join(payload[middle : middle + err_length], err_head, err_total)
        exited = os.WIFEXITED(status)
        bad_end = not exited or os.WEXITSTATUS(status) != 0
        return ExecResult(
            exit_code=os.WEXITSTATUS(status) if exited else None,
            signal=None if exited else os.WTERMSIG(status),
            output=output,
            stderr=stderr,
            truncated=bool(lost or lost_too),
            omitted_bytes=lost + lost_too,
            timed_out=bool(timed_out),
            oom=bad_end and self._out_of_memory(),
            wall_s=wall_us / 1e6,
            cpu_s=cpu_us / 1e6,
        )

    def _out_of_memory(self) -> bool:
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
        if not 0 <= mode <= 0o777:
            raise PolicyRefused(f"mode must be between 0 and 0o777, got {mode:#o}")
        uid, gid = user_ids(owner)
        parts: list[bytes] = []
        size = 0
        for path, data in files.items():
            if check_path("path", path).endswith("/"):
                raise PolicyRefused(f"path must name a file, got {path!r}")
            parts.append(put_record(path, data, mode, uid, gid))
            size += len(parts[-1])
        if size > MAX_FRAME_BYTES:
            raise PolicyRefused(f"files must stay below {MAX_FRAME_BYTES} bytes together, got {size}; use a layer")
        _, payload, _ = await self._ask(PUT, *parts)
        if payload[:4] != b"\0\0\0\0":
            raise self._refusal(payload, "write files", ", ".join(list(files)[:3]))

    async def get(self, path: str, max_bytes: int = MIB) -> bytes:
        if not 0 <= max_bytes <= MAX_FRAME_BYTES - 64:
            raise PolicyRefused(f"max_bytes must be between 0 and {MAX_FRAME_BYTES - 64}, got {max_bytes}")
        name = check_path("path", path).encode("utf-8", "surrogateescape") + b"\0"
        _, payload, _ = await self._ask(GET, struct.pack("<Q", max_bytes), name)
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
        await self._ask(FREEZE)
        self.frozen = True
        if self.gate is not None:
            self.gate.close()

    async def export(self, paths: Sequence[str], dest: Path, *, max_bytes: int = 64 * MIB, max_files: int = 10_000) -> Exported:
        if not self.frozen:
            raise PolicyRefused(f"export needs a frozen sandbox, {self.id} still runs; call freeze() first")
        names = b"".join(check_path("paths", path).encode("utf-8", "surrogateescape") + b"\0" for path in paths)
        if not names:
            return Exported(0, 0, 0, ())
        _, payload, chunks = await self._ask(EXPORT, struct.pack("<QI4x", max_bytes, max_files), names)
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

    async def spawn(
        self,
        command: CommandLine,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        max_output_bytes: int = 65_536,
    ) -> Job:
        raise self._cannot("spawn")

    async def shell(
        self,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        rows: int = 24,
        cols: int = 80,
    ) -> Shell:
        raise self._cannot("shell")

    async def snapshot(self) -> Snapshot:
        raise self._cannot("snapshot")

    async def fork(self, n: int = 1) -> list[Sandbox]:
        raise self._cannot("fork")

    async def kill_agents(self) -> None:
        raise self._cannot("kill_agents")

    async def renew(self, lease_s: float | None = None) -> None:
        raise self._cannot("renew")

    def _cannot(self, deed: str) -> PolicyRefused:
        return PolicyRefused(f"{deed} is not offered by this provider; see its capabilities")

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
        _, payload, _ = await self._ask(LISTEN, struct.pack("<I", port), place.encode() + b"\0")
        code = struct.unpack_from("<i", payload)[0]
        if code:
            raise SandboxError(f"sandbox {self.id} must listen on 127.0.0.1:{port}, it cannot: {os.strerror(code)}")

    async def _ask(self, kind: int, *parts: bytes) -> tuple[int, bytes, bytearray]:
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


def _join(data: bytes, head: int, total: int) -> tuple[bytes, int]:
    """The output with a line in the place of what the agent had to drop, and how much that was."""
    lost = total - len(data)
    if lost <= 0:
        return data, 0
    return b"%b\n[... %d bytes omitted ...]\n%b" % (data[:head], lost, data[head:]), lost
