"""Terminal environments from documented examples: a page says what a command does, it is executed, its effect is the goal.

    read      the examples of each page (`lessons/example_pages.py`), with files made up for what they name (`example_files.py`)
    try       each runs alone, three times, the second time with other file times; what prints only has its output kept in a file
    group     one to three examples of a page that left something, and always the same, make one environment
    draft     instruction = what the page says, what stands in its blanks, a table of the end state, never a command; tests = that
              table, and that nothing else changed; one cheat per example: the solution without it

The verifier judges the state, whatever brought it about, so a solution that writes the files directly counts as a second one.
"""

from __future__ import annotations

import base64
import logging
import posixpath
import random
import re
import shlex
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from env_factory.candidates import Proposal
from env_factory.lessons import example_files, example_pages
from env_factory.lessons.documentation import HEAD, Book
from env_factory.lessons.example_pages import Example
from env_factory.lessons.state import Node, Tree, changes, describe, script
from env_factory.lessons.walk import HOME, dockerfile, snapshot
from env_factory.sources import Tutorial
from env_factory.templates.words import draw
from gymsmith.errors import SourceError
from gymsmith.schema import Draft, TaskSpec, ToolSpec
from sandboxes.base import MIB, Provider, Sandbox, SandboxSpec
from sandboxes.image.images import ImageStore

log = logging.getLogger(__name__)

STEP_S = 5.0
MAX_GROUP = 3
MAX_CHANGED = 20
RUNS = 3


@dataclass(frozen=True, slots=True)
class Tried:
    """An example that left something, alone and always the same."""

    example: Example
    command: str
    """As it was run: with its output sent to a file where that is all it does."""
    answer: str
    """Name of that file, or ""."""
    files: dict[str, bytes]
    """What the reader has before."""


async def draft(book: Book, provider: Provider, images: ImageStore, seed: int) -> AsyncIterator[Proposal]:
    """Candidates in an order that follows from the source and the seed; those without a draft say why.

    Raises: SourceError: no page has an example that leaves anything.
    """
    source = book.tutorial
    image = await images.build(_dockerfile(book, ()), {"work/.keep": b""}, wheelhouse=book.wheels)
    rng = random.Random(f"examples/{seed}")
    index = tried = 0
    for name, text in source.texts.items():
        page_rng = random.Random(f"examples/{seed}/{name}")
        found = example_pages.read(name, text, page_rng, draw(page_rng, "train", 16))
        if not found:
            continue
        box = await provider.create(SandboxSpec(image=image.id, user="agent", workdir=HOME, disk_bytes=64 * MIB))
        good: list[Tried] = []
        try:
            for example in found:
                made = await _try(box, example, source, seed)
                if isinstance(made, Tried):
                    good.append(made)
                else:
                    yield Proposal.of(index, made)
                    index += 1
            tried += len(good)
            for group in _groups(rng, good):
                yield Proposal.of(index, await _draft(box, book, name, group, seed, index))
                index += 1
        finally:
            await box.destroy()
        log.info("event=examples page=%s found=%d good=%d", name, len(found), len(good))
    if not tried:
        raise SourceError(
            f"{source.source.uri}: expected examples of commands that leave something behind, got none; choose other pages"
        )


def _groups(rng: random.Random, good: Sequence[Tried]) -> list[list[Tried]]:
    """Every example once, in groups of two or three where there are enough."""
    left = list(good)
    rng.shuffle(left)
    groups: list[list[Tried]] = []
    while left:
        size = 1 if len(left) == 1 else min(len(left), rng.choice((1, 2, 2, MAX_GROUP)))
        groups.append(left[:size])
        left = left[size:]
    return groups


