"""What namespaces guarantee on this machine, found by making one sandbox and asking it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gymsmith.errors import Capacity
from sandboxes.base import UID_SHIFT, Image, SandboxSpec
from sandboxes.launcher import choose_mode
from sandboxes.namespace import NamespaceProvider


class HostUsr:
    """An image made of the host's /usr alone, whatever its id: enough to try a machine. `root` is an empty directory."""

    def __init__(self, root: Path) -> None:
        for link in ("bin", "sbin", "lib", "lib64"):
            target = os.path.join("/usr", link)
            if os.path.isdir(target):
                os.symlink(f"usr/{link}", root / link)
        for folder in ("usr", "proc", "dev", "tmp", "work"):
            (root / folder).mkdir()
        (root / "tmp").chmod(0o1777)
        if choose_mode() == "root":
            for path in (root, *root.iterdir()):
                os.chown(path, UID_SHIFT, UID_SHIFT, follow_symlinks=False)
            os.chown(root / "work", UID_SHIFT + 1000, UID_SHIFT + 1000)
        self.image = Image(id="probe", layers=(root,), binds=(("/usr", "/usr"),))

    def resolve(self, image_id: str) -> Image:
        return self.image


async def examine(folder: Path) -> dict[str, Any]:
    """Make one sandbox and report what this machine guarantees; see `launcher.probe`. Raises: SandboxError."""
    root = folder / "root"
    root.mkdir()
    root.chmod(0o755)
    provider = await NamespaceProvider.start(HostUsr(root), folder / "state")
    try:
        box = await provider.create(SandboxSpec(image="probe"))
        result = await box.exec("echo ok")
        if result.output != b"ok\n":
            raise Capacity(f"a first command must print ok, got {result}")
        able = provider.capabilities
    finally:
        await provider.close()
    ways = {"root": "as root", "subordinate": "as a user with subordinate ids", "single": "as a plain user"}
    limits = "needs control groups that this user may write; run as root"
    facts = [
        ("host ids", True, f"sandboxes run as host uid {able.host_uid}", ""),
        (
            "separate users",
            able.users,
            "agent and tests run as different users",
            "install uidmap; add a line to /etc/subuid and /etc/subgid",
        ),
        ("memory limit", able.memory_limit, "memory of a whole sandbox is limited", limits),
        ("cpu limit", able.cpu_limit, "CPU time of a sandbox is limited", limits),
        ("process limit", able.pids_limit, "fork bombs end at the limit", ""),
        ("disk limit", able.disk_limit, "what a sandbox writes is limited", "needs Linux 6.6"),
        ("no network", True, "loopback only, no route to anything", ""),
        ("system calls", able.seccomp, "namespaces, mounts, keys, bpf and io_uring are refused", ""),
    ]
    return {
        "works": True,
        "summary": f"sandboxes work {ways[provider.mode]}",
        "next_move": "",
        "guarantees": {
            name: {"holds": holds, "text": text if holds else f"not: {text}", "next_move": "" if holds else cure}
            for name, holds, text, cure in facts
        },
    }
