"""A Docker Engine of a test's own, which may be killed: with folders and a socket apart from the machine's."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from sandboxes.reaper import start_time
from tests.sandboxes.conftest import lacking

REFERENCE = "gymsmith/tiny:1"
PROGRAMS = ("/bin/sh", "/bin/sleep")


class Engine:
    """`dockerd` below `folder`, with one image that has a shell and `sleep`."""

    def __init__(self, folder: Path) -> None:
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            lacking("an engine of one's own needs root and dockerd (apt-get install docker.io)")
        self.folder = folder
        self._short = Path(tempfile.mkdtemp(prefix="engine."))  # sockets have short paths
        self.host = f"unix://{self._short}/s"
        self.start()
        self.client.import_image_from_data(_image(), repository=REFERENCE.partition(":")[0], tag=REFERENCE.partition(":")[2])

    def start(self) -> None:
        """Returns when it answers."""
        import docker

        words = [
            "dockerd", f"--data-root={self.folder}/data", f"--exec-root={self._short}/exec", f"--pidfile={self._short}/pid",
            f"--host={self.host}", "--bridge=none", "--iptables=false",
        ]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)
        for _ in range(300):
            with contextlib.suppress(docker.errors.DockerException, OSError):  # until it listens
                self.client: Any = docker.APIClient(self.host, timeout=30)
                return
            assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        raise AssertionError("dockerd must answer within 30 s, it did not")

    def kill(self) -> None:
        """As the kernel does when memory runs out: nothing is put in order."""
        helper = int((self._short / "exec/containerd/containerd.pid").read_text())
        self.process.kill()
        self.process.wait()
        for _ in range(100):  # it dies with its parent; another one is started only where none is found alive
            if not start_time(helper):
                break
            time.sleep(0.05)
        for left in ("pid", "exec/containerd/containerd.pid"):
            (self._short / left).unlink(missing_ok=True)

    def stop(self) -> None:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            for folder in Path("/proc").iterdir():
                with contextlib.suppress(OSError):
                    if folder.name.isdigit() and os.fsencode(self._short) in (folder / "cmdline").read_bytes():
                        os.kill(int(folder.name), signal.SIGKILL)
            for point in reversed(self.mounts()):
                subprocess.run(["umount", "-l", point], check=False)
            shutil.rmtree(self._short, ignore_errors=True)

    def mounts(self) -> list[str]:
        """What is still mounted for its containers."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if line.split()[4].startswith((f"{self.folder}/data", f"{self._short}/"))]


def _image() -> bytes:
    """A root file system, as a tar archive, of the host's own programs and their libraries."""
    files = set(PROGRAMS)
    for program in PROGRAMS:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        files.update(word for word in said.split() if word.startswith("/"))
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        parents = {str(parent).lstrip("/") for path in files for parent in Path(path).parents}
        for name in sorted({*parents, "tmp", "work", "etc"} - {""}):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o777 if name in ("tmp", "work") else 0o755
            tar.addfile(folder)
        for path in sorted(files):
            member = tarfile.TarInfo(path.lstrip("/"))
            content = Path(path).read_bytes()
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def sleeping(seconds: int) -> list[str]:
    """The processes that the host sees sleeping so long."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and (folder / "cmdline").read_bytes() == b"sleep\0%d\0" % seconds:
                found.append(folder.name)
    return found
