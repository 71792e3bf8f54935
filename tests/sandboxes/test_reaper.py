"""A worker that dies leaves nothing: no process, no mount, and nothing that the janitor of another does not remove."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gymsmith.errors import Capacity, SandboxGone
from sandboxes import cgroups, reaper
from sandboxes.base import Image, SandboxSpec
from sandboxes.bench import leak as bench_leak
from sandboxes.container import ContainerProvider
from sandboxes.launcher import probe
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr
from sandboxes.registry import FILE, OWNER_LEASE_S, entries

SPEC = SandboxSpec(image="probe")


@pytest.fixture(scope="module", autouse=True)
def possible(namespaces: None) -> None:
    """Everything here makes sandboxes."""


def image(tmp_path: Path) -> HostUsr:
    tmp_path.chmod(0o755)
    (tmp_path / "root").mkdir(mode=0o755)
    return HostUsr(tmp_path / "root")


@pytest.mark.parametrize(("mode", "boxes"), [("hold", 40), ("churn", 12)])
def test_sigkill_leaves_nothing(tmp_path: Path, mode: bench_leak.Mode, boxes: int) -> None:
    tmp_path.chmod(0o755)
    for left in bench_leak.kill_workers(tmp_path, boxes, 2, mode=mode, janitor_s=0.5):
        assert left.held >= (1 + 4 * boxes if mode == "hold" else 1)
        assert left[1:2] + left[3:] == (0, 0, 0, 0), left


def test_without_a_janitor_something_is_left(tmp_path: Path) -> None:
    """The control arm: what the count above would see. Processes and mounts are gone even so; control groups belong to the
    machine, so that a provider of anybody's may have swept them by now."""
    tmp_path.chmod(0o755)
    (left,) = bench_leak.kill_workers(tmp_path, 9, 1, janitor_s=0.1, swept=False)
    assert left.processes == left.mounts == 0
    assert left.folders == 1 + 2, "its owner folder, and the work directories beside two uppers"
    dead = [folder.name for folder in (tmp_path / "state" / reaper.OWNERS).iterdir()]
    assert set(reaper.sweep(tmp_path / "state")) == set(dead)


def test_the_launcher_takes_its_sandboxes_with_it(tmp_path: Path) -> None:
    async def act() -> None:
        provider = await NamespaceProvider.start(image(tmp_path), tmp_path / "state")
        boxes = [await provider.create(SPEC) for _ in range(5)]
        running = [asyncio.ensure_future(box.exec("sleep 60 & setsid sleep 60", timeout_s=90)) for box in boxes]
        await asyncio.sleep(0.3)
        held = bench_leak.descendants(provider._launcher._process.pid)
        assert len(held) >= 3 * len(boxes)
        os.kill(provider._launcher._process.pid, signal.SIGKILL)
        ends = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(end, SandboxGone) for end in ends)
        deadline = time.monotonic() + 2
        while bench_leak.alive(held) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert bench_leak.alive(held) == []
        provider._beat()
        if provider._groups is not None:
            assert provider._groups._abandoned == [], "their control groups are gone"
        await provider.close()

    asyncio.run(act())


def test_an_owner_whose_registry_is_lost_ends_what_it_holds(tmp_path: Path) -> None:
    """Whether it was fenced off or somebody cleaned up: nothing runs on that nobody could find again."""

    async def act() -> None:
        provider = await NamespaceProvider.start(image(tmp_path), tmp_path / "state", janitor_s=0.2)
        boxes = [await provider.create(SPEC) for _ in range(3)]
        shutil.rmtree(tmp_path / "state")
        with pytest.raises(SandboxGone):
            await boxes[0].exec("sleep 10")
        assert not any(box.alive for box in boxes) and provider.admission.sandboxes == 0
        again = await provider.create(SPEC)
        assert (await again.exec("echo back")).output == b"back\n"
        assert [entry.id for entry in entries(provider._folder)] == [again.id]
        shutil.rmtree(tmp_path / "state")
        assert (await (await provider.create(SPEC)).exec("echo b")).ok, "noticed at the next create, not only by the janitor"
        assert not again.alive
        await provider.close()
        assert not list((tmp_path / "state" / reaper.OWNERS).iterdir())

    asyncio.run(act())


@pytest.mark.docker
def test_containers_end_with_their_registry_too(tmp_path: Path) -> None:
    class OneImage:
        def resolve(self, image_id: str) -> Image:
            return Image(id=image_id, engine_ref="gymsmith/debian:bookworm")

    async def act() -> None:
        try:
            provider = await ContainerProvider.start(OneImage(), tmp_path / "state")
        except Capacity as error:
            if os.environ.get("GYMSMITH_REQUIRE_ALL") == "1":
                raise
            pytest.skip(f"no engine: {error}")
        box = await provider.create(SPEC)
        assert [entry.id for entry in entries(provider._folder)] == [box.id]
        shutil.rmtree(tmp_path / "state")
        provider._beat()
        with pytest.raises(SandboxGone):
            await box.exec("true")
        await box.destroy()
        assert provider.admission.sandboxes == 0
        again = await provider.create(SPEC)
        assert [entry.id for entry in entries(provider._folder)] == [again.id]
        await provider.close()
        assert not list((tmp_path / "state" / reaper.OWNERS).iterdir())

    asyncio.run(act())


