"""`gymsmith/host`: a base image out of nothing but this machine, without a download.

The host's /usr is mounted read-only; everything else (users, /etc, /tmp, /work) is a small synthesised layer. Of the host's /etc
only what programs in /usr need to start is copied: the loader's cache, Debian's `alternatives` links, Python's configuration. No
secret, no host name, no user of the host is in it.

What programs it holds depends on the host, so its digest (`base_digest`) is part of every layer key built on it and of every
environment's evidence.
"""

from __future__ import annotations

import os
import platform
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gymsmith.errors import BuildError
from gymsmith.schema import digest
from sandboxes.image.layer import LayerWriter

NAME = "gymsmith/host"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_HASHED_DIRECTORIES = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
)
_COPIED_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/debian_version",
    "/etc/mime.types",
    "/etc/protocols",
    "/etc/services",
)
_COPIED_TREES = ("/etc/alternatives", "/etc/ld.so.conf.d")
_PASSWD = """root:x:0:0:root:/root:/bin/sh
agent:x:1000:1000:agent:/home/agent:/bin/sh
tester:x:1001:1001:tester:/home/tester:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP = "root:x:0:\nagent:x:1000:\ntester:x:1001:\nnogroup:x:65534:\n"


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of the synthesised layer: a directory, a symlink (`target`) or a file (`data`); ids are ids inside."""

    path: str
    data: bytes | None = None
    target: str | None = None
    mode: int = 0o755
    uid: int = 0


@lru_cache(maxsize=1)
def base_digest() -> str:
    """SHA-256 over what the host's /usr offers: names and sizes of its programs and libraries.

    Contents are not read (that would take seconds): an update changes sizes, and Debian's package database, where there is one,
    is hashed as it stands.
    """
    python = os.path.realpath("/usr/bin/python3")
    parts = [platform.machine().encode(), python.encode(), *(i.path.encode() + (i.data or b"") for i in skeleton())]
    for directory in (*_HASHED_DIRECTORIES, *sorted(f"/usr/lib/{n}" for n in os.listdir("/usr/lib") if n.startswith("python3"))):
        try:
            with os.scandir(directory) as entries:
                rows = sorted(f"{entry.name}:{entry.stat(follow_symlinks=False).st_size}" for entry in entries)
        except FileNotFoundError:
            continue
        parts.append("\n".join([directory, *rows]).encode(errors="surrogateescape"))
    status = Path("/var/lib/dpkg/status")
    if status.is_file():
        parts.append(status.read_bytes())
    return digest(*parts)


def binds() -> tuple[tuple[str, str], ...]:
    """Host directories that the image shows read-only: /usr, and /bin, /lib, ... where the host has not merged them into /usr."""
    real = [f"/{name}" for name in _MERGED if _kind(f"/{name}") == "directory"]
    return (("/usr", "/usr"), *((path, path) for path in real))


@lru_cache(maxsize=1)
def skeleton() -> tuple[Item, ...]:
    """Everything but /usr, parents before children."""
    items = [
        *(Item(f"/{name}") for name in ("usr", "dev", "proc", "etc", "run", "opt", "srv", "mnt", "var", "home", "logs")),
        *(Item(f"/var/{name}") for name in ("lib", "cache", "log", "spool")),
        Item("/tmp", mode=0o1777),
        Item("/var/tmp", mode=0o1777),
        Item("/root", mode=0o700),
        Item("/work", uid=1000),
        Item("/home/agent", uid=1000),
        Item("/home/tester", uid=1001),
        Item("/logs/agent", uid=1000),
        Item("/logs/verifier", uid=1001),
        Item("/etc/passwd", _PASSWD.encode(), mode=0o644),
        Item("/etc/group", _GROUP.encode(), mode=0o644),
        Item("/etc/hostname", b"sandbox\n", mode=0o644),
        Item("/etc/hosts", b"127.0.0.1 localhost sandbox\n::1 localhost\n", mode=0o644),
        Item("/etc/nsswitch.conf", b"passwd: files\ngroup: files\nhosts: files\n", mode=0o644),
        Item("/etc/profile", f"PATH={PATH}\nexport PATH\n".encode(), mode=0o644),
        Item("/etc/shells", b"/bin/sh\n/bin/bash\n", mode=0o644),
    ]
    for name in _MERGED:
        kind = _kind(f"/{name}")
        if kind == "link":
            items.append(Item(f"/{name}", target=os.readlink(f"/{name}")))
        elif kind == "directory":
            items.append(Item(f"/{name}"))
    trees = (*_COPIED_TREES, *sorted(f"/etc/{n}" for n in os.listdir("/etc") if n.startswith("python3")))
    for path in (*_COPIED_FILES, *trees):
        items += _copied(path)
    if os.path.exists("/usr/lib/os-release"):
        items.append(Item("/etc/os-release", target="../usr/lib/os-release"))
    return tuple(items)


def write_skeleton(root: Path) -> None:
    """Write the synthesised layer into the empty directory `root`. Raises: BuildError: the host has no Python in /usr."""
    if not os.path.exists("/usr/bin/python3"):
        raise BuildError(f"{NAME} needs /usr/bin/python3 on this host, found none; install python3, or use the Docker provider")
    writer = LayerWriter(root, ())
    for item in skeleton():
        if item.target is not None:
            writer.link(item.path, item.target)
        elif item.data is not None:
            writer.file(item.path, item.data, item.mode, item.uid, item.uid)
        else:
            writer.directory(item.path, item.mode, item.uid, item.uid)


def _kind(path: str) -> str:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return "missing"
    return "link" if stat.S_ISLNK(mode) else "directory" if stat.S_ISDIR(mode) else "file"


def _copied(path: str) -> list[Item]:
    """A world-readable file, link or tree of the host as it stands, less links to manual pages; anything else is left out."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return []
    if stat.S_ISLNK(status.st_mode):
        return [Item(path, target=os.readlink(path))]
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o004:
        return [Item(path, Path(path).read_bytes(), mode=0o755 if status.st_mode & 0o111 else 0o644)]
    if stat.S_ISDIR(status.st_mode):
        return [
            Item(path),
            *(item for name in sorted(os.listdir(path)) if not name.endswith(".gz") for item in _copied(f"{path}/{name}")),
        ]
    return []
