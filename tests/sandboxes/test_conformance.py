"""What every provider promises, tried from outside and from inside: results, limits, walls, files, endings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith.errors import ImageMissing, OutputLimit, PolicyRefused, SandboxError, SandboxGone
from sandboxes.base import MIB, SandboxSpec

if TYPE_CHECKING:
    from tests.sandboxes.conftest import House

# ---- results of commands ----


@pytest.mark.parametrize(
    ("command", "code"), [("true", 0), ("exit 3", 3), ("nonsense-command", 127), (["/tmp"], 126), (["/x"], 127)]
)
def test_exit_codes(house: House, command: str | list[str], code: int) -> None:
    result = house.play(lambda box: box.exec(command))
    assert (result.exit_code, result.signal, result.timed_out) == (code, None, False)
    assert result.ok is (code == 0)


def test_death_by_signal_is_told(house: House) -> None:
    result = house.play(lambda box: box.exec("kill -TERM $$"))
    assert (result.exit_code, result.signal) == (None, signal.SIGTERM)


def test_arguments_are_not_seen_by_a_shell(house: House) -> None:
    result = house.play(lambda box: box.exec(["printf", "%s|", "a b", "$HOME", ";", "*"]))
    assert result.output == b"a b|$HOME|;|*|"


def test_output_is_bytes(house: House) -> None:
    every = bytes(range(256)) * 40
    result = house.play(lambda box: box.exec("cat", stdin=every))
    assert result.output == every


def test_a_megabyte_of_input(house: House) -> None:
    data = os.urandom(MIB)
    result = house.play(lambda box: box.exec("cksum", stdin=data))
    assert result.output == subprocess.run(["cksum"], input=data, capture_output=True).stdout


def test_streams_merged_or_split(house: House) -> None:
    async def scene(box: Any) -> None:
        both = "echo out; echo err >&2; echo out"
        assert (await box.exec(both)).output == b"out\nerr\nout\n"
        split = await box.exec(both, split=True)
        assert (split.output, split.stderr) == (b"out\nout\n", b"err\n")

    house.play(scene)


def test_directory_environment_and_user(house: House) -> None:
    async def scene(box: Any) -> None:
        result = await box.exec("pwd; echo $WORD $MORE; id -u", cwd="/tmp", env={"MORE": "ö x"}, user="tester")
        uid = b"1001" if house.able.users else b"0"
        assert result.output == "/tmp\nspec ö x\n".encode() + uid + b"\n"
        assert (await box.exec("pwd; echo $WORD$MORE")).output == b"/work\nspec\n"
        gone = await box.exec("true", cwd="/not/there")
        assert gone.exit_code == 126 and b"/not/there" in gone.output

    house.play(scene, env={"WORD": "spec"})


def test_long_output_keeps_head_and_tail(house: House) -> None:
    async def scene(box: Any) -> None:
        result = await box.exec("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", max_output_bytes=1000)
        assert result.truncated and result.output.startswith(b"line 0\n") and result.output.endswith(b"line 19999\n")
        kept = b"".join(result.output.split(b"\n[... %d bytes omitted ...]\n" % result.omitted_bytes))
        assert len(kept) == 1000
        assert (await box.exec("echo hello", max_output_bytes=0)).omitted_bytes == 6

    house.play(scene)


def test_a_flood_costs_the_host_nothing(house: House) -> None:
    async def scene(box: Any) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = await box.exec("head -c 300000000 /dev/zero", timeout_s=30)
        assert result.exit_code == 0 and result.omitted_bytes == 300_000_000 - 65_536
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024, "kilobytes"

    house.play(scene)


def test_output_cannot_pose_as_a_frame(house: House) -> None:
    """An exit frame for every likely request, printed by the workload, changes nothing."""
    forged = b"".join(struct.pack("<III", 4, number, 66) + b"\0\0\0\0" for number in range(1, 20))
    result = house.play(lambda box: box.exec("cat; echo; exit 7", stdin=forged))
    assert (result.output, result.exit_code) == (forged + b"\n", 7)


def test_many_commands_at_once(house: House) -> None:
    async def scene(box: Any) -> None:
        results = await asyncio.gather(*(box.exec(f"sleep 0.1; echo {i}") for i in range(16)))
        assert [r.output for r in results] == [b"%d\n" % i for i in range(16)]

    house.play(scene)


# ---- endings ----

TREE = "(setsid sleep 7771 &); setsid sh -c 'setsid sleep 7772 & sleep 7773' & sleep 7774"


async def sleepers(box: Any) -> list[bytes]:
    listing = await box.exec("for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null")
    return sorted(line for line in listing.output.split(b"\n") if line.startswith(b"sleep 777"))


def test_a_deadline_kills_the_whole_tree(house: House) -> None:
    async def scene(box: Any) -> None:
        result = await box.exec(TREE, timeout_s=0.5)
        assert (result.timed_out, result.signal) == (True, 9)
        assert 0.5 <= result.wall_s < 1.0
        assert await sleepers(box) == []

    house.play(scene)


def test_control_a_plain_kill_leaves_the_tree(tmp_path: Path) -> None:
    """The same command under subprocess's own timeout survives it: the test above can fail."""
    marker = tmp_path / "pids"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(["sh", "-c", f"(setsid sleep 7775 & echo $! > {marker}); sleep 7774"], timeout=0.3)
    left = int(marker.read_text())
    os.kill(left, signal.SIGKILL)


