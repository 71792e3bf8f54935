"""What `gymsmith image` does: the door of the job kind `image` (build, import), and the upkeep that needs no worker.

A build reads its folder on the machine of the worker. Images that environments of the store need are never removed by accident.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, InfrastructureError, NotFound
from gymsmith.schema import JobContext, Word
from gymsmith.store import Store
from sandboxes.base import Image
from sandboxes.image import dockerfile
from sandboxes.image import upkeep as image_upkeep
from sandboxes.image.build import StepDone
from sandboxes.image.build_context import BuildContext
from sandboxes.image.build_policy import BuildPolicy
from sandboxes.image.images import ImageStore

MAX_DOCKERFILE_BYTES = 1 << 20


class ImageOrder(Word):
    """Payload of an `image` job: a folder to build, or a source to import under a name."""

    verb: Literal["build", "import"]
    name: str = ""
    """The image's name afterwards; an import needs one."""
    folder: str = ""
    dockerfile: str = "Dockerfile"
    """File name below the folder."""
    arguments: dict[str, str] = Field(default_factory=dict)
    target: str = ""
    network: Literal["none", "mirrors", "host"] = "none"
    add_hosts: list[str] = Field(default_factory=list)
    timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    source: str = ""
    """oci:FOLDER, archive:FILE, rootfs:PATH, debootstrap:SUITE or engine:REF."""


def image(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Build or import an image: {"image_id", "layers", "name", "steps", "executed"}.

    Raises:
        ConfigError: the payload is not an ImageOrder.
        PolicyRefused, BuildError, NotFound: as `ImageStore.build` and `ImageStore.adopt`.
    """
    from sandboxes.worker import process_worker

    try:
        order = ImageOrder(**payload)
    except ValidationError as error:
        raise ConfigError(f"the payload must be an ImageOrder, got {error}") from error
    worker = process_worker(ctx.settings)
    done: list[StepDone] = []

    async def build() -> Image:
        images = await worker.images()
        folder = Path(order.folder)
        text = await asyncio.to_thread(_dockerfile, folder, order.dockerfile)
        context = await asyncio.to_thread(BuildContext.read, folder)
        steps = sum(len(stage.steps) for stage in dockerfile.parse(text).stages)
        policy = BuildPolicy(
            network=order.network, add_hosts=tuple(order.add_hosts), arguments=order.arguments, target=order.target
        )

        def told(step: StepDone) -> None:
            done.append(step)
            ctx.progress(done=len(done), total=steps, unit="steps", note=step.text[:60])

        made = await images.build(text, context, policy=policy, timeout_s=order.timeout_s, on_step=told)
        if order.name:
            images.tag(made, order.name)
        return made

    async def bring() -> Image:
        if not order.name:
            raise ConfigError("an import needs a name for FROM, got none")
        return await (await worker.images()).adopt(order.name, order.source)

    made = worker.run(build() if order.verb == "build" else bring(), ctx)
    executed = sum(not step.cached for step in done)
    return {"image_id": made.id, "layers": len(made.layers), "name": order.name, "steps": len(done), "executed": executed}


def listing(settings: Settings) -> list[dict[str, Any]]:
    """The images of this state folder, by name, the nameless last."""
    needed = _needed(settings)
    rows = [
        {**row._asdict(), "environments": needed.get(row.id, 0)} for row in image_upkeep.listed(ImageStore(settings.images_dir))
    ]
    return sorted(rows, key=lambda row: (not row["names"], row["names"], row["id"]))


def remove(settings: Settings, names: Sequence[str], *, force: bool = False) -> list[str]:
    """Forget images by name or id; their ids. Raises: ImageMissing, Conflict: an environment needs it and no `force`."""
    store = ImageStore(settings.images_dir)
    keep = {} if force else _needed(settings)
    return [image_upkeep.remove(store, name, keep=keep) for name in names]


def collect(settings: Settings, idle_s: float) -> dict[str, int]:
    """Free the space of what no name, no environment and no recent build uses: {"layers", "bytes"}."""
    return image_upkeep.collect(ImageStore(settings.images_dir), _needed(settings), idle_s=idle_s)._asdict()


def _needed(settings: Settings) -> dict[str, int]:
    """Image id -> how many environments of the store have it."""
    counts: dict[str, int] = {}
    try:
        with Store.open(settings) as store:
            cursor = ""
            while True:
                page = store.environments(limit=1000, cursor=cursor)
                for environment in page.items:
                    if environment.image_id:
                        counts[environment.image_id] = counts.get(environment.image_id, 0) + 1
                if not (cursor := page.cursor):
                    return counts
    except OSError as error:
        raise InfrastructureError(f"the store of {settings.home} cannot be read: {error}; nothing was removed") from error


def _dockerfile(folder: Path, name: str) -> str:
    path = folder / name
    try:
        if ".." in Path(name).parts or not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"the Dockerfile must lie in the folder, got {name[:200]!r}")
        with open(path, "rb") as file:
            data = file.read(MAX_DOCKERFILE_BYTES + 1)
        if len(data) > MAX_DOCKERFILE_BYTES:
            raise ConfigError(f"a Dockerfile may have {MAX_DOCKERFILE_BYTES} bytes, {path} has more")
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8: {error}") from error
    except OSError as error:
        raise NotFound(f"there must be a Dockerfile at {path}: {error.strerror}; name it with --file") from error
