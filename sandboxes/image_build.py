"""A Dockerfile becomes layers, step by step.

A layer's key is a hash over its parent's key, the instruction and the bytes that go in, so a step is executed once per machine.
`RUN` runs as root-inside of a build sandbox without a network; `COPY` and `WORKDIR` are plain writes on the host and start
nothing, because thousands of small environments are one COPY each (an ordinary user cannot give files away: there root-inside
writes them). The names inside the image that a COPY meets are resolved
inside the image: nothing is ever written through a symlink of the host.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gymsmith.errors import BuildError, Capacity, ImageMissing, PolicyRefused, StoreError
from gymsmith.schema import digest
from sandboxes import dockerfile, image_base
from sandboxes.base import MIB, USERS, ExecResult, Image, Sandbox, SandboxSpec, check_path, user_ids
from sandboxes.build_context import WHEELHOUSE, member_mode, mode_given, refuse_archives, selected
from sandboxes.dockerfile import Step
from sandboxes.layer import AS_ROOT, LayerWriter, lookup

if TYPE_CHECKING:
    from sandboxes.image import ImageStore

T = TypeVar("T")
LOG_TAIL_BYTES = 8192
BUILD_MEMORY_BYTES = 2048 * MIB
BUILD_DISK_BYTES = 8192 * MIB
RESERVE_BYTES = 512 * MIB
"""A build is ended rather than leave the host with less free disk."""
WATCH_S = 0.5


@dataclass(slots=True)
class State:
    """What the steps so far add up to. Workdir and user begin as the parent image's; RUN is root's until USER says otherwise."""

    key: str
    layers: tuple[Path, ...]
    binds: tuple[tuple[str, str], ...]
    env: dict[str, str]
    workdir: str
    final_user: str
    run_user: str = "root"
    args: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """What $NAME stands for, and the environment of RUN: ENV wins over ARG."""
        return {**self.args, **self.env}


class Builder:
    """One build. `context`: path relative to environment/ -> content."""

    def __init__(
        self,
        store: ImageStore,
        context: Mapping[str, bytes],
        executable: frozenset[str],
        wheelhouse: Path | None,
        timeout_s: float,
    ) -> None:
        self.store = store
        self.context = context
        self.executable = executable
        self.wheelhouse = wheelhouse
        self.timeout_s = timeout_s

    async def execute(self, steps: Sequence[Step]) -> Image:
        """The image of these steps. Raises: PolicyRefused, BuildError, SandboxError."""
        first = next(index for index, step in enumerate(steps) if step.name == "FROM")
        early: dict[str, str] = {}
        for step in steps[:first]:
            early.update(dockerfile.argument(step, early))
        state = self._start(steps[first], early)
        for step in steps[first + 1 :]:
            match step.name:
                case "ENV":
                    state.env.update(dockerfile.pairs(step, state.variables))
                case "ARG":
                    given = dockerfile.argument(step, state.variables)
                    state.args.update((name, value or early.get(name, "")) for name, value in given)
                case "USER":
                    state.run_user = user_named(state, dockerfile.expand(step.value, state.variables, step.line), step.line)
                    state.final_user = state.run_user
                case "WORKDIR":
                    await self._workdir(state, step)
                case "COPY" | "ADD":
                    await self._copy(state, step)
                case "RUN":
                    await self._run(state, step)
        config = json.dumps([state.env, state.workdir, state.final_user], sort_keys=True).encode()
        image_id = digest(state.key.encode(), config)[:32]
        return Image(image_id, state.layers, state.binds, state.env, state.workdir, state.final_user)

    def _start(self, step: Step, early: Mapping[str, str]) -> State:
        name = dockerfile.expand(step.value, early, step.line)
        try:
            parent = self.store.get(name)
        except ImageMissing:
            raise PolicyRefused(
                f"Dockerfile line {step.line}: FROM {name[:80]!r} is not on this machine and nothing is downloaded; "
                f"use FROM {image_base.NAME}, or the id of an image that was built here"
            ) from None
        return State(parent.layers[0].name, parent.layers, parent.binds, dict(parent.env), parent.workdir, parent.user)

    async def _workdir(self, state: State, step: Step) -> None:
        value = dockerfile.expand(step.value, state.variables, step.line)
        path, entry = lookup(state.layers, value if value.startswith("/") else f"{state.workdir}/{value}")
        if entry is None and bound(state, path) is None:
            key = digest(state.key.encode(), b"WORKDIR", path.encode())[:32]

            async def make(box: Sandbox) -> None:
                await box.exec(["mkdir", "-p", path], user="root")

            await self._layer(state, key, lambda writer: writer.directory(path), make)
        state.workdir = check_path("WORKDIR", path)

    async def _copy(self, state: State, step: Step) -> None:
        *sources, given = dockerfile.words(step, state.variables)
        top, entry = lookup(state.layers, given if given.startswith("/") else f"{state.workdir}/{given}")
        into = given.endswith(("/", "/.")) or given == "." or (entry is not None and entry.is_dir)
        files = selected(self.context, sources, top, into, step)
        refuse_archives(step, files.values())
        uid, gid = 0, 0
        if "chown" in step.flags:
            uid, gid = user_ids(user_named(state, dockerfile.expand(step.flags["chown"], state.variables, step.line), step.line))
        chmod = mode_given(step)
        rows: list[tuple[str, bytes, int]] = []
        parts = [state.key.encode(), b"COPY", f"{uid}:{gid}".encode()]
        resolved: dict[str, str] = {}
        for target, name in sorted(files.items()):
            parent, _, last = target.rpartition("/")
            if parent not in resolved:
                resolved[parent] = lookup(state.layers, parent)[0].rstrip("/")
            path = f"{resolved[parent]}/{last}"
            if (host := bound(state, path)) is not None:
                raise BuildError(
                    f"Dockerfile line {step.line}: {path} lies in {host}, which is the host's own and read-only under "
                    f"{image_base.NAME}; use /opt or /work"
                )
            data = self.context[name]
            mode = member_mode(name, data, self.executable) if chmod is None else chmod
            rows.append((path, data, mode))
            parts += [path.encode(), str(mode).encode(), data]

        def write(writer: LayerWriter) -> None:
            for path, data, mode in rows:
                writer.file(path, data, mode, uid, gid)

        async def put(box: Sandbox) -> None:
            for path, data, mode in rows:
                await box.put(path, data, mode & 0o777, owner=f"{uid}:{gid}")

        await self._layer(state, digest(*parts)[:32], write, put)

    async def _layer(
        self, state: State, key: str, write: Callable[[LayerWriter], None], put: Callable[[Sandbox], Awaitable[None]]
    ) -> None:
        """One layer, written by this process where it can give files away, else (`put`) by root-inside of a build sandbox."""
        provider = self.store.provider
        given_away = AS_ROOT or provider is None or not provider.capabilities.users
        if not self.store.layer(key).is_dir():
            with self.store.scratch() as scratch:
                if given_away:
                    (scratch / "upper").mkdir()
                    write(LayerWriter(scratch / "upper", state.layers))
                else:
                    await self._in_sandbox(state, key, scratch, put)
                self.store.publish(scratch / "upper", key)
        state.key, state.layers = key, (self.store.layer(key), *state.layers)

    async def _run(self, state: State, step: Step) -> None:
        command = dockerfile.json_form(step.value) or step.value
        wheels = self.wheelhouse if WHEELHOUSE in step.value else None
        listing = sorted(f"{path.name}:{path.stat().st_size}" for path in wheels.iterdir() if path.is_file()) if wheels else []
        recipe = json.dumps([command, state.variables, state.workdir, state.run_user, listing], sort_keys=True)
        key = digest(state.key.encode(), b"RUN", recipe.encode())[:32]

        async def execute(box: Sandbox) -> ExecResult:
            return await box.exec(
                command,
                cwd=state.workdir,
                env=state.variables,
                user=state.run_user,
                timeout_s=self.timeout_s,
                max_output_bytes=LOG_TAIL_BYTES,
            )

        if not self.store.layer(key).is_dir():
            async with self.store.alone(key):
                if not self.store.layer(key).is_dir():
                    with self.store.scratch() as scratch:
                        extra = [_wheel_layer(scratch / "wheels", wheels)] if wheels else []
                        result = await self._in_sandbox(state, key, scratch, execute, extra)
                        if not result.ok:
                            raise _failure(step, result, self.timeout_s)
                        self.store.publish(scratch / "upper", key)
        state.key, state.layers = key, (self.store.layer(key), *state.layers)

    async def _in_sandbox(
        self, state: State, key: str, scratch: Path, act: Callable[[Sandbox], Awaitable[T]], extra: Sequence[Path] = ()
    ) -> T:
        """What `act` returns for a build sandbox whose writes end in SCRATCH/upper; `extra` layers are seen, not kept."""
        provider = self.store.provider
        if provider is None or not provider.capabilities.prepared_upper:
            raise Capacity(
                "RUN needs a sandbox provider that can build layers here, got none; `gymsmith doctor` says what is missing"
            )
        upper = scratch / "upper"
        upper.mkdir()
        LayerWriter(upper, state.layers)
        parent = self.store.record(Image(f"step-{key}", state.layers, state.binds, state.env, "/", "root"))
        spec = SandboxSpec(
            image=parent.id,
            role="build",
            memory_bytes=BUILD_MEMORY_BYTES,
            disk_bytes=BUILD_DISK_BYTES,
            pids=512,
            cpus=float(os.cpu_count() or 1),
            lease_s=self.timeout_s + 60,
            labels={"build": key},
        )
        try:
            box = await provider.create(spec, layers=extra, upper=upper)
            try:
                result = await self._within_disk(box, act, upper)
                await box.freeze()
            finally:
                await box.destroy()
        finally:
            self.store.forget(parent.id)
        return result

    async def _within_disk(self, box: Sandbox, act: Callable[[Sandbox], Awaitable[T]], upper: Path) -> T:
        """`act`, ended when it fills the disk: the layer lies on the host's file system, which limits one file but not their sum.

        Raises: BuildError: the step wrote more than BUILD_DISK_BYTES; StoreError: the disk is as good as full.
        """
        work = asyncio.ensure_future(act(box))
        free = _free_bytes(upper)
        while not (await asyncio.wait({work}, timeout=WATCH_S))[0]:
            left = _free_bytes(upper)
            if free - left > BUILD_DISK_BYTES and await asyncio.to_thread(_used_bytes, upper) > BUILD_DISK_BYTES:
                reason: Exception = BuildError(
                    f"a RUN step may write {BUILD_DISK_BYTES // MIB} MiB, it wrote more; keep the image small"
                )
            elif left < RESERVE_BYTES:
                reason = StoreError(
                    f"the disk of {self.store.root} has {left // MIB} MiB left, a build needs room; free some space"
                )
            else:
                continue
            await box.destroy()
            await asyncio.gather(work, return_exceptions=True)
            raise reason
        return await work


def _free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _used_bytes(path: Path) -> int:
    """Bytes on disk below `path`, as far as this process may look."""
    return sum(512 * os.lstat(os.path.join(folder, name)).st_blocks for folder, _, names in os.walk(path) for name in names)


def bound(state: State, path: str) -> str | None:
    """The host directory, by its name inside, in which `path` lies."""
    return next((inside for _, inside in state.binds if path == inside or path.startswith(f"{inside}/")), None)


def user_named(state: State, name: str, line: int) -> str:
    """A USER or --chown value as a name of USERS, "UID" or "UID:GID"; other names are looked up in the image's own /etc."""
    if name in USERS:
        return name
    user, _, group = name.partition(":")
    uid, gid = _look_up(state, "/etc/passwd", user, line)
    return f"{uid}:{_look_up(state, '/etc/group', group, line)[0] if group else gid}"


