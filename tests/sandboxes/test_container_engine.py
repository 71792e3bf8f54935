"""The death of the engine itself, under a provider that has sandboxes in it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gymsmith import doctor
from gymsmith.errors import Capacity, SandboxGone
from sandboxes.base import MIB, Image, SandboxSpec
from sandboxes.container import ContainerProvider
from tests.sandboxes.conftest import OneImage, lacking
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


@pytest.fixture
def limiting(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose file system can refuse writes."""
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no btrfs")
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        lacking("a small btrfs needs root and mkfs.btrfs (apt-get install btrfs-progs)")
    disk, place = tmp_path / "disk", tmp_path / "mounted"
    place.mkdir()
    with open(disk, "wb") as file:
        file.truncate(1024 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", disk], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", disk, place], check=True)
    try:
        engine = Engine(place)
        yield engine
        engine.stop()
    finally:
        subprocess.run(["umount", place], check=True)


def test_an_engine_that_can_refuse_writes_does(limiting: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quotas of btrfs: the write fails inside, the sandbox and its neighbour go on. `measured` is tried in test_container.py."""
    monkeypatch.setenv("DOCKER_HOST", limiting.host)
    assert doctor.docker_engine()[1].detail == "the engine refuses a write beyond the limit (btrfs)"
    grow = "a=0123456789abcdef; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do a=$a$a; done"
    fill = "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo $a > f$n || exit 7; done"

    async def act() -> None:
        provider = await ContainerProvider.start(OneImage(Image("base", engine_ref=REFERENCE)), tmp_path / "state")
        assert provider.capabilities.disk_limit and provider.capabilities.at_disk_limit == "error"
        small, large = [await provider.create(replace(SPEC, disk_bytes=size * MIB)) for size in (8, 64)]
        refused = await small.exec(f"cd /tmp; {grow}; {fill}")
        assert refused.exit_code == 7 or b"quota exceeded" in refused.output, refused
        assert (await small.exec("echo on")).output == b"on\n"
        assert (await large.exec(f"cd /tmp; {grow}; {fill}")).ok, "the control arm: the same under a larger limit"
        await provider.close()

    asyncio.run(asyncio.wait_for(act(), 60))
