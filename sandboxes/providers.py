"""Which provider this machine gets: namespaces where the kernel allows them, else a container engine."""

from __future__ import annotations

from gymsmith.config import Settings
from gymsmith.errors import Capacity
from sandboxes.base import ImageSource, Provider


async def open_provider(settings: Settings, images: ImageSource) -> Provider:
    """The provider that `settings.provider` asks for, on the running loop.

    Raises:
        Capacity: there is none on this machine; the message says why not and what to do.
    """
    from sandboxes.namespace import NamespaceProvider

    return await NamespaceProvider.start(images, settings.sandboxes_dir, max_sandboxes=2 * settings.max_sandboxes)
