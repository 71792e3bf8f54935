# ruff: noqa: E501 - a step is easier to read in one line
"""Dockerfiles, archives and task folders that mean harm: each ends in an error of its own kind, and the host is as it was.

One table, through the factory's own ways in. That the walls of a sandbox hold against much more is shown in tests/sandboxes
(`docs/threats.md`); here it is shown that no way of the factory leads around them. Each step that is executed *succeeds* where it
gets what it wants, so that an error means that it did not.
"""

from __future__ import annotations

import gzip
import io
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from env_factory import archive
from env_factory.build import build
from env_factory.formats import harbor
from gymsmith.errors import BuildError, GymsmithError, PolicyRefused, SourceError
from sandboxes.base import MIB
from sandboxes.image import unpack
from tests.env_factory.defects import write as write_defects
from tests.env_factory.test_gates import FILES, GOOD

HOST = "FROM gymsmith/host\n"


class Attempt(NamedTuple):
    """A Dockerfile with its context, and what must come of it. {victim} is a file of the host's, {port} one that it listens on."""

    text: str
    error: type[GymsmithError] = BuildError
    context: dict[str, bytes] = {}


def tar_of(*items: tuple[str, bytes, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data, more in items:
            item = tarfile.TarInfo(name)
            item.size = len(data)
            for key, value in more.items():
                setattr(item, key, value)
            tar.addfile(item, io.BytesIO(data))
    return buffer.getvalue()


LINK, HARD = {"type": tarfile.SYMTYPE}, {"type": tarfile.LNKTYPE}
DEVICE = {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0}
CONNECT = "python3 -c \"import socket; socket.create_connection(('{0}', {1}), 2)\""
DOCKERFILES: dict[str, Attempt] = {
    "a frontend of its own": Attempt("# syntax=evil/frontend\n" + HOST, PolicyRefused),
    "an insecure step": Attempt(HOST + "RUN --security=insecure id\n", PolicyRefused),
    "a step on the host's network": Attempt(HOST + "RUN --network=host id\n", PolicyRefused),
    "a secret of the host": Attempt(HOST + "RUN --mount=type=secret,id=x cat /run/secrets/x\n", PolicyRefused),
    "the ssh agent of the host": Attempt(HOST + "RUN --mount=type=ssh ssh-add -l\n", PolicyRefused),
    "ADD from the metadata address": Attempt(HOST + "ADD http://169.254.169.254/latest/meta-data/ /m\n", PolicyRefused),
    "ADD from a git server": Attempt(HOST + "ADD git@example.org:x.git /x\n", PolicyRefused),
    "COPY from above the context": Attempt(HOST + "COPY ../../../../etc/shadow /x\n", PolicyRefused),
    "COPY from above by detours": Attempt(HOST + "COPY a/../../../etc/shadow /x\n", PolicyRefused, {"a/b": b"x"}),
    "FROM a folder of the host": Attempt("FROM ../../../etc\n", PolicyRefused),
    "FROM somebody's registry": Attempt("FROM registry.example.org/evil:latest\n", PolicyRefused),
    "ONBUILD": Attempt(HOST + "ONBUILD RUN id\n", PolicyRefused),
    "a step without an end": Attempt(HOST + "RUN sleep 3600\n"),
    "a fork bomb": Attempt(HOST + "RUN f() { f | f & }; f 2>/dev/null; sleep 1; [ $(ls /proc | grep -c '^[0-9]') -gt 20000 ]\n"),
    "a fork bomb with sessions": Attempt(
        HOST + "RUN i=0; while [ $i -lt 20000 ]; do setsid sleep 60 & i=$((i+1)); done 2>/dev/null; sleep 1; exit 1\n"
    ),
    "a memory bomb": Attempt(HOST + "RUN python3 -c \"x = [bytearray(1 << 28) for _ in range(64)]\"\n"),
    "a file of 100 GiB": Attempt(HOST + "RUN fallocate -l 100G /opt/big || dd if=/dev/zero of=/opt/big bs=1M seek=102400 count=1\n"),
    "the metadata address": Attempt(HOST + f"RUN {CONNECT.format('169.254.169.254', 80)}\n"),
    "a service of the host": Attempt(HOST + f"RUN {CONNECT.format('127.0.0.1', '{port}')}\n"),
    "an address of the internet": Attempt(HOST + f"RUN {CONNECT.format('1.1.1.1', 53)}\n"),
    "the engine's socket": Attempt(
        HOST + "RUN for s in /var/run/docker.sock /run/docker.sock /run/containerd/containerd.sock /run/podman/podman.sock; do "
        "[ -S $s ] && exit 0; done; exit 1\n"
    ),
    "files of the host through /proc": Attempt(HOST + "RUN cat /proc/1/root{victim} || cat /proc/1/cwd{victim}\n"),
    "a file of the host by its path": Attempt(HOST + "RUN cat {victim}\n"),
    "a device": Attempt(HOST + "RUN mknod /opt/disk b 8 0 && head -c 1 /opt/disk\n"),
    "a switch of the kernel": Attempt(HOST + "RUN echo '|/opt/x' > /proc/sys/kernel/core_pattern\n"),
    "a reboot": Attempt(HOST + "RUN echo b > /proc/sysrq-trigger\n"),
    "a mount": Attempt(HOST + "RUN mount -t tmpfs none /mnt && mount --bind / /mnt\n"),
    "a kernel module": Attempt(HOST + "RUN python3 -c \"import ctypes; raise SystemExit(ctypes.CDLL(None).syscall(175, 0, 0, 0) != 0)\"\n"),
    "a set-id program": Attempt(
        HOST + "RUN cp /usr/bin/id /opt/id && chown 0:0 /opt/id && chmod 6755 /opt/id\nUSER agent\nRUN [ $(/opt/id -u) = 0 ]\n"
    ),
    "a path that leaves its archive": Attempt(HOST + "ADD a.tar /opt/\n", PolicyRefused, {"a.tar": tar_of(("../../evil", b"x", {}))}),
    "an absolute path in an archive": Attempt(HOST + "ADD a.tar /opt/\n", PolicyRefused, {"a.tar": tar_of(("{victim}", b"x", {}))}),
    "a link, then a file behind it": Attempt(
        HOST + "ADD a.tar /opt/\n", BuildError,
        {"a.tar": tar_of(("out", b"", {**LINK, "linkname": "{folder}"}), ("out/evil", b"x", {}))},
    ),
    "a second name of a file of the host": Attempt(
        HOST + "ADD a.tar /opt/\n", PolicyRefused, {"a.tar": tar_of(("h", b"", {**HARD, "linkname": "../../../..{victim}"}))}
    ),
    "a device in an archive": Attempt(HOST + "ADD a.tar /opt/\n", PolicyRefused, {"a.tar": tar_of(("disk", b"", DEVICE))}),
    "a bomb in an archive": Attempt(
        HOST + "ADD a.tgz /opt/\n", PolicyRefused, {"a.tgz": gzip.compress(tar_of(("zeros", bytes(96 * MIB), {})), 6)}
    ),
}  # fmt: skip


def zip_of(*items: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in items:
            made.writestr(name, data)
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], type[GymsmithError]]] = {
    "a zip that climbs": (lambda: zip_of(("p/../../../evil", b"x")), PolicyRefused),
    "a zip with an absolute path": (lambda: zip_of(("/etc/evil", b"x")), PolicyRefused),
    "a zip bomb": (lambda: zip_of(*((f"p/{n}", bytes(40 * MIB)) for n in range(4))), PolicyRefused),
    "a tar bomb": (lambda: gzip.compress(tar_of(*((f"p/{n}", bytes(40 * MIB), {}) for n in range(4))), 1), PolicyRefused),
    "very many files": (lambda: tar_of(*((f"p/{n}", b"", {}) for n in range(20_100))), PolicyRefused),
    "a backslash in a name": (lambda: tar_of(("p\\..\\..\\evil", b"x", {})), PolicyRefused),
    "half an archive": (lambda: gzip.compress(tar_of(("p/a", os.urandom(5000), {})))[:3000], SourceError),
}


