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
import logging
import posixpath
import random
import re
import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from env_factory.candidates import Proposal
from env_factory.lessons.commands import Line
from env_factory.lessons.state import Tree, changes, describe, script
from env_factory.lessons.walk import HOME, Step, dockerfile, first_tree, ground, walk
from env_factory.sources import Tutorial
from gymsmith.errors import SourceError
from gymsmith.schema import Draft, TaskSpec, ToolSpec
from sandboxes.base import Provider
from sandboxes.image.images import ImageStore

log = logging.getLogger(__name__)

RUNS = 3
MAX_SIZE = 4
MIN_PROSE = 30


async def draft(source: Tutorial, provider: Provider, images: ImageStore, seed: int) -> AsyncIterator[Proposal]:
    """Candidates in an order that follows from the source and the seed.

    Raises:
        SourceError: the tutorial tells its reader nothing that can be run and leaves a trace.
    """
    image = await images.build(*ground(source))
    walks = await asyncio.gather(*(walk(source, provider, image) for _ in range(RUNS)))
    first = walks[0]
    if not first:
        raise SourceError(f"{source.source.uri} holds no shell commands; choose a text with fenced commands")
    stable = [all(_same(other[i], first[i]) for other in walks[1:]) for i in range(len(first))]
    initial = await first_tree(provider, image)
    found = list(_windows(first, stable, initial))
    if not found:
        raise SourceError(f"{source.source.uri}: none of its {len(first)} commands leaves something behind that could be checked")
    log.info("event=tutorial uri=%s commands=%d windows=%d", source.source.uri, len(first), len(found))
    ordered = _order(found, seed)
    for index, window in enumerate(ordered):
        yield Proposal.of(index, _draft(source, first, window, initial, seed, index))


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
        verifier_timeout_s=60.0,
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
    written = re.fullmatch(r"([^<>;&`$(){}\n]+?)\s+>\s+([\w./-]+)", command)
    otherwise = f"{written.group(1)} | cat > .written && mv .written {written.group(2)}" if written else command
    if re.search(r"[;&|`$(){}<*?\[\n]", command.replace(">", "", 1)):
        return otherwise
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
            return otherwise
