"""Goes through a tutorial as its reader would: every command typed in order, the tree below home recorded after each.

A text that moves its reader without a command ("we will use the `data` folder") is understood by the folders that its prose
names. What an editor would have written is put there. Nothing is judged here: `tutorial.py` makes environments of what was seen.
"""

from __future__ import annotations

import io
import posixpath
import re
import shlex
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from env_factory.lessons import commands
from env_factory.lessons.commands import EDITORS, Line
from env_factory.lessons.state import Node, Tree
from env_factory.sources import Tutorial
from gymsmith.errors import SourceError
from sandboxes.base import MIB, Image, Provider, Sandbox, SandboxSpec

HOME = "/work"
STEP_S = 5.0
"""A command that takes longer is not part of an environment."""
TYPED = "a few lines of text\n"
"""What an editor leaves where the text does not say what to type."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command as it was run."""

    line: Line
    text: str
    """Name of the text it stands in."""
    cwd: str
    """Where it ran, absolute."""
    after: str
    """Where it left the shell."""
    ok: bool
    tree: Tree
    """What stood below HOME afterwards."""


def ground(source: Tutorial) -> tuple[str, dict[str, bytes]]:
    """(Dockerfile, build context) of what a reader has before the first command."""
    return dockerfile(source.start, ()), {f"work/{name}": data for name, data in source.files.items()} or {"work/.keep": b""}


def dockerfile(start: str, folders: Sequence[str]) -> str:
    """HOME with the files of the context; `folders` are empty ones, which a context cannot hold."""
    made = " ".join(shlex.quote(f"{HOME}/{name}") for name in (*folders, start) if name)
    more = f"RUN mkdir -p {made}\n" if made else ""
    return f"FROM gymsmith/host\nENV HOME={HOME}\nWORKDIR {HOME}\nCOPY --chown=agent:agent work {HOME}\nUSER agent\n{more}"


async def first_tree(provider: Provider, image: Image) -> Tree:
    """What stands below HOME at the very beginning."""
    box = await provider.create(SandboxSpec(image=image.id, user="agent", workdir=HOME))
    try:
        return await snapshot(box)
    finally:
        await box.destroy()


async def walk(source: Tutorial, provider: Provider, image: Image) -> list[Step]:
    """Every text from a fresh start."""
    steps: list[Step] = []
    for name, text in source.texts.items():
        lines = commands.lines(name, text)
        if not lines:
            continue
        box = await provider.create(SandboxSpec(image=image.id, user="agent", workdir=HOME))
        try:
            steps += await _read_through(box, name, lines, posixpath.join(HOME, source.start))
        finally:
            await box.destroy()
    return steps


async def _read_through(box: Sandbox, name: str, lines: Sequence[Line], cwd: str) -> list[Step]:
    steps: list[Step] = []
    tree = await snapshot(box)
    hints: list[str] = []
    for line in lines:
        hints = list(dict.fromkeys([*_hints(line.prose, tree), *hints]))
        if line.writes is not None:
            file, content = line.writes
            target = posixpath.normpath(posixpath.join(cwd, file))
            if target.startswith(HOME + "/"):
                await box.put(target, (content or TYPED).encode(), owner="agent")
                tree = await snapshot(box)
            steps.append(Step(line, name, cwd, cwd, False, tree))
            continue
        if _devours(line.command) or line.command.split()[0] in (
            *EDITORS,
            "history",
            "less",
            "more",
            "man",
            "top",
            "sudo",
            "ssh",
            "exit",
            "logout",
        ):
            continue
        places = [cwd, *(hint for hint in hints[:3] if hint != cwd)]
        ok, after = False, cwd
        for place in places:
            ok, after = await _run(box, line.command, place)
            if ok:
                cwd = place
                break
        now = await snapshot(box)
        steps.append(Step(line, name, cwd, after if ok else cwd, ok, now))
        tree, cwd = now, after if ok else cwd
    return steps


def _devours(command: str) -> bool:
    """Whether a command writes to the file that it reads: texts show it as a mistake."""
    written = re.search(r">\s*([\w./-]+)\s*\Z", command)
    return written is not None and ">>" not in command and written.group(1) in command[: written.start()].split()


async def _run(box: Sandbox, command: str, cwd: str) -> tuple[bool, str]:
    """(succeeded, where the shell is afterwards)."""
    text = f"trap 'pwd > /tmp/.cwd' EXIT\n{command}\n"
    result = await box.exec(["/bin/bash", "-c", text], cwd=cwd, user="agent", timeout_s=STEP_S, max_output_bytes=4096)
    if not result.ok:
        return False, cwd
    return True, (await box.get("/tmp/.cwd")).decode().strip() or cwd


def _hints(prose: str, tree: Tree) -> Iterator[str]:
    """Folders that the prose names, the last one first, for a text that moves its reader without a command."""
    folders = [path for path, node in tree.items() if node.kind == "dir"]
    for said in reversed(re.findall(r"`([\w./-]+)`", prose)):
        wanted = "/" + said.strip("/")
        for folder in folders:
            if f"/{folder}".endswith(wanted):
                yield f"{HOME}/{folder}"


async def snapshot(box: Sandbox) -> Tree:
    """What stands below HOME."""
    result = await box.exec(["tar", "-C", HOME, "-cf", "-", "."], user="root", max_output_bytes=16 * MIB, split=True)
    if not result.ok or result.truncated:
        raise SourceError(f"the tutorial's files cannot be read back: {result.stderr.decode(errors='replace')[-200:]}")
    tree: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(result.output)) as archive:
        for member in archive:
            name = posixpath.normpath(member.name)
            if name == ".":
                continue
            if member.isdir():
                tree[name] = Node("dir", member.mode & 0o777)
            elif member.issym():
                tree[name] = Node("link", 0o777, member.linkname.encode())
            elif member.isreg():
                content = archive.extractfile(member)
                tree[name] = Node("file", member.mode & 0o777, content.read() if content else b"")
            elif member.islnk():
                tree[name] = tree[posixpath.normpath(member.linkname)]
    return tree
