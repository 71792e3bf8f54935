"""One overlay layer being written on the host, and the merged view of the layers below it.

Nothing here follows a symlink of the host: a path inside an image is walked one name at a time over the layers' directories, and
symlinks met on the way are resolved inside the image. A layer is written into a private directory that holds only what this
file created, and becomes visible by one rename.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gymsmith.errors import BuildError
from sandboxes.base import UID_SHIFT

MAX_LINKS = 40
AS_ROOT = os.geteuid() == 0
OPAQUE = "trusted.overlay.opaque" if AS_ROOT else "user.overlay.opaque"
"""The mark of a directory that hides what the layers below have at its place."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the merged layers have at one path."""

    places: tuple[str, ...]
    """Host paths, topmost first; more than one only for a merged directory."""
    status: os.stat_result

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.status.st_mode)


def is_whiteout(status: os.stat_result) -> bool:
    """A deletion in overlayfs: character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: str) -> bool:
    """The directory replaces, and does not extend, what lies below it."""
    try:
        return os.getxattr(directory, OPAQUE, follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOTSUP):
            return False
        raise


def child(places: Sequence[str], name: str) -> Entry | None:
    """The entry `name` of the merged directory `places` (host paths, topmost first), None when there is none."""
    found: list[str] = []
    status: os.stat_result | None = None
    for place in places:
        path = f"{place}/{name}"
        try:
            here = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        if is_whiteout(here):
            break
        if not stat.S_ISDIR(here.st_mode):
            if status is None:
                found, status = [path], here
            break
        found.append(path)
        status = status or here
        if is_opaque(path):
            break
    return None if status is None else Entry(tuple(found), status)


def names(entry: Entry) -> list[str]:
    """Names in a merged directory, sorted."""
    listed = {name for place in entry.places for name in os.listdir(place)}
    return sorted(name for name in listed if child(entry.places, name) is not None)


def lookup(layers: Sequence[Path], path: str) -> tuple[str, Entry | None]:
    """The path inside with every symlink resolved, and its entry; a path that does not exist is resolved as far as it does.

    Raises: BuildError: too many symlinks.
    """
    roots = tuple(map(str, layers))
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[tuple[str, Entry | None]] = []
    links = 0
    top = Entry(roots, os.lstat(roots[0])) if roots else None
    while pending:
        part = pending.pop()
        if part == "..":
            if done:
                done.pop()
            continue
        parent = done[-1][1] if done else top
        entry = child(parent.places, part) if parent is not None and parent.is_dir else None
        if entry is not None and entry.is_link:
            links += 1
            if links > MAX_LINKS:
                raise BuildError(f"{path}: more than {MAX_LINKS} symbolic links on the way; a loop in the image?")
            target = os.readlink(entry.places[0])
            if target.startswith("/"):
                done.clear()
            pending += [word for word in reversed(target.split("/")) if word not in ("", ".")]
            continue
        done.append((part, entry))
    return "/" + "/".join(name for name, _ in done), (done[-1][1] if done else top)


def discard(folder: Path) -> None:
    """Remove a tree of ours, also where it holds directories that nobody may enter; what belongs to other ids stays."""

    def unlock(_: object, path: str, __: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            if os.path.isdir(path) and not os.path.islink(path):
                os.chmod(path, 0o700)
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)

    shutil.rmtree(folder, onerror=unlock)


class LayerWriter:
    """Files and directories of one new layer at `root`, an existing empty directory that nobody else writes to.

    Owners are ids inside. As root they are stored shifted by UID_SHIFT; an ordinary user cannot give files away, so what belongs
    to somebody else than root inside is opened to everybody instead.
    """

    def __init__(self, root: Path, below: Sequence[Path]) -> None:
        self.root = str(root)
        self.below = tuple(below)
        self._known: set[str] = {"/"}
        inherited = os.lstat(self.below[0]) if self.below else None
        os.chmod(self.root, stat.S_IMODE(inherited.st_mode) if inherited else 0o755)
        if AS_ROOT:
            os.chown(self.root, UID_SHIFT, UID_SHIFT)

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make `path` (resolved, absolute) and its parents with that owner; what exists below keeps its mode and owner."""
        if path in self._known:
            return
        self.directory(path.rpartition("/")[0] or "/", 0o755, uid, gid)
        _, entry = lookup(self.below, path)
        target = self.root + path
        try:
            os.mkdir(target)
        except FileExistsError:
            raise BuildError(f"{path}: a directory is needed here, the same step puts a file at this place") from None
        if entry is not None and not entry.is_dir:
            raise BuildError(f"{path}: a directory is needed here, the image has a file at this place")
        if entry is None:
            self._own(target, mode, uid, gid)
        else:
            os.chmod(target, stat.S_IMODE(entry.status.st_mode))
            if AS_ROOT:
                os.chown(target, entry.status.st_uid, entry.status.st_gid)
        self._known.add(path)

    def file(self, path: str, data: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Write a file at `path` (resolved, absolute); a later write of the same layer replaces an earlier one."""
        self.directory(path.rpartition("/")[0] or "/", 0o755, uid, gid)
        target = self.root + path
        if path in self._known:
            raise BuildError(f"{path}: a file is to be written here, the same step makes a directory at this place")
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            self._own(handle, mode, uid, gid)
        finally:
            os.close(handle)

    def link(self, path: str, target: str) -> None:
        """Make a symlink at `path`, owned by root inside; the target is text and is not looked at."""
        self.directory(path.rpartition("/")[0] or "/")
        os.symlink(target, self.root + path)
        if AS_ROOT:
            os.lchown(self.root + path, UID_SHIFT, UID_SHIFT)

    @staticmethod
    def _own(target: str | int, mode: int, uid: int, gid: int) -> None:
        if AS_ROOT:
            os.chown(target, UID_SHIFT + uid, UID_SHIFT + gid)
        elif uid != 0:
            mode |= (mode >> 6) & 0o7
        os.chmod(target, mode)