def a_link(folder: Path) -> None:
    (folder / "environment/app/passwd").symlink_to("/etc/passwd")


def a_linked_folder(folder: Path) -> None:
    (folder / "tests").rename(folder / "elsewhere")
    (folder / "tests").symlink_to("/etc")


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "tests/waits")


def a_huge_file(folder: Path) -> None:
    with (folder / "environment/app/huge").open("wb") as file:
        file.truncate(100 << 30)


FOLDERS: dict[str, Callable[[Path], None]] = {
    f.__name__.replace("_", " "): f for f in (a_link, a_linked_folder, a_pipe, a_huge_file)
}


def descendants(pid: int) -> set[int]:
    """Every process below one."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in map(int, task.read_text().split()):
                found |= {child} | descendants(child)
        except OSError:
            continue
    return found


class Site(NamedTuple):
    """The host as a workload might change it."""

    victim: Path
    port: int
    home: Path

    def state(self) -> dict[str, object]:
        """Everything that must be the same afterwards."""
        shared = Path("/dev/shm")
        return {
            "victim": (
                self.victim.read_text(),
                self.victim.stat().st_mode,
                self.victim.stat().st_uid,
                self.victim.stat().st_nlink,
            ),
            "beside it": sorted(path.name for path in self.victim.parent.iterdir()),
            "core pattern": Path("/proc/sys/kernel/core_pattern").read_text(),
            "mounts": sorted(line for line in Path("/proc/self/mounts").read_text().splitlines() if str(self.home) in line),
            "half-made layers": sorted(path.name for path in self.home.glob("images/tmp/*")),
            "artifacts": sorted(path.name for path in shared.glob(f"gymsmith-artifacts-{os.getpid()}.*")),
            "devices": sorted(path.name for path in Path("/dev").iterdir() if not path.name.startswith(("pts", "tty", "loop"))),
        }


@pytest.fixture(scope="module")
def site(doorway: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    victim = tmp_path_factory.mktemp("host") / "victim"
    victim.write_text("untouched\n")
    victim.parent.chmod(0o755)
    victim.chmod(0o644)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Site(victim, server.getsockname()[1], doorway.settings.home)


def filled(data: bytes, site: Site) -> bytes:
    """The archive with the host's names in it: they are told apart only now."""
    if b"{victim}" not in data and b"{folder}" not in data:
        return data
    with tarfile.open(fileobj=io.BytesIO(data)) as read:
        items = [(m, file.read() if m.isreg() and (file := read.extractfile(m)) else b"") for m in read]
    told = {"{victim}": str(site.victim), "{folder}": str(site.victim.parent)}

    def named(text: str) -> str:
        for word, value in told.items():
            text = text.replace(word, value)
        return text

    return tar_of(*((named(m.name), content, {"type": m.type, "linkname": named(m.linkname)}) for m, content in items))


