"""What only the `ns` provider has: prepared upper layers, build sandboxes, many at once, group reuse, other users' modes."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import packaging
import pytest

from gymsmith.errors import Capacity, ImageMissing, SandboxError, SandboxGone
from sandboxes.admission import Admission, Room
from sandboxes.base import CAPABILITY_TABLE, MIB, UID_SHIFT, Image, SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr

if TYPE_CHECKING:
    from tests.sandboxes.conftest import House

pytestmark = pytest.mark.parametrize("house", ["ns"], indirect=True)
ROOT = Path(__file__).resolve().parents[2]
CAP_BITS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "DAC_READ_SEARCH": 2, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7,
            "NET_BIND_SERVICE": 10, "SYS_CHROOT": 18, "SETFCAP": 31}  # fmt: skip


def test_an_upper_directory_becomes_a_layer(house: House, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    if os.geteuid() == 0:
        os.chown(upper, UID_SHIFT, UID_SHIFT)

    async def act() -> None:
        build = await house.box(role="build", user="root", upper=upper)
        made = await build.exec(
            "mkdir /opt && echo tool > /opt/tool && chmod 755 /opt/tool && chown 1000:1000 /opt/tool && rmdir /work"
        )
        assert made.ok, made.output
        await build.destroy()
        assert (upper / "opt/tool").read_text() == "tool\n" and not Path(f"{upper}.work").exists()
        assert stat.S_ISCHR(os.lstat(upper / "work").st_mode)
        if os.geteuid() == 0:
            assert (upper / "opt/tool").stat().st_uid == UID_SHIFT + 1000
            assert (upper / "opt").stat().st_uid == UID_SHIFT
        one, two = await asyncio.gather(house.box(layers=[upper]), house.box(layers=[upper]))
        assert (await one.exec("cat /opt/tool; echo changed > /opt/tool; pwd")).output == b"tool\n/work\n"
        assert (await two.exec("cat /opt/tool")).output == b"tool\n"
        await one.destroy()
        await two.destroy()

    house.run(act())


def test_the_capability_table_is_the_truth(house: House) -> None:
    def mask(text: str, field: str) -> int:
        return int(text.split(f"{field}:\t")[1].split("\n")[0], 16)

    def bits(names: frozenset[str]) -> int:
        return sum(1 << CAP_BITS[name] for name in names)

    async def scene(box: Any) -> None:
        table = CAPABILITY_TABLE["namespace"]
        resident = (await box.exec("cat /proc/1/status")).output.decode()
        own = (await box.exec("cat /proc/self/status", user="root")).output.decode()
        build = box.spec.role == "build"
        assert mask(resident, "CapPrm") == mask(resident, "CapBnd") == bits(table["build" if build else "resident"])
        assert mask(own, "CapEff") == bits(table["build" if build else "workload"])
        examiner = (await box.exec("cat /proc/self/status", user="examiner")).output.decode()
        assert mask(examiner, "CapEff") == mask(examiner, "CapPrm") == bits(table["examiner"])

    house.play(scene)
    house.play(scene, role="build")


def test_one_cannot_use_up_what_the_machine_has_of_inotify(house: House) -> None:
    """That it had as many as root may have is the control arm: charged to root, nobody else could have had one."""
    if house.provider.mode != "root":  # type: ignore[attr-defined]
        pytest.skip("all sandboxes of an ordinary user are charged to that user")
    takes = (
        "import ctypes, sys, time\nlibc = ctypes.CDLL(None)\nheld = 0\nwhile libc.inotify_init() >= 0: held += 1\n"
        "print(held, flush=True)\ntime.sleep(60)"
    )
    limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())

    async def act() -> None:
        greedy, other = await house.box(), await house.box()
        job = await greedy.spawn(["python3", "-c", takes])
        for _ in range(200):
            if said := (await job.poll()).output:
                break
            await asyncio.sleep(0.05)
        assert int(said) >= min(limit, 4000), "as many as one user may have, or about as many as one process may open"
        one = "import ctypes; raise SystemExit(ctypes.CDLL(None).inotify_init() < 0)"
        assert (await other.exec(["python3", "-c", one])).ok
        assert subprocess.run([sys.executable, "-c", one]).returncode == 0
        await asyncio.gather(greedy.destroy(), other.destroy())

    house.run(act())


def test_sixty_four_at_once(house: House) -> None:
    async def act() -> None:
        boxes = await asyncio.gather(*(house.box() for _ in range(64)))
        results = await asyncio.gather(*(box.exec(f"echo {i} > me; cat me") for i, box in enumerate(boxes)))
        assert [r.output for r in results] == [b"%d\n" % i for i in range(64)]
        began = time.monotonic()
        await asyncio.gather(*(box.destroy() for box in boxes))
        assert time.monotonic() - began < 5

    house.run(act())


def test_groups_are_used_again(house: House) -> None:
    provider = house.provider
    assert isinstance(provider, NamespaceProvider)
    if provider._groups is None:
        pytest.skip("no writable control groups")

    async def act() -> None:
        for _ in range(5):
            box = await house.box(memory_bytes=48 * MIB)
            folder = box.group.folders[0]  # type: ignore[attr-defined]
            assert (folder / "cgroup.procs").read_text()
            await box.destroy()
        assert len(provider._groups._free[box_limits(48 * MIB)]) == 1  # type: ignore[union-attr]

    def box_limits(memory: int) -> Any:
        from sandboxes.cgroups import Limits

        spec = SandboxSpec(image="base", memory_bytes=memory)
        return Limits(memory + spec.disk_bytes, spec.pids + 8, spec.cpus)

    house.run(act())


def test_a_missing_layer_is_named(house: House, tmp_path: Path) -> None:
    async def act() -> None:
        with pytest.raises(ImageMissing, match="gone"):
            await house.box(layers=[tmp_path / "gone"])
        with pytest.raises(Capacity):
            await house.box(upper=tmp_path / "no/upper")
        box = await house.box()
        assert (await box.exec("true")).ok
        await box.destroy()

    house.run(act())


def test_an_image_cannot_misplace_mounts(house: House, tmp_path: Path) -> None:
    """Links in the places of /proc and /dev lead nowhere but inside."""
    layer = tmp_path / "layer"
    layer.mkdir(mode=0o755)
    for name in ("proc", "dev", "tmp"):
        (layer / name).symlink_to(f"../../../..{tmp_path}/outside")
    outside = tmp_path / "outside"
    outside.mkdir()

    async def act() -> None:
        try:
            box = await house.box(layers=[layer])
        except SandboxError:
            return
        await box.exec("touch /tmp/x /dev/x")
        await box.destroy()

    house.run(act())
    assert list(outside.iterdir()) == []


def test_a_broken_stream_ends_the_sandbox(house: House) -> None:
    async def scene(box: Any) -> None:
        _, answer = box.link.request(99)
        assert (await answer)[1] == (38).to_bytes(4, "little")
        _, answer = box.link.request(1, b"short")
        assert (await answer)[1] == (71).to_bytes(4, "little")
        assert (await box.exec("echo on")).output == b"on\n"
        box.link._send(b"\xff" * 64)
        with pytest.raises(SandboxGone):
            for _ in range(100):
                await box.exec("true")

    house.play(scene)


def test_a_bound_directory_that_was_replaced(house: House, tmp_path: Path) -> None:
    """The launcher keeps clones of bound directories; a new directory under the old name must not show the old files."""
    root, bound = tmp_path / "root", tmp_path / "bound"
    root.mkdir()

    class Bound:
        def resolve(self, image_id: str) -> Image:
            return Image(
                "x", HostUsr(root).image.layers if not any(root.iterdir()) else (root,), (("/usr", "/usr"), (str(bound), "/mnt"))
            )

    async def act() -> None:
        provider = await NamespaceProvider.start(Bound(), tmp_path / "state")
        for text in ("first", "second"):
            bound.mkdir()
            (bound / "file").write_text(text)
            box = await provider.create(SandboxSpec(image="x"))
            result = await box.exec("cat /mnt/file; echo > /mnt/file", user="root")
            assert result.output.startswith(text.encode()) and not result.ok, "read-only"
            shutil.rmtree(bound)
            await box.destroy()
        with pytest.raises(Capacity, match="bind a host directory"):
            await provider.create(SandboxSpec(image="x"))
        await provider.close()

    house.run(act())


def test_a_lost_launcher_is_replaced(house: House, tmp_path: Path) -> None:
    async def act() -> None:
        provider = await NamespaceProvider.start(house.provider.images, tmp_path)  # type: ignore[attr-defined]
        box = await provider.create(SandboxSpec(image="base"))
        waiting = asyncio.ensure_future(box.exec("sleep 50"))
        await asyncio.sleep(0.05)
        os.kill(provider._launcher._process.pid, signal.SIGKILL)
        with pytest.raises(SandboxGone):
            await waiting
        await box.destroy()
        again = await provider.create(SandboxSpec(image="base"))
        assert (await again.exec("echo back")).output == b"back\n"
        await provider.close()
        await provider.close()
        assert list(tmp_path.rglob("scratch")) == []

    house.run(act())


def test_snapshots_are_given_back(house: House, tmp_path: Path) -> None:
    """Nothing of them is on the host; the launcher drops a snapshot with its last holder, and all of them when it dies."""

    async def act() -> None:
        provider = await NamespaceProvider.start(house.provider.images, tmp_path)  # type: ignore[attr-defined]

        def held() -> int:
            return Path(f"/proc/{provider._launcher._process.pid}/mountinfo").read_text().count("/snapshots/")

        async def until(count: int) -> None:
            for _ in range(200):
                if held() == count:
                    return
                await asyncio.sleep(0.01)
            assert held() == count

        box = await provider.create(SandboxSpec(image="base"))
        await box.put("/work/file", b"kept")
        snapshot = await box.snapshot()
        await until(1)
        assert "/snapshots/" not in Path("/proc/self/mountinfo").read_text()
        fork = await snapshot.start()
        await snapshot.discard()
        [second] = await fork.fork()
        await until(2)
        await fork.destroy()
        assert (await second.exec("cat file")).output == b"kept"
        await second.destroy()
        await until(0)
        lost = await box.snapshot()
        os.kill(provider._launcher._process.pid, signal.SIGKILL)
        await box.dead
        with pytest.raises(SandboxGone, match="launcher"):
            await lost.start()
        await (await provider.create(SandboxSpec(image="base"))).destroy()
        with pytest.raises(SandboxGone, match="launcher"):
            await lost.start()
        await lost.discard()
        await provider.close()

    house.run(act())


def test_a_snapshot_that_does_not_fit(house: House) -> None:
    async def scene(box: Any) -> None:
        code = "import os\nfor i in range(300):\n    os.mkdir('d')\n    os.chdir('d')\n"
        assert (await box.exec(["python3", "-c", code])).ok
        with pytest.raises(Capacity, match="name too long"):
            await box.snapshot()
        assert (await box.exec("echo on")).output == b"on\n", "it moves again"
        await box.exec("rm -r d; mkfifo pipe; head -c 20000000 /dev/zero > big")
        [fork] = await box.fork()
        assert (await fork.exec("stat -c %s big; test -p pipe && echo pipe")).output == b"20000000\npipe\n"
        await fork.destroy()

    house.play(scene, disk_bytes=32 * MIB)


def test_no_room_is_said(house: House, tmp_path: Path) -> None:
    async def act() -> None:
        one = Admission(Room.of_machine(1), wait_s=0.1)
        small = await NamespaceProvider.start(house.provider.images, tmp_path, admission=one)  # type: ignore[attr-defined]
        box = await small.create(SandboxSpec(image="base"))
        with pytest.raises(Capacity, match="at most 1"):
            await small.create(SandboxSpec(image="base"))
        await box.destroy()
        await (await small.create(SandboxSpec(image="base"))).destroy()
        await small.close()
        with pytest.raises(SandboxGone):
            await small.create(SandboxSpec(image="base"))

    house.run(act())


ORDINARY = """
import asyncio, os, sys
from pathlib import Path
from gymsmith.errors import PolicyRefused
from sandboxes import launcher, namespace
from sandboxes.base import SandboxSpec
from sandboxes.namespace import NamespaceProvider
from sandboxes.probe import HostUsr

