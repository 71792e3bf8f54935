"""What workers have sent to a sandbox host: layers on disk by digest, and the images made of them.

The provider of the host looks images up here. Layers of images stay, because the next worker needs them too; a layer that only
one sandbox used goes with it.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from gymsmith.errors import ImageMissing, PolicyRefused
from gymsmith.schema import digest
from sandboxes.base import Image
from sandboxes.image import host_base as image_base
from sandboxes.image.layer import check_owner
from sandboxes.remote.channel import pack

KEEP_DAYS = 30
"""A host that starts removes layers that no image has named for so long."""


class Shelf:
    """The layers that workers have sent, by digest, and the images made of them: what the provider here looks images up in."""

    def __init__(self, root: Path) -> None:
        self._layers = root / "layers"
        self.scratch = root / "scratch"
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._used = root / "used"
        for folder in (root, self._layers, self.scratch, self._used):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        for layer in self._layers.iterdir():
            mark = self._used / layer.name
            if not mark.exists() or mark.stat().st_mtime < time.time() - KEEP_DAYS * 86_400:
                shutil.rmtree(layer, ignore_errors=True)
                mark.unlink(missing_ok=True)
        self._images: dict[str, Image] = {}
        self._users: Counter[str] = Counter()

    def resolve(self, image_id: str) -> Image:
        if image_id not in self._images:
            raise ImageMissing(f"image {image_id} was not sent to this host")
        return self._images[image_id]

    def path(self, key: str) -> Path:
        """Where the layer of that name is, or would be. Raises: PolicyRefused."""
        if not (len(key) == 64 and key.isascii() and key.isalnum()):
            raise PolicyRefused(f"a layer's name must be 64 letters and digits, got {key[:100]!r}")
        return self._layers / key

    def image(self, said: dict[str, Any]) -> Image:
        """Register what a worker says an image is.

        Raises: ImageMissing, PolicyRefused (it would show more of this machine), StoreError (its layers are another user's).
        """
        if said["binds"]:
            if not set(map(tuple, said["binds"])) <= set(image_base.binds()):
                raise PolicyRefused(f"an image may show this host's {image_base.binds()}, not {said['binds']}")
            if said["base"] != image_base.base_digest():
                raise ImageMissing(
                    f"image {said['id']} shows the programs of the machine that it was made on, and this host has others "
                    f"({said['base'][:12]} and {image_base.base_digest()[:12]}); build it on a base of its own"
                )
        key = digest(pack(said))[:32]
        layers = tuple(self.path(name) for name in said["layers"])
        if key not in self._images:
            for layer in layers:
                check_owner(layer)
                (self._used / layer.name).touch()
        words = {name: said[name] for name in ("env", "workdir", "user", "engine_ref")}
        self._images[key] = Image(id=key, layers=layers, binds=tuple(map(tuple, said["binds"])), **words)
        return self._images[key]

    def hold(self, keys: list[str]) -> None:
        """Layers of one sandbox alone are used by one more."""
        self._users.update(keys)

    def drop(self, keys: list[str]) -> None:
        """And by one less; what nobody uses any more is removed."""
        self._users.subtract(keys)
        for key in set(keys):
            if self._users[key] <= 0:
                del self._users[key]
                if (self._used / key).exists():
                    continue  # an image is made of it, too
                shutil.rmtree(self.path(key), ignore_errors=True)
