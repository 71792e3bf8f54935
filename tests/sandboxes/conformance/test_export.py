"""What a frozen sandbox changed, as a layer on the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import OutputLimit, PolicyRefused

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by
needs = pytest.mark.needs


@broken_by("export nothing")
@needs("layers")
def test_export_carries_changes_and_deletions(house: Place, tmp_path: Path) -> None:
    layer, out = tmp_path / "layer", tmp_path / "out"
    for folder in (layer, layer / "work", layer / "work/old", layer / "work/gone", out):
        folder.mkdir()
        folder.chmod(0o777)
    for name, text in {"keep": "keep", "edit": "before", "drop": "x", "old/a": "a", "old/b": "b", "gone/c": "c"}.items():
        (layer / "work" / name).write_text(text)
        (layer / "work" / name).chmod(0o666)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "101000:101000", layer], check=True)

    async def act() -> None:
        box = await house.box(layers=[layer])
        await box.exec(
            "echo after > edit; rm drop; rm -r gone; rm -r old; mkdir old; echo new > old/n; mkdir made; echo m > made/m; "
            "chmod 755 made/m; ln -s /etc/passwd link; mkfifo fifo; echo outside > /tmp/outside; touch 'odd  name'"
        )
        with pytest.raises(PolicyRefused, match="freeze"):
            await box.export(["/work"], out)
        await box.freeze()
        with pytest.raises(OutputLimit):
            await box.export(["/work"], out, max_files=3)
        got = await box.export(["/work"], out)
        await box.destroy()
        assert got.skipped == ("/work/fifo",) and got.files >= 5
        assert not (out / "tmp").exists()
        fresh = await house.box(layers=[out, layer])
        listing = await fresh.exec(
            "find . -mindepth 1 | LC_ALL=C sort; cat edit old/n made/m keep; readlink link; stat -c %a made/m"
        )
        assert listing.output.decode().split("\n") == [
            "./edit",
            "./keep",
            "./link",
            "./made",
            "./made/m",
            "./odd  name",
            "./old",
            "./old/n",
            "after",
            "new",
            "m",
            "keep/etc/passwd",
            "755",
            "",
        ]
        await fresh.destroy()

    out_mode(out)
    house.run(act())


@broken_by("checks off")
@pytest.mark.parametrize("name", ["d", "d" * 200])
def test_a_bottomless_tree_is_no_trap(house: Place, tmp_path: Path, name: str) -> None:
    """Neither for PID 1's stack nor, later, for whoever removes what was exported."""
    code = f"import os\nfor i in range(1500):\n    os.mkdir('{name}')\n    os.chdir('{name}')\n"

    async def scene(box: Any) -> None:
        assert (await box.exec(["python3", "-c", code])).ok
        await box.freeze()
        with pytest.raises(OutputLimit, match="200 levels"):
            await box.export(["/work"], tmp_path)

    house.play(scene)


def out_mode(folder: Path) -> None:
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, 100_000, 100_000)


@broken_by("export nothing")
def test_only_the_asked_paths_are_exported(house: Place, tmp_path: Path) -> None:
    out_mode(tmp_path)

    async def scene(box: Any) -> None:
        await box.exec("mkdir -p out/deep other; echo a > out/a; echo b > out/deep/b; echo c > other/c; ln -s /etc/passwd out/l")
        await box.freeze()
        got = await box.export(["/work/out", "/work/not-there"], tmp_path)
        assert (tmp_path / "work/out/a").read_text() == "a\n" and (tmp_path / "work/out/deep/b").read_text() == "b\n"
        assert os.readlink(tmp_path / "work/out/l") == "/etc/passwd" and not (tmp_path / "work/other").exists()
        assert got.skipped == ()
        assert (await box.export([], tmp_path)).files == 0

    house.play(scene)


@broken_by("uncapped")
def test_an_export_has_limits(house: Place, tmp_path: Path) -> None:
    async def scene(box: Any) -> None:
        await box.exec("head -c 100000 /dev/zero > big; seq 50 | xargs touch")
        with pytest.raises(PolicyRefused, match="freeze"):
            await box.export(["/work"], tmp_path)
        await box.freeze()
        with pytest.raises(OutputLimit, match="99999"):
            await box.export(["/work"], tmp_path / "none", max_bytes=99_999)
        with pytest.raises(OutputLimit, match="40 files"):
            await box.export(["/work"], tmp_path / "none", max_files=40)

    house.play(scene)


@broken_by("checks off")
@pytest.mark.parametrize("path", ["work", "/work/../etc", "/nul\0"])
def test_exported_paths_are_checked(house: Place, tmp_path: Path, path: str) -> None:
    async def scene(box: Any) -> None:
        await box.freeze()
        with pytest.raises(PolicyRefused, match=r"paths must.*got"):
            await box.export([path], tmp_path)

    house.play(scene)
