"""What a sandbox may use: processes, memory, disk, processor. Each limit ends in the sandbox, not on the host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import DiskLimit, SandboxError
from sandboxes.base import MIB
from tests.sandboxes.conformance.conftest import CANNOT

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by
needs = pytest.mark.needs


def living(marker: str) -> int:
    """How many processes with this word among their arguments the host sees."""
    count = 0
    for folder in Path("/proc").iterdir():
        try:
            count += folder.name.isdigit() and marker.encode() in (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
    return count


@broken_by("leftovers")
@pytest.mark.parametrize("bomb", [":(){ :|:& };:", 'while :; do (setsid bash -c "$BASH_EXECUTION_STRING" $0 &) ; done'])
@needs("pids_limit")
def test_a_fork_bomb_stays_inside(house: Place, bomb: str) -> None:
    marker = f"bomb{os.getpid()}"

    async def act() -> None:
        box = await house.box(pids=32)
        neighbour = await house.box()
        await box.spawn(["bash", "-c", bomb, marker])
        for _ in range(200):
            if living(marker) > 8:
                break
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert 8 < living(marker) <= 48
        assert (await neighbour.exec("echo fine", timeout_s=10)).output == b"fine\n"
        with contextlib.suppress(SandboxError):
            await box.exec("true", timeout_s=2)
        began = time.monotonic()
        await box.destroy()
        assert time.monotonic() - began < (2 if house.provider.name == "ns" else 8)
        assert living(marker) == 0
        await neighbour.destroy()

    house.run(act())


@broken_by("limits dropped")
@needs("pids_limit")
def test_the_limit_of_processes_is_the_asked_one(house: Place) -> None:
    code = (
        "import os, signal\nmade = []\ntry:\n    while len(made) < 200:\n        pid = os.fork()\n"
        "        if not pid: signal.pause()\n        made.append(pid)\nexcept OSError: pass\n"
        "for pid in made: os.kill(pid, 9)\nprint(len(made))\n"
    )
    result = house.play(lambda box: box.exec(["python3", "-c", code]), pids=20)
    assert 15 <= int(result.output) <= 28


@broken_by("limits dropped")
@needs("memory_limit")
def test_a_memory_bomb_dies_alone(house: Place) -> None:
    async def scene(box: Any) -> None:
        result = await box.exec(["python3", "-c", "x = bytearray(900 << 20)"], timeout_s=20)
        assert result.signal == 9 and result.oom
        after = await box.exec("echo alive; exit 1")
        assert after.output == b"alive\n" and not after.oom

    house.play(scene, memory_bytes=64 * MIB, disk_bytes=16 * MIB)


async def meets_its_limit(house: Place, box: Any, filling: str, emptying: str) -> None:
    """`filling` takes more than the disk has: an error inside after which the sandbox works, or its typed end, as promised.

    It stays for $STAY seconds, so that who only looks at the disk now and then has the time to.
    """
    neighbour = await house.box()
    if house.able.at_disk_limit == "error":
        done = await box.exec(filling, env={"STAY": "0"}, timeout_s=60)
        assert b"No space left" in done.output or b"quota exceeded" in done.output, done
        assert (await box.exec(f"{emptying}; echo again > small; cat small")).output == b"again\n"
    else:
        with pytest.raises(DiskLimit, match="disk_bytes"):
            await box.exec(f"{filling}; sleep $STAY", env={"STAY": "60"}, timeout_s=60)
        with pytest.raises(DiskLimit, match="disk_bytes"):
            await box.exec("true")
    assert (await neighbour.exec("echo fine")).output == b"fine\n"
    await neighbour.destroy()


@broken_by("limits dropped")
@needs("disk_limit")
def test_a_full_disk_stays_inside(house: Place) -> None:
    filling = "for n in 1 2 3 4 5; do dd if=/dev/zero of=big$n bs=1M count=10; done"
    house.play(lambda box: meets_its_limit(house, box, filling, "rm big*"), disk_bytes=32 * MIB)


@broken_by("limits dropped")
@needs("disk_limit")
def test_what_has_no_name_any_more_counts(house: Place) -> None:
    """Files that were deleted while a process has them open, or only mapped, are on the disk all the same."""
    code = (
        "import mmap, os, sys\nkept = []\nfor n in range(8):\n    file = open(str(n), 'wb+')\n    os.unlink(str(n))\n"
        "    for _ in range(8): file.write(bytes(1 << 20)); file.flush()\n"
        "    if n % 2: kept.append(mmap.mmap(file.fileno(), 0)); file.close()\n    else: kept.append(file)\n"
        "import time; time.sleep(int(os.environ['STAY']))\n"
    )
    house.play(lambda box: meets_its_limit(house, box, f'python3 -c "{code}"', "true"), disk_bytes=32 * MIB)


@broken_by("limits dropped")
@needs("cpu_limit")
def test_a_busy_loop_gets_its_share(house: Place) -> None:
    async def scene(box: Any) -> None:
        result = await box.exec("timeout 1 sh -c 'while :; do :; done' & timeout 1 sh -c 'while :; do :; done'; wait")
        share = max(0.9, 0.45 * result.wall_s)  # a slow machine makes the second longer
        assert result.cpu_s < share, "two loops for a second under a limit of 0.3"

    house.play(scene, cpus=0.3)


@broken_by("limits dropped")
@needs("disk_limit")
def test_many_small_files_stay_inside(house: Place) -> None:
    filling = "mkdir many; cd many; seq 20000 | xargs touch 2>&1 | tail -1"
    house.play(lambda box: meets_its_limit(house, box, filling, "rm -r /work/many"), disk_bytes=8 * MIB)


@broken_by("limits dropped")
@needs("disk_limit")
def test_no_file_is_larger_than_the_disk(house: Place) -> None:
    async def scene(box: Any) -> None:
        made = await box.exec("dd if=/dev/zero of=big bs=1M count=64")
        assert not made.ok and int((await box.exec("stat -c %s big")).output) <= 32 * MIB
        assert (await box.exec("rm big; echo again > small; cat small")).output == b"again\n"

    house.play(scene, disk_bytes=32 * MIB)


@broken_by("stale output")
def test_what_is_not_limited_is_said(house: Place) -> None:
    """A provider either keeps a limit, as the tests above show, or names what it lacks."""
    for field in CANNOT.get(house.provider.name, ()):
        assert not getattr(house.able, field), f"it can have {field} after all: strike it off CANNOT, so that its tests are run"
    words = {"memory_limit": "memory", "disk_limit": "disk", "cpu_limit": "CPU"}
    for feature, word in words.items():
        if not getattr(house.able, feature):
            assert word in str(house.able.notes) or "no isolation" in str(house.able.notes)
    assert house.play(lambda box: box.exec("echo asked")).output == b"asked\n"
