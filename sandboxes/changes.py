"""What a sandbox changed, as an overlay layer on the host: written from the entries that its resident agent sends, and read back
as instructions for a provider that cannot stack layers.

Nothing in the stream is followed: names are checked, links are made but never used as a way to somewhere, and set-user-ID bits,
devices, FIFOs and sockets do not cross.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from gymsmith.errors import SandboxError
from sandboxes.base import UID_SHIFT, Exported
from sandboxes.link import put_record

_ENTRY = struct.Struct("<6IQq")
_OPAQUE = "trusted.overlay.opaque"
_OPAQUE_USER = "user.overlay.opaque"


def write_layer(stream: bytes | bytearray, dest: Path, owner_shift: int | None) -> Exported:
    """Write the entries below `dest`, an existing empty directory.

    owner_shift: added to the ids of every entry (as root); None keeps this user as the owner of all.
    """
    view = memoryview(stream)
    root = os.fspath(dest)
    made: set[str] = set()
    opaques: set[str] = set()
    folders: list[tuple[str, int, int]] = []
    skipped: list[str] = []
    files = size = deleted = offset = 0
    while offset < len(view):
        kind, mode, uid, gid, path_length, opaque, length, mtime_ns = _ENTRY.unpack_from(view, offset)
        offset += _ENTRY.size
        name = bytes(view[offset : offset + path_length]).decode("utf-8", "surrogateescape")
        offset += path_length
        letter = chr(kind)
        content = view[offset : offset + length] if letter in "fl" else view[:0]
        offset += len(content)
        parent = _checked_parent(name, made)
        target = os.path.join(root, name)
        if letter == "d":
            if name not in made:
                made.add(name)
                os.mkdir(target, 0o700)
                folders.append((target, mode & 0o1777, mtime_ns))
            if opaque:
                opaques.add(name)
                os.setxattr(target, _OPAQUE if owner_shift is not None else _OPAQUE_USER, b"y")
        elif letter == "f":
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode & 0o777)
            files += 1
            size += length
            os.utime(target, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        elif letter == "l":
            os.symlink(bytes(content), os.fsencode(target))
            files += 1
        elif letter == "w" and name.rpartition("/")[0] in opaques:
            # Nothing below shows through an opaque directory, and a kernel lists a white-out in one as a broken device.
            deleted += 1
            continue
        elif letter == "w":
            os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(0, 0))
            deleted += 1
        else:
            skipped.append("/" + name)
            continue
        if owner_shift is not None:
            os.chown(target, owner_shift + uid, owner_shift + gid, follow_symlinks=False)
            if letter == "f":
                os.chmod(target, mode & 0o777)
        del parent
    # Last, and the deepest first: an ordinary user cannot write below a folder that the agent has closed.
    for target, mode, mtime_ns in reversed(folders):
        os.utime(target, ns=(mtime_ns, mtime_ns))
        os.chmod(target, mode)
    return Exported(files, size, deleted, tuple(skipped))


def _checked_parent(name: str, made: set[str]) -> str:
    """The directory of an entry, which must be one that this stream made. Raises: SandboxError."""
    parent, _, last = name.rpartition("/")
    if last in ("", ".", "..") or "\0" in name or (parent and parent not in made):
        raise SandboxError(f"the resident agent named a path outside the exported tree: {name[:200]!r}")
    return parent


def layer_records(layer: Path) -> Iterator[tuple[bytes, bytes]]:
    """What an overlay layer does, parents first: (path to remove, ended by NUL, or nothing; then a file to put, or nothing)."""
    for folder, folders, files in os.walk(layer):
        inside = folder.removeprefix(str(layer))
        if inside:
            status = os.lstat(folder)
            opaque = any(_attribute(folder, name) == b"y" for name in ("trusted.overlay.opaque", "user.overlay.opaque"))
            yield (os.fsencode(inside) + b"\0" if opaque else b""), _record(inside, status, b"")
        for name in sorted([*files, *(f for f in folders if os.path.islink(os.path.join(folder, f)))]):
            path = os.path.join(folder, name)
            target = f"{inside}/{name}"
            status = os.lstat(path)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                yield os.fsencode(target) + b"\0", b""
            elif stat.S_ISLNK(status.st_mode):
                yield b"", _record(target, status, os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(status.st_mode):
                yield b"", _record(target, status, Path(path).read_bytes())


def _record(path: str, status: os.stat_result, data: bytes) -> bytes:
    shifted = status.st_uid >= UID_SHIFT
    uid, gid = (status.st_uid - UID_SHIFT, status.st_gid - UID_SHIFT) if shifted else (0, 0)
    return put_record(path, data, status.st_mode & 0o171777, uid, max(gid, 0))


def _attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return b""
