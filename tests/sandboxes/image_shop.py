"""What the tests of images share: a provider with its image store, and a small root file system made of this host's programs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sandboxes.base import Image, SandboxSpec
from sandboxes.image.build_context import BuildContext
from sandboxes.image.images import ImageStore
from sandboxes.namespace import NamespaceProvider

PROGRAMS = "sh cat chmod chown cp date echo env find grep head id ln ls mkdir mkfifo mv pwd readlink rm rmdir sed sha256sum sleep"
MORE = "sort stat tail test touch tr true wc"


class Shop:
    """A provider and its image store on one event loop."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.images = ImageStore(root / "images")
        self.provider = self.run(NamespaceProvider.start(self.images, root / "sandboxes"))
        self.images.provider = self.provider

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def build(self, text: str, context: Mapping[str, bytes] | BuildContext | None = None, **options: Any) -> Image:
        return self.run(self.images.build(text, context or {}, **options))

    def say(self, image: Image, command: str, *, role: Any = "workload", **options: Any) -> str:
        async def ask() -> str:
            box = await self.provider.create(SandboxSpec(image=image.id, role=role))
            try:
                return (await box.exec(command, **options)).output.decode()
            finally:
                await box.destroy()

        return self.run(ask())

    def needs_users(self) -> None:
        if not self.provider.capabilities.users:
            pytest.skip("this user has one id only, so root, agent and tester are the same inside")

    def close(self) -> None:
        self.run(self.provider.close())
        self.loop.close()


def small_tar(folder: Path) -> Path:
    """The root file system of `small_root` as an archive, everything root's; written below the empty `folder`."""
    (folder / "root").mkdir(mode=0o755)
    small_root(folder / "root")

    def roots(item: tarfile.TarInfo) -> tarfile.TarInfo:
        item.uid = item.gid = 0
        item.uname = item.gname = ""
        item.mtime = 1
        return item

    with tarfile.open(folder / "small.tar", "w") as file:
        file.add(folder / "root", ".", filter=roots)
    return folder / "small.tar"


def small_root(folder: Path) -> Path:
    """A root file system of a few megabytes: a shell, the basic programs and their libraries."""
    for name in ("usr/bin", "usr/lib", "usr/lib64", "etc", "proc", "sys", "dev", "tmp", "root", "opt", "srv", "var/lib", "home"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        os.symlink(f"usr/{name}", folder / name)
    (folder / "tmp").chmod(0o1777)
    (folder / "root").chmod(0o700)
    wanted: set[str] = set()
    for program in f"{PROGRAMS} {MORE}".split():
        path = os.path.realpath(shutil.which(program) or f"/bin/{program}")
        shutil.copyfile(path, folder / "usr/bin" / program)
        (folder / "usr/bin" / program).chmod(0o755)
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        wanted.update(re.findall(r"(/\S+\.so\S*)", said))
    for library in sorted(wanted):
        target = folder / "usr" / library.removeprefix("/usr").lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(library, target)
            target.chmod(0o755)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")
    (folder / "etc/group").write_text("root:x:0:\nstaff:x:50:\nnogroup:x:65534:\n")
    return folder