async def _try(box: Sandbox, example: Example, source: Tutorial, seed: int) -> Tried | str:
    """Run one example alone; why it is of no use, or how it is used."""
    if re.search(r"/dev/|/proc|/etc/(?!passwd|group|services)|\{\{|--interactive|--follow|--time|\bless\b", example.command):
        return "not-here"
    for targets in (False, True):
        rng = random.Random(f"examples/{seed}/{example.page}/{example.number}")
        words = draw(rng, "train", 12)
        used = [value for _, value in example.blanks if re.fullmatch(r"[a-z]+", value)]
        files = {name: text.encode() for name, text in example.files.items()}
        if not files:
            given = {name: source.files[name] for name in example.operands if name in source.files}
            named = tuple(name for name in example.operands if name not in given)
            files = given or {}
            if named or not given:
                files |= example_files.fixtures(rng, [*used, *words], example.page, example.command, named, targets=targets)
        start, end, out, ok = await _run(box, files, [example.command])
        answer = f"answer-{example.number + 1}.txt" if start == end else ""
        if not ok or (answer and not out.strip()):
            continue
        command = f"{{ {example.command}; }} > {answer}" if answer else example.command
        runs = [await _run(box, files, [command], old=turn == 1) for turn in range(RUNS)]
        if not all(run[3] for run in runs):
            continue
        if any(run[1] != runs[0][1] for run in runs):
            return "unstable"
        changed = changes(runs[0][0], runs[0][1])
        if len(changed) > MAX_CHANGED or any(
            node and node.kind == "link" and node.data.startswith(b"/") for node in changed.values()
        ):
            return "too-many"
        if not changed or any(node and b"\0" in node.data for node in changed.values()):
            return "no-effect" if not changed else "binary"
        return Tried(example, command, answer, files)
    return "fails"


async def _run(
    box: Sandbox, files: dict[str, bytes], commands: Sequence[str], old: bool = False
) -> tuple[Tree, Tree, bytes, bool]:
    """(tree before, tree after, standard output, whether all went well) in an empty home that holds `files` alone."""
    folders = [name for name in files if name.endswith("/")]
    clear = "chmod -R u+rwX . 2> /dev/null; find . -mindepth 1 -delete"
    await box.exec(["/bin/sh", "-c", clear], cwd=HOME, user="agent", timeout_s=STEP_S)
    # Another order of making files is another order of finding them.
    laid = [name for name in files if not name.endswith("/")][:: -1 if old else 1]
    await box.put_files({f"{HOME}/{name}": files[name] for name in laid}, owner="agent")
    more = f"mkdir -p {shlex.join(folders)}; " if folders else ""
    more += "find . -mindepth 1 -exec touch -h -d 2001-02-03T04:05:06 {} +" if old else ":"
    await box.exec(["/bin/sh", "-c", more], cwd=HOME, user="agent", timeout_s=STEP_S)
    start = await snapshot(box)
    out, ok = b"", True
    for command in commands:
        done = await box.exec(
            ["/bin/bash", "-c", command], cwd=HOME, user="agent", timeout_s=STEP_S, max_output_bytes=16_384, split=True
        )
        out += done.output
        ok = ok and done.ok and not done.truncated
    await box.kill_agents()
    try:
        return start, await snapshot(box), out, ok
    except SourceError:  # A file that nobody may read is a state that no verifier can look into.
        return start, start, b"", False


def _dockerfile(book: Book, folders: Sequence[str]) -> str:
    """The reader's folder on what the book is about."""
    return dockerfile("", folders).replace(HEAD, book.head, 1)


