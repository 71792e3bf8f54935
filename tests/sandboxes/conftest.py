"""One running provider per test file and kind, and a way to play a scene in a fresh sandbox of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import GymsmithError, ImageMissing
from sandboxes.base import Image, Provider, Sandbox, SandboxSpec

sys.path.insert(0, str(Path(__file__).parent))

Scene = Callable[[Any], Awaitable[Any]]


class OneImage:
    """Knows one image, "base"."""

    def __init__(self, image: Image) -> None:
        self.image = image

    def resolve(self, image_id: str) -> Image:
        if image_id != "base":
            raise ImageMissing(f"only image base is here, asked for {image_id}")
        return self.image


class House:
    """A provider and the event loop that it belongs to."""

    def __init__(self, provider: Provider, loop: asyncio.AbstractEventLoop) -> None:
        self.provider = provider
        self.loop = loop
        self.able = provider.capabilities

    def run(self, work: Awaitable[Any]) -> Any:
        async def within() -> Any:
            return await work

        return self.loop.run_until_complete(asyncio.wait_for(within(), 60))

    async def box(self, *, layers: list[Path] | None = None, upper: Path | None = None, **spec: Any) -> Sandbox:
        return await self.provider.create(SandboxSpec(image="base", **spec), layers=layers or [], upper=upper)

    def play(self, scene: Scene, **spec: Any) -> Any:
        """Run `scene` with a fresh sandbox, which is destroyed afterwards."""

        async def act() -> Any:
            box = await self.box(**spec)
            try:
                return await scene(box)
            finally:
                await box.destroy()

        return self.run(act())

    def needs(self, feature: str) -> None:
        """Skip, or fail where nothing may be skipped, when the provider does not promise this capability field here."""
        if not getattr(self.able, feature):
            lacking(f"{self.provider.name} offers no {feature} on this machine: {self.able.notes}")


def lacking(reason: str) -> None:
    """Skip aloud; where nothing may be skipped, fail."""
    if os.environ.get("GYMSMITH_REQUIRE_ALL") == "1":
        pytest.fail(f"GYMSMITH_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason)


async def start_provider(kind: str, folder: Path) -> Provider:
    if kind == "ns":
        from sandboxes.namespace import NamespaceProvider
        from sandboxes.probe import HostUsr

        root = folder / "root"
        root.mkdir(mode=0o755)
        return await NamespaceProvider.start(OneImage(HostUsr(root).image), folder / "state")
    from sandboxes.container import ContainerProvider

    image = Image(id="base", engine_ref="gymsmith/debian:bookworm")
    return await ContainerProvider.start(OneImage(image), folder / "state")


@pytest.fixture(scope="module", params=["ns", pytest.param("docker", marks=pytest.mark.docker)])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    loop = asyncio.new_event_loop()
    try:
        provider = loop.run_until_complete(start_provider(request.param, tmp_path_factory.mktemp(request.param)))
    except GymsmithError as error:
        loop.close()
        lacking(f"the {request.param} provider does not start here: {error}")
        raise
    yield House(provider, loop)
    loop.run_until_complete(provider.close())
    loop.close()


@pytest.fixture(scope="session")
def namespaces(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ask for this where a test starts the namespace provider by itself."""

    async def try_it() -> None:
        await (await start_provider("ns", tmp_path_factory.mktemp("ns"))).close()

    try:
        asyncio.run(try_it())
    except GymsmithError as error:
        lacking(f"the ns provider does not start here: {error}")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, namespaces: None) -> Iterator[Any]:
    """A provider with the images of the tasks that are graded in it, see `graded.py`."""
    from graded import Bench

    made = Bench(tmp_path_factory.mktemp("graded"))
    yield made
    made.close()


class Painter:
    """A render service with one browser, and the event loop that it belongs to."""

    def __init__(self, folder: Path) -> None:
        from sandboxes.browser.service import RenderService

        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.service = self.run(RenderService.start(folder / "state", folder / "images", seats=1))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, 90))

    def paint(self, html: str, *, domain: str = "tests", deadline_s: float = 15.0, **more: Any) -> Any:
        from sandboxes.browser.result import Document

        return self.run(self.service.render(Document.of_html(html), domain=domain, deadline_s=deadline_s, **more))


@pytest.fixture(scope="session")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Painter]:
    try:
        painter = Painter(tmp_path_factory.mktemp("render"))
    except GymsmithError as error:
        lacking(f"pages cannot be rendered here: {error}")
        raise
    yield painter
    painter.run(painter.service.close())
    painter.loop.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A namespace provider with an image store that builds in it."""
    from tests.sandboxes.image_shop import Shop

    made = Shop(tmp_path_factory.mktemp("image"))
    yield made
    made.close()
