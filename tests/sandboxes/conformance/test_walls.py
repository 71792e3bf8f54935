"""What must be out of reach, tried from inside: the network, the kernel's switches, the host's files and ids, PID 1."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.sandboxes.conformance.conftest import Place

broken_by = pytest.mark.broken_by
pytestmark = pytest.mark.needs("seccomp")
"""A provider without walls says so and takes trusted specs only: `test_refusals.py`."""


@broken_by("refusals hidden")
def test_no_network(house: Place) -> None:
    async def scene(box: Any) -> None:
        devices = await box.exec("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")
        assert devices.output == b"lo\n"
        for address in ("1.1.1.1/53", "169.254.169.254/80", "127.0.0.1/22"):
            assert not (await box.exec(["bash", "-c", f"exec 3<>/dev/tcp/{address}"], timeout_s=3)).ok

    house.play(scene)


@broken_by("stale output")
def test_loopback_works(house: Place) -> None:
    code = (
        "import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).send(b'hi')\nprint(server.accept()[0].recv(2))"
    )
    result = house.play(lambda box: box.exec(["python3", "-c", code]))
    assert result.output == b"b'hi'\n"


@broken_by("refusals hidden")
@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/modprobe",
        "/proc/irq/default_smp_affinity",
    ],
)
def test_switches_of_the_kernel_are_out_of_reach(house: Place, path: str) -> None:
    async def scene(box: Any) -> None:
        core = Path("/proc/sys/kernel/core_pattern").read_bytes()
        for user in ("agent", "root"):
            result = await box.exec(f"test -f {path} && echo '|/tmp/x' > {path}", user=user)
            assert not result.ok
        assert Path("/proc/sys/kernel/core_pattern").read_bytes() == core

    house.play(scene)


@broken_by("stale output")
def test_a_workload_is_never_the_hosts_root(house: Place) -> None:
    async def scene(box: Any) -> None:
        for user in ("agent", "root") if house.provider.name == "ns" else ("agent",):
            token = f"sleep 34{os.getpid()}"
            assert (await box.exec("id -un 2>/dev/null || id -u", user=user)).ok
            assert (await box.exec("echo here")).output == b"here\n"
            task = asyncio.ensure_future(box.exec(token, user=user, timeout_s=20))
            owners: set[int] = set()
            for _ in range(100):
                await asyncio.sleep(0.05)
                if owners := host_owners(token):
                    break
            task.cancel()
            if os.geteuid() == 0:
                assert owners and 0 not in owners

    house.play(scene)


def host_owners(command: str) -> set[int]:
    owners = set()
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().replace(b"\0", b" ").strip() == command.encode():
                owners.add(int((folder / "status").read_text().split("Uid:")[1].split()[1]))
        except (OSError, IndexError):
            continue
    return owners


@broken_by("refusals hidden")
def test_the_hosts_files_are_not_there(house: Place, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")

    async def scene(box: Any) -> None:
        for path in (secret, Path(__file__), Path("/var/run/docker.sock"), Path("/sys/fs/cgroup/memory/release_agent")):
            assert not (await box.exec(["cat", str(path)], user="root")).ok
        mounts = (await box.exec("cat /proc/self/mounts /proc/1/cmdline")).output.decode()
        assert str(tmp_path.parent.parent) not in mounts and str(Path(__file__).parent) not in mounts

    house.play(scene)


@broken_by("refusals hidden")
@pytest.mark.parametrize("user", ["agent", "root"])
def test_pid_one_cannot_be_touched(house: Place, user: str) -> None:
    async def scene(box: Any) -> None:
        for attack in (
            "kill -9 1",
            "kill -STOP 1",
            "kill -9 -1",
            "cat /proc/1/environ",
            "cat /proc/1/mem",
            "readlink /proc/1/fd/0",
            "cat /proc/1/maps",
            "echo x > /proc/1/fd/1",
            "ls -l /proc/1/root/",
            "readlink /proc/1/exe",
            "prlimit --pid 1 --nofile=0:0",
        ):
            result = await box.exec(attack, user=user, timeout_s=5)
            succeeded = result.ok and attack not in ("kill -9 1", "kill -STOP 1")  # the kernel drops these unseen for root
            assert not succeeded, attack
        assert (await box.exec("echo alive")).output == b"alive\n"

    house.play(scene)


@broken_by("refusals hidden")
def test_a_workload_holds_no_capability_and_the_examiner_one(house: Place) -> None:
    async def scene(box: Any) -> None:
        reads = 1 << 2  # CAP_DAC_READ_SEARCH
        examiner = reads if house.provider.capabilities.users else 0
        for user, held in {"agent": 0, "root": 0, "tester": 0, "examiner": examiner}.items():
            status = (await box.exec("cat /proc/self/status", user=user)).output.decode()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {f"{held:016x}"}
            assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
        assert not (await box.exec("mknod /tmp/disk b 254 0; chown 1 /tmp; mount -t tmpfs x /tmp; chroot / true", user="root")).ok

    house.play(scene)


SYSCALLS = {  # x86_64, aarch64
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "pidfd_getfd": (438, 438),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "syslog": (103, 116),
}


@broken_by("stale output")
def test_dangerous_system_calls_are_refused(house: Place) -> None:
    """Each must fail with EPERM although its arguments are nonsense, that is before the kernel's own code looks at them."""
    code = (
        "import ctypes, os, platform, socket\n"
        f"calls = {SYSCALLS!r}\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "column = 0 if platform.machine() == 'x86_64' else 1\n"
        "for name, numbers in calls.items():\n"
        "    libc.syscall(numbers[column], -1, -1, -1, -1, -1)\n"
        "    if ctypes.get_errno() != 1: print(name, ctypes.get_errno())\n"
        "CLONE_NEWUSER = 0x10000000\n"
        "if libc.syscall(56 if column == 0 else 220, CLONE_NEWUSER | 17, 0, 0, 0, 0) != -1: print('clone')\n"
        "libc.syscall(435, 0, 0)\n"
        "if ctypes.get_errno() != 38: print('clone3')\n"
        "for family in (40, 38, 17):\n"
        "    try: socket.socket(family, socket.SOCK_STREAM); print('socket', family)\n"
        "    except OSError: pass\n"
        "if libc.prctl(36, 0, 0, 0, 0) != -1: print('subreaper')\n"
    )
    result = house.play(lambda box: box.exec(["python3", "-c", code], user="root"))
    assert result.output == b"" and result.ok, result.output