def test_there_are_enough() -> None:
    assert len(DOCKERFILES) + len(ARCHIVES) + len(FOLDERS) >= 45


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_that_means_harm(doorway: Any, site: Site, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_BYTES", 64 * MIB)
    attempt = DOCKERFILES[name]
    text = attempt.text.replace("{victim}", str(site.victim)).replace("{port}", str(site.port))
    context = {f"environment/{member}": filled(data, site) for member, data in attempt.context.items()}
    draft = replace(GOOD, files=FILES | context | {"environment/Dockerfile": text.encode()})

    async def work() -> None:
        await doorway.worker.provider()
        images = await doorway.worker.images()
        await build(draft, images, timeout_s=8.0)

    doorway.worker.run(doorway.worker.provider())
    before, below = site.state(), descendants(os.getpid())
    with pytest.raises(attempt.error) as caught:
        doorway.worker.run(work())
    assert str(caught.value), "an error says what was wrong"
    assert site.state() == before
    assert not descendants(os.getpid()) - below, "a process of the attempt is still there"


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_means_harm(site: Site, name: str) -> None:
    make, error = ARCHIVES[name]
    data = make()
    before = site.state()
    with pytest.raises(error):
        archive.unpack("evil-1.0.zip" if data.startswith(b"PK") else "evil-1.0.tar.gz", data)
    assert site.state() == before


@pytest.mark.parametrize("name", FOLDERS)
def test_a_task_folder_that_means_harm(site: Site, tmp_path: Path, name: str) -> None:
    folder = write_defects(tmp_path) / "adds-two-numbers"
    assert harbor.read(folder).files, "the control: without the change it is read"
    FOLDERS[name](folder)
    before = site.state()
    with pytest.raises(PolicyRefused):
        harbor.read(folder)
    assert site.state() == before