async def main():
    if sys.argv[2] == "single":
        # as on a kernel before 6.6, where what a sandbox writes lies on disk
        namespace.tmpfs_has_user_attributes = launcher.tmpfs_has_user_attributes = lambda: False
    folder = Path(sys.argv[1])
    (folder / "root").mkdir(mode=0o755)
    provider = await NamespaceProvider.start(HostUsr(folder / "root"), folder / "state")
    assert provider.mode == sys.argv[2], provider.mode
    box = await provider.create(SandboxSpec(image="base", pids=16))
    who = await box.exec("id -u; cat /proc/self/uid_map | tr -s ' '; grep CapEff /proc/self/status; cat /proc/1/environ")
    bomb = await box.exec(["bash", "-c", ":(){ :|:& };:"], timeout_s=0.5)
    await box.put("/work/x", b"data", owner="agent")
    await box.kill_agents()  # what the bomb left is dead but may still be counted
    again = await box.exec("rm -r /work && mkdir /work && echo -n data > /work/x", user="root", cwd="/")
    assert again.ok, again
    if sys.argv[2] == "single":
        try:
            await box.snapshot()
        except PolicyRefused as error:
            assert "Linux 6.6" in str(error)
        else:
            raise AssertionError("a tmpfs without user attributes cannot hold a layer")
    else:
        [twin] = await box.fork()
        seen = await twin.exec("cat x; ls -A")
        assert seen.output == b"datax\\n", seen
        [third] = await twin.fork()
        seen = await third.exec("cat x; ls -A")
        assert seen.output == b"datax\\n", seen
        await twin.destroy()
        await third.destroy()
    shell = await box.shell()
    seen = await shell.run("cd /tmp; test -t 0 && test -t 1 && echo x > /dev/stderr; false")
    assert seen.output == b"x\\n" and seen.exit_code == 1, seen
    assert (await shell.run("pwd; exit 3")).exit_code == 3
    await box.freeze()
    (folder / "out").mkdir()
    got = await box.export(["/work"], folder / "out")
    (folder / "upper").mkdir()
    build = await provider.create(SandboxSpec(image="base", role="build", user="root"), upper=folder / "upper")
    made = await build.exec("mkdir /opt; echo built > /opt/file")
    await build.destroy()
    await box.destroy()
    left = [str(path) for path in folder.rglob("*.work")] + [str(path) for path in folder.rglob("upper.*")]
    assert not left, left
    await provider.close()
    print(who.output.decode(), got.files, (folder / "out/work/x").read_text(), (folder / "upper/opt/file").read_text(), made.ok)

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["single", "subordinate"])
def test_an_ordinary_user(house: House, mode: str) -> None:
    """The whole circle once more as a user without privileges: nobody, and one who has subordinate ids."""
    from tests.sandboxes.conftest import lacking

    if os.geteuid() != 0:
        pytest.skip("this run is an ordinary user's already")
    user = "nobody" if mode == "single" else next(iter(users_with_subordinate_ids()), "")
    if not user:
        lacking("no user with a line in /etc/subuid, or no newuidmap")
    python = next((path for path in (sys.executable, "/usr/bin/python3") if readable(user, path)), "")
    if not python:
        lacking("no Python that an ordinary user may start")
    entry = pwd.getpwnam(user)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:
        os.chown(home, entry.pw_uid, entry.pw_gid)
        # a copy, because the checkout may lie where this user may not look
        for room in ("sandboxes", "platform/gymsmith"):
            shutil.copytree(ROOT / room, f"{home}/code/{room}", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(Path(packaging.__file__).parent, f"{home}/code/packaging")
        paths = f"{home}/code:{home}/code/platform"
        env = {"PYTHONPATH": paths, "PATH": os.environ["PATH"], "USER": user, "LOGNAME": user}
        command = [python, "-B", "-c", ORDINARY, home, mode]
        done = run_as(user, command, env=env)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")
    assert lines[0] == ("0" if mode == "single" else "1000")
    assert lines[1].split() == ["0", "0", "1"], "root inside is this user, not the host's root"
    assert "CapEff:\t0000000000000000" in done.stdout
    assert lines[-2].split() == ["True"] and "1 data built" in done.stdout


def run_as(user: str, command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    entry = pwd.getpwnam(user)
    return subprocess.run(
        command,
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def users_with_subordinate_ids() -> list[str]:
    lines = Path("/etc/subuid").read_text().splitlines() if Path("/etc/subuid").exists() else []
    known = {entry.pw_name for entry in pwd.getpwall()}
    return [name for line in lines if shutil.which("newuidmap") and (name := line.split(":")[0]) in known]


def readable(user: str, python: str) -> bool:
    try:
        return run_as(user, [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode == 0
    except OSError:
        return False
