"""The layers of one machine: content-addressed directories, each with a seal that tells whether it still is what was written.

A layer and its seal appear under their final name by one rename: a reader never sees half of one, and of two processes that
make the same key the second finds the first one's. The seal is a hash over what `lstat` says of every entry (type, mode, owner,
size, time of last change, link target); it is checked when a process first uses a layer, and a layer that fails is made again.
Contents are not read for that: a change that keeps size and time is not found.

    ROOT/layers/KEY/tree      one overlay layer, owners shifted as `sandboxes.base` says
    ROOT/layers/KEY/seal
    ROOT/locks, ROOT/tmp      builders at work
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import stat
import time
import uuid
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from sandboxes.image.layer import OPAQUE, check_owner, discard

log = logging.getLogger(__name__)


class Freed(NamedTuple):
    """What a collection removed."""

    layers: int
    bytes: int


class LayerStore:
    """The layers under `root`. Any number of processes may share it; one object belongs to one event loop."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._sound: set[str] = set()
        self._building: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._swept = False

    def tree(self, key: str) -> Path:
        """Where the layer of that key lies, or would lie."""
        return self.root / "layers" / key / "tree"

    def sound(self, key: str) -> bool:
        """The layer is there and is what was written; looked at once per process.

        Raises: StoreError: it is whole and cannot be used, because it belongs to another user (`layer.check_owner`).
        """
        if key in self._sound:
            return self.tree(key).is_dir()
        try:
            sealed = (self.tree(key).parent / "seal").read_text()
        except PermissionError:
            check_owner(self.tree(key))
            raise
        except OSError:
            return False
        if sealed != seal(self.tree(key)):
            log.warning("event=layer_damaged key=%s root=%s", key, self.root)
            return False
        check_owner(self.tree(key))
        self._sound.add(key)
        with contextlib.suppress(OSError):
            os.utime(self.tree(key).parent / "seal")
        return True

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private directory on the store's file system, removed afterwards whatever happened."""
        folder = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        if not self._swept:
            self._swept = True
            self._sweep()
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            discard(folder)

    def _sweep(self) -> None:
        """Remove what builders that were killed have left half-done."""
        for left in (self.root / "tmp").glob("*-*"):
            owner = left.name.partition("-")[0]
            if owner.isdecimal() and not Path("/proc", owner).exists():
                discard(left)

    def publish(self, finished: Path, key: str) -> None:
        """Seal a finished tree, a child of a scratch directory, and give it its name; a sound one that is there stays.

        A damaged one is replaced; call this within `alone(key)` when there may be one.
        """
        target = self.tree(key).parent
        # Files of others lie in here under shifted ids, some with set-user-ID bits: nobody else of this host may enter.
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        package = finished.parent / f"sealed-{finished.name}"
        package.mkdir()
        os.rename(finished, package / "tree")
        (package / "seal").write_text(seal(package / "tree"))
        try:
            os.rename(package, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if self.sound(key):
                return
            os.rename(target, finished.parent / f"damaged-{finished.name}")
            os.rename(package, target)
        self._sound.add(key)

    @contextlib.asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """One builder per key: a lock among the tasks of this process, a lock file among processes (freed when one dies)."""
        lock = self._building.setdefault(key, asyncio.Lock())
        async with lock:
            folder = self.root / "locks"
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while True:
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.05)
                yield
            finally:
                os.close(handle)

    def keys(self) -> list[str]:
        """Every layer that has a name."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(os.listdir(self.root / "layers"))
        return []

    def size(self, key: str) -> int:
        """Bytes on disk of a layer, as far as this process may look."""
        return sum(512 * row.st_blocks for row in _rows(self.tree(key)))

    def collect(self, keep: Collection[str], idle_s: float) -> Freed:
        """Remove layers that are not in `keep` and that no process has begun to use for `idle_s` seconds."""
        layers = size = 0
        before = time.time() - idle_s
        for key in self.keys():
            place = self.tree(key).parent
            with contextlib.suppress(OSError):
                if key in keep or (place / "seal").stat().st_mtime > before:
                    continue
            bytes_here = self.size(key)
            with self.scratch() as scratch, contextlib.suppress(FileNotFoundError):
                os.rename(place, scratch / "layer")
                layers, size = layers + 1, size + bytes_here
            self._sound.discard(key)
        for lock in (self.root / "locks").glob("*"):
            with contextlib.suppress(OSError):
                if lock.stat().st_mtime < before and lock.name not in self._building:
                    _remove_lock(lock)
        return Freed(layers, size)


def seal(tree: Path) -> str:
    """The hash over what is in a layer, names in sorted order. The time of its root is left out: a rename may change it."""
    total = hashlib.sha256()
    pending = [(os.fspath(tree), "")]
    while pending:
        folder, inside = pending.pop()
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            total.update(f"{inside}\0{error.errno}\n".encode("utf-8", "surrogateescape"))
            continue
        rows = [inside]
        with contextlib.suppress(OSError):
            rows.append(os.getxattr(folder, OPAQUE, follow_symlinks=False).decode("latin-1"))
        for name in names:
            path = f"{folder}/{name}"
            status = os.lstat(path)
            kind = status.st_mode
            what = os.readlink(path) if stat.S_ISLNK(kind) else 0 if stat.S_ISDIR(kind) else status.st_size
            rows.append(f"{name}\0{kind}\0{status.st_uid}\0{status.st_gid}\0{what}\0{status.st_rdev}\0{status.st_mtime_ns}")
            if stat.S_ISDIR(kind):
                pending.append((path, f"{inside}/{name}"))
        total.update("\n".join(rows).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _rows(tree: Path) -> Iterator[os.stat_result]:
    for folder, _, files in os.walk(tree):
        for name in (".", *files):
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(folder, name))


def _remove_lock(lock: Path) -> None:
    """Unlink a lock file that nobody holds; whoever opened it meanwhile holds a lock on nothing, and builds for itself."""
    handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.unlink()
    finally:
        os.close(handle)
