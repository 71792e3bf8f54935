"""Overlay layers between machines: a directory as one stream, named by the digest of that stream, and back.

The stream is a tar archive (PAX) in a fixed order with ids as they are inside sandboxes, so that equal layers have equal digests
wherever they lie. Deletions travel as overlayfs keeps them, opaque directories as a record of ours. What is read is not trusted:
names are checked, a parent must be a directory that this very stream made, nothing is followed, devices other than deletions,
FIFOs and sockets are refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from gymsmith.errors import SandboxError
from sandboxes.base import UID_SHIFT
from sandboxes.image.layer import AS_ROOT, OPAQUE

OWN = "own"
"""How the name of a layer begins that one sandbox alone uses, and writes into; no digest does."""
_OPAQUE_RECORD = "GYMSMITH.opaque"
_NAMES = ("trusted.overlay.opaque", "user.overlay.opaque")


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class _Hashing:
    """Writes through, and knows the digest and the length of what went through."""

    def __init__(self, sink: _Sink | None) -> None:
        self._sink = sink
        self._hasher = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hasher.update(data)
        self.size += len(data)
        if self._sink is not None:
            self._sink.write(data)
        return len(data)

    @property
    def digest(self) -> str:
        return self._hasher.hexdigest()


def pack_layer(folder: Path, sink: BinaryIO | None = None) -> tuple[str, int]:
    """Write the stream of a layer; (its SHA-256, its length). Without a sink only that."""
    out = _Hashing(sink)
    linked: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for name, path in _walk(os.fspath(folder)):
            status = os.lstat(path)
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = stat.S_IMODE(status.st_mode), round(status.st_mtime_ns / 1e9, 6)
            shifted = status.st_uid >= UID_SHIFT
            info.uid = status.st_uid - UID_SHIFT if shifted else 0
            info.gid = max(status.st_gid - UID_SHIFT, 0) if shifted else 0
            if stat.S_ISDIR(status.st_mode):
                info.type = tarfile.DIRTYPE
                if any(_attribute(path, attribute) == b"y" for attribute in _NAMES):
                    info.pax_headers = {_OPAQUE_RECORD: "y"}
            elif stat.S_ISLNK(status.st_mode):
                info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
            elif stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                info.type = tarfile.CHRTYPE
            elif not stat.S_ISREG(status.st_mode):
                continue
            elif (status.st_dev, status.st_ino) in linked:
                info.type, info.linkname = tarfile.LNKTYPE, linked[status.st_dev, status.st_ino]
            else:
                if status.st_nlink > 1:
                    linked[status.st_dev, status.st_ino] = name
                info.size = status.st_size
                with open(path, "rb") as file:
                    tar.addfile(info, file)
                continue
            tar.addfile(info)
    return out.digest, out.size


def _walk(root: str) -> Iterator[tuple[str, str]]:
    """(name in the archive, path) of everything, parents first, in the order of names."""
    yield ".", root
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(os.path.join(root, inside)) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            yield os.path.join(inside, entry.name), entry.path
        pending += [os.path.join(inside, e.name) for e in reversed(found) if e.is_dir(follow_symlinks=False)]


def unpack_layer(stream: BinaryIO, folder: Path, *, keep_root: bool = False) -> None:
    """Make the layer in `folder`, an existing empty directory; its own mode and owner too, unless `keep_root`.

    Raises: SandboxError (the stream is not one that `pack_layer` writes).
    """
    root = os.fspath(folder)
    folders: dict[str, float] = {}
    files: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for info in tar:
                if info.name == ".":
                    if not keep_root:
                        _owned(root, info)
                        os.chmod(root, info.mode & 0o7777)
                        _mark(root, info)
                        folders[""] = info.mtime
                    continue
                _make(tar, info, root, folders, files)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise SandboxError(f"a layer that was received cannot be read: {error}") from error
    for name, mtime in reversed(folders.items()):
        _timed(os.path.join(root, name), mtime)


def _make(tar: tarfile.TarFile, info: tarfile.TarInfo, root: str, folders: dict[str, float], files: set[str]) -> None:
    parent, _, last = info.name.rpartition("/")
    if last in ("", ".", "..") or "\0" in info.name or (parent and parent not in folders) or info.name in folders:
        raise SandboxError(f"a layer that was received names a path outside itself: {info.name[:200]!r}")
    target = os.path.join(root, info.name)
    if info.isdir():
        os.mkdir(target)
        _owned(target, info)
        os.chmod(target, info.mode & 0o7777)
        _mark(target, info)
        folders[info.name] = info.mtime
        return
    if info.islnk():
        if info.linkname not in files:
            raise SandboxError(f"a layer that was received links to what it does not hold: {info.linkname[:200]!r}")
        os.link(os.path.join(root, info.linkname), target, follow_symlinks=False)
    elif info.issym():
        os.symlink(info.linkname, target)
        _owned(target, info)
    elif info.ischr() and info.devmajor == info.devminor == 0:
        os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(0, 0))
        _owned(target, info)
    elif info.isreg():
        data = tar.extractfile(info)
        assert data is not None
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            while chunk := data.read(1 << 20):
                file.write(chunk)
        _owned(target, info)
        os.chmod(target, info.mode & 0o7777)
        files.add(info.name)
    else:
        raise SandboxError(f"a layer that was received holds a special file: {info.name[:200]!r}")
    _timed(target, info.mtime)


def _owned(path: str, info: tarfile.TarInfo) -> None:
    if not (0 <= info.uid < 65_536 and 0 <= info.gid < 65_536):
        raise SandboxError(f"a layer that was received has an owner outside 0..65535: {info.uid}:{info.gid}")
    if AS_ROOT:
        os.chown(path, UID_SHIFT + info.uid, UID_SHIFT + info.gid, follow_symlinks=False)


def _timed(path: str, mtime: float) -> None:
    """Microseconds, which a float holds exactly enough to give the same digest again."""
    ns = round(mtime * 1e6) * 1000
    os.utime(path, ns=(ns, ns), follow_symlinks=False)


def _mark(path: str, info: tarfile.TarInfo) -> None:
    if info.pax_headers.get(_OPAQUE_RECORD) == "y":
        os.setxattr(path, OPAQUE, b"y")


def _attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return b""
