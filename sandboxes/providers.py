"""Which provider this machine gets: namespaces where the kernel allows them, else a container engine."""

from __future__ import annotations

import asyncio
import logging

from gymsmith.config import Settings
from gymsmith.errors import Capacity
from sandboxes.admission import Admission, Room
from sandboxes.base import ImageSource, Provider
from sandboxes.egress import Egress
from sandboxes.launcher import probe

log = logging.getLogger(__name__)


async def open_provider(settings: Settings, images: ImageSource) -> Provider:
    """The provider that `settings.provider` asks for, on the running loop.

    Raises:
        Capacity: there is none on this machine; the message says why not and what to do.
    """
    if settings.provider == "ns":
        return await _namespaces(settings, images)
    if settings.provider == "docker":
        return await _containers(settings, images)
    if settings.provider == "remote":
        from sandboxes.remote.provider import open_remote

        return await open_remote(settings, images)
    # Some kernels refuse only in the middle of making a sandbox, so one is made before the choice.
    found = await asyncio.to_thread(probe)
    if found["works"]:
        return await _namespaces(settings, images)
    log.warning("event=no_namespaces why=%s", found["summary"])
    try:
        return await _containers(settings, images)
    except Capacity as error:
        raise Capacity(
            f"this machine has no place for sandboxes. Namespaces: {found['summary']}; {found['next_move']}. "
            f"Containers: {error}. `gymsmith doctor` says what is missing"
        ) from error


async def _namespaces(settings: Settings, images: ImageSource) -> Provider:
    from sandboxes.namespace import NamespaceProvider

    provider = await NamespaceProvider.start(images, settings.sandboxes_dir, admission=_admission(settings))
    provider.egress = Egress.of(settings)
    return provider


def _admission(settings: Settings) -> Admission:
    # Image builds and verifiers need no slot of a worker, so there is room beside the slots.
    return Admission(Room.of_machine(2 * settings.max_sandboxes, settings.overcommit))


async def _containers(settings: Settings, images: ImageSource) -> Provider:
    from sandboxes.container import ContainerProvider

    provider = await ContainerProvider.start(
        images, settings.sandboxes_dir, base_image=settings.docker_base_image, admission=_admission(settings)
    )
    provider.egress = Egress.of(settings)
    return provider
