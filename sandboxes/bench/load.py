"""Many sandboxes at once: a thousand that live and each work now and then; dozens that are made and ended all the time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from sandboxes import cgroups
from sandboxes.admission import available_memory
from sandboxes.base import MIB, Sandbox, SandboxSpec
from sandboxes.namespace import NamespaceProvider

EVERY_S = 10.0


class Crowd(NamedTuple):
    """What a crowd of sandboxes cost."""

    alive: int
    start_s: float
    destroy_s: float
    execs: int
    errors: int
    p50_ms: float
    p99_ms: float
    group_mib: float
    """Memory that the kernel charges to the control groups, per sandbox, at the end; 0 without control groups."""
    machine_mib: float
    """What the machine had less of afterwards, per sandbox; whatever else happened on it counts too."""


async def crowd(provider: NamespaceProvider, image: str, count: int, seconds: float) -> Crowd:
    """`count` sandboxes, each of which runs a command every ten seconds, for `seconds`."""
    spec = SandboxSpec(image=image, memory_bytes=64 * MIB, disk_bytes=64 * MIB, pids=16)
    free_before, began = available_memory(), time.monotonic()
    boxes = await asyncio.gather(*(provider.create(spec) for _ in range(count)))
    start_s = time.monotonic() - began
    machine_mib = (free_before - available_memory()) / count / MIB
    dice, took, errors = random.Random(1), [], 0
    until = time.monotonic() + seconds

    async def work(box: Sandbox, phase_s: float) -> None:
        nonlocal errors
        await asyncio.sleep(phase_s)
        number = 0
        while time.monotonic() < until:
            asked = time.monotonic()
            result = await box.exec(f"echo {number}", timeout_s=30)
            took.append(time.monotonic() - asked)
            errors += result.output != b"%d\n" % number
            number += 1
            await asyncio.sleep(max(0.0, asked + EVERY_S - time.monotonic()))

    outcomes = await asyncio.gather(*(work(box, dice.random() * EVERY_S) for box in boxes), return_exceptions=True)
    errors += sum(isinstance(outcome, BaseException) for outcome in outcomes)
    alive = sum(box.alive for box in boxes)
    used = [cgroups.usage(provider.owner, box.group.name) for box in boxes if box.group is not None]
    began = time.monotonic()
    await asyncio.gather(*(box.destroy() for box in boxes))
    took.sort()
    return Crowd(
        alive=alive,
        start_s=start_s,
        destroy_s=time.monotonic() - began,
        execs=len(took),
        errors=errors,
        p50_ms=1000 * took[len(took) // 2],
        p99_ms=1000 * took[int(len(took) * 0.99)],
        group_mib=sum(pair[0] for pair in used if pair) / len(used) / MIB if used else 0.0,
        machine_mib=machine_mib,
    )


async def per_second(one: Callable[[], Awaitable[object]], total: int, in_flight: int) -> float:
    """How many of `total` are done in a second, `in_flight` at once. Raises what the first one that fails raises."""
    gate = asyncio.Semaphore(in_flight)

    async def next_one() -> None:
        async with gate:
            await one()

    began = time.monotonic()
    await asyncio.gather(*(next_one() for _ in range(total)))
    return total / (time.monotonic() - began)
