"""What crosses from an agent's sandbox into its verifier's: changes at the declared paths, as one overlay layer.

`collect` copies them out of the frozen sandbox; no code of the sandbox runs. `Artifacts.admit`, on the host, then removes what
must not cross: protected names, special files, set-id bits, symlinks that lead to the hidden tests, the reports or /proc.
Symlinks stay symlinks and are never followed here. Deletions cross as white-outs; where the agent deleted or replaced a directory
that holds protected files, the deletion is spelled out name by name so that the pristine protected files show again.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gymsmith.errors import OutputLimit
from gymsmith.taskdir import Task
from sandboxes.base import MIB, UID_SHIFT, USERS, Image, Sandbox
from sandboxes.image.layer import AS_ROOT, OPAQUE, Entry, child, discard, is_opaque, is_whiteout, lookup, names
from sandboxes.reaper import pid_namespace

MAX_BYTES = 64 * MIB
MAX_FILES = 10_000
FORBIDDEN = ("/tests", "/solution", "/logs", "/proc", "/sys", "/dev")
"""No artifact lies here and no carried symlink leads here or above (/dev/null excepted)."""
SHARED = ("/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var")
"""What "shared" tasks carry besides their artifacts: everything that a workload may have changed."""
LOADER = ("/etc/ld.so.preload", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ld.so.cache")
"""What decides which code every program loads: never carried."""
_PREFIX = "gymsmith-artifacts-"
_swept: list[int] = []
"""How many left-overs this process removed before its first use; empty until then."""
_AGENT, _TESTER = UID_SHIFT + USERS["agent"][0], UID_SHIFT + USERS["tester"][0]


@dataclass(slots=True, weakref_slot=True)
class Artifacts:
    """An overlay layer in a directory of the host, removed with this object or by `close`."""

    layer: Path
    roots: tuple[str, ...]
    protected: tuple[str, ...]
    refused: str = ""
    """Why nothing crosses at all: what the agent left is larger than allowed. The verdict is then 0 without running a test."""
    dropped: list[str] = field(default_factory=list)
    """What was not admitted, with the reason; for people."""
    closed: dict[str, int] = field(default_factory=dict)
    """Path inside -> mode of the files that only their owner may read and that this process could not give to the tester: the
    verifier has root-inside write them again, as the tester's."""
    keeps_owner: bool = False
    """What the agent owned stays the agent's id's, for services that run as it; else the tests' user owns it."""
    _admitted: bool = False
    _finalizer: weakref.finalize | None = None

    __hash__ = object.__hash__

    def close(self) -> None:
        """Remove the directory. Idempotent."""
        if self._finalizer is not None:
            self._finalizer()

    def copy(self) -> Artifacts:
        """The same in a directory of its own, owners, modes and deletions kept; to be closed by its owner. Call after `admit`."""
        layer = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{mark()}-", dir=scratch_dir()))
        subprocess.run(["cp", "-a", "--", f"{self.layer}/.", str(layer)], check=True, capture_output=True)
        made = replace(self, layer=layer, dropped=list(self.dropped), closed=dict(self.closed))
        made._finalizer = weakref.finalize(made, discard, layer)
        return made

    def admit(self, image: Image) -> Sequence[Path]:
        """The layers to put above `image`: this one, cleaned once; nothing when nothing changed."""
        if not self._admitted:
            gate = _Gate(self, image)
            for root in self.roots:
                gate.root(root)
                gate.parents(root)
            self._admitted = True
        return [self.layer] if os.listdir(self.layer) else []


