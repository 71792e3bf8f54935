"""Files of a sandbox kept for others to start from, under the `ns` and the `docker` provider.

With namespaces a snapshot is a copy of the upper layer on a tmpfs inside the launcher, which new sandboxes have below their own
layer; the launcher drops it when nobody starts from it any more and nobody stands on it. That memory is reserved (`admission.py`)
from before the copy until then. With an engine it is an image that the engine commits: on its disk, which nobody reserves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gymsmith.errors import NotFound, PolicyRefused
from sandboxes.base import Sandbox, SandboxSpec


class Kept:
    """Something that a snapshot needs, with the number of those who hold it; the last one to let go ends it."""

    def __init__(self, drop: Callable[[], None]) -> None:
        self._drop = drop
        self._holders = 1

    def hold(self) -> None:
        self._holders += 1

    def let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._drop()


class KeptSnapshot:
    """Implements `Snapshot`. `start` makes a sandbox that holds `kept` for itself."""

    def __init__(self, number: str, spec: SandboxSpec, kept: Kept, start: Callable[[SandboxSpec], Awaitable[Sandbox]]) -> None:
        self.id = number
        self.spec = spec
        self._kept: Kept | None = kept
        self._start = start

    async def start(self, spec: SandboxSpec | None = None) -> Sandbox:
        if self._kept is None:
            raise NotFound(f"snapshot {self.id} was discarded; take another one")
        wanted = spec or self.spec
        if wanted.image != self.spec.image:
            raise PolicyRefused(f"image must be {self.spec.image}, of which the snapshot is, got {wanted.image}")
        kept = self._kept
        kept.hold()
        try:
            return await self._start(wanted)
        finally:
            kept.let_go()

    async def discard(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.let_go()
