"""Commands in the background: looked at, waited for, killed."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import PolicyRefused, SandboxGone
from tests.sandboxes.conformance.test_endings import gone_within, living, tree

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by


async def until(box: Any, test: str) -> None:
    for _ in range(200):
        if (await box.exec(test)).ok:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"never came true: {test}")


@broken_by("job forgotten")
def test_a_job_is_looked_at_while_it_runs(house: Place) -> None:
    async def scene(box: Any) -> None:
        job = await box.spawn("echo first; touch begun; until [ -e go ]; do sleep 0.02; done; echo second >&2; exit 4")
        await until(box, "test -e begun")
        state = await job.poll()
        assert state.running and state.output == b"first\n" and state.result is None
        await box.put("/work/go", b"")
        state = await job.wait(10)
        assert not state.running and state.output == b"first\nsecond\n"
        assert state.result.exit_code == 4 and (await job.poll()) == state

    house.play(scene)


@broken_by("job forgotten")
def test_waiting_ends_before_the_job(house: Place) -> None:
    async def scene(box: Any) -> None:
        job = await box.spawn("sleep 20")
        assert (await job.wait(0.2)).running
        await job.kill()

    house.play(scene)


@broken_by("kill nothing")
def test_a_killed_job_takes_its_tree_with_it(house: Place) -> None:
    token = 14_000_000 + os.getpid()

    async def scene(box: Any) -> None:
        job = await box.spawn(tree(token))
        for _ in range(100):
            if living(token) >= 6:
                break
            await asyncio.sleep(0.02)
        await job.kill()
        await job.kill()
        state = await job.wait(1)
        assert not state.running and state.result.signal == 9 and not state.result.timed_out
        assert await gone_within(token, 0.5)

    house.play(scene)


@broken_by("job forgotten")
def test_a_job_outlives_short_deadlines(house: Place) -> None:
    """It has none of its own, and another command's is not its."""

    async def scene(box: Any) -> None:
        job = await box.spawn("while [ ! -e go ]; do sleep 0.02; done; echo done")
        assert (await box.exec("sleep 20", timeout_s=0.3)).timed_out
        assert (await job.poll()).running
        await box.exec("touch go")
        assert (await job.wait()).output == b"done\n"

    house.play(scene)


@broken_by("job forgotten")
def test_many_jobs_at_once(house: Place) -> None:
    async def scene(box: Any) -> None:
        meet = "touch here.{}; until [ $(ls here.* | wc -l) = 8 ]; do sleep 0.05; done; echo {}"
        jobs = [await box.spawn(meet.format(i, i)) for i in range(8)]
        states = await asyncio.gather(*(job.wait(20) for job in jobs))
        assert [state.output for state in states] == [b"%d\n" % i for i in range(8)]
        assert len({job.id for job in jobs}) == 8

    house.play(scene)


@broken_by("job forgotten")
def test_a_jobs_output_is_capped_while_it_runs(house: Place) -> None:
    async def scene(box: Any) -> None:
        job = await box.spawn("seq 1000000; touch wrote; sleep 20", max_output_bytes=100)
        await until(box, "test -e wrote")
        await asyncio.sleep(0.1)
        state = await job.poll()
        assert state.running and len(state.output) < 200 and state.omitted_bytes > 6_000_000
        assert state.output.startswith(b"1\n2\n") and state.output.endswith(b"1000000\n")
        await job.kill()

    house.play(scene)


@broken_by("kill nothing", "leftovers")
def test_a_job_ends_with_its_sandbox(house: Place) -> None:
    async def act() -> None:
        box = await house.box()
        job = await box.spawn("sleep 100")
        done = await box.spawn("echo done")
        assert (await done.wait(5)).output == b"done\n"
        await box.destroy()
        assert (await done.poll()).output == b"done\n", "what had ended is known"
        if house.provider.name == "local":
            assert not (await job.poll()).running
            return
        with pytest.raises(SandboxGone):
            await job.poll()

    house.run(act())


@broken_by("job forgotten")
def test_a_job_that_cannot_start(house: Place) -> None:
    async def scene(box: Any) -> None:
        state = await (await box.spawn(["/not/there"])).wait(5)
        assert state.result.exit_code == 127
        job = await box.spawn("sleep 20", cwd="/tmp", env={"A": "b"})
        assert (await job.poll()).running
        await job.kill()
        with pytest.raises(PolicyRefused, match="command"):
            await box.spawn("a\0b")

    house.play(scene)