async def _draft(box: Sandbox, book: Book, name: str, group: Sequence[Tried], seed: int, index: int) -> Draft | str:
    source = book.tutorial
    files = {path: data for tried in group for path, data in tried.files.items() if path != ".keep"} or {".keep": b""}
    commands = [tried.command for tried in group]
    start, end, _, ok = await _run(box, files, commands)
    changed = changes(start, end)
    if not ok or not changed:
        return "not-together"
    for n in range(len(group)):
        without = await _run(box, files, [command for at, command in enumerate(commands) if at != n])
        if without[1] == end:
            return "step-not-needed"
    if len(changed) > MAX_CHANGED:
        return "too-many"
    told = instruction(source, name, group, start, changed)
    if any(len(tried.example.command) > 12 and tried.example.command in told for tried in group):
        return "leak"
    test, expected = script(start, changed)
    folders = sorted(p for p, n in start.items() if n.kind == "dir" and not any(q.startswith(p + "/") for q in start))
    members = {f"environment/work/{p}": n.data for p, n in start.items() if n.kind == "file"} or {"environment/work/.keep": b""}
    members["environment/Dockerfile"] = _dockerfile(book, folders).encode()
    members["tests/test.sh"] = test.encode()
    members["solution/solve.sh"] = _script(commands).encode()
    cheats = [
        (f"without-step-{n}", _script([c for at, c in enumerate(commands, 1) if at != n])) for n in range(1, len(group) + 1)
    ]
    cheats = cheats if len(group) > 1 else []
    cheats.append(
        ("empty-files", _script([f": > {shlex.quote(p)}" for p, n in changed.items() if n and n.kind == "file"] or [":"]))
    )
    stem = posixpath.basename(name).split(".")[0]
    return Draft(
        source=source.source,
        spec=TaskSpec(
            name=f"gymsmith/{re.sub(r'[^a-z0-9]+', '-', f'{source.title}-{stem}-{index}'.lower()).strip('-')}",
            kind="examples",
            description=f"{len(group)} example(s) of the page {stem}, {source.title}.",
            keywords=("shell", "files", stem),
            labels={
                "family": source.title,
                "text": name,
                "heading": stem,
                "steps": str(len(group)),
                "seed": str(seed),
                "index": str(index),
            },
            tool=ToolSpec(name="shell", timeout_s=20.0),
            max_turns=20,
            workdir=HOME,
            expected=expected,
            memory_mb=256,
            pids=64,
        ),
        instruction=told,
        files=members,
        alternatives=(_laid_down(changed),),
        cheats=tuple(cheats),
        executable=frozenset({"tests/test.sh", "solution/solve.sh"}),
    )


def instruction(source: Tutorial, name: str, group: Sequence[Tried], start: Tree, changed: dict[str, Node | None]) -> str:
    """What the page says of each example, what stands in its blanks, and the end state."""
    stem = posixpath.basename(name).split(".")[0]
    rows = []
    for number, tried in enumerate(group, 1):
        example = tried.example
        blanks = "; ".join(f"`{said}` is `{value}`" for said, value in example.blanks if said != value)
        same = ", ".join(f"`{value}`" for said, value in example.blanks if said == value)
        here = f" Here {blanks}." if blanks else f" It is about {same}." if same else ""
        kept = f" What is printed about this is to stand in `{tried.answer}`." if tried.answer else ""
        rows.append(f"{number}. {example.told.rstrip('.: ')}.{here}{kept}")
    told = "\n".join(rows)
    return (
        f"From the page `{stem}` of “{source.title}”. You are in {HOME}, which is also your home folder. Do there what the page "
        f"says of these of its examples, one after the other, in any way you like:\n\n{told}\n\nAt the end the following must "
        f"hold, and nothing else below {HOME} may have changed:\n\n{describe(start, changed)}\n"
    )


def _script(commands: Sequence[str]) -> str:
    return "\n".join(["#!/bin/bash", f"cd {HOME}", *commands]) + "\n"


def _laid_down(changed: dict[str, Node | None]) -> str:
    """A script that writes the end state down, without the page's commands."""
    rows = []
    for path, node in sorted(changed.items(), key=lambda entry: (entry[1] is not None, entry[0])):
        place = shlex.quote(path)
        if node is None:
            rows.append(f"rm -rf {place}")
        elif node.kind == "dir":
            rows += [f"mkdir -p {place}", f"chmod {node.mode:o} {place}"]
        elif node.kind == "link":
            rows += [
                f"mkdir -p {shlex.quote(posixpath.dirname(path) or '.')}",
                f"ln -sfn {shlex.quote(node.data.decode())} {place}",
            ]
        else:
            rows += [
                f"mkdir -p {shlex.quote(posixpath.dirname(path) or '.')}",
                f"chmod u+w {place} 2> /dev/null",
                f"printf %s {base64.b64encode(node.data).decode()} | base64 -d > {place}",
                f"chmod {node.mode:o} {place}",
            ]
    return _script(rows)
