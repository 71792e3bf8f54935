"""Terminal environments from a real tutorial: its commands are executed, and what they leave behind becomes the goal.

    walk      the commands of each text run in order in a sandbox, three times; the tree is recorded after each
    windows   groups of consecutive commands that changed something, starting from the tree that the earlier ones left
    draft     instruction = the text's own prose without its commands, and a table of the end state; tests = that table, and
              that nothing else changed; solution = the commands; one cheat per command: the solution without it

A command that fails, waits, or gives different trees in different runs is not part of an environment. What an editor would have
written is put there, and counts as the state that later commands start from.
"""

from __future__ import annotations

import asyncio
import html
import io
import logging
import posixpath
import random
import re
import shlex
import tarfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from env_factory.sources import Tutorial
from env_factory.synth import tutorial_text
from env_factory.synth.tutorial_state import Node, Tree, changes, describe, script
from env_factory.synth.tutorial_text import EDITORS, Line
from gymsmith.errors import SourceError
from gymsmith.schema import Draft, TaskSpec, ToolSpec
from sandboxes.base import MIB, Image, Provider, Sandbox, SandboxSpec
from sandboxes.image import ImageStore

log = logging.getLogger(__name__)

HOME = "/work"
STEP_S = 5.0
"""A command that takes longer is not part of an environment."""
RUNS = 3
MAX_SIZE = 4
MIN_PROSE = 30
TYPED = "a few lines of text\n"
"""What an editor leaves where the text does not say what to type."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A candidate: its number, its draft, or the reason why there is none (no-effect, unstable, too-many, thin)."""

    index: int
    draft: Draft | None
    reason: str


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


async def draft(source: Tutorial, provider: Provider, images: ImageStore, seed: int) -> AsyncIterator[Proposed]:
    """Candidates in an order that follows from the source and the seed.

    Raises:
        SourceError: the tutorial tells its reader nothing that can be run and leaves a trace.
    """
    image = await images.build(*_start(source))
    walks = await asyncio.gather(*(_walk(source, provider, image) for _ in range(RUNS)))
    first = walks[0]
    if not first:
        raise SourceError(f"{source.source.uri} holds no shell commands; choose a text with fenced commands")
    stable = [all(_same(walk[i], first[i]) for walk in walks[1:]) for i in range(len(first))]
    initial = await _initial(provider, image)
    found = list(_windows(first, stable, initial))
    if not found:
        raise SourceError(f"{source.source.uri}: none of its {len(first)} commands leaves something behind that could be checked")
    log.info("event=tutorial uri=%s commands=%d windows=%d", source.source.uri, len(first), len(found))
    ordered = _order(found, seed)
    for index, window in enumerate(ordered):
        made = _draft(source, first, window, initial, seed, index)
        yield Proposed(index, made if isinstance(made, Draft) else None, made if isinstance(made, str) else "")


def _start(source: Tutorial) -> tuple[str, dict[str, bytes]]:
    return dockerfile(source.start, ()), {f"work/{name}": data for name, data in source.files.items()} or {"work/.keep": b""}


def dockerfile(start: str, folders: Sequence[str]) -> str:
    """HOME with the files of the context; `folders` are empty ones, which a context cannot hold."""
    made = " ".join(shlex.quote(f"{HOME}/{name}") for name in (*folders, start) if name)
    more = f"RUN mkdir -p {made}\n" if made else ""
    return f"FROM gymsmith/host\nENV HOME={HOME}\nWORKDIR {HOME}\nCOPY --chown=agent:agent work {HOME}\nUSER agent\n{more}"


async def _initial(provider: Provider, image: Image) -> Tree:
    box = await provider.create(SandboxSpec(image=image.id, user="agent", workdir=HOME))
    try:
        return await snapshot(box)
    finally:
        await box.destroy()


async def _walk(source: Tutorial, provider: Provider, image: Image) -> list[Step]:
    """Every text from a fresh start."""
    steps: list[Step] = []
    for name, text in source.texts.items():
        lines = tutorial_text.lines(name, text)
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


