"""What only the `docker` provider has: the engine's refusals, layers replayed, and what a killed worker leaves in the engine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith import doctor
from gymsmith.errors import Capacity, DiskLimit, ImageMissing, PolicyRefused
from sandboxes.base import MIB, Image, SandboxSpec
from sandboxes.changes import layer_records
from sandboxes.container import LABEL, sweep
from sandboxes.container_disk import Survey

if TYPE_CHECKING:
    from tests.sandboxes.conftest import House

pytestmark = [pytest.mark.docker, pytest.mark.parametrize("house", ["docker"], indirect=True)]

WORKER = """
import asyncio, sys
from pathlib import Path
from sandboxes.base import Image, SandboxSpec
from sandboxes.container import ContainerProvider

class One:
    def resolve(self, image_id):
        return Image(id="base", engine_ref="gymsmith/debian:bookworm")

async def main():
    provider = await ContainerProvider.start(One(), Path(sys.argv[1]))
    boxes = await asyncio.gather(*(provider.create(SandboxSpec(image="base")) for _ in range(3)))
    print(provider.owner, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def client_of(house: House) -> Any:
    return house.provider.client  # type: ignore[attr-defined]


def test_a_killed_worker_leaves_no_container(house: House, tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert worker.stdout is not None
    client = client_of(house)
    owner = worker.stdout.readline().strip()

    def alive() -> list[str]:
        return [entry["Id"] for entry in client.containers(filters={"label": f"{LABEL}={owner}"})]

    try:
        assert len(alive()) == 3
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    deadline = time.monotonic() + 10
    while alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive() == []


def test_the_sweep_takes_containers_of_the_dead_only(house: House) -> None:
    client = client_of(house)
    made = [
        client.create_container("gymsmith/debian:bookworm", "true", labels={LABEL: owner})["Id"]
        for owner in ("1-1-00000000-1", house.provider.owner)  # type: ignore[attr-defined]
    ]
    try:
        sweep(client)
        left = {entry["Id"] for entry in client.containers(all=True)}
        assert made[0] not in left and made[1] in left
    finally:
        client.remove_container(made[1], force=True)


def test_what_the_engine_cannot_do_is_said(house: House, tmp_path: Path) -> None:
    async def act() -> None:
        images: Any = house.provider.images  # type: ignore[attr-defined]
        with pytest.raises(PolicyRefused, match="upper"):
            await house.box(upper=tmp_path)
        before = images.image
        try:
            images.image = Image(id="base", engine_ref="gymsmith/never-built:1")
            with pytest.raises(ImageMissing, match="never-built"):
                await house.provider.create(SandboxSpec(image="base"))
            images.image = Image(id="base")
            with pytest.raises(ImageMissing, match="engine"):
                await house.provider.create(SandboxSpec(image="base"))
        finally:
            images.image = before

    house.run(act())


FILL = "for n in 1 2 3; do head -c 4000000 /dev/zero > big$n; done"


@pytest.mark.parametrize("way", ["measured", "asked"])
def test_too_much_on_disk_ends_a_container(house: House, way: Any) -> None:
    """By this host's own look at the engine's folder, or by what the engine says where nobody may look."""

    async def act() -> None:
        provider: Any = house.provider
        before, provider._disk = provider._disk, Survey(way, "")
        try:
            box, watched = await house.box(disk_bytes=8 * MIB), provider._disks._watched
            assert watched[box.container].ask_engine == (way == "asked")
            with pytest.raises(DiskLimit, match=str(8 * MIB)):
                await box.exec(f"{FILL}; sleep 55", timeout_s=55)
            await box.destroy()
            assert box.container not in watched
            free = await house.box(disk_bytes=8 * MIB)
            provider._disks.drop(free.container)
            assert (await free.exec(f"{FILL}; sleep 3")).ok, "control arm: who is not watched may go on"
            await free.destroy()
        finally:
            provider._disk = before

    house.run(act())


def test_disks_that_cannot_be_measured_let_nobody_in(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act() -> None:
        provider: Any = house.provider
        box = await house.box()
        with monkeypatch.context() as without_find:
            without_find.setenv("PATH", "/nowhere")
            await box.exec("true")
            with pytest.raises(Capacity, match="find"):
                for _ in range(100):
                    provider._disks.check()
                    await asyncio.sleep(0.1)
            with pytest.raises(Capacity, match="measured"):
                await house.box()
        await box.exec("true")
        for _ in range(100):
            if not provider._disks.failure:
                break
            await asyncio.sleep(0.1)
        await (await house.box()).destroy()
        await box.destroy()

    house.run(act())


def test_the_doctor_says_who_limits_disks(house: House) -> None:
    engine, disks = doctor.docker_engine()
    assert (engine.state, disks.state) == ("ok", "ok")
    assert house.able.disk_limit and f"disk: {disks.detail}" in house.able.notes
    assert (house.able.at_disk_limit == "ended") == ("ended" in disks.detail)


def test_an_unknown_runtime_is_refused(house: House, tmp_path: Path) -> None:
    from sandboxes.container import ContainerProvider

    async def act() -> None:
        other = await ContainerProvider.start(house.provider.images, tmp_path, runtime="no-such-runtime")  # type: ignore[attr-defined]
        with pytest.raises(Capacity, match="no-such-runtime"):
            await other.create(SandboxSpec(image="base"))
        await other.close()

    house.run(act())


def test_layers_become_instructions(house: House, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("x")
    (tmp_path / "a/link").symlink_to("/etc")
    (tmp_path / "b").symlink_to("a")
    os.mknod(tmp_path / "gone", 0o20600, 0)
    records = list(layer_records(tmp_path))
    assert [removed for removed, _ in records if removed] == [b"/gone\0"]
    assert [name for _, put in records if put and (name := put[24 : put.index(b"\0", 24)])] == [
        b"/b",
        b"/a",
        b"/a/file",
        b"/a/link",
    ]
