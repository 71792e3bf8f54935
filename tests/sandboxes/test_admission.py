"""Who gets in, who waits, who is told that there is no room; and that what is reserved always comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import Capacity, SandboxGone
from sandboxes.admission import Admission, Need, Room, available_memory, machine_memory, machine_pids
from sandboxes.base import MIB, SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr

SMALL = Need(MIB, 4)


def room(sandboxes: int = 100, memory: int = 100 * MIB, pids: int = 1000) -> Room:
    return Room(sandboxes, memory, pids)


def held(admission: Admission) -> tuple[int, int, int, int]:
    return admission.sandboxes, admission.memory_bytes, admission.pids, admission.waiting


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


def test_a_large_one_is_not_overtaken_by_small_ones() -> None:
    async def act() -> None:
        admission = Admission(room(memory=10 * MIB))
        order: list[str] = []

        async def ask(name: str, need: Need) -> None:
            await admission.admit(need)
            order.append(name)

        await admission.admit(Need(8 * MIB, 4))
        tasks = [asyncio.ensure_future(ask("large", Need(9 * MIB, 4)))]
        await asyncio.sleep(0)
        tasks += [asyncio.ensure_future(ask(f"small {n}", SMALL)) for n in range(3)]
        await asyncio.sleep(0.05)
        assert order == [] and admission.waiting == 4, "two MiB are free, but the large one was first"
        admission.release(Need(8 * MIB, 4))
        await asyncio.sleep(0.05)
        assert order == ["large", "small 0"]
        admission.release(Need(9 * MIB, 4))
        await asyncio.gather(*tasks)
        assert order == ["large", "small 0", "small 1", "small 2"]

    run(act())


@pytest.mark.parametrize(
    ("need", "named"), [(Need(101 * MIB, 4), "memory_bytes"), (Need(MIB, 1001), "pids"), (Need(1 << 50, 4), str(1 << 50))]
)
def test_what_can_never_fit_is_told_at_once(need: Need, named: str) -> None:
    async def act() -> None:
        admission = Admission(room())
        with pytest.raises(Capacity, match=named):
            await asyncio.wait_for(admission.admit(need), 0.1)
        assert held(admission) == (0, 0, 0, 0)

    run(act())


def test_the_queue_and_the_patience_end() -> None:
    async def act() -> None:
        admission = Admission(room(sandboxes=1), queue=2, wait_s=0.1)
        await admission.admit(SMALL)
        waiting = [asyncio.ensure_future(admission.admit(SMALL)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Capacity, match="at most 2 may wait"):
            await admission.admit(SMALL)
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, Capacity) and "1 of at most 1" in str(end) for end in ends)
        admission.release(SMALL)
        assert held(admission) == (0, 0, 0, 0)

    run(act())


def test_who_gives_up_leaves_no_reservation() -> None:
    async def act() -> None:
        admission = Admission(room(sandboxes=1))
        await admission.admit(SMALL)
        first, second = (asyncio.ensure_future(admission.admit(SMALL)) for _ in range(2))
        await asyncio.sleep(0)
        admission.release(SMALL)  # grants it to the first, which is cancelled before it can take notice
        first.cancel()
        await asyncio.wait_for(second, 1)
        assert first.cancelled() and held(admission) == (1, MIB, 4, 0)

    run(act())


def test_nobody_is_let_in_while_the_machine_has_no_memory() -> None:
    async def act() -> None:
        free = [0]
        admission = Admission(room(), free_memory=lambda: free[0])
        await asyncio.wait_for(admission.admit(SMALL), 0.1)  # waiting would free nothing: we hold nothing
        second = asyncio.ensure_future(admission.admit(SMALL))
        await asyncio.sleep(0.3)
        assert not second.done()
        free[0] = 1 << 50
        await asyncio.wait_for(second, 1)

    run(act())


def test_reservations_add_up_whatever_happens() -> None:
    async def act() -> None:
        dice = random.Random(7)
        admission = Admission(room(sandboxes=5, memory=20 * MIB, pids=60), wait_s=0.02)

        async def one() -> str:
            need = Need(dice.randint(1, 25) * MIB, dice.randint(1, 70))
            try:
                await asyncio.wait_for(admission.admit(need), dice.choice((0.001, 1.0)))
            except (Capacity, TimeoutError) as error:
                return type(error).__name__
            assert admission.sandboxes <= 5 and admission.memory_bytes <= 20 * MIB and admission.pids <= 60
            await asyncio.sleep(dice.random() * 0.005)
            admission.release(need)
            return "in"

        ends = await asyncio.gather(*(one() for _ in range(400)))
        assert held(admission) == (0, 0, 0, 0)
        assert {"in", "Capacity", "TimeoutError"} == set(ends)

    run(act())


def test_the_machine_is_read() -> None:
    assert 64 * MIB < available_memory() <= machine_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine_pids() <= int(Path("/proc/sys/kernel/pid_max").read_text())
    assert Room.of_machine(7, 2.0).memory_bytes == 2 * machine_memory()


@pytest.mark.usefixtures("namespaces")
def test_forty_callers_share_the_room_of_four(tmp_path: Path) -> None:
    """With its control arm: with room for all of them, more than four live at once."""

    async def peak(sandboxes: int, folder: Path) -> int:
        folder.mkdir(mode=0o755)
        (folder / "root").mkdir(mode=0o755)
        admission = Admission(room(sandboxes, 1 << 40, 1 << 20))
        provider = await NamespaceProvider.start(HostUsr(folder / "root"), folder / "state", admission=admission)
        seen = []

        async def one() -> None:
            box = await provider.create(SandboxSpec(image="probe"))
            seen.append(len(provider._boxes))
            assert (await box.exec("echo in")).output == b"in\n"
            await box.destroy()

        await asyncio.gather(*(one() for _ in range(40)))
        assert held(admission) == (0, 0, 0, 0)
        lost = await asyncio.gather(*(provider.create(SandboxSpec(image="probe")) for _ in range(3)))
        os.kill(provider._launcher._process.pid, signal.SIGKILL)
        for box in lost:
            with pytest.raises(SandboxGone):
                await box.exec("sleep 5")
        assert held(admission) == (0, 0, 0, 0), "what a lost launcher held has come back"
        await provider.close()
        return max(seen)

    assert run(peak(4, tmp_path / "four")) <= 4
    assert run(peak(40, tmp_path / "forty")) > 4


@pytest.mark.usefixtures("namespaces")
def test_what_a_snapshot_holds_is_reserved_until_nobody_stands_on_it(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o755)
    spec = SandboxSpec(image="probe", memory_bytes=32 * MIB, disk_bytes=8 * MIB, pids=8)
    box_bytes, copy_bytes = 40 * MIB, 9 * MIB

    async def act() -> None:
        admission = Admission(room(10, 2 * box_bytes + copy_bytes, 1000), wait_s=0.3)
        provider = await NamespaceProvider.start(HostUsr(tmp_path / "root"), tmp_path / "state", admission=admission)
        box = await provider.create(spec)
        snapshot = await box.snapshot()
        assert held(admission)[:2] == (1, box_bytes + copy_bytes)
        fork = await snapshot.start()
        with pytest.raises(Capacity, match=r"2 of at most 10 sandboxes live and reserve, with snapshots, 89 of 89 MiB"):
            await box.snapshot()
        assert (await box.exec("echo moves")).ok, "who waited for room did not stand still for it"
        await snapshot.discard()
        assert held(admission)[:2] == (2, 2 * box_bytes + copy_bytes), "the fork stands on it"
        await fork.destroy()
        assert held(admission)[:2] == (1, box_bytes)
        [again] = await box.fork()
        assert held(admission)[:2] == (2, 2 * box_bytes + copy_bytes)
        await again.destroy()
        await box.destroy()
        with pytest.raises(SandboxGone):
            await box.snapshot()
        assert held(admission) == (0, 0, 0, 0)
        await provider.close()

    run(act())
