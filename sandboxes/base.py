"""The seam between agents and machines: what a sandbox is, what may be asked of it, what it may hold.

Every provider (`namespace.py`, `container.py`) implements `Provider` and hands out `Sandbox` objects; everything above this
seam (rollouts, grading, image building) is written against this file alone. It imports no provider and nothing heavy, and it
is not a place for policy: which image, which limits and which artifacts is said by the caller.

What a caller may rely on, whatever the provider:
- A command's failure, death by signal, time-out or flood of output is *data* (`ExecResult`). An exception means that the
  sandbox could not be asked (`SandboxError` family) or must not be (`PolicyRefused`): never a made-up observation.
- No code that a workload can influence runs between `freeze()` and `export()`; only the resident agent (PID 1) answers.
- What a provider cannot do stands in its `Capabilities` and is refused with PolicyRefused when asked for all the same.
- A sandbox is never reused after a workload ran in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from gymsmith.errors import PolicyRefused
from sandboxes.network import OFFLINE, NetworkPolicy

MIB = 1024 * 1024
MAX_FRAME_BYTES = 64 * MIB
"""No message to or from the resident agent is longer than this; larger files go through a layer."""

MAX_LEASE_S = 30 * 86_400

Role = Literal["workload", "build"]
Isolation = Literal["namespace", "container", "none"]
CommandLine = str | Sequence[str]
"""A string is run by `/bin/sh -c`; a sequence is an argument vector, looked up on the command's PATH."""

USERS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"root": (0, 0), "agent": (1000, 1000), "tester": (1001, 1001), "examiner": (1001, 1002), "nobody": (65534, 65534)}
)
"""User names that every image understands, whether its /etc/passwd has them or not: name -> (uid, gid) inside. The examiner is
the tester who may read everything."""

