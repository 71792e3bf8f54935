"""A Dockerfile becomes layers, step by step.

A layer's key is a hash over its parent's key, the instruction and the bytes that go in, so a step is executed once per machine.
`RUN` runs in a build sandbox (`build_box.py`); `COPY`, `ADD` and `WORKDIR` are plain writes on the host and start nothing,
because thousands of small environments are one COPY each (an ordinary user cannot give files away: there root-inside does that).
The names inside the image that a COPY meets are resolved inside the image: nothing is ever written through a symlink of the
host. Only the stages that the target needs are built.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import posixpath
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gymsmith.errors import BuildError, ImageMissing, PolicyRefused, StoreError
from gymsmith.schema import digest
from sandboxes.base import MIB, ExecResult, Image, Sandbox, check_path
from sandboxes.image import build_box, dockerfile, remote_add
from sandboxes.image import configuration as image_config
from sandboxes.image import copying as image_copy
from sandboxes.image import dockerfile_words as words_of
from sandboxes.image import host_base as image_base
from sandboxes.image.build_context import WHEELHOUSE, BuildContext
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.build_state import State
from sandboxes.image.dockerfile import Dockerfile, Stage, Step
from sandboxes.image.layer import AS_ROOT, LayerWriter, lookup

if TYPE_CHECKING:
    from sandboxes.image.images import ImageStore

LOG_TAIL_BYTES = 8192


class StepDone(NamedTuple):
    """One instruction that has been carried out."""

    line: int
    text: str
    cached: bool
    """Its layer was there already."""
    seconds: float


OnStep = Callable[[StepDone], None]


class Builder:
    """One build."""

    def __init__(
        self,
        store: ImageStore,
        context: BuildContext,
        policy: BuildPolicy,
        *,
        wheelhouse: Path | None = None,
        timeout_s: float = 600.0,
        on_step: OnStep | None = None,
    ) -> None:
        self.store = store
        self.context = context
        self.policy = policy
        self.wheelhouse = wheelhouse
        self.timeout_s = timeout_s
        self.on_step = on_step
        self._stages: dict[int, State] = {}
        self._made = False

    async def execute(self, text: Dockerfile) -> Image:
        """The image of the target stage. Raises: PolicyRefused, BuildError, SandboxError."""
        early = early_arguments(text, self.policy.arguments)
        check_arguments(text, self.policy.arguments)
        return (await self._stage(text, text.target(self.policy.target), early)).image()

    async def _stage(self, text: Dockerfile, index: int, early: Mapping[str, str]) -> State:
        if index in self._stages:
            return self._stages[index]
        stage = text.stages[index]
        state = await self._begin(text, index, early)
        for step in stage.steps:
            began = time.perf_counter()
            self._made = False
            match step.name:
                case "ARG":
                    declare(step, state.args, state.variables, early, self.policy.arguments)
                case "ENV":
                    state.env.update(words_of.pairs(step.value, state.variables, step.line))
                case "USER":
                    name = words_of.expand(step.value, state.variables, step.line)
                    state.user = state.user_named(name, step)
                    state.config["User"] = name
                case "WORKDIR":
                    with _said(step, self.store.root):
                        await self._workdir(state, step)
                case "COPY" | "ADD":
                    with _said(step, self.store.root):
                        await self._copy(text, index, early, state, step)
                case "RUN":
                    await self._run(state, step)
                case _:
                    image_config.apply(step, state)
            if self.on_step is not None:
                text_shown = f"{step.name} {step.value}"[:120]
                self.on_step(StepDone(step.line, text_shown, not self._made, time.perf_counter() - began))
        self._stages[index] = state
        return state

    async def _begin(self, text: Dockerfile, index: int, early: Mapping[str, str]) -> State:
        stage = text.stages[index]
        name = base_name(stage, early)
        earlier = text.find(name, index)
        if earlier is not None:
            return (await self._stage(text, earlier, early)).child()
        if name == dockerfile.SCRATCH:
            return State("scratch", env={"PATH": image_base.PATH})
        return State.of(self._image(name, stage.origin, "FROM"))

    def _image(self, name: str, step: Step, word: str) -> Image:
        try:
            image = self.store.get(name)
        except ImageMissing as error:
            raise PolicyRefused(
                f"Dockerfile line {step.line}: {word} {name[:80]!r} is not on this machine and nothing is downloaded ({error}); "
                f"use {image_base.NAME}, the id or name of an image that is here, or `gymsmith image import`"
            ) from None
        if image.config.get("OnBuild"):
            raise step.refused(f"{name[:80]!r} has ONBUILD triggers, which are not executed here; write its steps out")
        return image

    async def _workdir(self, state: State, step: Step) -> None:
        value = words_of.expand(step.value, state.variables, step.line)
        path, entry = lookup(state.layers, value if value.startswith("/") else f"{state.workdir}/{value}")
        if entry is None and state.bound(path) is None:
            key = digest(state.key.encode(), b"WORKDIR", path.encode())[:32]
            await self._layer(state, key, lambda writer: writer.directory(path))
        # As Docker does, the configuration keeps what was asked for, links on its way included.
        state.workdir = check_path("WORKDIR", "/" + posixpath.normpath(posixpath.join(state.workdir, value)).lstrip("/"))

    async def _copy(self, text: Dockerfile, index: int, early: Mapping[str, str], state: State, step: Step) -> None:
        origin: State | None = None
        if "from" in step.flags:
            name = words_of.expand(step.flags["from"], {}, step.line)
            earlier = text.find(name, index)
            origin = (
                await self._stage(text, earlier, early)
                if earlier is not None
                else State.of(self._image(name, step, f"{step.name} --from"))
            )
        fetched = await remote_add.fetch(step, state.variables, self.policy.add_hosts) if step.name == "ADD" else {}
        placed, content = image_copy.rows(step, state, self.context, origin, fetched)
        key = digest(state.key.encode(), b"COPY", content)[:32]
        await self._layer(state, key, lambda writer: image_copy.write(placed, writer, owners=self._gives_away), placed)

    @property
    def _gives_away(self) -> bool:
        """Whether this process can write files that belong to other ids inside, or nobody can."""
        provider = self.store.provider
        return AS_ROOT or provider is None or not provider.capabilities.users

    async def _layer(
        self, state: State, key: str, write: Callable[[LayerWriter], None], placed: Sequence[image_copy.Row] = ()
    ) -> None:
        """One layer, written by this process; what it cannot give away is given away by root-inside of a build sandbox."""
        layers = self.store.layers
        if not layers.sound(key):
            async with layers.alone(key):
                with layers.scratch() as scratch:
                    upper = scratch / "tree"
                    upper.mkdir()
                    write(LayerWriter(upper, state.layers))
                    foreign = [row for row in placed if (row.member.uid, row.member.gid) != (0, 0)]
                    if foreign and not self._gives_away:
                        await self._give_away(state, key, upper, foreign)
                    layers.publish(upper, key)
                    self._made = True
        state.grow(key, layers.tree(key))

    async def _give_away(self, state: State, key: str, upper: Path, foreign: Sequence[image_copy.Row]) -> None:
        by_owner: dict[str, list[image_copy.Row]] = {}
        for row in foreign:
            by_owner.setdefault(f"{row.member.uid}:{row.member.gid}", []).append(row)

        async def chown(box: Sandbox) -> None:
            for owner, rows in by_owner.items():
                for start in range(0, len(rows), 500):
                    part = rows[start : start + 500]
                    result = await box.exec(["chown", "-h", owner, "--", *(row.path for row in part)], user="root")
                    if not result.ok:
                        raise BuildError(f"files could not be given to {owner}: {result.output.decode(errors='replace')[:200]}")
                for row in rows:
                    if row.member.mode & 0o6000 and not row.member.is_dir:  # which giving away clears
                        await box.exec(["chmod", f"{row.member.mode:o}", row.path], user="root")

        await build_box.in_sandbox(self.store, state, key, upper, chown, policy=BuildPolicy(), timeout_s=self.timeout_s)

    async def _run(self, state: State, step: Step) -> None:
        command = dockerfile.command(step, state.shell)
        wheels = self.wheelhouse if WHEELHOUSE in step.value or any(WHEELHOUSE in d.text for d in step.documents) else None
        listing = sorted(f"{path.name}:{path.stat().st_size}" for path in wheels.iterdir() if path.is_file()) if wheels else []
        home = {} if "HOME" in state.variables else {"HOME": state.home() or "/"}
        settings = [command, state.variables, state.workdir, state.run_user, listing]
        if self.policy.network != "none":
            settings.append(self.policy.network)
        key = digest(state.key.encode(), b"RUN", json.dumps(settings, sort_keys=True).encode())[:32]

        async def execute(box: Sandbox) -> ExecResult:
            return await box.exec(
                command,
                cwd=state.workdir,
                env={**home, **state.variables},
                user=state.run_user,
                timeout_s=self.timeout_s,
                max_output_bytes=LOG_TAIL_BYTES,
            )

        layers = self.store.layers
        if not layers.sound(key):
            async with layers.alone(key):
                if not layers.sound(key):
                    with layers.scratch() as scratch:
                        extra = [build_box.wheel_layer(scratch / "wheels", wheels)] if wheels else []
                        result = await build_box.in_sandbox(
                            self.store, state, key, scratch / "tree", execute,
                            policy=self.policy, timeout_s=self.timeout_s, extra=extra,
                        )  # fmt: skip
                        if not result.ok:
                            raise _failure(step, result, self.timeout_s)
                        await asyncio.to_thread(build_box.tidy, scratch / "tree")
                        layers.publish(scratch / "tree", key)
                        self._made = True
        state.grow(key, layers.tree(key))


def base_name(stage: Stage, early: Mapping[str, str]) -> str:
    """What FROM names. Raises: PolicyRefused: nothing, or a platform that is not this machine's."""
    if "platform" in stage.origin.flags:
        wanted = words_of.expand(stage.origin.flags["platform"], early, stage.origin.line)
        if wanted != early["TARGETPLATFORM"]:
            raise stage.origin.refused(
                f"--platform={wanted[:40]} is refused: images are for this machine, {early['TARGETPLATFORM']}; remove the flag"
            )
    name = words_of.expand(stage.base, early, stage.origin.line)
    if not name:
        raise stage.origin.refused(f"needs an image, got {stage.base[:80]!r}, which is empty here; give its ARG a value")
    return name


