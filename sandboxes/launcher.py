"""Starts and speaks to the launcher, the one single-threaded process of a worker that makes namespaces.

Which ids it may use decides its mode: `root` (sandboxes run as host ids from UID_SHIFT on), `subordinate` (an ordinary user
with entries in /etc/subuid) or `single` (an ordinary user without: everything inside is one id). The wire formats mirror
`box/box.h`. What a sandbox is, once made, is not known here.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gymsmith.errors import Capacity, SandboxError
from sandboxes.base import UID_SHIFT
from sandboxes.box_build import BINARY, SOURCES, CannotCompile, compile_box

Mode = Literal["root", "subordinate", "single"]
PROTOCOL = 2
CREATE, KILL, SNAPSHOT, DISCARD = 1, 2, 3, 4
MAP_ME, READY, DEAD, BROKEN, COPIED = 16, 17, 18, 19, 20
CREATE_BUILD, CREATE_HOST_NETWORK = 1, 2
_CREATE = struct.Struct("<12I4Q")
_SNAPSHOT = struct.Struct("<4I2Q")
_EVENT = struct.Struct("<IIi")
_START_S = 20.0


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """One sandbox to make. Paths are the host's; ids are those inside."""

    id: int
    build: bool
    processes: int
    lease_s: int
    workdir: str
    workdir_owner: tuple[int, int]
    layers: Sequence[str]
    binds: Sequence[tuple[str, str]]
    upper: str
    work: str
    disk_bytes: int
    inodes: int
    data_bytes: int
    """Private memory of one process; 0: a control group is the limit."""
    file_bytes: int
    """Largest file; 0: the file system's size is the limit."""
    group_version: int
    """Version of the control groups whose descriptors go along, 0 for none."""
    host_network: bool = False

    def encode(self, groups: int) -> bytes:
        """The datagram, for `groups` descriptors beside the socket."""
        flags = (CREATE_BUILD if self.build else 0) | (CREATE_HOST_NETWORK if self.host_network else 0)
        head = _CREATE.pack(
            CREATE, self.id, flags, self.processes, 4096, self.lease_s, *self.workdir_owner,
            len(self.layers), len(self.binds), groups, self.group_version,
            self.disk_bytes, self.inodes, self.data_bytes, self.file_bytes,
        )  # fmt: skip
        texts = [self.workdir, self.upper, self.work, *self.layers]
        for pair in self.binds:
            texts.extend(pair)
        return head + b"".join(text.encode() + b"\0" for text in texts)


@dataclass(frozen=True, slots=True)
class Event:
    """What the launcher tells: `kind` DEAD (value: wait status), COPIED (of a snapshot; value: errno) or BROKEN (value: errno,
    with a text)."""

    kind: int
    id: int
    value: int
    text: str


