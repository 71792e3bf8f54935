"""The same Dockerfiles, built by a container engine instead of our own steps. The only file of images that knows the docker SDK.

What was refused is already refused (`dockerfile.parse`), so the engine is given a Dockerfile that this file writes: `FROM
gymsmith/host` becomes the configured base image plus our users and directories, members of the context get the modes that our own
builder would give them, here-documents become what an older engine understands, builds have no network, and wheels are copied in
and removed around the steps that name them.
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymsmith.errors import BuildError, ImageMissing, InfrastructureError, NotFound, PolicyRefused
from gymsmith.schema import digest
from sandboxes import dockerfile, image_base
from sandboxes import dockerfile_words as words_of
from sandboxes.base import MIB, USERS, Image
from sandboxes.build_context import WHEELHOUSE, BuildContext, Member, mode_given
from sandboxes.build_policy import BuildPolicy
from sandboxes.dockerfile import Dockerfile, Stage, Step
from sandboxes.image_build import base_name, check_arguments, declare, early_arguments

if TYPE_CHECKING:
    from sandboxes.image import ImageStore

LOG_TAIL_CHARS = 8192
BUILD_MEMORY_BYTES = 2048 * MIB
_KEPT = ("User", "Entrypoint", "Cmd", "Healthcheck", "Labels", "ExposedPorts", "Volumes", "Shell", "StopSignal", "OnBuild")
_PRELUDE = r"""USER root
RUN for row in agent:1000 tester:1001; do name=${row%:*}; id=${row#*:}; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/passwd || echo "$name:x:$id:$id:$name:/home/$name:/bin/sh" >> /etc/passwd; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/group || echo "$name:x:$id:" >> /etc/group; \
    mkdir -p /home/$name && chown $id:$id /home/$name; done; \
    mkdir -p /work /logs/agent /logs/verifier && chown 1000:1000 /work /logs/agent && chown 1001:1001 /logs/verifier
WORKDIR /work
"""
_RULE = "USER must be one of {}, a number, or a name of the image's /etc/passwd, got {!r}"


async def build_with_engine(
    store: ImageStore,
    engine: Any,
    base_image: str,
    text: Dockerfile,
    context: BuildContext,
    policy: BuildPolicy,
    *,
    wheelhouse: Path | None = None,
    timeout_s: float = 600.0,
) -> Image:
    """The image, built or found. `engine`: a `docker.APIClient`; `base_image`: what `FROM gymsmith/host` means to it.

    Raises: PolicyRefused, BuildError (with the log's tail), ImageMissing (the engine has no base image), InfrastructureError.
    """
    order = _Order(store, engine, base_image, text, context, policy, wheelhouse)
    return await asyncio.to_thread(order.build, timeout_s)


def build_base(store: ImageStore, engine: Any, base_image: str) -> Image:
    """`gymsmith/host` alone; blocks for a second the first time. Raises as `build_with_engine`."""
    text = dockerfile.parse(f"FROM {image_base.NAME}\n")
    return _Order(store, engine, base_image, text, BuildContext({}), BuildPolicy(), None).build(60.0)


def engine_digest(engine: Any, image: str) -> str:
    """The engine's own content address of an image that it has. Raises: ImageMissing."""
    import docker.errors

    try:
        return str(engine.inspect_image(image)["Id"])
    except docker.errors.ImageNotFound as error:
        raise ImageMissing(
            f"the container engine has no image {image!r} for FROM {image_base.NAME}; pull it, or set docker_base_image"
        ) from error


def save(engine: Any, ref: str, target: Path) -> None:
    """Write what `docker save` writes. Raises: NotFound: the engine has no such image, or there is no engine."""
    try:
        import docker
        import docker.errors
    except ImportError as error:
        raise NotFound("engine: needs the docker package: pip install 'gymsmith[sandbox]'") from error
    try:
        client = engine if engine is not None else docker.from_env(timeout=120).api
        stream = client.get_image(client.inspect_image(ref)["Id"])
        with open(target, "xb") as file:
            for block in stream:
                file.write(block)
    except docker.errors.DockerException as error:
        raise NotFound(f"the container engine cannot give image {ref[:80]!r}: {error}; pull it there, or start it") from error


def remove_from_engine(ref: str) -> None:
    """Remove an image that was built here; one that is gone already is fine. Raises: InfrastructureError."""
    import docker
    import docker.errors

    try:
        docker.from_env(timeout=120).api.remove_image(ref)
    except docker.errors.ImageNotFound:
        return
    except docker.errors.DockerException as error:
        raise InfrastructureError(f"the container engine did not remove {ref}: {error}; is it running?") from error


class _Order:
    """One build."""

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

    def build(self, timeout_s: float) -> Image:
        import docker.errors

        if self.policy.network == "mirrors":
            raise PolicyRefused(
                "build network 'mirrors' needs the ns provider, an engine's builder has no allow-list; use none or host"
            )
        check_arguments(self.text, self.policy.arguments)
        early = early_arguments(self.text, self.policy.arguments)
        target = self.text.target(self.policy.target)
        lines: list[str] = []
        user = default = ""
        users: dict[int, tuple[str, str]] = {}
        for index in range(target + 1):
            stage = self.text.stages[index]
            head, default, user = self._begin(stage, index, early, users)
            lines += head
            args: dict[str, str] = {}
            for number, step in enumerate(stage.steps):
                if step.name == "USER":
                    user = step.value
                lines += self._step(step, f"{index}-{number}", index, early, args)
            users[index] = (default, user)
        dockerfile_text = "\n".join(lines) + "\n"
        parts = [repr((name, self.members[name])).encode() for name in sorted(self.members)]
        settings = [*self.bases, self.policy.network, dockerfile_text]
        image_id = digest(b"engine", *(part.encode() for part in settings), *parts)[:32]
        ref = f"gymsmith/environment:{image_id}"
        try:
            found = self.engine.inspect_image(ref)
        except docker.errors.ImageNotFound:
            tar = _tar(dockerfile_text, self.members)
            _engine_build(self.engine, ref, tar, timeout_s, "host" if self.policy.network == "host" else "none")
            found = self.engine.inspect_image(ref)
        except docker.errors.DockerException as error:
            raise InfrastructureError(f"the container engine did not answer: {error}; is it running?") from error
        settings_of = found["Config"]
        env = dict(pair.split("=", 1) for pair in settings_of.get("Env") or [])
        config = {name: settings_of[name] for name in _KEPT if settings_of.get(name)}
        if not user:
            config.pop("User", None)
        who = self._who(ref, str(config.get("User") or "")) if user else default
        return Image(image_id, env=env, workdir=settings_of.get("WorkingDir") or "/", user=who, config=config, engine_ref=ref)

    def _begin(
        self, stage: Stage, index: int, early: Mapping[str, str], users: Mapping[int, tuple[str, str]]
    ) -> tuple[list[str], str, str]:
        """The lines that begin a stage, the user of its commands when no USER says one, and what an inherited USER says."""
        name = base_name(stage, early)
        alias = f"AS stage{index}"
        earlier = self.text.find(name, index)
        if earlier is not None:
            return [f"FROM stage{earlier} {alias}"], *users[earlier]
        if name == dockerfile.SCRATCH:
            return [f"FROM scratch {alias}"], "root", ""
        if name in (image_base.NAME, f"{image_base.NAME}:latest"):
            ref = engine_digest(self.engine, self.base_image)
            self.bases.append(ref)
            return [f"FROM {ref} {alias}", _PRELUDE], "agent", ""
        parent = self._parent(name, stage.origin)
        self.bases.append(str(parent.engine_ref))
        return [f"FROM {parent.engine_ref} {alias}"], parent.user, str(parent.config.get("User") or "")

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
            user = str(found["Config"].get("User") or "")
            return Image(found["Id"], user="root", config={"User": user} if user else {}, engine_ref=found["Id"])
        except (docker.errors.DockerException, docker.errors.NullResource):
            raise PolicyRefused(
                f"Dockerfile line {step.line}: FROM {name[:80]!r} is not an image of this engine and nothing is downloaded; "
                f"use FROM {image_base.NAME}, the id of an image that was built here, or docker pull it first"
            ) from None

    def _step(self, step: Step, number: str, index: int, early: Mapping[str, str], args: dict[str, str]) -> list[str]:
        match step.name:
            case "ARG":
                # Values are known here and platform arguments are not known to older engines.
                declare(step, args, {}, early, self.policy.arguments)
                names = [word.partition("=")[0] for word in words_of.split(step.value)]
                fixed = [name for name in names if name in self.policy.arguments or name in early]
                if not fixed:
                    return [f"ARG {step.value}"]
                return [f"ARG {name}={_quoted(step, args[name])}" if name in args else f"ARG {name}" for name in names]
            case "COPY" | "ADD":
                return [self._copy(step, number, index)]
            case "RUN" if step.documents:
                words = dockerfile.command(step, ())
                return [f"RUN {json.dumps(['/bin/sh', '-c', *words])}"]
            case "RUN" if self.wheelhouse is not None and WHEELHOUSE in step.value:
                for path in self.wheelhouse.iterdir():
                    if path.is_file():
                        self.members[f"wheels/{path.name}"] = Member(0o644, path.read_bytes())
                return ["USER root", f"COPY wheels/ {WHEELHOUSE}/", f"RUN {step.value}", f"RUN rm -rf {WHEELHOUSE}"]
            case "HEALTHCHECK":
                flags = " ".join(f"--{name}={value}" for name, value in step.flags.items())
                return [f"HEALTHCHECK {flags} {step.value}"]
            case _:
                return [f"{step.name} {step.value}"]

    def _copy(self, step: Step, number: str, index: int) -> str:
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
        if any(".." in word.split("/") for word in listed[:-1]):
            raise step.refused("leaves the build context; use a path below it")
        folder = "context" if chmod is None else f"step{number}"
        documents = {document.word: document for document in step.documents}
        sources = []
        for word in listed[:-1]:
            if word in documents:
                document = documents[word]
                if document.expands and "$" in document.text:
                    raise step.refused(f"{word} with variables needs the ns provider; quote its name, or write the values out")
                self.members[f"documents{number}/{document.name}"] = Member(chmod or 0o644, document.text.encode())
                sources.append(f"documents{number}/{document.name}")
            else:
                sources.append(f"{folder}/{word.lstrip('/')}")
        if folder not in self._whole and len(documents) < len(listed) - 1:
            self._whole.add(folder)
            for name, member in self.context.below(""):
                mode = chmod if chmod is not None and not member.is_dir else member.mode
                self.members[f"{folder}/{name}"] = Member(mode, member.data, member.target)
        return f"{step.name} {flags}{json.dumps([*sources, listed[-1]])}"

    def _who(self, ref: str, user: str) -> str:
        """A configuration's user as numbers; a name that only the image knows is looked up in its /etc/passwd."""
        name, _, group = user.partition(":")
        if user in USERS or (name.isdecimal() and (not group or group.isdecimal())):
            return user
        container = self.engine.create_container(ref, ["-"])["Id"]
        try:
            rows = [row.split(":") for row in self._file(container, "/etc/passwd").splitlines()]
            found = next((row for row in rows if name in (row[0], row[2]) and len(row) > 3), None)
            groups = [row.split(":") for row in self._file(container, "/etc/group").splitlines()] if group else []
        finally:
            self.engine.remove_container(container, force=True)
        gid = next((row[2] for row in groups if group in (row[0], row[2])), None) if group else found and found[3]
        if found is None or gid is None:
            raise BuildError(_RULE.format(", ".join(USERS), user[:40]))
        return f"{found[2]}:{gid}"

    def _file(self, container: str, path: str) -> str:
        blocks, _ = self.engine.get_archive(container, path)
        with tarfile.open(fileobj=io.BytesIO(b"".join(blocks))) as tar:
            content = tar.extractfile(tar.next())  # type: ignore[arg-type]
            return content.read().decode(errors="replace") if content else ""


def _quoted(step: Step, value: str) -> str:
    """A value as one word of the engine's Dockerfile."""
    if "\n" in value:
        raise step.refused(f"values with line breaks need the ns provider, got {value[:40]!r}")
    return '"' + "".join(f"\\{letter}" if letter in '"\\$' else letter for letter in value) + '"'


def _tar(text: str, members: Mapping[str, Member]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, member in sorted({**members, "Dockerfile": Member(0o644, text.encode())}.items()):
            item = tarfile.TarInfo(name)
            item.mode = member.mode
            if member.is_dir:
                item.type = tarfile.DIRTYPE
            elif member.target is not None:
                item.type, item.linkname = tarfile.SYMTYPE, member.target
            item.size = len(member.data or b"")
            tar.addfile(item, io.BytesIO(member.data or b""))
    buffer.seek(0)
    return buffer


def _engine_build(engine: Any, ref: str, tar: io.BytesIO, timeout_s: float, network: str) -> None:
    import docker.errors
    import requests.exceptions
    import urllib3.exceptions

    log = ""
    try:
        answer = engine.build(
            fileobj=tar,
            custom_context=True,
            tag=ref,
            rm=True,
            forcerm=True,
            network_mode=network,
            decode=True,
            timeout=timeout_s,
            container_limits={"memory": BUILD_MEMORY_BYTES, "memswap": BUILD_MEMORY_BYTES},
        )
        for event in answer:
            log = (log + event.get("stream", ""))[-LOG_TAIL_CHARS:]
            if "error" in event:
                said = [
                    line
                    for line in log.splitlines()
                    if line.strip() and not line.startswith((" --->", "Step ", "Removing inter"))
                ]
                last = (said or ["no output"])[-1][:200]
                raise BuildError(f"{str(event['error'])[:300]}; last line: {last}", log)
    except (requests.exceptions.RequestException, urllib3.exceptions.TimeoutError) as error:
        raise BuildError(f"a step took longer than {timeout_s:.0f} s without a word: {error}", log) from error
    except docker.errors.DockerException as error:
        raise InfrastructureError(f"the container engine refused to build: {error}") from error
