"""What travels between a client and a host of sandboxes: values, errors and layers, and what only looks like them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gymsmith.errors import SandboxError, SandboxGone
from sandboxes.base import ExecResult, SandboxSpec
from sandboxes.network import NetworkPolicy
from sandboxes.remote.channel import Broken, pack, pack_error, unpack, unpack_error
from sandboxes.remote.layer_transfer import pack_layer, unpack_layer


def test_values_come_back_as_they_were() -> None:
    spec = SandboxSpec(image="x", env={"A": "\udcff"}, network=NetworkPolicy("proxy", hosts=("a.test",)))
    value: Any = (spec, [b"\0one", {"k": b"two", "n": None}], ExecResult(0, None, b"out", b"err"), 1.5, True, "ä")
    assert unpack(pack(value)) == value
    assert isinstance(unpack_error(pack_error(FileNotFoundError(2, "no", "/x"))), FileNotFoundError)
    assert isinstance(unpack_error(pack_error(SandboxGone("away"))), SandboxGone)
    with pytest.raises(TypeError, match="does not travel"):
        pack(object())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xff\xff\xff",
        pack([b"abc"])[:-1],
        b"\x10\0\0\0" + b'{"d":"Path","f":[]}',
        b'\x02\0\0\0{"',
        b'\x09\0\0\0{"b":-100}',
    ],
)
def test_what_is_no_value_is_broken(data: bytes) -> None:
    with pytest.raises(Broken):
        unpack(data)


def hostile(*members: tuple[str, bytes, str]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.devmajor, info.devminor = kind, target, 8, 0
            tar.addfile(info, io.BytesIO())
    made.seek(0)
    return made


@pytest.mark.parametrize(
    "stream",
    [
        hostile(("../x", tarfile.REGTYPE, "")),
        hostile(("/etc/x", tarfile.REGTYPE, "")),
        hostile(("a", tarfile.SYMTYPE, "/tmp"), ("a/x", tarfile.REGTYPE, "")),
        hostile(("x", tarfile.LNKTYPE, "/etc/passwd")),
        hostile(("x", tarfile.BLKTYPE, "")),
        hostile(("x", tarfile.CHRTYPE, "")),
        hostile(("x", tarfile.FIFOTYPE, "")),
        io.BytesIO(b"no archive at all" * 100),
    ],
)
def test_a_layer_cannot_leave_its_folder(stream: io.BytesIO, tmp_path: Path) -> None:
    stream.seek(0)
    with pytest.raises(SandboxError, match="received"):
        unpack_layer(stream, tmp_path)
    assert not (tmp_path.parent / "x").exists()


def test_equal_layers_have_equal_digests(tmp_path: Path) -> None:
    first = tmp_path / "first"
    (first / "d" / "e").mkdir(parents=True)
    (first / "d" / "f").write_bytes(os.urandom(100_000))
    os.link(first / "d" / "f", first / "hard")
    os.symlink("/nowhere", first / "soft")
    os.chmod(first / "d" / "f", 0o4755)
    if os.geteuid() == 0:
        os.mknod(first / "gone", 0o20600, 0)
        os.setxattr(first / "d", "trusted.overlay.opaque", b"y")
    stream, second = io.BytesIO(), tmp_path / "second"
    digest, size = pack_layer(first, stream)
    second.mkdir()
    stream.seek(0)
    unpack_layer(stream, second)
    assert pack_layer(second) == (digest, size) and (second / "hard").stat().st_nlink == 2
    (second / "d" / "e" / "new").write_bytes(b"")
    assert pack_layer(second)[0] != digest
