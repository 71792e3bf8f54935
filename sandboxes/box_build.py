"""Compiles the sandbox program (`box/*.c`) into `_box/gymsmith-box`, one static executable.

Used by the build hook when a wheel or an editable install is made, and by the launcher in a checkout that was never installed.
It therefore imports the standard library only. The compiler is `cc` where that can link statically, else the `ziglang` package.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).with_name("box")
BINARY = Path(__file__).with_name("_box") / "gymsmith-box"
FLAGS = ["-std=gnu11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Wno-unused-result"]


class CannotCompile(Exception):
    """No compiler here can make the program. The message says what to install."""


def compile_box(sources: Path = SOURCES, binary: Path = BINARY) -> Path:
    """Path of an up-to-date binary, compiled when the sources changed since the last time. Raises: CannotCompile."""
    digest = source_digest(sources)
    stamp = binary.with_suffix(".sha256")
    if binary.exists() and stamp.exists() and stamp.read_text() == digest:
        return binary
    command = compiler()
    if command is None:
        raise CannotCompile(
            "a C compiler is needed to build the sandbox program; install gcc and libc6-dev, or pip install ziglang"
        )
    binary.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        fresh = Path(folder, binary.name)
        _run([*command, *FLAGS, "-o", str(fresh), *map(str, sorted(sources.glob("*.c")))])
        fresh.chmod(0o755)
        os.replace(fresh, binary)
        mark = Path(folder, "stamp")
        mark.write_text(digest)
        os.replace(mark, stamp)
    return binary


def source_digest(sources: Path = SOURCES) -> str:
    """What the binary is made from; equal digests mean that nothing has to be compiled."""
    hasher = hashlib.sha256(platform.machine().encode())
    for path in sorted([*sources.glob("*.c"), *sources.glob("*.h")]):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()


def compiler() -> list[str] | None:
    """Command that compiles and links statically, or None. `cc` is tried, because many systems have it without a static libc."""
    cc = os.environ.get("CC") or shutil.which("cc")
    if cc and _links_statically(cc):
        return [cc]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-musl"]
    return None


def _links_statically(cc: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.c")
        source.write_text("int main(void) { return 0; }\n")
        done = subprocess.run([cc, "-static", "-o", str(source.with_suffix("")), str(source)], capture_output=True)
        return done.returncode == 0


def _run(command: list[str]) -> None:
    environment = dict(os.environ)
    # zig keeps a cache in HOME, which a build environment may lack
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"gymsmith-zig-{os.getuid()}"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise CannotCompile(f"compiling the sandbox program failed: {' '.join(command[:3])} ...\n{done.stderr[-3000:]}")
