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
from typing import BinaryIO

from gymsmith.errors import BuildError, StoreError
from sandboxes.base import UID_SHIFT

MAX_LINKS = 40
MAX_DEPTH = 200
"""Deeper trees are traps for whoever walks or removes them later."""
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


def lookup(layers: Sequence[Path], path: str, *, follow_last: bool = True) -> tuple[str, Entry | None]:
    """The path inside with every symlink resolved, and its entry; a path that does not exist is resolved as far as it does.

    follow_last: also resolve a symlink in the last place. Raises: BuildError: too many symlinks.
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
        if entry is not None and entry.is_link and (pending or follow_last):
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
    """Remove a tree of ours, however deep and also where nobody may enter; what belongs to other ids stays.

    Directories are moved to the top before they are emptied, so no path becomes too long and nothing recurses.
    """
    top = os.fspath(folder)
    pending = [top]
    moved = 0
    while pending:
        place = pending.pop()
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
            for name in os.listdir(place):
                path = f"{place}/{name}"
                with contextlib.suppress(OSError):
                    if not stat.S_ISDIR(os.lstat(path).st_mode):
                        os.unlink(path)
                    elif place == top:
                        pending.append(path)
                    else:
                        moved += 1
                        os.rename(path, f"{top}/.moved-{moved}")
                        pending.append(f"{top}/.moved-{moved}")
            if place != top:
                os.rmdir(place)
    with contextlib.suppress(OSError):
        os.rmdir(top)


def inside_ids(status: os.stat_result) -> tuple[int, int]:
    """Owner and group inside of something that lies in a layer."""
    return (status.st_uid - UID_SHIFT, status.st_gid - UID_SHIFT) if AS_ROOT else (0, 0)


def check_owner(tree: Path) -> None:
    """Layers belong to whom this process gives them; looked at once, at a layer's root, before it is used.

    Inside a sandbox anything else would belong to nobody, and every write there be denied.
    Raises: StoreError: the layer is another user's, or was copied without its owners. FileNotFoundError.
    """
    try:
        # an ordinary user's layer may have been given to an id inside by RUN chown, but never the folder that it lies in
        owner = os.lstat(tree if AS_ROOT else tree.parent).st_uid
        good = UID_SHIFT <= owner < UID_SHIFT + 65_536 if AS_ROOT else owner == os.geteuid()
    except PermissionError:
        owner, good = 0, False
    if not good:
        wanted = f"an id from {UID_SHIFT} on" if AS_ROOT else f"user {os.geteuid()}"
        raise StoreError(
            f"layer {tree} must belong to {wanted}, it is another user's ({owner}) or was copied without its owners; "
            "copy the state folder with cp -a as root, or set GYMSMITH_HOME to another one"
        )


class LayerWriter:
    """Entries of one new layer at `root`, an existing empty directory that nobody else writes to.

    Paths are resolved and absolute. Directories on the way are made by this object or refused, so nothing is ever written
    through a link. Owners are ids inside. As root they are stored shifted by UID_SHIFT; an ordinary user cannot give files away,
    so what belongs to somebody else than root inside is opened to everybody instead.
    """

    def __init__(self, root: Path, below: Sequence[Path]) -> None:
        self.root = str(root)
        self.below = tuple(below)
        self._known: set[str] = {"/"}
        inherited = os.lstat(self.below[0]) if self.below else None
        os.chmod(self.root, stat.S_IMODE(inherited.st_mode) if inherited else 0o755)
        if AS_ROOT:
            os.chown(self.root, UID_SHIFT, UID_SHIFT)

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0, *, anew: bool = False) -> None:
        """Make `path` and its missing parents with that owner; what exists keeps its mode and owner, unless `anew`."""
        if path not in self._known:
            if path.count("/") > MAX_DEPTH:
                raise BuildError(f"{path[:80]}...: a tree may be {MAX_DEPTH} levels deep, this is deeper")
            self._parents(path, uid, gid)
            _, entry = lookup(self.below, path, follow_last=False)
            target = self.root + path
            try:
                os.mkdir(target)
            except FileExistsError:
                raise BuildError(f"{path}: a directory is needed here, the same step puts a file at this place") from None
            self._known.add(path)
            if entry is not None and not entry.is_dir and not anew:
                raise BuildError(f"{path}: a directory is needed here, the image has a file at this place")
            if entry is not None and entry.is_dir and not anew:
                os.chmod(target, stat.S_IMODE(entry.status.st_mode))
                if AS_ROOT:
                    os.chown(target, entry.status.st_uid, entry.status.st_gid)
                return
        elif not anew:
            return
        self._own(self.root + path, mode, uid, gid)

    def file(self, path: str, data: bytes | BinaryIO, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Write a file; a later write of the same layer replaces an earlier one."""
        target = self._place(path, uid, gid)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(handle, "wb", buffering=0) as file:
            if isinstance(data, bytes):
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
            else:
                shutil.copyfileobj(data, file, 1 << 20)
            self._own(handle, mode, uid, gid)

    def copy(self, path: str, source: str, mode: int, uid: int = 0, gid: int = 0) -> None:
        """Write a file with the content of a regular file of another layer, which the kernel copies or shares."""
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as content:
            self.file(path, content, mode, uid, gid)

    def link(self, path: str, target: str, uid: int = 0, gid: int = 0) -> None:
        """Make a symlink; the target is text and is not looked at."""
        place = self._place(path, uid, gid)
        os.symlink(target, place)
        if AS_ROOT:
            os.lchown(place, UID_SHIFT + uid, UID_SHIFT + gid)

    def same(self, path: str, other: str) -> None:
        """Make `path` another name of the file or link `other` of this layer; one that lies below is brought up first.

        Raises: BuildError: there is no such file.
        """
        parent, _, last = other.rpartition("/")
        if (parent or "/") not in self._known or not os.path.lexists(self.root + other):
            _, entry = lookup(self.below, parent or "/")
            found = child(entry.places, last) if entry is not None else None
            if found is None or not stat.S_ISREG(found.status.st_mode):
                raise BuildError(f"{path}: a hard link must lead to a file of the same image, {other[:200]!r} is none")
            self.copy(other, found.places[0], stat.S_IMODE(found.status.st_mode), *inside_ids(found.status))
        status = os.lstat(self.root + other)
        if stat.S_ISDIR(status.st_mode):
            raise BuildError(f"{path}: a hard link must lead to a file of the same image, {other[:200]!r} is a directory")
        place = self._place(path, 0, 0)
        os.link(self.root + other, place, follow_symlinks=False)

    def fifo(self, path: str, mode: int, uid: int = 0, gid: int = 0) -> None:
        """Make a named pipe."""
        place = self._place(path, uid, gid)
        os.mkfifo(place)
        self._own(place, mode, uid, gid)

    def whiteout(self, path: str) -> None:
        """Delete `path` of the layers below."""
        if lookup(self.below, path, follow_last=False)[1] is not None and not os.path.lexists(self.root + path):
            os.mknod(self._place(path, 0, 0), stat.S_IFCHR | 0o600, os.makedev(0, 0))

    def opaque(self, path: str) -> None:
        """The directory hides what lies below it."""
        self.directory(path)
        os.setxattr(self.root + path, OPAQUE, b"y", follow_symlinks=False)

    def _parents(self, path: str, uid: int, gid: int) -> None:
        self.directory(path.rpartition("/")[0] or "/", 0o755, uid, gid)

    def _place(self, path: str, uid: int, gid: int) -> str:
        """Where to make something that is no directory; a file that this layer has there is removed."""
        self._parents(path, uid, gid)
        if path in self._known:
            raise BuildError(f"{path}: a file is to be written here, the same step makes a directory at this place")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root + path)
        return self.root + path

    @staticmethod
    def _own(target: str | int, mode: int, uid: int, gid: int) -> None:
        if AS_ROOT:
            os.chown(target, UID_SHIFT + uid, UID_SHIFT + gid)
        elif uid != 0:
            mode |= (mode >> 6) & 0o7
        os.chmod(target, mode)
