"""Files in and out, with everything that a workload can plant in their way."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import OutputLimit, PolicyRefused
from sandboxes.base import MAX_FRAME_BYTES, MIB

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by
needs = pytest.mark.needs


@broken_by("mode dropped")
def test_files_in_and_out(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.put("/work/deep/er/file", b"\0\xffdata", 0o640, owner="agent")
        assert await box.get("/work/deep/er/file") == b"\0\xffdata"
        shown = (await box.exec("stat -c '%a %u' deep/er/file")).output.split()
        assert shown[0] == b"640" and (shown[1] == b"1000" or not house.able.users)
        await box.put_files({"/work/a": b"1", "/work/b": b"2"}, 0o755)
        assert (await box.exec("cat a b; test -x a && echo x")).output == b"12x\n"

    house.play(scene)


@broken_by("put torn")
def test_an_empty_file_and_a_replaced_one(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.put("/work/a", b"long before")
        await box.put("/work/a", b"")
        assert await box.get("/work/a") == b""
        await box.put("/work/a", b"again")
        assert (await box.exec("cat a")).output == b"again"

    house.play(scene)


@broken_by("put torn")
def test_odd_names_never_meet_a_shell(house: Place) -> None:
    async def scene(box: Any) -> None:
        names = ["sp ace", "$(touch owned)", "`x`", "a;b", "quo'te", 'dou"ble', "new\nline", "*", "-rf", "ö", "x" * 255]
        for name in names:
            await box.put(f"/work/odd/{name}", name.encode())
            assert await box.get(f"/work/odd/{name}") == name.encode()
        assert (await box.exec("ls odd | wc -l; test -e owned || echo untouched")).output == b"12\nuntouched\n"
        raw = b"/work/odd/\xff\xfe".decode("utf-8", "surrogateescape")
        await box.put(raw, b"bytes")
        assert await box.get(raw) == b"bytes"

    house.play(scene)


@broken_by("put torn")
def test_a_large_file(house: Place) -> None:
    data = os.urandom(9 * MIB)

    async def scene(box: Any) -> None:
        await box.put("/work/large", data)
        assert await box.get("/work/large", max_bytes=9 * MIB) == data
        with pytest.raises(OutputLimit, match="9437183"):
            await box.get("/work/large", max_bytes=9 * MIB - 1)

    house.play(scene)


@broken_by("checks off")
@pytest.mark.parametrize("path", ["relative", "/a/../b", "/../etc/passwd", "/nul\0", "/x" * 3000, "", "/dir/"])
def test_paths_that_are_refused(house: Place, path: str) -> None:
    async def scene(box: Any) -> None:
        with pytest.raises(PolicyRefused, match=r"path.*got"):
            await box.put(path, b"x")
        if path != "/dir/":
            with pytest.raises(PolicyRefused, match=r"path.*got"):
                await box.get(path)

    house.play(scene)


@broken_by("checks off")
def test_sizes_and_modes_that_are_refused(house: Place) -> None:
    async def scene(box: Any) -> None:
        large = bytes(MAX_FRAME_BYTES + 1)
        for ask, name in ((box.put("/work/x", b"", 0o7777), "mode"), (box.put("/work/x", b"", -1), "mode"),
                          (box.put("/work/x", b"", owner="a b"), "user"), (box.put("/work/x", large), "files"),
                          (box.get("/work/x", -1), "max_bytes"), (box.get("/work/x", 1 << 40), "max_bytes")):  # fmt: skip
            with pytest.raises(PolicyRefused, match=f"{name} must.*got"):
                await ask
        with pytest.raises(FileNotFoundError):
            await box.get("/work/x")

    house.play(scene)


@broken_by("put follows")
def test_links_are_not_written_through(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("echo precious > target; ln -s target link; ln target hard; mkfifo fifo; ln -s /not/there dangling")
        for name in ("link", "hard", "fifo", "dangling"):
            await box.put(f"/work/{name}", b"new")
            assert await box.get(f"/work/{name}") == b"new"
        assert await box.get("/work/target") == b"precious\n"

    house.play(scene)


@broken_by("put torn")
def test_a_linked_parent_leads_nowhere_else(house: Place, tmp_path: Path) -> None:
    """Inside, a link in the path means what it means inside; without a root of its own it may not lead out at all."""

    async def scene(box: Any) -> None:
        await box.exec(f"ln -s {'../' * 30}{tmp_path} up; ln -s {tmp_path} absolute")
        for name in ("up", "absolute"):
            if not house.able.own_root:
                with pytest.raises(PolicyRefused, match="leads out"):
                    await box.put(f"/work/{name}/landed", b"inside")
                continue
            if (await box.exec(f"mkdir -p {tmp_path}", user="root")).ok:
                await box.put(f"/work/{name}/landed", b"inside")
                assert (await box.exec(f"cat {tmp_path}/landed", user="root")).output == b"inside"
        await box.put("/work/here", b"inside")
        assert await box.get("/work/here") == b"inside" and list(tmp_path.iterdir()) == []

    house.play(scene)


@broken_by("get follows")
def test_reading_only_regular_files(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("mkfifo fifo; ln -s /proc/1/environ env; ln -s /proc/self/fd/3 fd; ln -s /dev/zero zero; mkdir folder")
        for name in ("fifo", "env", "fd", "zero"):
            with pytest.raises(PolicyRefused):
                await box.get(f"/work/{name}")
        with pytest.raises(FileNotFoundError):
            await box.get("/work/nothing")
        with pytest.raises(IsADirectoryError):
            await box.get("/work/folder")
        with pytest.raises(IsADirectoryError):
            await box.put("/work/folder", b"")

    house.play(scene)


@broken_by("get follows")
@needs("own_root")
def test_the_kernels_files_are_not_read(house: Place) -> None:
    async def scene(box: Any) -> None:
        for path in ("/proc/1/environ", "/dev/zero", "/proc/self/status"):
            with pytest.raises(PolicyRefused):
                await box.get(path)

    house.play(scene)


@broken_by("uncapped")
def test_a_file_that_grows_while_it_is_read(house: Place) -> None:
    async def scene(box: Any) -> None:
        job = await box.spawn("while :; do head -c 100000 /dev/zero >> grows; done")
        for _ in range(100):
            await asyncio.sleep(0.02)
            if (await box.exec("test $(stat -c %s grows) -gt 200000")).ok:
                break
        with pytest.raises(OutputLimit):
            await box.get("/work/grows", max_bytes=150_000)
        await job.kill()

    house.play(scene)
