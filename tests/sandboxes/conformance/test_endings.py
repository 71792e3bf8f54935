"""Deadlines, cancellation, freezing, leases and the end of a sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import PolicyRefused, SandboxGone

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by


def tree(token: int) -> str:
    """A command whose processes leave its session, its process group and its parents."""
    s = f"sleep {token}"
    return f"(setsid {s}1 &); setsid sh -c 'setsid {s}2 & {s}3' & (sh -c '({s}4 &) ; {s}5' &) ; {s}6"


def living(token: int) -> int:
    """How many of them the host still sees."""
    count = 0
    for folder in Path("/proc").iterdir():
        try:
            count += folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(b"sleep\0%d" % token)
        except OSError:
            continue
    return count


async def gone_within(token: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while living(token):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.01)
    return True


@broken_by("deadline spares tree")
def test_a_deadline_kills_the_whole_tree(house: Place) -> None:
    """Within half a second, also what has a session of its own."""
    token = 4_000_000 + os.getpid()

    async def scene(box: Any) -> None:
        result = await box.exec(tree(token), timeout_s=0.5)
        assert (result.timed_out, result.signal) == (True, 9)
        assert 0.5 <= result.wall_s < 3
        assert await gone_within(token, 0.5)

    house.play(scene)


def test_control_a_plain_kill_leaves_the_tree(tmp_path: Path) -> None:
    """The same tree under subprocess's own timeout survives it: the test above can fail."""
    token = 5_000_000 + os.getpid()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["sh", "-c", tree(token)], timeout=0.3)
    left = [int(f.name) for f in Path("/proc").iterdir() if f.name.isdigit() and sleeps(f, token)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(left) >= 3


def sleeps(folder: Path, token: int) -> bool:
    try:
        return (folder / "cmdline").read_bytes().startswith(b"sleep\0%d" % token)
    except OSError:
        return False


@broken_by("deadline ignored")
def test_a_deadline_holds_against_a_shield(house: Place) -> None:
    """Ignored signals, a stopped process and a pipe that nobody closes change nothing."""

    async def scene(box: Any) -> None:
        began = time.monotonic()
        stubborn = "trap '' TERM INT HUP QUIT; sh -c 'kill -STOP $$' & (trap '' TERM; sleep 30) ; sleep 30"
        result = await box.exec(stubborn, timeout_s=0.4)
        assert result.timed_out and time.monotonic() - began < 3

    house.play(scene)


@broken_by("stale output")
def test_output_before_the_deadline_is_kept(house: Place) -> None:
    result = house.play(lambda box: box.exec("echo early; sleep 30", timeout_s=0.4))
    assert result.timed_out and result.output == b"early\n"


@broken_by("deadline ignored")
def test_a_deadline_spares_other_commands(house: Place) -> None:
    token = 6_000_000 + os.getpid()

    async def scene(box: Any) -> None:
        await box.exec(f"sleep {token} &")
        other = asyncio.ensure_future(box.exec("sleep 1; echo done"))
        assert (await box.exec("sleep 30", timeout_s=0.2)).timed_out
        assert (await other).output == b"done\n"
        assert living(token) == 1

    house.play(scene)


@broken_by("last byte lost")
def test_a_background_process_holding_the_output_delays_nobody(house: Place) -> None:
    async def scene(box: Any) -> None:
        began = time.monotonic()
        result = await box.exec("echo now; (sleep 0.3; yes | head -c 1000000; touch wrote; sleep 30) &", timeout_s=20)
        assert result.output == b"now\n" and time.monotonic() - began < 5
        for _ in range(100):
            if (await box.exec("test -e wrote")).ok:
                return
            await asyncio.sleep(0.1)
        pytest.fail("the background process was stopped by a full pipe or SIGPIPE")

    house.play(scene)


@broken_by("one at a time")
def test_a_cancelled_command_dies(house: Place) -> None:
    token = 7_000_000 + os.getpid()

    async def scene(box: Any) -> None:
        task = asyncio.ensure_future(box.exec(f"sleep {token}"))
        await asyncio.sleep(0.3)
        first = asyncio.ensure_future(box.exec("true"))
        await asyncio.wait({first}, timeout=3)
        assert first.done(), "a command that runs keeps no other waiting"
        for _ in range(200):
            if living(token):
                break
            await asyncio.sleep(0.02)
        assert living(token) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await gone_within(token, 3), "the command outlived its caller"

    house.play(scene)


@broken_by("freeze nothing")
def test_frozen_means_that_nothing_moves(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("(setsid sh -c 'while :; do date >> clock; sleep 0.05; done' &) ; sleep 0.3")
        await box.freeze()
        await box.freeze()
        first = await box.get("/work/clock")
        await asyncio.sleep(0.3)
        assert first and await box.get("/work/clock") == first
        for ask in (box.exec("true"), box.spawn("true")):
            with pytest.raises(PolicyRefused, match="frozen"):
                await (await ask).wait(1)

    house.play(scene)


@broken_by("kill nothing")
def test_killing_agents_leaves_a_usable_sandbox(house: Place) -> None:
    token = 8_000_000 + os.getpid()

    async def scene(box: Any) -> None:
        await box.put("/work/file", b"kept")
        await box.exec(tree(token).rpartition(";")[0])
        running = asyncio.ensure_future(box.exec(f"sleep {token}", timeout_s=20))
        for _ in range(200):
            if living(token) >= 6:
                break
            await asyncio.sleep(0.02)
        assert living(token) >= 6
        await box.kill_agents()
        assert (await asyncio.wait_for(running, 3)).signal == 9
        assert await gone_within(token, 1)
        assert (await box.exec("cat file")).output == b"kept"

    house.play(scene)


@broken_by("leftovers")
def test_destroy_is_final_and_repeatable(house: Place) -> None:
    token = 9_000_000 + os.getpid()

    async def act() -> None:
        box = await house.box()
        waiting = asyncio.ensure_future(box.exec(f"sleep {token}", timeout_s=200))
        await box.exec(tree(token).rpartition(";")[0])
        await box.destroy()
        await box.destroy()
        with pytest.raises(SandboxGone):
            await asyncio.wait_for(waiting, 3)
        assert await gone_within(token, 1)
        for ask in (box.exec("true"), box.put("/tmp/x", b""), box.get("/tmp/x"), box.freeze(), box.spawn("true"), box.snapshot(),
                    box.kill_agents(), box.renew()):  # fmt: skip
            with pytest.raises(SandboxGone):
                await ask

    house.run(act())


@broken_by("lease ignored")
def test_a_lease_ends_a_forgotten_sandbox(house: Place) -> None:
    async def scene(box: Any) -> None:
        await asyncio.sleep(2.0)
        with pytest.raises(SandboxGone):
            await box.exec("true")

    house.play(scene, lease_s=1)


@broken_by("checks off")
def test_a_lease_can_be_renewed(house: Place) -> None:
    async def scene(box: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0.6)
            await box.renew()
        await box.renew(60)
        await asyncio.sleep(1.5)
        assert (await box.exec("echo here")).output == b"here\n"
        with pytest.raises(PolicyRefused, match=r"lease_s.*got -1"):
            await box.renew(-1)

    house.play(scene, lease_s=1)
