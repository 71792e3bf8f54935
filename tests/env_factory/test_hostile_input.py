"""Archives, folders and files made to hurt whoever reads them: each ends in a typed error, and nothing is stored or written."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from env_factory import archive as archives
from env_factory import exchange, sources
from gymsmith.errors import NotFound, PolicyRefused, SourceError
from tests.env_factory.conftest import Doorway
from tests.env_factory.foreign_tasks import theirs

MIB = 1024 * 1024
Build = Callable[[Path], Path]


def tar(*entries: tuple[str, dict[str, Any], bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as packed:  # type: ignore[call-overload]
        for name, fields, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            packed.addfile(info, io.BytesIO(data))
    return out.getvalue()


def archive(name: str, data: Callable[[], bytes]) -> Build:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data())
        return folder / name

    return build


def zipped(*entries: tuple[str, bytes], flags: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as packed:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            packed.writestr(info, data)
    made = bytearray(out.getvalue())
    if flags:
        for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = made.find(mark)
            struct.pack_into("<H", made, start + at, flags)
    return bytes(made)


def header_bomb() -> bytes:
    """An extended header that says it is 64 MiB long."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 64 * MIB
    return info.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 4096


def lying_size() -> bytes:
    """A member that says it is larger than the archive."""
    info = tarfile.TarInfo("task.toml")
    info.size = 7 * MIB
    return info.tobuf(tarfile.USTAR_FORMAT) + b"x" * 512


def negative_size() -> bytes:
    made = bytearray(tarfile.TarInfo("task.toml").tobuf(tarfile.GNU_FORMAT))
    made[124:136] = b"\xff" * 12
    made[148:156] = b"        "
    made[148:156] = f"{sum(made[:512]):06o}\0 ".encode()
    return bytes(made) + b"\0" * 1024


def task(change: dict[str, bytes]) -> Build:
    def build(folder: Path) -> Path:
        for path, data in (dict(theirs().files) | change).items():
            target = folder / "task" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return folder / "task"

    return build


def linked(where: str, to: str) -> Build:
    def build(folder: Path) -> Path:
        place = task({})(folder) / where
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(to)
        return folder / "task"

    return build


def piped(folder: Path) -> Path:
    os.mkfifo(task({})(folder) / "tests/pipe")
    return folder / "task"


