"""What is left of a worker that is killed while it holds sandboxes: counted, round after round.

`python -m sandboxes.bench.leak FOLDER COUNT MODE` is that worker: it holds COUNT sandboxes ("hold"), or makes and destroys them
without a pause, COUNT at a time ("churn"), until it is killed. `kill_workers` starts, kills and counts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

from gymsmith.errors import SandboxError
from sandboxes import cgroups, reaper
from sandboxes.base import Image, SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr

Mode = Literal["hold", "churn"]
READY_S = 60.0
_SPEC = SandboxSpec(image="probe")


class Left(NamedTuple):
    """What one killed worker left. Everything but the first two is counted after two periods of a janitor."""

    held: int
    """Processes that it had: its launcher, and those of its sandboxes."""
    processes: int
    """Of these, alive two seconds later."""
    gone_after_s: float
    """When the last of them was dead; two seconds when some were not."""
    groups: int
    mounts: int
    folders: int


def kill_workers(
    folder: Path, boxes: int, rounds: int, *, mode: Mode = "hold", janitor_s: float = 1.0, swept: bool = True
) -> list[Left]:
    """Kill a worker with `boxes` sandboxes `rounds` times, while another provider with a janitor lives below `folder`.

    swept: False is the control arm, in which no janitor comes.
    """
    return asyncio.run(_rounds(folder, boxes, rounds, mode, janitor_s, swept))


async def _rounds(folder: Path, boxes: int, rounds: int, mode: Mode, janitor_s: float, swept: bool) -> list[Left]:
    root = folder / "root"
    root.mkdir(mode=0o755)
    survivor = await NamespaceProvider.start(HostUsr(root), folder / "state", janitor_s=janitor_s if swept else 3600)
    try:
        return [await _one(folder, survivor.owner, boxes, mode, 2 * janitor_s, number) for number in range(rounds)]
    finally:
        await survivor.close()


async def _one(folder: Path, survivor: str, boxes: int, mode: Mode, two_periods_s: float, number: int) -> Left:
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(folder), str(boxes), mode, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert worker.stdout is not None
    try:
        said = await asyncio.wait_for(worker.stdout.readline(), READY_S)
        if said != b"ready\n":
            raise SandboxError(f"a worker with {boxes} sandboxes must get ready, it said {said!r}")
        await asyncio.sleep(0.05 + 0.037 * number)  # each round meets the churn at another moment
        os.kill(worker.pid, signal.SIGSTOP)  # what it has does not change while it is listed
        held = descendants(worker.pid)
    finally:
        worker.kill()
    killed = time.monotonic()
    while (left := alive(held)) and time.monotonic() < killed + 2.0:
        await asyncio.sleep(0.01)
    gone_after_s = min(2.0, time.monotonic() - killed)
    await worker.wait()
    await asyncio.sleep(two_periods_s + 0.5)
    own = [root / cgroups.PARENT / survivor for root in cgroups.hierarchies()[1]]
    groups = [g for root in own for g in root.parent.glob(f"{worker.pid}-*")]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    state = folder / "state" / reaper.OWNERS
    folders = [*(f for f in state.iterdir() if f.name != survivor), *folder.glob("*.work")]
    return Left(len(held), len(left), gone_after_s, len(groups), len(mounts), len(folders))


def descendants(pid: int) -> dict[int, str]:
    """Pid -> start time of every process below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    wave = children.get(pid, [])
    while wave:
        found += wave
        wave = [child for parent in wave for child in children.get(parent, [])]
    return {child: start for child in found if (start := reaper.start_time(child))}


def alive(held: dict[int, str]) -> list[int]:
    """Those of them that still run."""
    return [pid for pid, start in held.items() if reaper.start_time(pid) == start]


async def _work(folder: Path, boxes: int, mode: Mode) -> None:
    provider = await NamespaceProvider.start(_Image(folder / "root"), folder / "state")

    async def hold(number: int) -> None:
        upper = folder / f"upper.{os.getpid()}.{number}" if number % 8 == 0 else None
        if upper:
            upper.mkdir()
        box = await provider.create(_SPEC, upper=upper)
        asyncio.ensure_future(box.exec("sleep 600 & setsid sleep 600", timeout_s=3600))  # noqa: RUF006 - ends with the worker

    async def churn(number: int) -> None:
        while True:
            box = await provider.create(_SPEC)
            await box.exec(["/bin/true"])
            await box.destroy()

    if mode == "hold":
        await asyncio.gather(*(hold(number) for number in range(boxes)))
        await asyncio.sleep(0.3)
        print("ready", flush=True)
        await asyncio.sleep(600)
    tasks = [asyncio.ensure_future(churn(number)) for number in range(boxes)]
    await asyncio.sleep(1.0)
    print("ready", flush=True)
    await asyncio.gather(*tasks)


class _Image:
    """The survivor's image, which is there already."""

    def __init__(self, root: Path) -> None:
        self.image = Image(id="probe", layers=(root,), binds=(("/usr", "/usr"),))

    def resolve(self, image_id: str) -> Image:
        return self.image


if __name__ == "__main__":
    asyncio.run(_work(Path(sys.argv[1]), int(sys.argv[2]), "churn" if sys.argv[3] == "churn" else "hold"))
