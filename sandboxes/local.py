"""The `local` provider: no isolation at all. Commands are ordinary processes of this user below a temporary folder.

It exists so that our own code can be tried where nothing else works. Whatever runs here may do what this process may do, so a
spec that is not marked trusted is refused. A path given to it is one below the folder; a path inside a command is the machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gymsmith.errors import Capacity, NotFound, OutputLimit, PolicyRefused, SandboxGone
from sandboxes.base import (
    MIB,
    Capabilities,
    CommandLine,
    ExecResult,
    Exported,
    Image,
    ImageSource,
    Job,
    JobState,
    Sandbox,
    SandboxSpec,
    Shell,
    Snapshot,
    check_path,
    user_ids,
)
from sandboxes.checks import (
    check_forks,
    check_get,
    check_lease,
    check_put,
    check_put_size,
    check_run,
    check_timeout,
    words_of,
)
from sandboxes.local_command import LocalCommand, kill_marked, standing_still

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SKIPPED = stat.S_IFSOCK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK


class LocalJob:
    """Implements `Job`."""

    def __init__(self, number: str, command: LocalCommand) -> None:
        self.id = number
        self._command = command

    async def poll(self) -> JobState:
        return self._command.state()

    async def wait(self, timeout_s: float | None = None) -> JobState:
        if timeout_s is not None:
            check_timeout(timeout_s)
        await asyncio.wait({self._command.ended}, timeout=timeout_s)
        return self._command.state()

    async def kill(self) -> None:
        if not self._command.ended.done():
            self._command.kill()
            await self._command.ended


class LocalSandbox:
    """Implements `Sandbox` on a folder."""

    def __init__(self, provider: LocalProvider, number: int, spec: SandboxSpec, image: Image, root: Path) -> None:
        self.id = f"local-{os.getpid()}-{number}"
        self.spec = spec
        self.root = root
        self._provider = provider
        self._workdir = spec.workdir or image.workdir
        self._environment = {"PATH": PATH, "LANG": "C.UTF-8", "TMPDIR": str(root / "tmp"), **image.env, **spec.env}
        self._commands: list[LocalCommand] = []
        self._jobs = 0
        self._frozen = False
        self._gone = False
        self._lease_s = spec.lease_s
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.call_later(self._lease_s, self._finish)
        for folder in ("tmp", self._workdir.lstrip("/")):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def _heard(self) -> None:
        if self._gone:
            raise SandboxGone(f"sandbox {self.id} has ended")
        self._end.cancel()
        self._end = self._loop.call_later(self._lease_s, self._finish)

    def _place(self, path: str) -> Path:
        """Where `path` lies on this machine. Raises: PolicyRefused (it leads out of the folder)."""
        place = self.root / check_path("path", path).lstrip("/")
        real = os.path.realpath(place.parent)
        if real != str(self.root) and not real.startswith(f"{self.root}/"):
            raise PolicyRefused(f"path must stay below the sandbox's folder, got {path} (a link leads out)")
        return Path(real, place.name) if place != self.root else place

    def _start(
        self,
        command: CommandLine,
        cwd: str | None,
        env: Mapping[str, str] | None,
        user: str | None,
        stdin: bytes,
        timeout_s: float,
        max_output_bytes: int,
        split: bool,
    ) -> LocalCommand:
        words = words_of(command)
        check_run(words, cwd, env, stdin, timeout_s, max_output_bytes)
        if user is not None:
            user_ids(user)
        self._heard()
        if self._frozen:
            raise PolicyRefused(f"cannot run a command: sandbox {self.id} is frozen")
        shown = cwd or self._workdir
        merged = {"HOME": str(self.root / "tmp"), **self._environment, **(env or {})}
        self._commands = [command for command in self._commands if not command.finished]
        started = LocalCommand(words, self._place(shown), merged, stdin, max_output_bytes, split, self.id, shown)
        self._commands.append(started)
        return started

    async def exec(
        self,
        command: CommandLine,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: bytes = b"",
        timeout_s: float = 30.0,
        max_output_bytes: int = 65_536,
        split: bool = False,
    ) -> ExecResult:
        started = self._start(command, cwd, env, user, stdin, timeout_s, max_output_bytes, split)
        deadline = self._loop.call_later(timeout_s, started.expire)
        try:
            result = await asyncio.shield(started.ended)
        except asyncio.CancelledError:
            started.kill()
            raise
        finally:
            deadline.cancel()
        self._heard()
        return result

    async def spawn(
        self,
        command: CommandLine,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        max_output_bytes: int = 65_536,
    ) -> Job:
        self._jobs += 1
        return LocalJob(f"{self.id}/{self._jobs}", self._start(command, cwd, env, user, b"", 1, max_output_bytes, False))

    async def shell(
        self,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        rows: int = 24,
        cols: int = 80,
    ) -> Shell:
        raise PolicyRefused("shell is not offered by the local provider; use ns or docker")

    async def put(self, path: str, data: bytes, mode: int = 0o644, *, owner: str = "root") -> None:
        await self.put_files({path: data}, mode, owner=owner)

    async def put_files(self, files: Mapping[str, bytes], mode: int = 0o644, *, owner: str = "root") -> None:
        check_put(files, mode)
        user_ids(owner)
        check_put_size(sum(map(len, files.values())))
        self._heard()
        for path, data in files.items():
            place = self._place(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir() and not place.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            with contextlib.suppress(FileNotFoundError):
                place.unlink()
            with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)

    async def get(self, path: str, max_bytes: int = MIB) -> bytes:
        check_get(path, max_bytes)
        self._heard()
        place = self._place(path)
        while place.is_symlink():
            place = self._place("/" + os.path.relpath(place.parent / os.readlink(place), self.root))
        with open(os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PolicyRefused(f"path must be a regular file outside /proc, got {path}")
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise OutputLimit(f"{path} must be at most {max_bytes} bytes, it is larger")
        return data

    async def kill_agents(self) -> None:
        self._heard()
        kill_marked(f"{self.id}.")

    async def disconnect(self) -> None:
        self._heard()

    async def renew(self, lease_s: float | None = None) -> None:
        length = self.spec.lease_s if lease_s is None else lease_s
        check_lease(length)
        self._lease_s = length
        self._heard()

    async def freeze(self) -> None:
        self._heard()
        self._frozen = True
        kill_marked(f"{self.id}.")

    async def export(self, paths: Sequence[str], dest: Path, *, max_bytes: int = 64 * MIB, max_files: int = 10_000) -> Exported:
        if not self._frozen:
            raise PolicyRefused(f"export needs a frozen sandbox, {self.id} still runs; call freeze() first")
        self._heard()
        kept: list[int] = []
        skipped: list[str] = []
        for path in paths:
            top = self._place(check_path("paths", path))
            try:
                for found in _below(top):
                    name = found.relative_to(self.root)
                    status = found.lstat()
                    kept.append(status.st_size if stat.S_ISREG(status.st_mode) else 0)
                    if len(kept) > max_files or sum(kept) > max_bytes:
                        raise OutputLimit(f"{path} must hold at most {max_bytes} bytes in {max_files} files, it holds more")
                    if len(name.parts) > 200:
                        raise OSError(errno.ENAMETOOLONG, "")
                    if not _copied(found, dest / name, status.st_mode):
                        skipped.append(f"/{name}")
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise OutputLimit(f"{path} must have paths below 4096 characters and 200 levels, some are longer") from None
        return Exported(len(kept), sum(kept), 0, tuple(skipped))

    async def snapshot(self) -> Snapshot:
        self._heard()
        with standing_still(f"{self.id}."):
            return LocalSnapshot(self._provider, self.spec, self._provider.copy_of(self.root))

    async def fork(self, n: int = 1) -> list[Sandbox]:
        check_forks(n)
        snapshot = await self.snapshot()
        try:
            return [await snapshot.start() for _ in range(n)]
        finally:
            await snapshot.discard()

    async def destroy(self) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._gone:
            return
        self._gone = True
        self._end.cancel()
        kill_marked(f"{self.id}.")
        for command in self._commands:
            command.close()
        self._provider.forget(self)
        remove(self.root)


class LocalSnapshot:
    """Implements `Snapshot`: a copy of the folder."""

    def __init__(self, provider: LocalProvider, spec: SandboxSpec, folder: Path) -> None:
        self.id = folder.name
        self.spec = spec
        self._provider = provider
        self._folder: Path | None = folder

    async def start(self, spec: SandboxSpec | None = None) -> Sandbox:
        if self._folder is None:
            raise NotFound(f"snapshot {self.id} was discarded; take another one")
        wanted = spec or self.spec
        if wanted.image != self.spec.image:
            raise PolicyRefused(f"image must be {self.spec.image}, of which the snapshot is, got {wanted.image}")
        return self._provider.start_from(wanted, self._folder)

    async def discard(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            remove(folder)


class LocalProvider:
    """Makes `LocalSandbox`es. Use `start`."""

    name = "local"

    def __init__(self, images: ImageSource, folder: Path) -> None:
        self.images = images
        self._folder = folder
        self._boxes: dict[str, LocalSandbox] = {}
        self._last = 0
        self._closed = False

    @classmethod
    async def start(cls, images: ImageSource, state_dir: Path) -> LocalProvider:
        """A provider whose sandboxes are folders below `state_dir`. Raises: Capacity (it cannot be written)."""
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            return cls(images, Path(tempfile.mkdtemp(prefix="local.", dir=state_dir)).resolve())
        except OSError as error:
            raise Capacity(f"sandboxes need a state folder that can be written, {state_dir} cannot: {error}") from error

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            isolation="none",
            host_uid=f"{os.geteuid()}, this process's own",
            users=False,
            memory_limit=False,
            pids_limit=False,
            cpu_limit=False,
            disk_limit=False,
            upper_layer=False,
            prepared_upper=False,
            seccomp=False,
            shell=False,
            own_root=False,
            layers=False,
            network=("none",),
            notes=("no isolation: for trusted specs only, in tests of gymsmith's own code",),
        )

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> LocalSandbox:
        if layers or upper is not None:
            raise PolicyRefused(f"layers and upper must be empty with the local provider, got {[*layers, upper]}; use ns")
        return self.start_from(spec, None)

    def start_from(self, spec: SandboxSpec, files: Path | None) -> LocalSandbox:
        """A new sandbox, on a copy of `files`."""
        if self._closed:
            raise SandboxGone("the provider is closed; start another one")
        if not spec.trusted:
            raise PolicyRefused("trusted must be true for the local provider, got false: it isolates nothing; use ns or docker")
        if spec.network.mode != "none":
            raise PolicyRefused(f"network must be none with the local provider, got {spec.network.mode}; use ns or docker")
        image = self.images.resolve(spec.image)
        root = Path(tempfile.mkdtemp(prefix="box.", dir=self._folder)) if files is None else self.copy_of(files)
        self._last += 1
        box = LocalSandbox(self, self._last, spec, image, root)
        self._boxes[box.id] = box
        return box

    def copy_of(self, files: Path) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="box.", dir=self._folder))
        subprocess.run(["cp", "-a", "--", f"{files}/.", folder], check=True, capture_output=True)
        return folder

    def forget(self, box: LocalSandbox) -> None:
        self._boxes.pop(box.id, None)

    async def close(self) -> None:
        self._closed = True
        for box in list(self._boxes.values()):
            await box.destroy()
        remove(self._folder)


def remove(folder: Path) -> None:
    """Remove a tree, however deep: Python's own way down ends at a thousand levels."""
    subprocess.run(["rm", "-rf", "--", folder], stderr=subprocess.DEVNULL, check=False)


def _copied(source: Path, target: Path, mode: int) -> bool:
    """Copy one name without following it; False for what is never copied."""
    if stat.S_IFMT(mode) in _SKIPPED:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISDIR(mode):
        target.mkdir(exist_ok=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)
    return True


def _below(top: Path) -> Iterator[Path]:
    """`top` and everything below it, parents first; nothing where there is nothing. Follows no link."""
    if not top.exists() and not top.is_symlink():
        return
    yield top
    if top.is_dir() and not top.is_symlink():
        for child in sorted(top.iterdir()):
            yield from _below(child)