def _same(one: Step, other: Step) -> bool:
    return (one.ok, one.cwd, one.after, one.tree) == (other.ok, other.cwd, other.after, other.tree)


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive commands [first, last] of one walk; `acting` are those that changed something."""

    acting: tuple[int, ...]

    @property
    def first(self) -> int:
        return self.acting[0]

    @property
    def last(self) -> int:
        return self.acting[-1]


def _windows(steps: Sequence[Step], stable: Sequence[bool], initial: Tree) -> Iterator[Window]:
    run: list[int] = []
    runs: list[list[int]] = []
    for i, step in enumerate(steps):
        before = _before(steps, i, initial)
        changed = step.tree != before
        breaks = step.line.writes is not None or not stable[i] or (changed and not step.ok)
        if i and steps[i - 1].text != step.text:
            runs.append(run)
            run = []
        if breaks:
            runs.append(run)
            run = []
        elif changed:
            run.append(i)
    for group in [*runs, run]:
        for size in range(MAX_SIZE, 0, -1):
            for start in range(len(group) - size + 1):
                yield Window(tuple(group[start : start + size]))


def _before(steps: Sequence[Step], i: int, initial: Tree) -> Tree:
    return steps[i - 1].tree if i and steps[i - 1].text == steps[i].text else initial


def _order(windows: Sequence[Window], seed: int) -> list[Window]:
    """Windows that share no command first, the larger before the smaller; then those that overlap an earlier one."""
    rng = random.Random(f"tutorial/{seed}")
    shuffled = sorted(windows, key=lambda w: w.acting)
    rng.shuffle(shuffled)
    apart: list[Window] = []
    taken: set[int] = set()
    for size in (2, 3, 1):
        for window in (w for w in shuffled if len(w.acting) == size):
            if taken.isdisjoint(window.acting):
                apart.append(window)
                taken.update(window.acting)
    others = [w for size in (3, 2, 4, 1) for w in shuffled if len(w.acting) == size and w not in apart]
    return apart + others


def _draft(source: Tutorial, steps: Sequence[Step], window: Window, initial: Tree, seed: int, index: int) -> Draft | str:
    start, end = _before(steps, window.first, initial), steps[window.last].tree
    changed = changes(start, end)
    if not changed:
        return "no-effect"
    if len(changed) > 20:
        return "too-many"
    if any(node.kind == "link" for node in start.values()):
        return "links"
    commands = [
        (i, steps[i]) for i in range(window.first, window.last + 1) if i in window.acting or steps[i].after != steps[i].cwd
    ]
    goals = list(
        dict.fromkeys(_goal(step.line, [s.line.command for _, s in commands]) for i, step in commands if i in window.acting)
    )
    prose = "\n\n".join(goal for goal in goals if goal)
    if len(prose) < MIN_PROSE:
        return "thin"
    solution = _script(commands)
    test, expected = script(start, changed)
    folders = sorted(p for p, n in start.items() if n.kind == "dir" and not any(q.startswith(p + "/") for q in start))
    files = {f"environment/work/{p}": n.data for p, n in start.items() if n.kind == "file"} or {"environment/work/.keep": b""}
    files["environment/Dockerfile"] = dockerfile("", folders).encode()
    files["tests/test.sh"] = test.encode()
    files["solution/solve.sh"] = solution.encode()
    executable = {f"environment/work/{p}" for p, n in start.items() if n.kind == "file" and n.mode & 0o100}
    heading = steps[window.first].line.heading
    where = posixpath.relpath(steps[window.first].cwd, HOME)
    instruction = (
        f"From “{source.title}”, {heading}. You are in {HOME}, which is also your home folder; the files that the text speaks of "
        f"are in {where if where != '.' else 'it'}. The text says:\n\n"
        + "\n".join(f"> {row}".rstrip() for row in prose.splitlines())
        + "\n\nBring the files into the state that this leads to, in any way you like. At the end the following must hold, and "
        f"nothing else below {HOME} may have changed:\n\n{describe(start, changed)}\n"
    )
    if any(len(step.line.command) > 12 and step.line.command in instruction for _, step in commands):
        return "leak"
    without = [
        (f"without-step-{n}", _script([c for c in commands if c[0] != i]))
        for n, i in enumerate(window.acting, 1)
        if len(window.acting) > 1
    ]
    other = _script([(i, step) for i, step in commands], rewrite=True)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{source.title}-{steps[window.first].text.split('.')[0]}-{index}".lower()).strip("-")
    spec = TaskSpec(
        name=f"gymsmith/{slug}",
        kind="tutorial",
        description=f"{len(window.acting)} step(s) of {source.title}, {heading}.",
        keywords=("shell", "files"),
        labels={
            "family": source.title,
            "text": steps[window.first].text,
            "heading": heading,
            "steps": str(len(window.acting)),
            "seed": str(seed),
            "index": str(index),
        },
        tool=ToolSpec(name="shell", timeout_s=20.0),
        max_turns=20,
        workdir=HOME,
        verifier_timeout_s=30.0,
        expected=expected,
    )
    return Draft(
        source=source.source,
        spec=spec,
        instruction=instruction,
        files=files,
        alternatives=(other,) if other != solution else (),
        cheats=tuple(without),
        executable=frozenset({"tests/test.sh", "solution/solve.sh", *executable}),
    )


def _goal(line: Line, commands: Sequence[str]) -> str:
    """The last sentences before a command, whole commands taken out of them; the names of programs may stay."""
    text = html.unescape(re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line.prose))
    paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]
    sentences = [s for p in paragraphs for s in re.split(r"(?<=[.:!?])\s+(?=[A-Z`])", p)]
    programs = {c.split()[0] for c in commands} | {"ls", "man", "cat"}

    def told(sentence: str) -> str:
        def without(span: re.Match[str]) -> str:
            words = span.group(2).split()
            whole = len(words) > 1 and (words[0] in programs or words[0] in (">", ">>", "|"))
            return "" if whole or span.group(2) in commands else span.group(0)

        by = r"((?:,? (?:using|with|by typing|by running|by putting|typing|running))?(?: the)?(?: command)? ?)`([^`]+)`"
        return re.sub(r"\s+([.,:;)])", r"\1", re.sub(by, without, sentence)).strip()

    def pointless(sentence: str) -> bool:
        return (
            len(sentence) < 25
            or "`" not in sentence
            or re.match(r"(For example|Here is|Like this|as follows)\W*\Z", sentence) is not None
        )

    kept = [t for s in sentences if not pointless(t := told(s))][-3:]
    return re.sub(r"[:,]\Z", ".", " ".join(kept).strip())


def _script(commands: Sequence[tuple[int, Step]], *, rewrite: bool = False) -> str:
    """The commands as a script, each where the text had its reader stand."""
    rows = ["#!/bin/bash"]
    cwd = ""
    for _, step in commands:
        if step.cwd != cwd:
            rows.append(f"cd {shlex.quote(step.cwd)}")
        rows.append(_other_words(step.line.command) if rewrite else step.line.command)
        cwd = step.after
    return "\n".join(rows) + "\n"


def _other_words(command: str) -> str:
    """The same effect by other commands; the command itself where there is no such rule."""
    if re.search(r"[;&|`$(){}<*?\[\n]", command.replace(">", "", 1)):
        written = re.fullmatch(r"([^<>;&`$(){}\n]+?)\s+>\s+([\w./-]+)", command)
        return f"{written.group(1)} | cat > .written && mv .written {written.group(2)}" if written else command
    words = command.split()
    match words:
        case ["mv", source, target]:
            return f"cp -r {source} {target} && rm -r {source}"
        case ["cp", source, target] if not source.startswith("-"):
            return (
                f"if [ -d {target} ]; then cat {source} > {target}/{posixpath.basename(source)}; else cat {source} > {target}; fi"
            )
        case ["cp", "-r", source, target]:
            return f"mkdir {target} && tar -C {source} -cf - . | tar -C {target} -xf -"
        case ["mkdir", "-p", *folders]:
            return " && ".join(f"install -d {folder}" for folder in folders)
        case ["mkdir", folder]:
            return f"install -d {folder}"
        case ["rm", file] if not file.startswith("-"):
            return f"unlink {file}"
        case ["rm", "-r", folder]:
            return f"find {folder} -delete"
        case ["touch", file]:
            return f": >> {file}"
        case _:
            written = re.fullmatch(r"([^<>;&`$(){}\n]+?)\s+>\s+([\w./-]+)", command)
            return f"{written.group(1)} | cat > .written && mv .written {written.group(2)}" if written else command
