"""The `remote` provider: sandboxes of other machines, through the sandbox hosts (`host.py`) that run there.

One worker has one connection to each host (`link.py`). A sandbox goes to the host with the most room left. A connection
that breaks is made again, and what was asked goes on there meanwhile; a host that stays away for longer than the lease has
destroyed what it had, so every call on that raises HostLost from then on. Images are sent as layers, by digest, when a host does
not have them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from gymsmith.config import Settings
from gymsmith.errors import Capacity, ConfigError, HostLost, ImageMissing, SandboxError, SandboxGone
from sandboxes.background import begin
from sandboxes.base import MIB, Capabilities, Image, ImageSource, SandboxSpec
from sandboxes.image import host_base as image_base
from sandboxes.remote.layer_transfer import OWN, pack_layer
from sandboxes.remote.link import Address, HostLink, client_context
from sandboxes.remote.sandbox import RemoteSandbox, send_layer, unless_cancelled

LEASE_S = 60.0
_ROUNDS = 5


class RemoteProvider:
    """Makes `RemoteSandbox`es. Use `start`; belongs to the event loop that started it."""

    name = "remote"

    def __init__(self, images: ImageSource, links: list[HostLink]) -> None:
        self.images = images
        self.links = links
        self._boxes: set[RemoteSandbox] = set()
        self._digests: dict[Path, tuple[int, str]] = {}
        self._closed = False

    @classmethod
    async def start(
        cls, images: ImageSource, hosts: Sequence[Address], certificates: Path, token: str, *, name: str = "client",
        lease_s: float = LEASE_S,
    ) -> Self:  # fmt: skip
        """A provider on `hosts`, with the certificate `name` of the folder. Hosts that are away may come later.

        Raises: Capacity (none of them can be reached; the message says why), ConfigError.
        """
        if not hosts:
            raise ConfigError("the remote provider needs hosts; set GYMSMITH_SANDBOX_HOSTS to NAME:PORT, separated by commas")
        tls = client_context(certificates, name)
        links = [HostLink(address, tls, token, lease_s) for address in hosts]
        await asyncio.gather(*(link.tried() for link in links))
        provider = cls(images, links)
        if not any(link.connected for link in links):
            why = "; ".join(f"{link.address}: {link.why_not}" for link in links)
            await provider.close()
            raise Capacity(f"a sandbox host must be reached, none is: {why}")
        return provider

    @property
    def capabilities(self) -> Capabilities:
        for link in self.links:
            if link.capabilities is not None:
                return link.capabilities
        raise SandboxGone("no sandbox host was ever reached; start another provider")

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> RemoteSandbox:
        if self._closed:
            raise SandboxGone("the provider is closed; start another one")
        image = self.images.resolve(spec.image)
        refusals: list[str] = []
        tried: set[HostLink] = set()
        size = spec.memory_bytes + spec.disk_bytes
        while len(tried) < len(self.links):
            link = max((link for link in self.links if link not in tried), key=_room)
            tried.add(link)
            if not link.connected:
                refusals.append(f"{link.address}: {link.why_not}")
                continue
            link.reserved += size
            epoch, name = link.epoch, None
            try:
                (name,) = await unless_cancelled(link, self._create(link, spec, image, layers, upper))
                return self.keep(link, name, spec, upper, reserved=True)
            except (Capacity, HostLost) as error:
                refusals.append(f"{link.address}: {error}")
            finally:
                if name is None and link.epoch == epoch:
                    link.reserved -= size
        raise Capacity(f"no sandbox host can make one more: {'; '.join(refusals)}")

    async def _create(
        self, link: HostLink, spec: SandboxSpec, image: Image, layers: Sequence[Path], upper: Path | None
    ) -> list[str]:
        epoch = link.epoch
        folders: dict[str, Path] = {}
        keys = [await self._key(layer, folders, kept=True) for layer in image.layers]
        private = [await self._key(layer, folders, kept=False) for layer in layers]
        top = None
        if upper is not None:  # it becomes the sandbox's own: a name that no other sandbox asks for
            top = OWN + secrets.token_hex(32)[len(OWN) :]
            folders[top] = upper
        base = image_base.base_digest() if image.binds else ""
        said = {"id": image.id, "layers": keys, "binds": image.binds, "base": base, "env": dict(image.env),
                "workdir": image.workdir, "user": image.user, "engine_ref": image.engine_ref}  # fmt: skip
        for _ in range(_ROUNDS):
            args = {"image": said, "spec": spec, "layers": private, "upper": top}
            answer = await link.call("create", args, epoch=epoch)
            if isinstance(answer, str):
                return [answer]
            for key in answer:
                await self._send_once(link, key, folders[key])
        raise SandboxError(f"host {link.address} asks again and again for layers that it was sent; look at its log")

    async def _key(self, layer: Path, folders: dict[str, Path], *, kept: bool) -> str:
        """Digest of a layer. An image's never change, so theirs are remembered."""
        try:
            inode = os.stat(layer).st_ino
            known = self._digests.get(layer)
            if not kept or known is None or known[0] != inode:
                known = inode, (await asyncio.to_thread(pack_layer, layer))[0]
                if kept:
                    self._digests[layer] = known
        except FileNotFoundError as error:
            raise ImageMissing(f"a layer is missing: {error.filename}") from error
        folders[known[1]] = layer
        return known[1]

    async def _send_once(self, link: HostLink, key: str, folder: Path) -> None:
        """Send a layer, also when several sandboxes ask for it at once."""
        if key not in link.sent:
            link.sent[key] = begin(send_layer(link, key, folder), f"layer {key[:12]} to {link.address}")
            link.sent[key].add_done_callback(lambda _: link.sent.pop(key, None))
        await asyncio.shield(link.sent[key])

    def keep(self, link: HostLink, name: str, spec: SandboxSpec, upper: Path | None, *, reserved: bool = False) -> RemoteSandbox:
        """Know a sandbox that a host has made."""
        box = RemoteSandbox(self, link, name, spec, upper)
        if not reserved:
            link.reserved += box.bytes
        self._boxes.add(box)
        return box

    def forget(self, box: RemoteSandbox) -> None:
        """It has ended."""
        if box in self._boxes:
            self._boxes.discard(box)
            if box.epoch == box.link.epoch:
                box.link.reserved -= box.bytes

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(link.close() for link in self.links))
        self._boxes.clear()


