"""The Dockerfile that a container engine is given for one of ours, and the files that go with it.

`FROM gymsmith/host` becomes the engine's base image plus our users and directories, here-documents and platform arguments become
what an older engine understands, modes of --chmod are set in the context, and wheels are copied in and removed around the steps
that name them. Stages that the target does not need are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gymsmith.errors import ImageMissing, PolicyRefused
from sandboxes.base import Image
from sandboxes.image import copying as image_copy
from sandboxes.image import dockerfile
from sandboxes.image import dockerfile_words as words_of
from sandboxes.image import host_base as image_base
from sandboxes.image.build import base_name, check_arguments, declare, early_arguments
from sandboxes.image.build_context import WHEELHOUSE, BuildContext, Member, mode_given, source_path
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.build_state import SHELL
from sandboxes.image.dockerfile import Dockerfile, Stage, Step

if TYPE_CHECKING:
    from sandboxes.image.images import ImageStore

_PRELUDE = r"""USER root
RUN for row in agent:1000 tester:1001; do name=${row%:*}; id=${row#*:}; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/passwd || echo "$name:x:$id:$id:$name:/home/$name:/bin/sh" >> /etc/passwd; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/group || echo "$name:x:$id:" >> /etc/group; \
    mkdir -p /home/$name && chown $id:$id /home/$name; done; \
    mkdir -p /work /logs/agent /logs/verifier && chown 1000:1000 /work /logs/agent && chown 1001:1001 /logs/verifier
WORKDIR /work
"""


class Written(NamedTuple):
    """What the engine is given."""

    text: str
    members: Mapping[str, Member]
    """Files of its context by name."""
    bases: tuple[str, ...]
    """Content addresses of the images it begins with."""
    user: str
    """What USER says at the end, here or in the parent; empty: nothing."""
    default: str
    """Who then runs commands of the image."""


@dataclass(slots=True)
class _Standing:
    """How things stand at a line of a stage."""

    default: str
    """Who runs commands of the image when no USER says so."""
    user: str = ""
    """What USER said last, here or in the parent."""
    shell: list[str] = field(default_factory=lambda: list(SHELL))
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        return {**self.args, **self.env}


class EngineOrder:
    """One build. `engine`: a `docker.APIClient`; `base_image`: what `FROM gymsmith/host` means to it."""

    def __init__(
        self, store: ImageStore, engine: Any, base_image: str, text: Dockerfile, context: BuildContext, policy: BuildPolicy,
        wheelhouse: Path | None,
    ) -> None:  # fmt: skip
        self.store = store
        self.engine = engine
        self.base_image = base_image
        self.text = text
        self.context = context
        self.policy = policy
        self.wheelhouse = wheelhouse
        self.members: dict[str, Member] = {}
        self.bases: list[str] = []
        self._whole: set[str] = set()

    def write(self) -> Written:
        """Raises: PolicyRefused, BuildError: it cannot be said to an engine; ImageMissing: the engine has no base image."""
        if self.policy.network == "mirrors":
            raise PolicyRefused(
                "build network 'mirrors' needs the ns provider, an engine's builder has no allow-list; use none or host"
            )
        check_arguments(self.text, self.policy.arguments)
        early = early_arguments(self.text, self.policy.arguments)
        target = self.text.target(self.policy.target)
        lines: list[str] = []
        standing: dict[int, _Standing] = {}
        for index in self._needed(target, early):
            stage = self.text.stages[index]
            head, now = self._begin(stage, index, early, standing)
            lines += head
            for number, step in enumerate(stage.steps):
                lines += self._step(step, f"{index}-{number}", index, early, now)
            standing[index] = now
        last = standing[target]
        return Written("\n".join(lines) + "\n", self.members, tuple(self.bases), last.user, last.default)

    def _needed(self, target: int, early: Mapping[str, str]) -> list[int]:
        """Numbers of the stages that the target is made of, itself among them."""
        found: set[int] = set()
        pending = [target]
        while pending:
            index = pending.pop()
            if index not in found:
                found.add(index)
                stage = self.text.stages[index]
                names = [base_name(stage, early), *(words_of.expand(s.flags.get("from", ""), {}, s.line) for s in stage.steps)]
                pending += [number for name in names if name and (number := self.text.find(name, index)) is not None]
        return sorted(found)

    def _begin(
        self, stage: Stage, index: int, early: Mapping[str, str], standing: Mapping[int, _Standing]
    ) -> tuple[list[str], _Standing]:
        """The lines that begin a stage, and how things stand after them."""
        name = base_name(stage, early)
        alias = f"AS stage{index}"
        earlier = self.text.find(name, index)
        if earlier is not None:
            before = standing[earlier]
            return [f"FROM stage{earlier} {alias}"], replace(before, env=dict(before.env), args={})
        if name == dockerfile.SCRATCH:
            return [f"FROM scratch {alias}"], _Standing("root")
        if name in (image_base.NAME, f"{image_base.NAME}:latest"):
            ref = engine_digest(self.engine, self.base_image)
            self.bases.append(ref)
            return [f"FROM {ref} {alias}", _PRELUDE], _Standing(
                "agent", env=environment_of(self.engine.inspect_image(ref)["Config"])
            )
        parent = self._parent(name, stage.origin)
        self.bases.append(str(parent.engine_ref))
        user, shell = str(parent.config.get("User") or ""), parent.config.get("Shell") or SHELL
        return [f"FROM {parent.engine_ref} {alias}"], _Standing(parent.user, user, list(shell), dict(parent.env))

    def _parent(self, name: str, step: Step) -> Image:
        """An image that this engine has: built here, or its own."""
        import docker.errors

        try:
            parent = self.store.get(name)
            if parent.engine_ref is not None:
                return parent
        except ImageMissing:
            pass
        try:
            found = self.engine.inspect_image(name)
            said = found["Config"]
            config = {name: said[name] for name in ("User", "Shell") if said.get(name)}
            return Image(found["Id"], env=environment_of(said), user="root", config=config, engine_ref=found["Id"])
        except (docker.errors.DockerException, docker.errors.NullResource):
            raise PolicyRefused(
                f"Dockerfile line {step.line}: FROM {name[:80]!r} is not an image of this engine and nothing is downloaded; "
                f"use FROM {image_base.NAME}, the id of an image that was built here, or docker pull it first"
            ) from None

    def _step(self, step: Step, number: str, index: int, early: Mapping[str, str], now: _Standing) -> list[str]:
        match step.name:
            case "ARG":
                # Values are known here and platform arguments are not known to older engines.
                declare(step, now.args, now.variables, early, self.policy.arguments)
                names = [word.partition("=")[0] for word in words_of.split(step.value)]
                return [f"ARG {name}={_quoted(step, now.args[name])}" if name in now.args else f"ARG {name}" for name in names]
            case "COPY" | "ADD":
                return [self._copy(step, number, index, now)]
            case "RUN" if step.documents:
                return [f"RUN {json.dumps(dockerfile.command(step, now.shell))}"]
            case "RUN" if self.wheelhouse is not None and WHEELHOUSE in step.value:
                for path in self.wheelhouse.iterdir():
                    if path.is_file():
                        self.members[f"wheels/{path.name}"] = Member(0o644, path.read_bytes())
                clean = [f"RUN rm -rf {WHEELHOUSE}"]
                if now.user:
                    clean = ["USER root", *clean, f"USER {now.user}"]
                return [f"COPY wheels/ {WHEELHOUSE}/", f"RUN {step.value}", *clean]
            case "ENV":
                now.env.update(words_of.pairs(step.value, now.variables, step.line))
            case "SHELL":
                now.shell = dockerfile.command(step, ())
            case "USER":
                now.user = step.value
            case "HEALTHCHECK":
                flags = " ".join(f"--{name}={value}" for name, value in step.flags.items())
                return [f"HEALTHCHECK {flags} {step.value}"]
        return [f"{step.name} {step.value}"]

    def _copy(self, step: Step, number: str, index: int, now: _Standing) -> str:
        """The engine's line; its sources lie in a folder of their own when the step sets modes (the classic builder cannot)."""
        listed = words_of.json_form(step.value) or step.value.split()
        chmod = mode_given(step)
        flags = f"--chown={step.flags['chown']} " if step.flags.get("chown") else ""
        if "from" in step.flags:
            if chmod is not None:
                raise step.refused("--chmod together with --from needs the ns provider; RUN chmod afterwards")
            name = words_of.expand(step.flags["from"], {}, step.line)
            earlier = self.text.find(name, index)
            origin = f"stage{earlier}" if earlier is not None else str(self._parent(name, step).engine_ref)
            return f"{step.name} --from={origin} {flags}{json.dumps(listed)}"
        if "://" in " ".join(listed[:-1]):
            raise step.refused("of a URL is refused under a container engine; put the file into environment/ and COPY it")
        listed[:-1] = [source_path(word, step) if ".." in word.split("/") else word for word in listed[:-1]]
        folder = "context" if chmod is None else f"step{number}"
        documents = {document.word: document for document in step.documents}
        sources = []
        for word in listed[:-1]:
            if word in documents:
                document = documents[word]
                content = image_copy.documents(step, now.variables)[word]
                self.members[f"documents{number}/{document.name}"] = Member(
                    content.mode if chmod is None else chmod, content.data
                )
                sources.append(f"documents{number}/{document.name}")
            else:
                sources.append(f"{folder}/{word.lstrip('/')}")
        if folder not in self._whole and len(documents) < len(listed) - 1:
            self._whole.add(folder)
            for name, member in self.context.below(""):
                mode = chmod if chmod is not None and not member.is_dir else member.mode
                self.members[f"{folder}/{name}"] = Member(mode, member.data, member.target)
        return f"{step.name} {flags}{json.dumps([*sources, listed[-1]])}"


def engine_digest(engine: Any, image: str) -> str:
    """The engine's own content address of an image that it has. Raises: ImageMissing."""
    import docker.errors

    try:
        return str(engine.inspect_image(image)["Id"])
    except docker.errors.ImageNotFound as error:
        raise ImageMissing(
            f"the container engine has no image {image!r} for FROM {image_base.NAME}; pull it, or set docker_base_image"
        ) from error


def environment_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment in an engine's image configuration."""
    return dict(pair.split("=", 1) for pair in config.get("Env") or [])


def _quoted(step: Step, value: str) -> str:
    """A value as one word of the engine's Dockerfile."""
    if "\n" in value:
        raise step.refused(f"values with line breaks need the ns provider, got {value[:40]!r}")
    return '"' + "".join(f"\\{letter}" if letter in '"\\$' else letter for letter in value) + '"'