async def collect(sandbox: Sandbox, task: Task) -> Artifacts:
    """Freeze the sandbox and copy what the task declares as artifacts. The sandbox is to be destroyed next.

    Raises: SandboxError: the sandbox did not answer. What the agent did wrong is never an exception.
    """
    if not _swept:
        _swept.append(sweep())
    shared = SHARED if task.spec.verifier_mode == "shared" else ()
    wanted = sorted({path.rstrip("/") for path in (*task.spec.artifacts, *shared) if not _forbidden(path.rstrip("/") or "/")})
    roots = tuple(path for path in wanted if not any(path.startswith(f"{other}/") for other in wanted))
    layer = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{mark()}-", dir=scratch_dir()))
    artifacts = Artifacts(layer, roots, task.spec.protected, keeps_owner=bool(task.spec.services))
    artifacts._finalizer = weakref.finalize(artifacts, discard, layer)
    await sandbox.freeze()
    try:
        await sandbox.export(roots, layer, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    except OutputLimit as error:
        artifacts.refused = f"the artifacts are larger than {MAX_BYTES // MIB} MiB or {MAX_FILES} files: {error}"
    os.chmod(layer, 0o755)
    if AS_ROOT:
        os.chown(layer, UID_SHIFT, UID_SHIFT)
    return artifacts


def mark() -> str:
    """Whose artifacts these are: a pid means something only within its namespace, and machines share /dev/shm among several."""
    return f"{os.getpid()}.{pid_namespace()}"


def scratch_dir() -> str:
    """A directory for artifacts: memory where there is plenty (a layer lives for milliseconds), else the temporary directory."""
    if AS_ROOT and os.access("/dev/shm", os.W_OK):
        free = os.statvfs("/dev/shm")
        if free.f_bavail * free.f_frsize > 32 * MAX_BYTES:
            return "/dev/shm"
    return tempfile.gettempdir()


def sweep() -> int:
    """Remove what processes that are gone have left behind (killed between `collect` and the verdict); returns how many."""
    removed = 0
    for folder in {scratch_dir(), tempfile.gettempdir()}:
        for name in os.listdir(folder):
            owner, _, room = (name[len(_PREFIX) :].partition("-")[0] if name.startswith(_PREFIX) else "").partition(".")
            if owner.isdecimal() and room == pid_namespace() and not os.path.exists(f"/proc/{owner}"):
                discard(Path(folder, name))
                removed += 1
    return removed


def leads_out(link: str, target: str) -> bool:
    """Whether a symlink at `link` (a path inside) may lead to a forbidden place.

    `..` is only understood at the front of a relative target, where the link's own directory says where it leads: behind another
    name, which may itself be a link, it could lead anywhere.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    base: list[str] = [] if target.startswith("/") else link.split("/")[1:-1]
    while parts and parts[0] == ".." and not target.startswith("/"):
        parts.pop(0)
        base = base[:-1]
    if ".." in parts:
        return True
    path = "/" + "/".join([*base, *parts])
    return path == "/" or (_forbidden(path) and path != "/dev/null")


def _forbidden(path: str) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in FORBIDDEN) or path == "/"


class _Gate:
    """One admission: walks the exported tree beside the image's own."""

    def __init__(self, artifacts: Artifacts, image: Image) -> None:
        self.artifacts = artifacts
        self.image = image
        self.patterns = artifacts.protected

    def root(self, path: str) -> None:
        """Admit everything below one artifact root."""
        place = f"{self.artifacts.layer}{path}"
        above = path
        while above:
            above = above.rpartition("/")[0]
            if above and os.path.islink(f"{self.artifacts.layer}{above}"):
                return self._leaf(f"{self.artifacts.layer}{above}", above, os.lstat(f"{self.artifacts.layer}{above}"))
        try:
            status = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return None
        lower = lookup(self.image.layers, path)[1] if self.image.layers else None
        if stat.S_ISDIR(status.st_mode):
            return self._directory(place, path, "", status, lower, hidden=False)
        return self._leaf(place, path, status)

    def parents(self, path: str) -> None:
        """Directories above a root are no artifacts: they are as the image has them, and gone where nothing is left below."""
        above = path.rpartition("/")[0]
        while above:
            place = f"{self.artifacts.layer}{above}"
            if os.path.isdir(place) and not os.path.islink(place):
                if not os.listdir(place):
                    os.rmdir(place)
                elif (entry := lookup(self.image.layers, above)[1]) is not None and entry.is_dir:
                    os.chmod(place, stat.S_IMODE(entry.status.st_mode))
                    if AS_ROOT:
                        os.chown(place, entry.status.st_uid, entry.status.st_gid)
            above = above.rpartition("/")[0]

    def _directory(self, place: str, path: str, below: str, status: os.stat_result, lower: Entry | None, hidden: bool) -> None:
        """`lower`: what the image has here; `hidden`: a directory above was to hide it, and no longer does.

        A directory in which nothing is left that differs from the image's goes: what it says is what the image says.
        """
        self._own(place, status)
        if not AS_ROOT:
            os.chmod(place, stat.S_IMODE(status.st_mode) | 0o700)
        lower = lower if lower is not None and lower.is_dir else None
        replaces = lower is not None and (hidden or is_opaque(place))
        spell_out = replaces and lower is not None and self._holds_protected(lower, below)
        if spell_out:
            with contextlib.suppress(OSError):
                os.removexattr(place, OPAQUE)
        elif hidden and replaces:
            os.setxattr(place, OPAQUE, b"y")
        with os.scandir(place) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        for entry in listed:
            inner = f"{below}/{entry.name}" if below else entry.name
            here = entry.stat(follow_symlinks=False)
            folder = stat.S_ISDIR(here.st_mode)
            under = child(lower.places, entry.name) if lower is not None and (folder or self.patterns) else None
            if self._protected(inner) or f"{path}/{entry.name}" in LOADER:
                self._drop(entry.path, f"{path}/{entry.name}", "protected", here)
            elif folder:
                self._directory(entry.path, f"{path}/{entry.name}", inner, here, under, hidden=spell_out)
            elif is_whiteout(here):
                if under is not None and under.is_dir and self._holds_protected(under, inner):
                    os.unlink(entry.path)
                    self._delete_around(entry.path, inner, under)
            else:
                self._leaf(entry.path, f"{path}/{entry.name}", here)
        if spell_out and lower is not None:
            self._delete_around(place, below, lower)
        if lower is not None and not replaces:
            same = (status.st_mode, status.st_uid) == (lower.status.st_mode, lower.status.st_uid)
            if same and not os.listdir(place):
                os.rmdir(place)

    def _delete_around(self, place: str, below: str, lower: Entry) -> None:
        """White out each name that the image has here and the layer has not, except protected ones and what leads to them."""
        if not os.path.isdir(place):
            os.mkdir(place)
            os.chmod(place, stat.S_IMODE(lower.status.st_mode))
            if AS_ROOT:
                os.chown(place, lower.status.st_uid, lower.status.st_gid)
        present = set(os.listdir(place))
        for name in names(lower):
            inner = f"{below}/{name}" if below else name
            if name in present or self._protected(inner):
                continue
            under = child(lower.places, name)
            if under is not None and under.is_dir and self._holds_protected(under, inner):
                self._delete_around(f"{place}/{name}", inner, under)
            else:
                os.mknod(f"{place}/{name}", stat.S_IFCHR, os.makedev(0, 0))

    def _leaf(self, place: str, path: str, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(place)
            if leads_out(path, target):
                self._drop(place, path, f"a symlink to {target[:80]!r}", status)
                return
        elif not stat.S_ISREG(status.st_mode) and not is_whiteout(status):
            self._drop(place, path, "a special file", status)
            return
        self._own(place, status)

    def _own(self, place: str, status: os.stat_result) -> None:
        """The tests' user owns what the agent owned, whatever its mode, or the services' does; nothing is set-id."""
        if AS_ROOT and status.st_uid == _AGENT and not self.artifacts.keeps_owner:
            os.lchown(place, _TESTER, _TESTER)
        if stat.S_ISLNK(status.st_mode) or is_whiteout(status):
            return
        mode = stat.S_IMODE(status.st_mode) & 0o1777
        if not AS_ROOT and stat.S_ISDIR(status.st_mode):
            mode |= (mode >> 6) & 0o7
        elif not AS_ROOT and mode & 0o400 and (mode >> 6) & ~mode & 0o5:
            self.artifacts.closed[place.removeprefix(str(self.artifacts.layer))] = mode
        if mode != stat.S_IMODE(status.st_mode):
            os.chmod(place, mode)

    def _drop(self, place: str, path: str, why: str, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            discard(Path(place))
        else:
            os.unlink(place)
        if len(self.artifacts.dropped) < 50:
            named = path[:200].encode(errors="backslashreplace").decode()  # a verdict holds UTF-8, a file name any bytes
            self.artifacts.dropped.append(f"{named}: {why}")

    def _protected(self, below: str) -> bool:
        """A pattern without a slash means that name at any depth, one with a slash the path from the artifact root."""
        name = below.rpartition("/")[2]
        for pattern in self.patterns:
            clean = pattern.strip("/")
            clean = clean[:-3] if clean.endswith("/**") else clean
            if "/" not in clean:
                if fnmatch.fnmatchcase(name, clean):
                    return True
            elif fnmatch.fnmatchcase(below, clean) or (clean.startswith("**/") and fnmatch.fnmatchcase(below, clean[3:])):
                return True
        return False

    def _holds_protected(self, entry: Entry, below: str) -> bool:
        if not self.patterns:
            return False
        for name in names(entry):
            inner = f"{below}/{name}" if below else name
            under = child(entry.places, name)
            if self._protected(inner) or (under is not None and under.is_dir and self._holds_protected(under, inner)):
                return True
        return False