def _room(link: HostLink) -> float:
    """How much of a host's memory is not reserved, of all of it; a host that is away comes last."""
    if not link.connected:
        return float("-inf")
    return 1.0 - max(link.usage["reserved"], link.reserved) / max(link.usage["memory_bytes"], 1)


async def open_remote(settings: Settings, images: ImageSource) -> RemoteProvider:
    """The provider that the settings name. Raises: Capacity, ConfigError."""
    hosts = [Address.read(text) for text in settings.sandbox_hosts.split(",") if text.strip()]
    return await RemoteProvider.start(images, hosts, settings.certificates_dir, settings.sandbox_token)


def survey(settings: Settings) -> list[str]:
    """What each configured host has, for `gymsmith doctor`. Raises: Capacity (none can be reached), ConfigError."""

    async def look() -> list[str]:
        provider = await open_remote(settings, _NoImages())
        try:
            return [f"{link.address}: {_summary(link)}" for link in provider.links]
        finally:
            await provider.close()

    return asyncio.run(look())


class _NoImages:
    def resolve(self, image_id: str) -> Image:
        raise ImageMissing(f"image {image_id} is not looked for in a survey")


def _summary(link: HostLink) -> str:
    if link.capabilities is None:
        return link.why_not
    room = (link.usage["memory_bytes"] - link.usage["reserved"]) // MIB
    return f"isolation {link.capabilities.isolation}, {link.usage['live']} sandboxes live, {room} MiB not reserved"
