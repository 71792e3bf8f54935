"""The same Dockerfiles, built by a container engine instead of our own steps. The only file of images that knows the docker SDK.

What was refused is already refused (`dockerfile.parse`), so the engine is given a Dockerfile that this file writes: `FROM
gymsmith/host` becomes the configured base image plus our users and directories, members of the context get the modes that our own
builder would give them, builds have no network, and wheels are copied in and removed around the steps that name them.
"""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymsmith.errors import BuildError, ImageMissing, InfrastructureError, PolicyRefused
from gymsmith.schema import digest
from sandboxes import dockerfile, image_base
from sandboxes.base import MIB, USERS, Image
from sandboxes.build_context import WHEELHOUSE, member_mode, mode_given, refuse_archives
from sandboxes.dockerfile import Step

if TYPE_CHECKING:
    from sandboxes.image import ImageStore

LOG_TAIL_CHARS = 8192
BUILD_MEMORY_BYTES = 2048 * MIB
_PRELUDE = r"""USER root
RUN for row in agent:1000 tester:1001; do name=${row%:*}; id=${row#*:}; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/passwd || echo "$name:x:$id:$id:$name:/home/$name:/bin/sh" >> /etc/passwd; \
    grep -q "^[^:]*:[^:]*:$id:" /etc/group || echo "$name:x:$id:" >> /etc/group; \
    mkdir -p /home/$name && chown $id:$id /home/$name; done; \
    mkdir -p /work /logs/agent /logs/verifier && chown 1000:1000 /work /logs/agent && chown 1001:1001 /logs/verifier
WORKDIR /work
"""


async def build_with_engine(
    store: ImageStore,
    engine: Any,
    base_image: str,
    steps: Sequence[Step],
    context: Mapping[str, bytes],
    *,
    wheelhouse: Path | None,
    executable: frozenset[str],
    timeout_s: float,
) -> Image:
    """The image, built or found. `engine`: a `docker.APIClient`; `base_image`: what `FROM gymsmith/host` means to it.

    Raises: PolicyRefused, BuildError (with the log's tail), ImageMissing (the engine has no base image), InfrastructureError.
    """
    return await asyncio.to_thread(_build, store, engine, base_image, steps, context, wheelhouse, executable, timeout_s)


def build_base(store: ImageStore, engine: Any, base_image: str) -> Image:
    """`gymsmith/host` alone; blocks for a second the first time. Raises as `build_with_engine`."""
    return _build(store, engine, base_image, dockerfile.parse(f"FROM {image_base.NAME}\n"), {}, None, frozenset(), 60.0)


def engine_digest(engine: Any, base_image: str) -> str:
    """The engine's own content address of the base image. Raises: ImageMissing."""
    import docker.errors

    try:
        return str(engine.inspect_image(base_image)["Id"])
    except docker.errors.ImageNotFound as error:
        raise ImageMissing(
            f"the container engine has no image {base_image!r} for FROM {image_base.NAME}; pull it, or set docker_base_image"
        ) from error


def _build(
    store: ImageStore,
    engine: Any,
    base_image: str,
    steps: Sequence[Step],
    context: Mapping[str, bytes],
    wheelhouse: Path | None,
    executable: frozenset[str],
    timeout_s: float,
) -> Image:
    import docker.errors

    lines: list[str] = []
    members: dict[str, tuple[bytes, int]] = {}
    user = ""
    base = ""
    for number, step in enumerate(steps):
        match step.name:
            case "FROM":
                name = dockerfile.expand(step.value, {}, step.line)
                if name in (image_base.NAME, f"{image_base.NAME}:latest"):
                    base, user = engine_digest(engine, base_image), "agent"
                    lines += [f"FROM {base}", _PRELUDE]
                else:
                    parent = _parent(store, name, step)
                    base, user = str(parent.engine_ref), parent.user
                    lines += [f"FROM {base}", "USER root"]
            case "COPY" | "ADD":
                lines.append(_copy(step, number, context, executable, members))
            case "RUN" if wheelhouse is not None and WHEELHOUSE in step.value:
                for path in wheelhouse.iterdir():
                    members[f"wheels/{path.name}"] = (path.read_bytes(), 0o644)
                lines += [f"COPY wheels/ {WHEELHOUSE}/", f"RUN {step.value}", f"RUN rm -rf {WHEELHOUSE}"]
            case "USER":
                user = step.value
                lines.append(f"USER {step.value}")
            case _:
                lines.append(f"{step.name} {step.value}")
    if user not in USERS and not user.replace(":", "").isdecimal():
        raise PolicyRefused(f"USER must be one of {', '.join(USERS)} or a number under a container engine, got {user[:40]!r}")
    text = "\n".join(lines) + "\n"
    parts = [part for name in sorted(members) for part in (name.encode(), str(members[name][1]).encode(), members[name][0])]
    image_id = digest(b"engine", base.encode(), text.encode(), *parts)[:32]
    ref = f"gymsmith/environment:{image_id}"
    try:
        found = engine.inspect_image(ref)
    except docker.errors.ImageNotFound:
        _engine_build(engine, ref, _tar(text, members), timeout_s)
        found = engine.inspect_image(ref)
    except docker.errors.DockerException as error:
        raise InfrastructureError(f"the container engine did not answer: {error}; is it running?") from error
    settings = found["Config"]
    env = dict(pair.split("=", 1) for pair in settings.get("Env") or [])
    return Image(image_id, env=env, workdir=settings.get("WorkingDir") or "/", user=user, engine_ref=ref)


def _parent(store: ImageStore, name: str, step: Step) -> Image:
    try:
        parent = store.get(name)
    except ImageMissing:
        parent = Image(name)
    if parent.engine_ref is None:
        raise PolicyRefused(
            f"Dockerfile line {step.line}: FROM {name[:80]!r} is not an image built by this engine and nothing is downloaded; "
            f"use FROM {image_base.NAME}, or the id of an image that was built here"
        )
    return parent


def _copy(
    step: Step, number: int, context: Mapping[str, bytes], executable: frozenset[str], members: dict[str, tuple[bytes, int]]
) -> str:
    """The engine's COPY line; its sources lie in a folder of their own when the step sets modes (the classic builder cannot)."""
    words = dockerfile.json_form(step.value) or shlex.split(step.value)
    chmod = mode_given(step)
    if any(".." in word.split("/") for word in words[:-1]):
        raise PolicyRefused(f"Dockerfile line {step.line}: {step.name} leaves the build context; use a path below it")
    refuse_archives(step, words[:-1])
    folder = "context" if chmod is None else f"step{number}"
    for name, data in context.items():
        mode = member_mode(name, data, executable) if chmod is None else chmod
        members[f"{folder}/{name}"] = (data, mode)
    sources = [f"{folder}/{word.lstrip('/')}" for word in words[:-1]]
    owner = f"--chown={step.flags['chown']} " if "chown" in step.flags else ""
    return f"COPY {owner}{json.dumps([*sources, words[-1]])}"


def _tar(text: str, members: Mapping[str, tuple[bytes, int]]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, (data, mode) in sorted({**members, "Dockerfile": (text.encode(), 0o644)}.items()):
            item = tarfile.TarInfo(name)
            item.size, item.mode = len(data), mode
            tar.addfile(item, io.BytesIO(data))
    buffer.seek(0)
    return buffer


def _engine_build(engine: Any, ref: str, tar: io.BytesIO, timeout_s: float) -> None:
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
            network_mode="none",
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
