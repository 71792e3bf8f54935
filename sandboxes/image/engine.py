"""The same Dockerfiles, built by a container engine instead of our own steps.

What was refused is already refused (`dockerfile.parse`); the engine is given a Dockerfile that `engine_order.py` writes, and
builds have no network unless their policy says so.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymsmith.errors import BuildError, InfrastructureError, NotFound
from gymsmith.schema import digest
from sandboxes.base import MIB, USERS, Image
from sandboxes.image import dockerfile
from sandboxes.image import host_base as image_base
from sandboxes.image.build_context import BuildContext, Member
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.configuration import KEPT
from sandboxes.image.dockerfile import Dockerfile
from sandboxes.image.engine_order import EngineOrder, environment_of

if TYPE_CHECKING:
    from sandboxes.image.images import ImageStore

LOG_TAIL_CHARS = 8192
BUILD_MEMORY_BYTES = 2048 * MIB
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
    order = EngineOrder(store, engine, base_image, text, context, policy, wheelhouse)
    return await asyncio.to_thread(_build, order, timeout_s)


def build_base(store: ImageStore, engine: Any, base_image: str) -> Image:
    """`gymsmith/host` alone; blocks for a second the first time. Raises as `build_with_engine`."""
    text = dockerfile.parse(f"FROM {image_base.NAME}\n")
    return _build(EngineOrder(store, engine, base_image, text, BuildContext({}), BuildPolicy(), None), 60.0)


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


def _build(order: EngineOrder, timeout_s: float) -> Image:
    import docker.errors

    engine, written = order.engine, order.write()
    parts = [repr((name, written.members[name])).encode() for name in sorted(written.members)]
    settings = [*written.bases, order.policy.network, written.text]
    image_id = digest(b"engine", *(part.encode() for part in settings), *parts)[:32]
    ref = f"gymsmith/environment:{image_id}"
    try:
        found = engine.inspect_image(ref)
    except docker.errors.ImageNotFound:
        tar = _tar(written.text, written.members)
        _engine_build(engine, ref, tar, timeout_s, "host" if order.policy.network == "host" else "none")
        found = engine.inspect_image(ref)
    except docker.errors.DockerException as error:
        raise InfrastructureError(f"the container engine did not answer: {error}; is it running?") from error
    said = found["Config"]
    config = {name: said[name] for name in KEPT if said.get(name)}
    if not written.user:
        config.pop("User", None)
    user = _user(engine, ref, str(config.get("User") or "")) if written.user else written.default
    workdir = said.get("WorkingDir") or "/"
    return Image(image_id, env=environment_of(said), workdir=workdir, user=user, config=config, engine_ref=ref)


def _user(engine: Any, ref: str, user: str) -> str:
    """A configuration's user as numbers; a name that only the image knows is looked up in its /etc/passwd."""
    name, _, group = user.partition(":")
    if user in USERS or (name.isdecimal() and (not group or group.isdecimal())):
        return user
    container = engine.create_container(ref, ["-"])["Id"]
    try:
        rows = [row.split(":") for row in _file(engine, container, "/etc/passwd").splitlines()]
        found = next((row for row in rows if name in (row[0], row[2]) and len(row) > 3), None)
        groups = [row.split(":") for row in _file(engine, container, "/etc/group").splitlines()] if group else []
    finally:
        engine.remove_container(container, force=True)
    gid = next((row[2] for row in groups if group in (row[0], row[2])), None) if group else found and found[3]
    if found is None or gid is None:
        raise BuildError(_RULE.format(", ".join(USERS), user[:40]))
    return f"{found[2]}:{gid}"


def _file(engine: Any, container: str, path: str) -> str:
    blocks, _ = engine.get_archive(container, path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(blocks))) as tar:
        content = tar.extractfile(tar.next())  # type: ignore[arg-type]
        return content.read().decode(errors="replace") if content else ""


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