def test_the_groups_of_a_dead_owner_are_found_without_its_registry(tmp_path: Path) -> None:
    version, roots = cgroups.hierarchies()
    if not version:
        pytest.skip("no control groups that this user may write")
    dead = f"{os.getpid()}-1-{reaper.boot_id()}.{reaper.pid_namespace()}-7"
    groups = [root / cgroups.PARENT / dead / "1" for root in roots]
    for group in groups:
        group.mkdir(parents=True)
    assert reaper.sweep(tmp_path / "never made") == []
    assert not any(group.parent.exists() for group in groups)


def test_sandboxes_together_weigh_one_process_per_core(tmp_path: Path) -> None:
    """At a load of 75 on two cores a first exec took 12 ms with the kernel's default weight, 6 ms with this one."""
    version, roots = cgroups.hierarchies()
    if not version:
        pytest.skip("no control groups that this user may write")

    async def act() -> None:
        await (await NamespaceProvider.start(image(tmp_path), tmp_path / "state")).close()

    asyncio.run(act())
    name, one = ("cpu.weight", 100) if version == 2 else ("cpu.shares", 1024)
    found = [int((root / cgroups.PARENT / name).read_text()) for root in roots if (root / cgroups.PARENT / name).exists()]
    assert found == [one * (os.cpu_count() or 1)]


FULL = r"""
import asyncio, subprocess, sys
from pathlib import Path
from gymsmith.errors import Capacity
from sandboxes.base import SandboxSpec
from sandboxes.bench.leak import _Image
from sandboxes.namespace import NamespaceProvider
from sandboxes.registry import entries

async def main():
    folder = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder / "state")], check=True)
    provider = await NamespaceProvider.start(_Image(folder / "root"), folder / "state")
    box = await provider.create(SandboxSpec(image="probe"))
    filler = folder / "state/filler"
    try:
        filler.write_bytes(bytes(1 << 20))
    except OSError:
        pass
    refused = 0
    for number in range(300):  # until the last page of the registry is full too
        try:
            await (await provider.create(SandboxSpec(image="probe"))).destroy()
        except Capacity as error:
            assert "No space left" in str(error), error
            refused += 1
    assert refused > 50, refused
    assert (await box.exec("echo on")).output == b"on\n", "who lives goes on"
    await box.destroy()
    assert provider.admission.sandboxes == 0 and not provider._boxes
    filler.unlink()
    provider._beat()
    assert list(entries(provider._folder)) == [], "the registry has caught up"
    box = await provider.create(SandboxSpec(image="probe"))
    assert [entry.id for entry in entries(provider._folder)] == [box.id]
    await provider.close()

asyncio.run(main())
"""


def test_a_full_disk_refuses_the_new_and_spares_the_living(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    image(tmp_path)
    (tmp_path / "state").mkdir()
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_an_owner_that_cannot_be_seen_lives_by_its_heartbeat(tmp_path: Path) -> None:
    """One in another pid namespace or on another machine: its process tells nothing here, its heartbeat does."""
    owner, folder, registry = reaper.enrol(tmp_path)
    pid, start, boot, count = owner.split("-")
    for other in (f"{pid}-{start}-{boot.split('.')[0]}.1-{count}", f"{pid}-{start}-00000000.1-{count}"):
        there = tmp_path / reaper.OWNERS / other
        shutil.copytree(folder, there)
        os.utime(there / FILE)
        assert reaper.sweep(tmp_path) == []
        past = time.time() - OWNER_LEASE_S - 1
        os.utime(there / FILE, (past, past))
        assert reaper.sweep(tmp_path) == [other]
    assert folder.is_dir(), "an owner that can be seen needs no heartbeat"
    registry.close()


def test_one_sweeps_at_a_time(tmp_path: Path) -> None:
    dead = tmp_path / reaper.OWNERS / f"{os.getpid()}-1-{reaper.boot_id()}.{reaper.pid_namespace()}-1"
    dead.mkdir(parents=True)
    with reaper._alone(tmp_path) as alone:
        assert alone and reaper.sweep(tmp_path) == [] and dead.is_dir()
    assert reaper.sweep(tmp_path) == [dead.name]


def test_the_living_are_spared(tmp_path: Path) -> None:
    owner, folder = reaper.register(tmp_path)
    strange = tmp_path / reaper.OWNERS / "not-ours"
    strange.mkdir()
    assert reaper.sweep(tmp_path) == []
    assert folder.is_dir() and strange.is_dir() and reaper.alive(owner)


def test_a_reused_process_id_is_somebody_else(tmp_path: Path) -> None:
    pid, start, boot, count = reaper.register(tmp_path)[0].split("-")
    assert not reaper.alive(f"{pid}-{int(start) + 1}-{boot}-{count}")
    assert not reaper.alive(f"{pid}-{start}-00000000-{count}")


def test_probe_names_a_reason_without_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sandboxes import launcher

    broken = tmp_path / "gymsmith-box"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(launcher, "find_binary", lambda: broken)
    with pytest.raises(Capacity, match="cannot make namespaces"):
        launcher.Launcher.start(tmp_path)
    report = probe()
    assert not report["works"] and report["next_move"]
