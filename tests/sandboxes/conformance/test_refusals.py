"""What is refused before anything starts, with the name of the argument and what came; nothing is left behind."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import ImageMissing, PolicyRefused
from sandboxes.base import SandboxSpec
from tests.sandboxes.conformance.test_endings import gone_within, living

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by


@broken_by("checks off")
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"command": [""]}, "command"),
        ({"command": []}, "command"),
        ({"command": "a\0b"}, "NUL"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"timeout_s": "30"}, "timeout_s"),
        ({"max_output_bytes": 1 << 40}, "max_output_bytes"),
        ({"command": ["echo", 5]}, "command"),
        ({"command": b"echo"}, "command"),
        ({"command": None}, "command"),
        ({"command": "echo \ud800"}, "command"),
        ({"command": "x" * (64 << 20)}, "command"),
        ({"stdin": bytes(64 << 20)}, "stdin"),
        ({"stdin": "text"}, "stdin"),
        ({"cwd": "/a/../../etc"}, "cwd"),
        ({"env": {"": "x"}}, "env"),
        ({"env": {"A": "\ud800"}}, "env"),
        ({"env": {"A": 5}}, "env"),
        ({"max_output_bytes": -1}, "max_output_bytes"),
        ({"user": "nobody; id"}, "user"),
        ({"user": "-1"}, "user"),
        ({"cwd": "x"}, "cwd"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "\0"}}, "env"),
    ],
)
def test_arguments_that_are_refused(house: Place, arguments: dict[str, Any], names: str) -> None:
    async def scene(box: Any) -> None:
        with pytest.raises(PolicyRefused, match=names):
            await box.exec(**{"command": "true", **arguments})
        assert (await box.exec("echo on")).output == b"on\n"

    house.play(scene)


@pytest.mark.parametrize(
    "spec",
    [
        {"memory_bytes": 0},
        {"pids": -1},
        {"cpus": 0},
        {"disk_bytes": 1 << 60},
        {"lease_s": -1},
        {"user": "x y"},
        {"network": "host"},
    ],
)
def test_limits_that_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused, match=f"{next(iter(spec))}.*got"):
        SandboxSpec(image="base", **spec)


@broken_by("unknown images")
def test_an_unknown_image(house: Place) -> None:
    async def act() -> None:
        with pytest.raises(ImageMissing):
            await house.provider.create(SandboxSpec(image="missing", trusted=True))
        with pytest.raises(PolicyRefused, match="image"):
            await house.provider.create(SandboxSpec(image="", trusted=True))
        assert await (await house.box()).exec("true")

    house.run(act())


@broken_by("checks off")
def test_without_isolation_only_what_is_trusted(house: Place) -> None:
    async def act() -> None:
        if house.able.isolation == "none":
            with pytest.raises(PolicyRefused, match="trusted must be true"):
                await house.box(trusted=False)
            with pytest.raises(PolicyRefused, match="layers"):
                await house.box(layers=[Path("/")])
            assert not house.able.shell and not house.able.users and "no isolation" in str(house.able.notes)
            box = await house.box()
            with pytest.raises(PolicyRefused, match="shell"):
                await box.shell()
            await box.destroy()
        else:
            box = await house.box(trusted=False)
            with pytest.raises(PolicyRefused):
                await box.exec("\0")
            await box.destroy()

    house.run(act())


@broken_by("leftovers")
def test_nothing_is_left_behind(house: Place) -> None:
    """Of sandboxes that were used, refused and destroyed in the middle: no process and, where there are any, no mount."""

    async def act() -> None:
        token = 44_000_000 + os.getpid()
        mounts = Path("/proc/self/mounts").read_text().count("\n")
        for _ in range(3):
            box = await house.box()
            await box.spawn(f"sleep {token}")
            await box.exec(f"(setsid sleep {token} &) ; mkdir -p a/b; touch a/b/c")
            for _ in range(200):
                if living(token) >= 2:
                    break
                await asyncio.sleep(0.02)
            assert living(token) >= 2
            await box.destroy()
        assert await gone_within(token, 1)
        if house.provider.name != "docker":  # its engine mounts for itself
            assert Path("/proc/self/mounts").read_text().count("\n") <= mounts

    house.run(act())