class Launcher:
    """A running launcher. Dies with this process, and every sandbox with it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, mode: Mode, scratch: Path) -> None:
        self.mode = mode
        self._scratch = scratch
        self.control = control
        self._process = process

    @classmethod
    def start(cls, scratch: Path) -> Launcher:
        """Start it with `scratch`, an existing empty directory, as its private mount point. Takes some 10 ms.

        Raises: Capacity (this kernel or user cannot make sandboxes; the message says why and what to do).
        """
        mode = choose_mode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [str(find_binary()), "launcher", str(theirs.fileno()), mode, str(UID_SHIFT), str(scratch)],
                # an empty environment: PID 1 of each sandbox shares this process's memory image
                pass_fds=[theirs.fileno()], env={}, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        launcher = cls(process, ours, mode, scratch)
        try:
            launcher._greet()
        except BaseException:
            launcher.close()
            raise
        return launcher

    def _greet(self) -> None:
        self.control.settimeout(_START_S)
        while True:
            try:
                event = self._decode(self.control.recv(4096))
            except TimeoutError:
                raise Capacity(f"the sandbox launcher must be ready within {_START_S:.0f} s, it said nothing") from None
            if event.kind == MAP_ME:
                map_ids(self._process.pid, self.mode)
                self.control.send(b"go")
            elif event.kind == READY:
                if event.value != PROTOCOL:
                    raise Capacity(f"{BINARY} speaks protocol {event.value}, expected {PROTOCOL}; reinstall gymsmith")
                self.control.setblocking(False)
                return
            else:
                reason = f": {os.strerror(event.value)}" if event.value and os.strerror(event.value) not in event.text else ""
                raise Capacity(f"this machine cannot make namespaces: {event.text or 'the launcher ended'}{reason}; {why_not()}")

    def request(self, request: CreateRequest, sandbox_end: socket.socket, groups: Sequence[int]) -> None:
        """Ask for a sandbox whose PID 1 will hold `sandbox_end`. Raises BlockingIOError while the launcher is behind."""
        descriptors = [sandbox_end.fileno(), *groups]
        ancillary = struct.pack(f"{len(descriptors)}i", *descriptors)
        self.control.sendmsg([request.encode(len(groups))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, ancillary)])

    def kill(self, sandbox: int) -> None:
        """End a sandbox; DEAD follows. Unknown and dead ones are ignored."""
        self.control.send(struct.pack("<II", KILL, sandbox))

    def snapshot(self, sandbox: int, number: int, disk_bytes: int, inodes: int) -> None:
        """Copy what a sandbox has written to a new snapshot; COPIED with its number follows."""
        self.control.send(_SNAPSHOT.pack(SNAPSHOT, sandbox, number, 0, disk_bytes, inodes))

    def discard(self, number: int) -> None:
        """Drop a snapshot; sandboxes that stand on it keep what they need."""
        self.control.send(struct.pack("<II", DISCARD, number))

    def snapshot_folder(self, number: int) -> Path:
        """Where the launcher, and nobody else, sees a snapshot: a layer for `request`."""
        return self._scratch / "snapshots" / str(number)

    def receive(self) -> Event:
        """The next event. Raises BlockingIOError when there is none, SandboxError when the launcher is gone."""
        return self._decode(self.control.recv(4096))

    @staticmethod
    def _decode(datagram: bytes) -> Event:
        if len(datagram) < _EVENT.size:
            return Event(BROKEN, 0, 0, "")
        kind, number, value = _EVENT.unpack_from(datagram)
        return Event(kind, number, value, datagram[_EVENT.size :].decode(errors="replace"))

    def close(self) -> None:
        """End the launcher and with it every sandbox."""
        self.control.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def find_binary() -> Path:
    """The sandbox program: the installed one, else compiled now from this checkout. Raises: SandboxError."""
    if not SOURCES.is_dir() and BINARY.exists():
        return BINARY
    try:
        return compile_box()
    except (CannotCompile, OSError) as error:
        if BINARY.exists():
            return BINARY
        raise SandboxError(str(error)) from error


def choose_mode() -> Mode:
    """How ids can be mapped here. Raises: Capacity (a root whose sandboxes would be the host's root too)."""
    if os.geteuid() == 0:
        if _has_capability(21) and _outside(UID_SHIFT) and _outside(UID_SHIFT + 65_535):
            return "root"
        if _outside(0):
            return "single"
        raise Capacity(f"sandboxes must not run as the host's root, and nothing else can be had here: {why_not()}")
    # where layers cannot stay in memory they would lie on disk as files of ids that this user could not remove
    tools = tmpfs_has_user_attributes() and shutil.which("newuidmap") and shutil.which("newgidmap")
    if tools and _subordinate("/etc/subuid", os.geteuid()) and _subordinate("/etc/subgid", os.geteuid()):
        return "subordinate"
    return "single"


def tmpfs_has_user_attributes() -> bool:
    """Whether a user namespace can keep an overlay's upper layer in memory (Linux 6.6)."""
    release = os.uname().release.split(".")
    try:
        return (int(release[0]), int(release[1].split("-")[0])) >= (6, 6)
    except (ValueError, IndexError):
        return False


def map_ids(pid: int, mode: Mode) -> None:
    """Map the launcher's own user namespace: its root is this user, the rest are subordinate ids. Raises: Capacity."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        if mode == "subordinate":
            for tool, own, first in (
                ("newuidmap", uid, _subordinate("/etc/subuid", uid)),
                ("newgidmap", gid, _subordinate("/etc/subgid", uid)),
            ):
                done = subprocess.run([tool, *map(str, [pid, 0, own, 1, 1, first, 65_535])], capture_output=True, text=True)
                if done.returncode:
                    raise Capacity(f"{tool} must map ids {first}..{first + 65_534}, it said: {done.stderr.strip()}")
        else:
            Path(f"/proc/{pid}/setgroups").write_text("deny")
            Path(f"/proc/{pid}/uid_map").write_text(f"0 {uid} 1\n")
            Path(f"/proc/{pid}/gid_map").write_text(f"0 {gid} 1\n")
    except OSError as error:
        raise Capacity(f"the kernel refused to map user ids: {error}; {why_not()}") from error


def why_not() -> str:
    """The likeliest reason why user namespaces fail on this machine, and the next move."""
    switches = {
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
        "/proc/sys/user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=15000"),
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": ("1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
    }
    for path, (bad, cure) in switches.items():
        try:
            if Path(path).read_text().strip() == bad and os.geteuid() != 0:
                return f"{path} is {bad}; run '{cure}' as root, run as root, or use a Docker Engine"
        except OSError:
            continue
    if os.geteuid() == 0 and not (_has_capability(21) and _outside(UID_SHIFT + 65_535)):
        need = f"CAP_SYS_ADMIN and the user ids {UID_SHIFT} to {UID_SHIFT + 65_535}"
        return (
            f"this root lacks {need} (a container?); start the container with them, be an ordinary user, or use a Docker Engine"
        )
    return "a container or a kernel older than 5.12 may be the reason; use a Docker Engine instead"


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def _outside(uid: int) -> int:
    """What a user id of this process's namespace is in the one around it; 0 also when it is not mapped at all."""
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, outside, count = map(int, line.split())
        if first <= uid < first + count:
            return outside + uid - first
    return 0


def _subordinate(path: str, uid: int) -> int:
    """First of at least 65,535 subordinate ids of this user, or 0."""
    try:
        names = {str(uid), getpass.getuser()}
        for line in Path(path).read_text().splitlines():
            name, first, count = line.split(":")
            if name in names and int(count) >= 65_535:
                return int(first)
    except (OSError, ValueError, KeyError):
        return 0
    return 0


def probe() -> dict[str, Any]:
    """What namespaces guarantee on this machine, found by making a sandbox: for `gymsmith doctor`.

    {"works": bool, "summary": text, "next_move": text, "guarantees": {name: {"holds", "text", "next_move"}}}. Changes nothing.
    """
    import asyncio

    from sandboxes.probe import examine

    with tempfile.TemporaryDirectory() as folder:
        try:
            return asyncio.run(examine(Path(folder)))
        except SandboxError as error:
            cure = why_not()
            summary = str(error).removesuffix(f"; {cure}").removesuffix(f": {cure}")
            return {"works": False, "summary": summary, "next_move": cure, "guarantees": {}}