LEASE = (
    "import fcntl, sys\nwith open(sys.argv[1], 'w') as file:\n"
    "    try: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK); print('leased')\n"
    "    except PermissionError: print('refused')\n"
)


@broken_by("stale output")
def test_a_lease_cannot_hold_up_pid_one(house: Place, tmp_path: Path) -> None:
    """PID 1 would wait for its holder, and every deadline with it."""

    async def scene(box: Any) -> None:
        for user in ("agent", "root"):
            assert (await box.exec(["python3", "-c", LEASE, f"/tmp/of-{user}"], user=user)).output == b"refused\n"

    house.play(scene)
    control = subprocess.run([sys.executable, "-c", LEASE, str(tmp_path / "file")], capture_output=True)
    assert control.stdout == b"leased\n"


def test_control_the_host_would_allow_them() -> None:
    """On the host the same calls reach the kernel: with nonsense it answers something else than EPERM."""
    code = "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.syscall(435, 0, 0); print(ctypes.get_errno())"
    done = subprocess.run([shutil.which("python3") or "python3", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "22"


@broken_by("stale output")
def test_set_user_id_gains_nothing(house: Place) -> None:
    async def scene(box: Any) -> None:
        await box.exec("cp $(command -v id) /tmp/id; chmod 4755 /tmp/id", user="root")
        assert (await box.exec("/tmp/id -u", user="agent")).output == (b"1000\n" if house.able.users else b"0\n")

    house.play(scene)