def _look_up(state: State, table: str, name: str, line: int) -> tuple[int, int]:
    if name.isascii() and name.isdecimal():
        return user_ids(name)
    _, entry = lookup(state.layers, table)
    if entry is not None and not entry.is_dir:
        for text in Path(entry.places[0]).read_text(errors="replace").splitlines():
            row = text.split(":")
            if row[0] == name and len(row) > 3 and row[2].isdecimal():
                return int(row[2]), int(row[3]) if row[3].isdecimal() else int(row[2])
    if name in USERS:
        return USERS[name]
    raise BuildError(
        f"Dockerfile line {line}: the image's {table} has no {name[:40]!r}; create it with RUN useradd, or use a number"
    )


def _wheel_layer(root: Path, wheels: Path) -> Path:
    """A layer that shows the wheels at /wheelhouse: hard links where the file system allows, copies elsewhere."""
    root.mkdir()
    writer = LayerWriter(root, ())
    writer.directory(WHEELHOUSE)
    for path in wheels.iterdir():
        if path.is_file():
            target = f"{root}{WHEELHOUSE}/{path.name}"
            try:
                os.link(path, target)
            except OSError:
                shutil.copyfile(path, target)
                os.chmod(target, 0o644)
    return root


def _failure(step: Step, result: ExecResult, timeout_s: float) -> BuildError:
    if result.timed_out:
        why = f"took longer than {timeout_s:.0f} s"
    elif result.oom:
        why = f"ran out of memory ({BUILD_MEMORY_BYTES // MIB} MiB)"
    else:
        why = f"exit code {result.exit_code}" if result.signal is None else f"killed by signal {result.signal}"
    log = result.output.decode(errors="replace")
    last = (log.strip().splitlines() or ["no output"])[-1][:200]
    return BuildError(f"Dockerfile line {step.line}: RUN {step.value[:120]}: {why}; last line: {last}", log)
