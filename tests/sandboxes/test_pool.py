"""Warm sandboxes: as good as new, never used twice, as many as are asked for, and gone when nobody asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

from gymsmith.config import Settings
from gymsmith.errors import ImageMissing
from sandboxes.admission import Admission, Room
from sandboxes.base import MIB, Image, SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.network import NetworkPolicy
from sandboxes.pool import WarmPool, kind
from sandboxes.probe import HostUsr
from sandboxes.registry import entries
from sandboxes.worker import Worker

pytestmark = pytest.mark.usefixtures("namespaces")
SPEC = SandboxSpec(image="probe", labels={"who": "me"})


def with_pool(
    tmp_path: Path, scene: Callable[[WarmPool], Awaitable[None]], *, sandboxes: int = 100, **knobs: float
) -> NamespaceProvider:
    async def act() -> NamespaceProvider:
        (tmp_path / "root").mkdir(mode=0o755)
        tmp_path.chmod(0o755)
        admission = Admission(Room.of_machine(sandboxes), wait_s=5)
        provider = await NamespaceProvider.start(HostUsr(tmp_path / "root"), tmp_path / "state", admission=admission)
        pool = WarmPool(provider, **knobs)  # type: ignore[arg-type]
        try:
            await scene(pool)
        finally:
            await pool.close()
        assert admission.sandboxes == 0, "the pool and all that was taken from it are gone"
        return provider

    return asyncio.run(asyncio.wait_for(act(), 40))


async def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    for _ in range(int(within_s / 0.02)):
        if true():
            return
        await asyncio.sleep(0.02)
    assert true()


def test_what_is_taken_was_made_before_and_is_never_given_again(tmp_path: Path) -> None:
    async def scene(pool: WarmPool) -> None:
        pool.expect(SPEC, 4)
        await until(lambda: pool.warm == 4)
        made = {entry.id for entry in entries(next((tmp_path / "state/sandboxes").iterdir()))}
        taken = [await pool.create(SPEC) for _ in range(4)]
        assert {box.id for box in taken} == made and pool.hits == 4
        labels = {e.id: e.record["labels"] for e in entries(next((tmp_path / "state/sandboxes").iterdir())) if e.id in made}
        assert set(map(str, labels.values())) == {"{'who': 'me'}"}, "a taken one has its taker's labels"
        seen = set(made)
        for _ in range(12):
            box = await pool.create(SPEC)
            assert (await box.exec("ls -A /work; echo me > /work/was-here")).output == b""
            await box.destroy()
            seen.add(box.id)
        assert len(seen) == 16, "a used sandbox came back"

    with_pool(tmp_path, scene)


def test_every_field_but_the_labels_tells_kinds_apart() -> None:
    other = dict(
        image="other", workdir="/tmp", env={"A": "1"}, user="root", memory_bytes=32 * MIB, pids=32, cpus=2.0, disk_bytes=32 * MIB,
        lease_s=60.0, role="build", network=NetworkPolicy("proxy", hosts=("example.org",)), trusted=True,
    )  # fmt: skip
    assert set(other) == {f.name for f in fields(SandboxSpec)} - {"labels"}, "a field that is new belongs into the kind"
    kinds = {kind(replace(SPEC, **{name: value})) for name, value in other.items()}  # type: ignore[arg-type]
    assert len(kinds) == len(other) and kind(SPEC) not in kinds
    assert kind(replace(SPEC, labels={})) == kind(SPEC)


def test_only_the_same_spec_is_taken(tmp_path: Path) -> None:
    async def scene(pool: WarmPool) -> None:
        pool.expect(SPEC, 2)
        await until(lambda: pool.warm == 2)
        await pool.create(SandboxSpec(image="probe", pids=32))
        await pool.create(SandboxSpec(image="probe", env={"A": "1"}))
        upper = tmp_path / "upper"
        upper.mkdir()
        await pool.provider.create(SPEC)
        await pool.create(SPEC, upper=upper)
        assert pool.hits == 0
        await pool.create(SandboxSpec(image="probe", labels={"who": "another"}))
        assert pool.hits == 1

    with_pool(tmp_path, scene, refills_per_s=0.5)


def test_as_many_as_were_asked_for_and_no_faster_than_the_rate(tmp_path: Path) -> None:
    async def scene(pool: WarmPool) -> None:
        boxes = await asyncio.gather(*(pool.create(SPEC) for _ in range(8)))
        await asyncio.sleep(1.1)
        assert pool.warm == 0 and pool.misses == 8, "one burst is no demand"
        boxes += await asyncio.gather(*(pool.create(SPEC) for _ in range(8)))
        await asyncio.sleep(0.5)
        assert 1 <= pool.warm <= 6, "ten a second are five in half a second, and the first at once"
        await until(lambda: pool.warm == 8)
        await asyncio.sleep(0.3)
        assert pool.warm == 8, "eight were asked for at once, so eight wait"
        await asyncio.gather(*(box.destroy() for box in boxes))

    with_pool(tmp_path, scene, refills_per_s=10)


def test_a_shelf_that_nobody_asks_is_emptied(tmp_path: Path) -> None:
    async def scene(pool: WarmPool) -> None:
        pool.expect(SPEC, 5)
        await until(lambda: pool.warm >= 2)
        await until(lambda: pool.admission.sandboxes == 0)
        assert pool.warm == 0

    with_pool(tmp_path, scene, ttl_s=1.5)


def test_one_that_died_on_its_shelf_is_not_given(tmp_path: Path) -> None:
    async def scene(pool: WarmPool) -> None:
        spec = SandboxSpec(image="probe", lease_s=1)
        pool.expect(spec, 2)
        await until(lambda: pool.warm == 2)
        (shelf,) = pool._shelves.values()
        for box, _ in shelf.warm:
            pool.provider.kill(box.number)  # type: ignore[attr-defined]
        await until(lambda: not any(box.alive for box, _ in shelf.warm))
        box = await pool.create(spec)
        assert (await box.exec("echo new")).output == b"new\n" and pool.hits == 0

    with_pool(tmp_path, scene, refills_per_s=1)


def test_who_waits_for_room_gets_that_of_a_warm_one(tmp_path: Path) -> None:
    async def scene(pool: WarmPool) -> None:
        pool.expect(SPEC, 3)
        await until(lambda: pool.warm == 3)
        other = SandboxSpec(image="probe", pids=32)
        boxes = [await pool.create(other) for _ in range(3)]
        assert all(box.alive for box in boxes) and pool.warm == 0  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        assert pool.admission.sandboxes == 3, "a refill must not take what callers need"

    with_pool(tmp_path, scene, sandboxes=3)


def test_a_refill_that_fails_is_not_tried_again_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful:
        """An image store that lost its only image."""

        def resolve(self, image_id: str) -> Image:
            raise ImageMissing(f"image {image_id} is gone")

    async def scene(pool: WarmPool) -> None:
        pool.provider.images = Forgetful()  # type: ignore[attr-defined]
        pool.expect(SPEC, 3)
        for _ in range(20):
            with pytest.raises(ImageMissing):
                await pool.create(SPEC)
            await asyncio.sleep(0.02)
        tried = [record for record in caplog.records if "refill_failed" in record.getMessage()]
        assert len(tried) == 1, "one attempt, then a pause that grows"

    with caplog.at_level(logging.WARNING):
        with_pool(tmp_path, scene)


@pytest.mark.parametrize(("warm", "kept"), [(-1, False), (4, True)])
def test_a_worker_keeps_warm_ones_where_that_pays(tmp_path: Path, warm: int, kept: bool) -> None:
    worker = Worker(Settings(home=tmp_path, provider="ns", warm_sandboxes=warm))
    try:
        provider = worker.run(worker.provider())
        assert isinstance(provider, WarmPool) is kept
        assert isinstance(worker.run(worker.images()).provider, NamespaceProvider), "images are built without a pool"
    finally:
        worker.close()