def early_arguments(text: Dockerfile, given: Mapping[str, str]) -> dict[str, str]:
    """ARGs before the first FROM, and the platform ones that every Dockerfile may use."""
    early = image_config.platform_arguments()
    for step in text.early:
        declare(step, early, early, {}, given)
    return early


def declare(
    step: Step, args: dict[str, str], variables: Mapping[str, str], early: Mapping[str, str], given: Mapping[str, str]
) -> None:
    """Add the ARGs of a step to `args`: the value given for the build, else the default, else that before FROM, else unset."""
    for word in words_of.split(step.value):
        name, has_default, default = word.partition("=")
        name = words_of.expand(name, variables, step.line)
        if name in given:
            args[name] = given[name]
        elif has_default:
            args[name] = words_of.expand(default, {**variables, **args}, step.line)
        elif name in early:
            args[name] = early[name]


def check_arguments(text: Dockerfile, given: Mapping[str, str]) -> None:
    """Raises: PolicyRefused: a value is given for an ARG that the Dockerfile does not declare."""
    steps = [*text.early, *(step for stage in text.stages for step in stage.steps)]
    declared = {word.partition("=")[0] for step in steps if step.name == "ARG" for word in words_of.split(step.value)}
    for name in given:
        if name not in declared:
            raise PolicyRefused(
                f"build argument {name[:80]!r} is not declared by the Dockerfile, which has "
                f"{', '.join(sorted(declared)) or 'no ARG'}; check its name"
            )


@contextlib.contextmanager
def _said(step: Step, root: Path) -> Iterator[None]:
    """What the file system says to a plain write, as the fault of the step that asked for it or of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise StoreError(f"the disk of {root} took no more: {error.strerror}; free some space") from error
        raise BuildError(f"Dockerfile line {step.line}: {step.name} {step.value[:120]}: {error.strerror}") from error


def _failure(step: Step, result: ExecResult, timeout_s: float) -> BuildError:
    if result.timed_out:
        why = f"took longer than {timeout_s:g} s"
    elif result.oom:
        why = f"ran out of memory ({build_box.BUILD_MEMORY_BYTES // MIB} MiB)"
    else:
        why = f"exit code {result.exit_code}" if result.signal is None else f"killed by signal {result.signal}"
    said = result.output.decode(errors="replace")
    last = (said.strip().splitlines() or ["no output"])[-1][:200]
    return BuildError(f"Dockerfile line {step.line}: RUN {step.value[:120]}: {why}; last line: {last}", said)
