"""The death of the engine itself, under a provider that has sandboxes in it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import Capacity, SandboxGone
from sandboxes.base import Image, SandboxSpec
from sandboxes.container import ContainerProvider
from tests.sandboxes.conftest import OneImage
from tests.sandboxes.engine_site import REFERENCE, Engine, sleeping

pytestmark = pytest.mark.docker
SPEC = SandboxSpec(image="base", user="agent")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path)
    yield made
    made.stop()


def test_a_killed_engine_is_typed_and_leaves_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL lets it put nothing in order: the next call says so, and the engine that comes after it has nothing left over."""
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    seconds = 6_000_000 + os.getpid()

    async def act() -> None:
        provider = await ContainerProvider.start(OneImage(Image("base", engine_ref=REFERENCE)), tmp_path / "state")
        boxes: list[Any] = [await provider.create(SPEC) for _ in range(2)]
        for box in boxes:
            await box.spawn(["sleep", str(seconds)])
            assert (await box.exec("echo in")).output == b"in\n"
        running = asyncio.ensure_future(boxes[0].exec("/bin/sleep 300", timeout_s=300))
        await asyncio.sleep(0.1)
        engine.kill()
        with pytest.raises(SandboxGone):
            await asyncio.wait_for(running, 10)
        with pytest.raises(SandboxGone):
            await boxes[1].exec("true")
        with pytest.raises(Capacity, match="dockerd"):
            await provider.create(SPEC)
        assert len(sleeping(seconds)) == 2, "without their owner's doing they live until their lease ends"
        for box in boxes:
            await box.destroy()
        assert sleeping(seconds) == [] and provider.admission.sandboxes == 0
        await asyncio.to_thread(engine.start)
        provider._beat()  # a janitor's round: what could not be removed is tried again
        again = await provider.create(SPEC)
        assert (await again.exec("echo back")).output == b"back\n"
        await again.destroy()
        await boxes[0].destroy()
        for _ in range(100):
            if not provider._left:
                break
            await asyncio.sleep(0.1)
        left = engine.client.containers(all=True)
        await provider.close()
        assert (left, provider._left, provider._removing, list((tmp_path / "state/sandboxes").iterdir())) == ([], set(), {}, [])

    asyncio.run(asyncio.wait_for(act(), 60))
    assert sleeping(seconds) == [] and not [point for point in engine.mounts() if "/overlay2/" in point]
    assert any("container_left" in record.getMessage() for record in caplog.records)
