"""What is built once stays built: one builder per key, damaged layers made again, the space of the unused freed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gymsmith.errors import BuildError, Conflict, ImageMissing, StoreError
from sandboxes.base import Image
from sandboxes.image import upkeep as image_upkeep
from sandboxes.image.build import StepDone
from sandboxes.image.images import ImageStore
from sandboxes.image.layer import AS_ROOT
from sandboxes.image.layer_store import seal
from sandboxes.remote.shelf import Shelf
from tests.sandboxes.image_shop import Shop

UUID = "FROM gymsmith/host\nRUN cat /proc/sys/kernel/random/uuid > /opt/once; {}\n"


def test_left_overs_of_killed_builders_are_swept(shop: Shop) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    (shop.images.root / "tmp").mkdir(parents=True, exist_ok=True)
    dead, live = shop.images.root / "tmp" / f"{pid}-x", shop.images.root / "tmp" / f"{os.getpid()}-x"
    dead.mkdir()
    live.mkdir()
    asyncio.run(ImageStore(shop.images.root).build("FROM gymsmith/host\nCOPY f /opt/f\n", {"f": os.urandom(8)}))
    assert live.is_dir() and not dead.exists()
    live.rmdir()


def test_a_step_is_executed_once(shop: Shop) -> None:
    text = "FROM gymsmith/host\nRUN date +%s%N > /opt/when; cat /proc/sys/kernel/random/uuid >> /opt/when\nCOPY f /opt/f\n"
    done: list[StepDone] = []
    first = shop.build(text, {"f": b"1"}, on_step=done.append)
    assert [(step.line, step.cached) for step in done] == [(2, False), (3, False)]
    assert shop.build(text, {"f": b"1"}, on_step=done.append).id == first.id
    assert [step.cached for step in done[2:]] == [True, True]
    other = shop.build(text, {"f": b"2"})
    assert other.id != first.id and other.layers[1:] == first.layers[1:]
    assert shop.say(first, "cat /opt/when") == shop.say(other, "cat /opt/when")
    changed = shop.build(text.replace("RUN", "ENV A=1\nRUN"), {"f": b"1"})
    assert shop.say(changed, "cat /opt/when") != shop.say(first, "cat /opt/when")


def test_single_flight_within_a_process(shop: Shop) -> None:
    other = ImageStore(shop.images.root, shop.provider)
    done: list[StepDone] = []

    async def race() -> list[Image]:
        stores = (shop.images, shop.images, other)
        return await asyncio.gather(*(store.build(UUID.format("sleep 0.3"), {}, on_step=done.append) for store in stores))

    ids = {image.id for image in shop.run(race())}
    assert len(ids) == 1 and sorted(step.cached for step in done) == [False, True, True]
    assert not list((shop.images.root / "tmp").iterdir())
    fresh = ImageStore(shop.images.root)
    assert fresh.get(ids.pop()).layers[0].is_dir(), "an id is found by whoever shares the folder"


BUILDER = """
import asyncio, json, pathlib, sys
from sandboxes.image.images import ImageStore
from sandboxes.namespace import NamespaceProvider

async def main(root, text):
    images = ImageStore(root / "images")
    images.provider = await NamespaceProvider.start(images, root / "sandboxes")
    done = []
    image = await images.build(text, {}, on_step=done.append)
    await images.provider.close()
    print(json.dumps([image.id, [step.cached for step in done]]))

