"""A provider that is wrong on purpose: one real provider behind faults that real ones have had.

Each conformance test names in its `broken_by` mark the faults against which it must fail;
`test_conformance_bites.py` runs them so.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gymsmith.errors import GymsmithError
from sandboxes.base import MIB, Capabilities, ExecResult, Exported, JobState, Provider, SandboxSpec
from sandboxes.network import OFFLINE

FAULTS = {
    "checks off": "an argument that cannot be honoured is swallowed",
    "cwd dropped": "the asked directory is ignored",
    "deadline ignored": "a command may run on",
    "deadline spares tree": "only the caller stops waiting",
    "empty fork": "a fork has none of the files",
    "env dropped": "the asked environment is ignored",
    "export nothing": "what a sandbox changed is not brought out",
    "freeze nothing": "processes go on",
    "input lost": "stdin is empty",
    "job forgotten": "a background job is run at once and to its end",
    "kill nothing": "kill_agents and kill kill nobody",
    "last byte lost": "output is one byte short",
    "leftovers": "destroy leaves everything alive",
    "lease ignored": "a forgotten sandbox lives on",
    "limits dropped": "every sandbox gets the largest limits",
    "mode dropped": "modes of files are ignored",
    "one at a time": "a second command waits for the first",
    "put follows": "files are written by a shell inside, through whatever stands there",
    "get follows": "files are read by a shell inside, whatever they are",
    "put torn": "of a file the first half arrives",
    "refusals hidden": "what failed is reported to have worked",
    "shared fork": "a fork is the same sandbox",
    "shell forgets": "every line has a new shell",
    "shell without terminal": "lines run in a pipe",
    "stale output": "each answer is that of the command before",
    "stderr lost": "only stdout is kept",
    "uncapped": "output has no limit",
    "unknown images": "an unknown image is another image",
    "user dropped": "the asked user is ignored",
    "wrong code": "exit codes are one too high",
}


class Faulty:
    """Implements `Provider`."""

    def __init__(self, inner: Provider, faults: frozenset[str]) -> None:
        assert faults <= FAULTS.keys(), f"unknown faults: {faults - FAULTS.keys()}"
        self.inner = inner
        self.name = inner.name
        self._faults = faults
        self._made: list[Any] = []

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> Any:
        if "limits dropped" in self._faults:
            spec = replace(spec, memory_bytes=2048 * MIB, pids=4096, cpus=8, disk_bytes=1024 * MIB)
        if "lease ignored" in self._faults:
            spec = replace(spec, lease_s=60)
        if "env dropped" in self._faults:
            spec = replace(spec, env={})
        if "unknown images" in self._faults:
            spec = replace(spec, image="base")
        if "checks off" in self._faults:
            spec = replace(spec, trusted=True, network=OFFLINE)
        box = await self.inner.create(spec, layers=layers, upper=upper)
        self._made.append(box)
        return FaultySandbox(self, box, self._faults)

    async def clean(self) -> None:
        """Destroy what the faults have left alive."""
        for box in self._made:
            await box.destroy()

    async def close(self) -> None:
        await self.inner.close()


class FaultySandbox:
    """Implements `Sandbox`; everything not named here is the inner sandbox's own."""

    def __init__(self, provider: Faulty, inner: Any, faults: frozenset[str]) -> None:
        self.provider = provider
        self.inner = inner
        self.faults = faults
        self._turn = asyncio.Lock()
        self._before = ExecResult(0, None, b"before\n", stderr=b"before\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def exec(self, command: Any, **how: Any) -> ExecResult:
        if "one at a time" in self.faults:
            how["timeout_s"] = min(how.get("timeout_s", 30.0), 0.3)
            async with self._turn:
                return await self._exec(command, how)
        return await self._exec(command, how)

    async def _exec(self, command: Any, how: dict[str, Any]) -> ExecResult:
        faults = self.faults
        for name, key in (("cwd dropped", "cwd"), ("env dropped", "env"), ("user dropped", "user"), ("input lost", "stdin")):
            if name in faults:
                how.pop(key, None)
        if "uncapped" in faults:
            how["max_output_bytes"] = 16 * MIB
        if "deadline ignored" in faults:
            how["timeout_s"] = max(how.get("timeout_s", 30.0), 1.5)
        if "deadline spares tree" in faults and how.get("timeout_s", 30.0) < 5:
            job = await self.inner.spawn(command)
            state = await job.wait(how["timeout_s"])
            return state.result or ExecResult(None, 9, state.output, timed_out=True, wall_s=how["timeout_s"])
        try:
            result = await self.inner.exec(command, **how)
        except (GymsmithError, ValueError):
            if "checks off" in faults:
                return ExecResult(0, None, b"")
            raise
        if "deadline ignored" in faults and result.timed_out:
            result = replace(result, exit_code=0, signal=None, timed_out=False)
        if "wrong code" in faults:
            result = replace(result, exit_code=(result.exit_code or 0) + 1, signal=None)
        if "last byte lost" in faults:
            result = replace(result, output=result.output[:-1])
        if "stderr lost" in faults:
            result = replace(result, stderr=b"", output=result.output.replace(b"err\n", b""))
        if "refusals hidden" in faults:
            result = replace(result, exit_code=0, signal=None, timed_out=False, output=result.output or b"done\n", oom=False)
        if "stale output" in faults:
            result, self._before = self._before, result
        return result

    async def spawn(self, command: Any, **how: Any) -> Any:
        if "job forgotten" in self.faults:
            try:
                result = await self.inner.exec(command, timeout_s=0.4, **how)
            except GymsmithError:
                result = ExecResult(0, None, b"")
            return FaultyJob(result)
        job = await self.inner.spawn(command, **how)
        return FaultyJob(None, job) if "kill nothing" in self.faults else job

    async def shell(self, **how: Any) -> Any:
        if "checks off" in self.faults:
            how = {}
        if self.faults & {"shell forgets", "checks off", "shell without terminal"}:
            return FaultyShell(self, await self.inner.shell(**how))
        return await self.inner.shell(**how)

    async def kill_agents(self) -> None:
        if "kill nothing" not in self.faults:
            await self.inner.kill_agents()

    async def renew(self, lease_s: float | None = None) -> None:
        if not self.faults & {"checks off", "lease ignored"}:
            await self.inner.renew(lease_s)

    async def snapshot(self) -> Any:
        if self.faults & {"empty fork", "shared fork"}:
            return FaultySnapshot(self)
        return await self.inner.snapshot()

    async def fork(self, n: int = 1) -> list[Any]:
        if "checks off" in self.faults:
            return [self]
        if self.faults & {"empty fork", "shared fork"}:
            return [await FaultySnapshot(self).start() for _ in range(n)]
        return list(await self.inner.fork(n))

    async def put(self, path: str, data: bytes, mode: int = 0o644, *, owner: str = "root") -> None:
        if "put follows" in self.faults:
            await self.inner.exec(f"mkdir -p $(dirname {shlex.quote(path)}); cat > .{shlex.quote(path.removeprefix('/work'))}",
                                  stdin=data, cwd="/work", timeout_s=2)  # fmt: skip
            return
        if "put torn" in self.faults:
            data = data[: len(data) // 2]
        if "mode dropped" in self.faults:
            mode = 0o600
        with contextlib.suppress(GymsmithError) if "checks off" in self.faults else contextlib.nullcontext():
            await self.inner.put(path, data, mode, owner=owner)

    async def put_files(self, files: Any, mode: int = 0o644, *, owner: str = "root") -> None:
        for path, data in files.items():
            await self.put(path, data, mode, owner=owner)

    async def get(self, path: str, max_bytes: int = MIB) -> bytes:
        if "get follows" in self.faults:
            found = await self.inner.exec(["cat", path], cwd="/work", timeout_s=1, max_output_bytes=16 * MIB)
            return bytes(found.output)
        try:
            return bytes(await self.inner.get(path, 16 * MIB if "uncapped" in self.faults else max_bytes))
        except GymsmithError:
            if "checks off" in self.faults:
                return b""
            raise

    async def freeze(self) -> None:
        if "freeze nothing" not in self.faults:
            await self.inner.freeze()

    async def export(self, paths: Any, dest: Path, **how: Any) -> Any:
        if "export nothing" in self.faults:
            paths = ["/work/no-such-place"]
        if "uncapped" in self.faults:
            how = {}
        try:
            return await self.inner.export(paths, dest, **how)
        except GymsmithError:
            if "checks off" in self.faults:
                return Exported(0, 0, 0, ())
            raise

    async def destroy(self) -> None:
        if "leftovers" not in self.faults:
            await self.inner.destroy()


class FaultyJob:
    """Ended before it was looked at, or beyond anybody's reach."""

    def __init__(self, result: ExecResult | None, inner: Any = None) -> None:
        self.id = "faulty"
        self._result = result
        self._inner = inner

    async def poll(self) -> Any:
        return await self.wait(0.001) if self._inner is None else await self._inner.poll()

    async def wait(self, timeout_s: float | None = None) -> Any:
        if self._inner is not None:
            return await self._inner.wait(timeout_s)
        assert self._result is not None
        return JobState(self._result.output, 0, self._result)

    async def kill(self) -> None:
        return


class FaultyShell:
    """Every line is a command of its own."""

    def __init__(self, box: FaultySandbox, inner: Any) -> None:
        self.id = "faulty"
        self.ended = False
        self._box = box
        self._inner = inner

    async def run(self, line: str, **how: Any) -> ExecResult:
        if "shell without terminal" in self._box.faults:
            return replace(await self._box.inner.exec(["bash", "-c", line], stdin=b"", **how), signal=None)
        if "checks off" in self._box.faults:
            return ExecResult(0, None, b"")
        shell = await self._box.inner.shell()
        result = await shell.run(line, **how)
        await shell.close()
        return result if isinstance(result, ExecResult) else ExecResult(0, None, b"")

    async def send(self, data: bytes) -> None:
        return

    async def close(self) -> None:
        return


class FaultySnapshot:
    """No copy: either nothing, or the very same sandbox."""

    def __init__(self, box: FaultySandbox) -> None:
        self.id = "faulty"
        self.spec = box.inner.spec
        self._box = box

    async def start(self, spec: SandboxSpec | None = None) -> Any:
        if "shared fork" in self._box.faults:
            return self._box
        return await self._box.provider.inner.create(self.spec)

    async def discard(self) -> None:
        return