def test_a_deadline_spares_other_commands(house: House) -> None:
    async def scene(box: Any) -> None:
        await box.exec("sleep 7776 & ")
        other = asyncio.ensure_future(box.exec("sleep 1; echo done"))
        assert (await box.exec("sleep 7777", timeout_s=0.2)).timed_out
        assert (await other).output == b"done\n"
        assert await sleepers(box) == [b"sleep 7776 "]

    house.play(scene)


def test_a_background_process_holding_the_output_delays_nobody(house: House) -> None:
    async def scene(box: Any) -> None:
        began = time.monotonic()
        result = await box.exec("echo now; (sleep 0.3; yes | head -c 1000000; touch /tmp/wrote; sleep 7778) &", timeout_s=20)
        assert result.output == b"now\n" and time.monotonic() - began < 2
        for _ in range(50):
            if (await box.exec("test -e /tmp/wrote")).ok:
                return
            await asyncio.sleep(0.1)
        pytest.fail("the background process was stopped by a full pipe or SIGPIPE")

    house.play(scene)


def test_a_cancelled_command_dies(house: House) -> None:
    async def scene(box: Any) -> None:
        task = asyncio.ensure_future(box.exec("sleep 7779"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(100):
            if not await sleepers(box):
                return
            await asyncio.sleep(0.05)
        pytest.fail("the command outlived its caller")

    house.play(scene)


def test_frozen_means_that_nothing_moves(house: House) -> None:
    async def scene(box: Any) -> None:
        await box.exec("(setsid sh -c 'while :; do date >> /tmp/clock; sleep 0.05; done' &) ; sleep 0.2")
        await box.freeze()
        first = await box.get("/tmp/clock")
        await asyncio.sleep(0.3)
        assert first and await box.get("/tmp/clock") == first
        with pytest.raises(PolicyRefused, match="frozen"):
            await box.exec("true")

    house.play(scene)


def test_destroy_is_final_and_repeatable(house: House) -> None:
    async def act() -> None:
        box = await house.box()
        waiting = asyncio.ensure_future(box.exec("sleep 100", timeout_s=200))
        await asyncio.sleep(0.1)
        await box.destroy()
        await box.destroy()
        with pytest.raises(SandboxGone):
            await waiting
        for ask in (box.exec("true"), box.put("/tmp/x", b""), box.get("/tmp/x"), box.freeze()):
            with pytest.raises(SandboxGone):
                await ask

    house.run(act())


def test_a_lease_ends_a_forgotten_sandbox(house: House) -> None:
    async def scene(box: Any) -> None:
        await asyncio.sleep(2.0)
        with pytest.raises(SandboxGone):
            await box.exec("true")

    house.play(scene, lease_s=1)


# ---- limits ----


@pytest.mark.parametrize("bomb", [":(){ :|:& };:", 'f(){ setsid sh -c "$0" & f; }; while :; do (setsid sleep 100 &) ; done'])
def test_a_fork_bomb_stays_inside(house: House, bomb: str) -> None:
    house.needs("pids_limit")

    async def act() -> None:
        box = await house.box(pids=32)
        neighbour = await house.box()
        with contextlib.suppress(SandboxError):
            await box.exec(["bash", "-c", bomb], timeout_s=1)
        began = time.monotonic()
        assert (await neighbour.exec("echo fine")).output == b"fine\n"
        await box.destroy()
        assert time.monotonic() - began < (2 if house.provider.name == "ns" else 8)
        await neighbour.destroy()

    house.run(act())


def test_a_memory_bomb_dies_alone(house: House) -> None:
    house.needs("memory_limit")

    async def scene(box: Any) -> None:
        result = await box.exec(["python3", "-c", "x = bytearray(900 << 20)"], timeout_s=20)
        assert result.signal == 9 and result.oom
        after = await box.exec("echo alive; exit 1")
        assert after.output == b"alive\n" and not after.oom

    house.play(scene, memory_bytes=64 * MIB, disk_bytes=16 * MIB)


def test_a_full_disk_is_an_error_inside(house: House) -> None:
    if house.provider.name == "docker":
        assert not house.able.disk_limit and "disk" in str(house.able.notes), "what is not limited must be said"
        return
    house.needs("disk_limit")

    async def scene(box: Any) -> None:
        result = await box.exec("dd if=/dev/zero of=/tmp/big bs=1M count=200")
        assert result.exit_code == 1 and b"No space left" in result.output
        assert (await box.exec("rm /tmp/big; echo again > /tmp/small; cat /tmp/small")).output == b"again\n"

    house.play(scene, disk_bytes=32 * MIB)


def test_a_busy_loop_gets_its_share(house: House) -> None:
    house.needs("cpu_limit")

    async def scene(box: Any) -> None:
        result = await box.exec("timeout 1 sh -c 'while :; do :; done' & timeout 1 sh -c 'while :; do :; done'; wait")
        assert result.cpu_s < 0.9, "two loops for a second under a limit of 0.3"

    house.play(scene, cpus=0.3)


# ---- walls ----


def test_no_network(house: House) -> None:
    async def scene(box: Any) -> None:
        devices = await box.exec("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '")
        assert devices.output == b"lo\n"
        for address in ("1.1.1.1/53", "169.254.169.254/80", "127.0.0.1/22"):
            assert not (await box.exec(["bash", "-c", f"exec 3<>/dev/tcp/{address}"], timeout_s=3)).ok

    house.play(scene)


def test_loopback_works(house: House) -> None:
    code = (
        "import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).send(b'hi')\nprint(server.accept()[0].recv(2))"
    )
    result = house.play(lambda box: box.exec(["python3", "-c", code]))
    assert result.output == b"b'hi'\n"


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
def test_switches_of_the_kernel_are_out_of_reach(house: House, path: str) -> None:
    async def scene(box: Any) -> None:
        core = Path("/proc/sys/kernel/core_pattern").read_bytes()
        for user in ("agent", "root"):
            result = await box.exec(f"test -f {path} && echo '|/tmp/x' > {path}", user=user)
            assert not result.ok
        assert Path("/proc/sys/kernel/core_pattern").read_bytes() == core

    house.play(scene)


def test_a_workload_is_never_the_hosts_root(house: House) -> None:
    async def scene(box: Any) -> None:
        for user in ("agent", "root") if house.provider.name == "ns" else ("agent",):
            token = f"sleep 778{os.getpid()}"
            task = asyncio.ensure_future(box.exec(token, user=user))
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


def test_the_hosts_files_are_not_there(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")

    async def scene(box: Any) -> None:
        for path in (secret, Path(__file__), Path("/var/run/docker.sock"), Path("/sys/fs/cgroup/memory/release_agent")):
            assert not (await box.exec(["cat", str(path)], user="root")).ok
        mounts = (await box.exec("cat /proc/self/mounts /proc/1/cmdline")).output.decode()
        assert str(tmp_path.parent.parent) not in mounts and str(Path(__file__).parent) not in mounts

    house.play(scene)


@pytest.mark.parametrize("user", ["agent", "root"])
def test_pid_one_cannot_be_touched(house: House, user: str) -> None:
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


def test_a_workload_holds_no_capability(house: House) -> None:
    async def scene(box: Any) -> None:
        for user in ("agent", "root"):
            status = (await box.exec("cat /proc/self/status", user=user)).output.decode()
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
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


def test_dangerous_system_calls_are_refused(house: House) -> None:
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


def test_control_the_host_would_allow_them() -> None:
    """On the host the same calls reach the kernel: with nonsense it answers something else than EPERM."""
    code = "import ctypes; l = ctypes.CDLL(None, use_errno=True); l.syscall(435, 0, 0); print(ctypes.get_errno())"
    done = subprocess.run([shutil.which("python3") or "python3", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "22"


def test_set_user_id_gains_nothing(house: House) -> None:
    async def scene(box: Any) -> None:
        await box.exec("cp $(command -v id) /tmp/id; chmod 4755 /tmp/id", user="root")
        assert (await box.exec("/tmp/id -u", user="agent")).output == (b"1000\n" if house.able.users else b"0\n")

    house.play(scene)


# ---- files ----


def test_files_in_and_out(house: House) -> None:
    async def scene(box: Any) -> None:
        await box.put("/work/deep/er/file", b"\0\xffdata", 0o640, owner="agent")
        assert await box.get("/work/deep/er/file") == b"\0\xffdata"
        shown = (await box.exec("stat -c '%a %u' /work/deep/er/file")).output
        assert shown == (b"640 1000\n" if house.able.users else b"640 0\n")
        await box.put_files({"/tmp/a": b"1", "/tmp/b": b"2"}, 0o755)
        assert (await box.exec("cat /tmp/a /tmp/b")).output == b"12"
        await box.put("/tmp/a", b"")
        assert await box.get("/tmp/a") == b""

    house.play(scene)


def test_a_large_file(house: House) -> None:
    data = os.urandom(9 * MIB)

    async def scene(box: Any) -> None:
        await box.put("/tmp/large", data)
        assert await box.get("/tmp/large", max_bytes=9 * MIB) == data
        with pytest.raises(OutputLimit, match="9437183"):
            await box.get("/tmp/large", max_bytes=9 * MIB - 1)

    house.play(scene)


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/nul\0", "/x" * 3000, "", "/dir/"])
def test_paths_that_are_refused(house: House, path: str) -> None:
    async def scene(box: Any) -> None:
        with pytest.raises(PolicyRefused):
            await box.put(path, b"x")
        if path != "/dir/":
            with pytest.raises(PolicyRefused):
                await box.get(path)

    house.play(scene)


def test_links_are_not_written_through(house: House) -> None:
    async def scene(box: Any) -> None:
        await box.exec("echo precious > /tmp/target; ln -s /tmp/target /tmp/link; ln /tmp/target /tmp/hard; mkfifo /tmp/fifo")
        for name in ("link", "hard", "fifo"):
            await box.put(f"/tmp/{name}", b"new")
            assert await box.get(f"/tmp/{name}") == b"new"
        assert await box.get("/tmp/target") == b"precious\n"
        await box.exec("ln -s / /tmp/slash; ln -s ../../../../../../tmp /tmp/up")
        await box.put("/tmp/up/landed", b"inside")
        assert await box.get("/tmp/landed") == b"inside" and not Path("/tmp/landed").exists()

    house.play(scene)


def test_reading_only_regular_files(house: House) -> None:
    async def scene(box: Any) -> None:
        await box.exec(
            "mkfifo /tmp/fifo; ln -s /proc/1/environ /tmp/env; ln -s /proc/self/fd/3 /tmp/fd; ln -s /dev/zero /tmp/zero"
        )
        for path in ("/tmp/fifo", "/tmp/env", "/tmp/fd", "/tmp/zero", "/proc/1/environ", "/dev/zero"):
            with pytest.raises(PolicyRefused):
                await box.get(path)
        with pytest.raises(FileNotFoundError):
            await box.get("/tmp/nothing")
        with pytest.raises(IsADirectoryError):
            await box.get("/tmp")
        with pytest.raises(IsADirectoryError):
            await box.put("/tmp", b"")

    house.play(scene)


def test_export_carries_changes_and_deletions(house: House, tmp_path: Path) -> None:
    layer, out = tmp_path / "layer", tmp_path / "out"
    for folder in (layer, layer / "work", layer / "work/old", layer / "work/gone", out):
        folder.mkdir()
        folder.chmod(0o777)
    for name, text in {"keep": "keep", "edit": "before", "drop": "x", "old/a": "a", "old/b": "b", "gone/c": "c"}.items():
        (layer / "work" / name).write_text(text)
        (layer / "work" / name).chmod(0o666)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", "101000:101000", layer], check=True)

    async def act() -> None:
        box = await house.box(layers=[layer])
        await box.exec(
            "echo after > edit; rm drop; rm -r gone; rm -r old; mkdir old; echo new > old/n; mkdir made; echo m > made/m; "
            "chmod 755 made/m; ln -s /etc/passwd link; mkfifo fifo; echo outside > /tmp/outside; touch 'odd  name'"
        )
        with pytest.raises(PolicyRefused, match="freeze"):
            await box.export(["/work"], out)
        await box.freeze()
        with pytest.raises(OutputLimit):
            await box.export(["/work"], out, max_files=3)
        got = await box.export(["/work"], out)
        await box.destroy()
        assert got.skipped == ("/work/fifo",) and got.files >= 5
        assert not (out / "tmp").exists()
        fresh = await house.box(layers=[out, layer])
        listing = await fresh.exec(
            "find . -mindepth 1 | LC_ALL=C sort; cat edit old/n made/m keep; readlink link; stat -c %a made/m"
        )
        assert listing.output.decode().split("\n") == [
            "./edit",
            "./keep",
            "./link",
            "./made",
            "./made/m",
            "./odd  name",
            "./old",
            "./old/n",
            "after",
            "new",
            "m",
            "keep/etc/passwd",
            "755",
            "",
        ]
        await fresh.destroy()

    out_mode(out)
    house.run(act())


@pytest.mark.parametrize("name", ["d", "d" * 200])
def test_a_bottomless_tree_is_no_trap(house: House, tmp_path: Path, name: str) -> None:
    """Neither for PID 1's stack nor, later, for whoever removes what was exported."""
    code = f"import os\nos.chdir('/work')\nfor i in range(1500):\n    os.mkdir('{name}')\n    os.chdir('{name}')\n"

    async def scene(box: Any) -> None:
        assert (await box.exec(["python3", "-c", code])).ok
        await box.freeze()
        with pytest.raises(OutputLimit, match="200 levels"):
            await box.export(["/work"], tmp_path)

    house.play(scene)


def out_mode(folder: Path) -> None:
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, 100_000, 100_000)


# ---- what is refused before anything starts ----


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"command": [""]}, "command"),
        ({"command": []}, "command"),
        ({"command": "a\0b"}, "NUL"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"max_output_bytes": -1}, "max_output_bytes"),
        ({"user": "nobody; id"}, "user"),
        ({"user": "-1"}, "user"),
        ({"cwd": "x"}, "cwd"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "\0"}}, "env"),
    ],
)
def test_arguments_that_are_refused(house: House, arguments: dict[str, Any], names: str) -> None:
    async def scene(box: Any) -> None:
        with pytest.raises(PolicyRefused, match=names):
            await box.exec(**{"command": "true", **arguments})

    house.play(scene)


@pytest.mark.parametrize(
    "spec",
    [
        {"memory_bytes": 0},
        {"pids": -1},
        {"cpus": 0},
        {"disk_bytes": 1 << 60},
        {"lease_s": -1},
        {"user": "x y"},
        {"network": "host"},
    ],
)
def test_limits_that_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(PolicyRefused, match=f"{next(iter(spec))}.*got"):
        SandboxSpec(image="base", **spec)


def test_an_unknown_image(house: House) -> None:
    async def act() -> None:
        with pytest.raises(ImageMissing):
            await house.provider.create(SandboxSpec(image="missing"))

    house.run(act())


def test_huge_arguments_are_an_error_inside(house: House) -> None:
    async def scene(box: Any) -> None:
        result = await box.exec(["true", "x" * 300_000])
        assert result.exit_code == 126 and b"too long" in result.output
        assert (await box.exec("true")).ok

    house.play(scene)