asyncio.run(main(pathlib.Path(sys.argv[1]), sys.argv[2]))
"""


def builder(root: Path, text: str) -> subprocess.Popen[str]:
    """A process that builds in the store below `root`."""
    code = [sys.executable, "-c", BUILDER, str(root), text]
    return subprocess.Popen(code, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_single_flight_over_processes_and_after_a_killed_builder(shop: Shop) -> None:
    """Three processes, one execution. The first builder is killed in the middle: the others do not wait for a dead one."""
    root = shop.images.root.parent
    text = UUID.format("sleep 1.5; echo done")
    victim = builder(root, text)
    waited = time.monotonic() + 30
    while not (found := list((shop.images.root / "tmp").glob("*/tree/opt/once"))) and time.monotonic() < waited:
        time.sleep(0.02)
    assert found, "the step of the first builder must be at work"
    others = [builder(root, text) for _ in range(3)]
    time.sleep(0.3)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    said = [json.loads(process.communicate(timeout=60)[0]) for process in others]
    victim.communicate()
    assert len({image_id for image_id, _ in said}) == 1
    assert sorted(cached for _, (cached,) in said) == [False, True, True]
    asyncio.run(ImageStore(shop.images.root).build("FROM gymsmith/host\nCOPY f /opt/f\n", {"f": os.urandom(8)}))
    assert not [path for path in (shop.images.root / "tmp").iterdir() if path.name.startswith(f"{victim.pid}-")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: (tree / "opt/once").unlink(),
        lambda tree: (tree / "opt/once").write_text("cut"),
        lambda tree: (tree / "opt/more").write_text("added"),
        lambda tree: (tree / "opt/once").chmod(0o777),
        lambda tree: (tree.parent / "seal").unlink(),
        lambda tree: (tree.parent / "seal").write_text("0" * 64),
    ],
)
def test_a_damaged_layer_is_found_and_made_again(shop: Shop, damage: Callable[[Path], None]) -> None:
    """As another process finds it: this one looks once. The control is the same store without the damage."""
    text = UUID.format(f"echo {os.urandom(4).hex()}")
    image = shop.build(text)
    again: list[StepDone] = []
    untouched = ImageStore(shop.images.root, shop.provider)
    shop.run(untouched.build(text, {}, on_step=again.append))
    assert again[0].cached
    damage(image.layers[0])
    fresh = ImageStore(shop.images.root, shop.provider)
    with pytest.raises(ImageMissing, match="damaged"):
        fresh.get(image.id)
    shop.run(fresh.build(text, {}, on_step=again.append))
    assert not again[1].cached
    assert fresh.get(image.id).id == image.id
    assert len(shop.say(image, "cat /opt/once").strip()) == 36
    assert not list((shop.images.root / "tmp").iterdir())


def test_a_damaged_copy_and_a_damaged_base_are_made_again(tmp_path: Path) -> None:
    text, context = "FROM gymsmith/host\nCOPY f /opt/f\n", {"f": b"content"}
    image = asyncio.run(ImageStore(tmp_path).build(text, context))
    for layer, name in ((image.layers[0], "opt/f"), (image.layers[1], "etc/passwd")):
        (layer / name).write_text("spoilt")
        asyncio.run(ImageStore(tmp_path).build(text, context))
        assert (layer / name).read_text() != "spoilt"


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_a_store_copied_without_its_owners_is_noticed(tmp_path: Path) -> None:
    """Otherwise every write inside is denied and every attempt scores 0. `cp -a` is the control arm."""
    text, context = "FROM gymsmith/host\nCOPY f /work/f\n", {"f": b"content"}
    image = asyncio.run(ImageStore(tmp_path / "ours").build(text, context))
    for how, copy in (("-a", "faithful"), ("-r", "bare"), ("-a", "foreign")):
        subprocess.run(["cp", how, tmp_path / "ours", tmp_path / copy], check=True)
    again: list[StepDone] = []
    faithful = ImageStore(tmp_path / "faithful")
    assert faithful.get(image.id).id == image.id
    asyncio.run(faithful.build(text, context, on_step=again.append))
    bare = ImageStore(tmp_path / "bare")
    with pytest.raises(ImageMissing, match="cp -a"):
        bare.get(image.id)
    assert asyncio.run(bare.build(text, context, on_step=again.append)).id == image.id
    assert [step.cached for step in again] == [True, False]
    foreign = ImageStore(tmp_path / "foreign")
    subprocess.run(["chown", "-R", "1000:1000", foreign.root], check=True)
    for layer in (foreign.root / "layers").iterdir():  # as that user's own process has sealed them
        (layer / "seal").write_text(seal(layer / "tree"))
    for ask in (lambda: foreign.get(image.id), foreign.base, lambda: asyncio.run(foreign.build(text, context))):
        with pytest.raises(StoreError, match=r"1000.*cp -a"):
            ask()
    hosted = Shelf(tmp_path / "hosted")
    subprocess.run(["cp", "-r", foreign.layers.tree(image.layers[0].parent.name), hosted.path("a" * 64)], check=True)
    said = {"id": "x", "layers": ["a" * 64], "binds": [], "env": {}, "workdir": "/", "user": "root", "engine_ref": None}
    with pytest.raises(StoreError, match="cp -a"):
        hosted.image(said)


def test_missing_images_are_typed(shop: Shop) -> None:
    image = shop.build("FROM gymsmith/host\nCOPY f /opt/f\n", {"f": b"damaged"})
    for name in ("0" * 32, "../../etc/passwd", "no:such", "a\0b"):
        with pytest.raises(ImageMissing):
            shop.images.get(name)
    record = shop.images.root / "records" / f"{image.id}.json"
    whole = record.read_text()
    record.write_text(whole[:20])
    with pytest.raises(ImageMissing, match="cannot be read"):
        ImageStore(shop.images.root).get(image.id)
    record.write_text(json.dumps({**json.loads(whole), "layers": ["f" * 32]}))
    with pytest.raises(ImageMissing, match="is gone"):
        ImageStore(shop.images.root).get(image.id)
    record.write_text(whole)


def test_a_failed_build_leaves_nothing(shop: Shop) -> None:
    before = {path.name for path in (shop.images.root / "layers").iterdir()}
    records = sorted(path.name for path in (shop.images.root / "records").iterdir())
    with pytest.raises(BuildError):
        shop.build("FROM gymsmith/host\nRUN head -c 1000000 /dev/zero > /opt/big; exit 1\n")

    async def cut() -> None:
        work = asyncio.ensure_future(shop.images.build("FROM gymsmith/host\nRUN sleep 30\n", {}))
        await asyncio.sleep(0.5)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    shop.run(cut())
    assert {path.name for path in (shop.images.root / "layers").iterdir()} == before
    assert sorted(path.name for path in (shop.images.root / "records").iterdir()) == records
    assert not list((shop.images.root / "tmp").iterdir())


@pytest.mark.parametrize(("levels", "end"), [(1200, ""), (1200, "; exit 1"), (60, "")])
def test_a_step_that_digs_deep_leaves_nothing(shop: Shop, levels: int, end: str) -> None:
    """Directories within one another until no path reaches the last; the control is a tree that is deep but not a trap."""
    code = f"import os\nfor _ in range({levels}): os.mkdir('d' * 50); os.chdir('d' * 50)\nopen('f', 'w')"
    command = json.dumps(["/bin/sh", "-c", f'python3 -c "{code}"{end}'])
    text = f"FROM gymsmith/host\nWORKDIR /opt/deep\nRUN {command}\n"
    if levels == 60:
        assert shop.say(shop.build(text), "find /opt/deep -name f | wc -l") == "1\n"
    else:
        with pytest.raises(BuildError, match="exit code 1" if end else "200 levels deep"):
            shop.build(text)
    assert not list((shop.images.root / "tmp").iterdir())


def test_what_nobody_uses_is_collected(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)

    def build(content: bytes, *more: str) -> Image:
        return asyncio.run(store.build("FROM gymsmith/host\nCOPY f /opt/f\n" + "\n".join(more), {"f": content}))

    named, needed, unused = build(b"named" * 1000), build(b"needed"), build(b"unused" * 1000)
    child = build(b"named" * 1000, "WORKDIR /opt/child")
    store.tag(named, "keep")
    store.tag(child, "child")
    store.tag(child, "child:too")
    rows = {row.id: row for row in image_upkeep.listed(store)}
    assert rows[child.id].names == ("child:latest", "child:too") and rows[child.id].bytes > 5000
    with pytest.raises(Conflict, match="needed by an environment"):
        image_upkeep.remove(store, needed.id, keep={needed.id})
    assert image_upkeep.remove(store, "child") == child.id
    assert store.get(child.id).id == child.id, "its other name keeps it"
    assert image_upkeep.remove(store, "child:too") == child.id
    with pytest.raises(ImageMissing):
        store.get(child.id)
    with pytest.raises(ImageMissing, match="image ls"):
        image_upkeep.remove(store, "child")
    freed = image_upkeep.collect(store, {needed.id}, idle_s=3600)
    assert freed.layers == 0, "everything was used just now"
    freed = image_upkeep.collect(store, {needed.id}, idle_s=-1)
    assert freed.layers == 2 and freed.bytes > 6000, "the child's own layer and the unused one"
    assert [image.layers[0].is_dir() for image in (named, needed, unused, child)] == [True, True, False, False]
    assert ImageStore(tmp_path).get("keep").id == named.id
    with pytest.raises(ImageMissing):
        ImageStore(tmp_path).get(unused.id)
    assert build(b"unused" * 1000).id == unused.id, "what is asked for again is made again"
