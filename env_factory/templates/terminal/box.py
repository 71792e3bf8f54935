"""Puts a data set into a folder, runs a program on it, tells what came out. Its text is sent into sandboxes, so it imports the
standard library alone and knows nothing of templates.

A data set is a dict of path -> content. The end of a path may say more: `name!640` has that mode, `name@` is a symbolic link
whose content is its target, `name/` is an empty folder. Bytes that are no UTF-8 stay bytes. SQLite files are told as their dump
and gzip files as what they hold, because their own bytes differ between versions and seconds; long files as their sum.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

TIMEOUT_S = 25.0
CPU_S = 10
"""A program that takes longer on one data set has failed on it. A busy machine is slow by the clock, not by processor time."""


def lay(root: str, files: Mapping[str, Any]) -> None:
    """Write a data set below `root`."""
    for name, content in files.items():
        path, _, mode = name.partition("!")
        place = os.path.join(root, path.rstrip("@/"))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if path.endswith("/"):
            os.makedirs(place, exist_ok=True)
        elif path.endswith("@"):
            os.symlink(content, place)
            continue
        else:
            with open(place, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(place, int(mode or ("755" if path.endswith("/") else "644"), 8))


def tree(root: str, modes: bool = False) -> dict[str, Any]:
    """The data set below `root`; with `modes` every name says its mode, folders included."""
    found: dict[str, Any] = {}
    for folder, folders, names in os.walk(root):
        inside = os.path.relpath(folder, root)
        at = "" if inside == "." else inside + "/"
        for name in sorted([*names, *folders]):
            place = os.path.join(folder, name)
            status = os.lstat(place)
            end = f"!{status.st_mode & 0o7777:o}" if modes else ""
            if os.path.islink(place):
                found[at + name + "@"] = os.readlink(place)
            elif os.path.isdir(place):
                if modes or not os.listdir(place):
                    found[at + name + "/" + end] = ""
            elif os.path.isfile(place):
                with open(place, "rb") as file:
                    data = file.read()
                try:
                    found[at + name + end] = data.decode()
                except UnicodeDecodeError:
                    found[at + name + end] = data
    return found


def told(content: str | bytes) -> Any:
    """The same for equal content, whatever wrote it."""
    data = content.encode() if isinstance(content, str) else content
    if data[:16] == b"SQLite format 3\0":
        with tempfile.TemporaryDirectory() as folder:
            lay(folder, {"a.db": data})
            base = sqlite3.connect(os.path.join(folder, "a.db"))
            try:
                return ["sqlite", *base.iterdump()]
            finally:
                base.close()
    if data[:2] == b"\x1f\x8b":
        return ["gzip", gzip.decompress(data)]
    if len(data) > 2048:
        return ["sha256", hashlib.sha256(data).hexdigest()]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def tidy(text: str) -> str:
    """Lines without blanks at their ends, and without empty ones at the end of all."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n")


def case(program: str, files: Mapping[str, Any], watch: str, place: str = "data", arguments: Sequence[str] = ()) -> list[Any]:
    """[exit code, what to look at] of `program FOLDER ARGUMENTS` on a data set of its own.

    watch: "stdout" (apart from blanks at line ends), "tree" (the folder afterwards) or "modes" (the same, with modes).
    """
    home = tempfile.mkdtemp()
    try:
        root = os.path.join(home, place)
        os.mkdir(root)
        lay(root, files)
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": home, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        process = subprocess.Popen(
            [program, root, *arguments],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S)),
        )
        try:
            out = process.communicate(timeout=TIMEOUT_S)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
        if watch == "stdout":
            return [process.returncode, tidy(out.decode(errors="replace"))]
        return [process.returncode, {name: told(content) for name, content in tree(root, watch == "modes").items()}]
    finally:
        subprocess.run(["chmod", "-R", "u+rwX", home], stderr=subprocess.DEVNULL)
        shutil.rmtree(home, ignore_errors=True)


def digest(root: str) -> str:
    """One line that changes when anything below `root` does: its data, modes apart."""
    return hashlib.sha256(repr(sorted(tree(root).items())).encode()).hexdigest()