BOMB = b"\0" * (9 * MIB)
HOSTILE: dict[str, tuple[Build, type[Exception]]] = {
    "tar that climbs": (archive("a.tar", lambda: tar(("x/../../../etc/owned", {}, b"x"))), PolicyRefused),
    "tar with an absolute path": (archive("a.tar", lambda: tar(("/etc/owned", {}, b"x"))), PolicyRefused),
    "tar with a backslash": (archive("a.tar", lambda: tar(("x\\..\\owned", {}, b"x"))), PolicyRefused),
    "tar with control characters": (archive("a.tar", lambda: tar(("x/\x1b[2Jowned", {}, b"x"))), PolicyRefused),
    "tar with a link out": (
        archive("a.tar", lambda: tar(("task.toml", {}, b""), ("tests", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, b""))),
        PolicyRefused,
    ),
    "tar that writes through its link": (
        archive("a.tar", lambda: tar(("d", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}, b""), ("d/task.toml", {}, b""))),
        SourceError,
    ),
    "tar with a hard link out": (
        archive("a.tar", lambda: tar(("task.toml", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b""))), SourceError
    ),
    "tar with a device": (
        archive("a.tar", lambda: tar(("task.toml", {"type": tarfile.BLKTYPE, "devmajor": 8}, b""))), SourceError
    ),
    "tar with a pipe": (archive("a.tar", lambda: tar(("task.toml", {"type": tarfile.FIFOTYPE}, b""))), SourceError),
    "tar that is a file and a folder": (archive("a.tar", lambda: tar(("a", {}, b""), ("a/task.toml", {}, b""))), SourceError),
    "tar bomb": (archive("a.tar.gz", lambda: tar(("task.toml", {}, BOMB), mode="w:gz")), PolicyRefused),
    "tar of many small bombs": (
        archive("a.tar.bz2", lambda: tar(*((f"{n}", {}, BOMB[: 3 * MIB]) for n in range(3)), mode="w:bz2")), PolicyRefused
    ),
    "tar with a huge header": (archive("a.tar", header_bomb), PolicyRefused),
    "tar that lies about a size": (archive("a.tar", lying_size), SourceError),
    "tar with a negative size": (archive("a.tar", negative_size), SourceError),
    "tar that is torn": (archive("a.tar.gz", lambda: gzip.compress(tar(("task.toml", {}, b"x" * 9000)))[:60]), SourceError),
    "tar with a name that is no text": (archive("a.tar", lambda: tar(("x/\udcff", {}, b"x"))), PolicyRefused),
    "zip that climbs": (archive("a.zip", lambda: zipped(("../owned", b"x"))), PolicyRefused),
    "zip bomb": (archive("a.zip", lambda: zipped(("task.toml", BOMB))), PolicyRefused),
    "zip of many small bombs": (archive("a.zip", lambda: zipped(*((f"{n}", BOMB[: 3 * MIB]) for n in range(3)))), PolicyRefused),
    "zip with a password": (archive("a.zip", lambda: zipped(("task.toml", b"x"), flags=1)), SourceError),
    "zip that is torn": (archive("a.zip", lambda: zipped(("task.toml", b"x" * 900))[:40]), SourceError),
    "no archive at all": (archive("a.tar.gz", lambda: b"MZ" + b"\0" * 100), SourceError),
    "folder with a link to a secret": (linked("tests/secret", "/etc/shadow"), PolicyRefused),
    "folder with a linked folder": (linked("environment/home", "/root"), PolicyRefused),
    "folder whose settings are a link": (linked("task.toml", "/etc/passwd"), PolicyRefused),
    "task repository whose settings are a link": (linked("sweb.yaml", "/etc/passwd"), PolicyRefused),
    "folder with a pipe": (piped, PolicyRefused),
    "settings that nest without end": (task({"task.toml": b"x = " + b"[" * 100_000}), SourceError),
    "a Dockerfile from the host's variables": (task({"task.toml": b'[environment.env]\nA = "${HOME}"\n'}), SourceError),
    "a working directory that breaks out of its line": (
        task({"task.toml": b'[environment]\nworkdir = "/x\\nRUN evil"\n'}), SourceError
    ),
    "an image that breaks out of its line": (
        task({"task.toml": b'[environment]\ndocker_image = "x\\nRUN evil"\n'}), SourceError
    ),
    "an artifact above everything": (task({"task.toml": b'artifacts = ["/../etc"]\n'}), SourceError),
    "aliases that unfold": (
        archive("b.zip", lambda: zipped(("task.yaml", b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"))), SourceError
    ),
    "YAML that calls": (
        archive("b.zip", lambda: zipped(("task.yaml", b"!!python/object/apply:os.system ['true']"))), SourceError
    ),
    "JSON that nests without end": (archive("a.json", lambda: b"[" * 200_000), SourceError),
    "a line whose member climbs": (
        archive("a.jsonl", lambda: json.dumps(
            {"format": "gymsmith.task/1", "files": {"tests/../../owned": {"text": ""}}, "source": {"uri": "x", "kind": "harbor"},
             "spec": {"name": "a/b", "kind": "x"}, "instruction": "x"}
        ).encode()), PolicyRefused,
    ),
    "parquet that is none": (archive("a.parquet", lambda: b"PAR1" + b"\xff" * 64 + b"PAR1"), SourceError),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_made_to_hurt_ends_in_a_typed_error(
    name: str, elsewhere: Doorway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, error = HOSTILE[name]
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 8 * MIB)
    (tmp_path / "in").mkdir()
    place = build(tmp_path / "in")
    before = {path for path in tmp_path.rglob("*") if "elsewhere" not in path.parts}
    with pytest.raises(error):
        exchange.bring_in({"path": str(place)}, elsewhere)
    assert {path for path in tmp_path.rglob("*") if "elsewhere" not in path.parts} == before
    assert elsewhere.store.environment_ids(status=None) == [] and not elsewhere.settings.tasks_dir.exists()
    assert not any(Path(root, "owned").exists() for root in ("/etc", "/tmp", "/"))
    if place.is_file() and place.suffix in (".tar", ".gz", ".bz2", ".zip") and "task" not in name:
        # As a repository an archive may be fine; it must never fail in another way.
        with contextlib.suppress(SourceError, PolicyRefused, NotFound):
            sources.read(f"archive:{place}", elsewhere.settings)


def test_the_set_is_large_enough() -> None:
    assert len(HOSTILE) >= 25