_RESIDENT = frozenset({"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "KILL", "SETGID", "SETUID"})
_EXAMINER = frozenset({"DAC_READ_SEARCH"})
_BUILD = _RESIDENT | {"FSETID", "NET_BIND_SERVICE", "SETFCAP", "SYS_CHROOT"}
CAPABILITY_TABLE: Mapping[str, Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        isolation: MappingProxyType({"resident": _RESIDENT, "workload": frozenset(), "examiner": _EXAMINER, "build": _BUILD})
        for isolation in ("namespace", "container")
    }
)
"""provider isolation -> who -> Linux capabilities held (without CAP_). With namespaces they count only inside the sandbox's
own user namespace. `resident` is PID 1 of a workload sandbox (PID 1 of a build sandbox holds the `build` row); `workload` is
every command of a workload sandbox, also one that runs as root, but for those of the user `examiner`: imported tests read what
an agent has closed to others, as root does elsewhere, and with namespaces nothing that is not the sandbox's own; `build` is a
root command in a sandbox of role "build"."""


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system that exists on this host, as the image store hands it out."""

    id: str
    """Content address of the image, or a container engine's name for it."""
    layers: tuple[Path, ...] = ()
    """Overlay lower directories, topmost first. As root their owners are shifted: host uid = UID_SHIFT + uid inside."""
    binds: tuple[tuple[str, str], ...] = ()
    """(host path, path inside) of directories mounted read-only, such as ("/usr", "/usr")."""
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = "/work"
    user: str = "agent"
    config: Mapping[str, Any] = field(default_factory=dict)
    """What else an OCI image configuration says (User, Entrypoint, Cmd, Healthcheck, Labels, ...). Kept; nothing acts on it."""
    engine_ref: str | None = None
    """The name under which a container engine has this image; None: the engine does not have it."""


UID_SHIFT = 100_000
"""Host id of uid 0 inside a sandbox when this process is root. 65,536 ids from here on belong to sandboxes."""


class ImageSource(Protocol):
    """Where a provider looks an image id up."""

    def resolve(self, image_id: str) -> Image:
        """The image of that id. Raises: ImageMissing."""
        ...


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox is made from and what it may use. Raises PolicyRefused for a value no provider could honour."""

    image: str
    workdir: str | None = None
    """Directory of commands that name none; None: the image's. Created, owned by `user`, when missing."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the image's environment."""
    user: str | None = None
    """Who runs commands that name nobody: a name of USERS, "uid" or "uid:gid"; None: the image's."""
    memory_bytes: int = 256 * MIB
    pids: int = 64
    cpus: float = 1.0
    disk_bytes: int = 256 * MIB
    """Limit of what the sandbox may write. Without a prepared upper directory this lives in memory, beside memory_bytes.
    Where a provider cannot refuse a write, see `Capabilities.at_disk_limit`, more than that ends the sandbox."""
    lease_s: float = 3600.0
    """The sandbox ends itself when it hears nothing from its owner for this long."""
    role: Role = "workload"
    network: NetworkPolicy = OFFLINE
    """What may be reached; by default nothing."""
    trusted: bool = False
    """Whoever wrote what runs inside may do what this process may do; a provider without isolation takes nothing else."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Free text for lists and reports; never interpreted."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("memory_bytes", self.memory_bytes, 16 * MIB, 1 << 50),
            ("pids", self.pids, 4, 100_000),
            ("cpus", self.cpus, 0.01, 4096),
            ("disk_bytes", self.disk_bytes, MIB, 1 << 50),
            ("lease_s", self.lease_s, 1, MAX_LEASE_S),
        ):
            if not low <= value <= high:
                raise PolicyRefused(f"{name} must be between {low} and {high}, got {value}; change it in the sandbox spec")
        if self.role not in ("workload", "build"):
            raise PolicyRefused(f'role must be "workload" or "build", got {self.role!r}')
        if not isinstance(self.network, NetworkPolicy):
            raise PolicyRefused(f"network must be a NetworkPolicy, got {self.network!r}; leave it out for none")
        if not self.image:
            raise PolicyRefused("image must be the id of an image, got an empty string")
        if self.workdir is not None:
            check_path("workdir", self.workdir)
        if self.user is not None:
            user_ids(self.user)
        check_env(self.env)

    @property
    def disk_files(self) -> int:
        """How many files, directories and links it may make: as a file system of disk_bytes would hold."""
        return max(1024, self.disk_bytes // 2048)


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What one command did. Exactly one of `exit_code` and `signal` is set."""

    exit_code: int | None
    """126: found but could not be started; 127: not found, as a shell would say; the reason is in `output`."""
    signal: int | None
    """Number of the signal that ended the command; 9 after a time-out or when memory ran out."""
    output: bytes
    """Stdout and stderr as they came, merged, unless split was asked for: then stdout alone. At most max_output_bytes plus
    one line that says how many bytes are missing in the middle."""
    stderr: bytes = b""
    truncated: bool = False
    omitted_bytes: int = 0
    timed_out: bool = False
    oom: bool = False
    """The kernel killed a process of the sandbox for want of memory while this command ran (needs memory control groups)."""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    """User and system time of the command and of the children it waited for."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and not self.timed_out


@dataclass(frozen=True, slots=True)
class Exported:
    """What `Sandbox.export` wrote."""

    files: int
    bytes: int
    deleted: int
    """Names that the sandbox deleted, present in the tree as overlay white-outs."""
    skipped: tuple[str, ...]
    """Sockets, FIFOs and device nodes: never copied."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider guarantees on this machine; asked before use instead of failing in the middle."""

    isolation: Isolation
    host_uid: str
    """Which ids of the host a sandbox runs as, in words; never uid 0."""
    users: bool
    """Commands can run as ids other than PID 1's, and as several ones."""
    memory_limit: bool
    pids_limit: bool
    cpu_limit: bool
    disk_limit: bool
    """What all files of a sandbox take together is limited."""
    upper_layer: bool
    """`export` yields only what changed, with deletions; otherwise the whole of the asked paths."""
    prepared_upper: bool
    """`create(upper=...)` is honoured, so that image layers can be built."""
    seccomp: bool
    shell: bool = True
    """`Sandbox.shell` works: a terminal with a persistent shell."""
    fork: bool = True
    """`Sandbox.snapshot` and `Sandbox.fork` work."""
    at_disk_limit: Literal["error", "ended"] = "error"
    """What is met there: an error at the write or, where none can be refused, the end of the sandbox (DiskLimit) soon after."""
    own_root: bool = True
    """An absolute path in a command means the sandbox's own file system."""
    layers: bool = True
    """`create(layers=...)` is honoured."""
    network: tuple[str, ...] = ("none", "index", "proxy")
    """Modes of NetworkPolicy that it can give."""
    notes: tuple[str, ...] = ()
    """What is missing on this machine and how to get it."""


@dataclass(frozen=True, slots=True)
class JobState:
    """A background job at one moment."""

    output: bytes
    """What it has printed so far (stdout and stderr merged), with the cap of `spawn`."""
    omitted_bytes: int = 0
    result: ExecResult | None = None
    """What it did, once it has ended."""

    @property
    def running(self) -> bool:
        return self.result is None


class Job(Protocol):
    """A command that runs while its caller does something else. It lives until it ends, is killed, or its sandbox ends."""

    id: str

    async def poll(self) -> JobState:
        """How it stands now. Raises: SandboxGone, unless the job had ended before its sandbox did."""
        ...

    async def wait(self, timeout_s: float | None = None) -> JobState:
        """How it stands at its end, or after `timeout_s` when it has not ended by then."""
        ...

    async def kill(self) -> None:
        """Kill it and everything it started; returns when its first process is dead. Calling it again does nothing."""
        ...


class Shell(Protocol):
    """A shell (bash where the image has it) on a terminal of its own: directory, variables and functions carry over.

    What a line did is told by the shell process itself over a channel that the kernel vouches for: neither what commands
    print nor what they write to inherited descriptors can end a line or give it an exit code.
    """

    id: str

    async def run(self, line: str, *, timeout_s: float = 30.0, max_output_bytes: int = 65_536) -> ExecResult:
        """Run `line` (any number of lines, as one script) and wait for its end. One at a time; a second one waits.

        At the deadline everything that this line started dies; the shell goes on. Only when the shell itself is what does
        not come to an end, it dies too. `output` is what came to the terminal, stdout and stderr merged, without echo.
        Raises: ShellEnded (the shell has exited, in an earlier line or before), and as `Sandbox.exec`.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Type `data` on the terminal: input of the command that runs. Raises: ShellEnded, SandboxGone."""
        ...

    @property
    def ended(self) -> bool:
        """The shell has exited; open another one."""
        ...

    async def close(self) -> None:
        """Kill the shell and everything below it. Calling it again does nothing."""
        ...


class Snapshot(Protocol):
    """The file system of a sandbox at one moment, from which others can start. It lives in memory of this machine.

    /dev/shm and processes are not part of it.
    """

    id: str
    spec: SandboxSpec
    """The spec of the sandbox it was taken from."""

    async def start(self, spec: SandboxSpec | None = None) -> Sandbox:
        """A new sandbox that begins with these files, of `spec` or the one it was taken from (the image must be the same).

        Raises: as `Provider.create`; NotFound (discarded).
        """
        ...

    async def discard(self) -> None:
        """Forget it; sandboxes that began from it go on. Calling it again does nothing."""
        ...


@runtime_checkable
class Sandbox(Protocol):
    """One running sandbox. Every method but `destroy` raises SandboxGone once it has ended."""

    id: str
    spec: SandboxSpec

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
        """Run a command and wait for its first process to end. Many may run at once.

        At the deadline every process that the command started dies, also those with sessions of their own. Processes that a
        command leaves in the background live on until `freeze` or `destroy`; their later output is discarded.
        Raises: PolicyRefused (an argument that cannot be honoured), SandboxGone, ExecTimeout (the sandbox did not answer
        within timeout_s plus a grace; it has been destroyed).
        """
        ...

    async def spawn(
        self,
        command: CommandLine,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        max_output_bytes: int = 65_536,
    ) -> Job:
        """Start a command in the background, without a deadline. Raises as `exec`."""
        ...

    async def shell(
        self,
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        rows: int = 24,
        cols: int = 80,
    ) -> Shell:
        """Open a persistent shell. Raises: PolicyRefused (`Capabilities.shell` is False, a bad argument), Capacity."""
        ...

    async def snapshot(self) -> Snapshot:
        """Keep the file system as it is now. Every process stands still while it is copied, and goes on afterwards.

        Raises: PolicyRefused (`Capabilities.fork` is False), Capacity (no room).
        """
        ...

    async def fork(self, n: int = 1) -> list[Sandbox]:
        """`n` new sandboxes of the same spec that begin with this one's files and are independent of it both ways."""
        ...

    async def kill_agents(self) -> None:
        """Kill every process but PID 1, jobs and shells among them; commands may be run again afterwards."""
        ...

    async def disconnect(self) -> None:
        """Take away what its network policy gave it, for good; open connections are cut. Calling it again does nothing."""
        ...

    async def renew(self, lease_s: float | None = None) -> None:
        """Let the lease begin anew, with another length when one is given. Every other call renews it as well."""
        ...

    async def put(self, path: str, data: bytes, mode: int = 0o644, *, owner: str = "root") -> None:
        """Write a file, with its parent directories; a symlink in the last place is replaced, never followed."""
        ...

    async def put_files(self, files: Mapping[str, bytes], mode: int = 0o644, *, owner: str = "root") -> None:
        """Write several files in one message. Raises as `put`; files before the failing one stay written."""
        ...

    async def get(self, path: str, max_bytes: int = MIB) -> bytes:
        """Content of a regular file. Raises: FileNotFoundError, OutputLimit (larger than max_bytes), PolicyRefused."""
        ...

    async def freeze(self) -> None:
        """Kill every process but PID 1 and start none again: from here on nothing in the sandbox can change."""
        ...

    async def export(self, paths: Sequence[str], dest: Path, *, max_bytes: int = 64 * MIB, max_files: int = 10_000) -> Exported:
        """Copy what a frozen sandbox has at `paths` into the empty directory `dest`, in the form of an overlay layer.

        `dest` can be given to `create(layers=[dest])` as it is: deletions are white-outs, replaced directories opaque. The
        caller owns and removes it. Raises: PolicyRefused (not frozen), OutputLimit.
        """
        ...

    async def destroy(self) -> None:
        """End the sandbox; returns when its last process is dead. Calling it again does nothing."""
        ...


class Provider(Protocol):
    """Makes sandboxes on this machine. Belongs to one event loop and one process."""

    name: str

    @property
    def capabilities(self) -> Capabilities: ...

    async def create(self, spec: SandboxSpec, *, layers: Sequence[Path] = (), upper: Path | None = None) -> Sandbox:
        """A running sandbox of spec.image with `layers` (topmost first) above it.

        `upper`: an existing directory of the host that receives what is written (it becomes a layer); None: private memory.
        Raises: ImageMissing, Capacity (the machine lacks what a sandbox needs), PolicyRefused.
        """
        ...

    async def close(self) -> None:
        """Destroy every sandbox and stop. The provider cannot be used afterwards."""
        ...


def user_ids(user: str) -> tuple[int, int]:
    """(uid, gid) inside for a name of USERS, "uid" or "uid:gid". Raises: PolicyRefused."""
    known = USERS.get(user)
    if known is not None:
        return known
    uid, _, gid = user.partition(":")
    gid = gid or uid
    if uid.isascii() and uid.isdecimal() and gid.isascii() and gid.isdecimal() and int(uid) < 65_536 and int(gid) < 65_536:
        return int(uid), int(gid)
    raise PolicyRefused(f'user must be one of {", ".join(USERS)}, "UID" or "UID:GID" below 65536, got {user!r}')


def check_path(name: str, path: str) -> str:
    """`path` if it is an absolute path without NUL and without ".." steps. Raises: PolicyRefused."""
    if not path.startswith("/") or "\0" in path or len(path) > 4000 or ".." in path.split("/"):
        raise PolicyRefused(f"{name} must be an absolute path without '..' or NUL, at most 4000 characters, got {path[:200]!r}")
    return path


def check_env(env: Mapping[str, str]) -> None:
    """Refuse names and values that no process environment can hold. Raises: PolicyRefused."""
    for key, value in env.items():
        try:
            (key + value).encode("utf-8", "surrogateescape")
            good = key != "" and "=" not in key and "\0" not in key + value
        except (TypeError, UnicodeEncodeError):
            good = False
        if not good:
            raise PolicyRefused(f"env must map names without '=' to values without NUL, got {key!r:.100}={value!r:.100}")
