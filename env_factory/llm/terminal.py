"""From a tutorial to terminal tasks that are not in it: a model writes instruction, Dockerfile, files, solution and checks.

The tests are ours to run (`probe/checks.py`) and its to fill: a list of checks with an id each, so that no answer can get the
report wrong or decide over its own verdict. The solution comes in steps, and each attempt without one of them is a cheat that
must score 0. Candidate number i gets a setting, a difficulty and a part of the tutorial that follow from i and the seed alone.
"""

from __future__ import annotations

import json
import random
import re
from importlib import resources
from typing import Literal

from env_factory.llm import written
from env_factory.llm.authorship import Author
from env_factory.llm.conversation import Desk, Shape, Talk, Unfit
from env_factory.llm.prompt import Material, fill
from env_factory.llm.written import File
from env_factory.sources import Tutorial
from gymsmith.schema import Draft, TaskSpec, ToolSpec

WORK = "/work"
MAX_TUTORIAL_CHARS = 24_000
"""Of one question; a longer tutorial is shown in parts, which take turns."""
MAX_COPIED = 0.5
"""Share of a solution's lines that may stand in the tutorial."""
CLOSING = (
    "Work in /work, which is where you are. There is no network. What you leave in /work is judged by tests that you do not see."
)
DIFFICULTIES = ("easy (two steps)", "medium (three or four steps)", "hard (four to six steps that build on one another)")
SETTINGS = (
    "a public library", "a weather station", "a bakery", "the archive of a newspaper", "a bicycle workshop", "a choir",
    "a botanical garden", "a small airport", "a chess club", "a water works", "a museum of clocks", "a veterinary clinic",
    "a film festival", "a seed bank", "an observatory", "a ferry line", "a school's kitchen", "a radio amateur's log",
    "a mountain rescue team", "a second-hand bookshop", "a wind farm", "a theatre's costume store", "a beekeeper's records",
    "a laboratory's sample register",
)  # fmt: skip
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,40}\Z")


class Check(Shape):
    """One hidden test."""

    id: str
    says: str
    language: Literal["sh", "python"]
    script: str


class TerminalTask(Shape):
    """What a model is asked for; the fields are explained in prompts/terminal.md."""

    title: str
    instruction: str
    dockerfile: str
    files: list[File]
    steps: list[str]
    checks: list[Check]
    alternative: str
    shortcuts: list[str]
    must_look_up: list[str]


class TerminalAuthor(Author[TerminalTask]):
    """Writes candidate `number` of a tutorial."""

    def __init__(self, desk: Desk, tutorial: Tutorial, seed: int, number: int) -> None:
        self.tutorial, self.number, self.seed = tutorial, number, seed
        rng = random.Random(f"llm-tutorial/{seed}/{number}")
        parts = parts_of(tutorial)
        self.shown = parts[number % len(parts)]
        prompt = fill(
            "terminal",
            difficulty=DIFFICULTIES[number % len(DIFFICULTIES)],
            setting=rng.choice(SETTINGS),
            number=str(number + 1),
            title=Material(tutorial.title),
            tutorial=Material(self.shown),
        )
        labels = {"family": tutorial.title, "seed": str(seed), "index": str(number)}
        super().__init__(Talk(desk, prompt, TerminalTask, seed=rng.randrange(2**31)), labels)

    async def compose(self, answer: TerminalTask) -> Draft:
        """See `Author`."""
        instruction = written.text("instruction", answer.instruction, 80, 8000)
        title = written.text("title", answer.title, 3, 120)
        files = written.members(answer.files, "environment/work")
        build_file = written.build_file(answer.dockerfile, WORK)
        steps = [written.text(f"step {n}", step, 1, 20_000) for n, step in enumerate(answer.steps, 1)]
        if not 2 <= len(steps) <= 12:
            raise Unfit("llm-text", f"the solution must have 2 to 12 steps, each needed, got {len(steps)}")
        solution = script(steps, strict=True)
        checks = _checks(answer.checks)
        secrets = {"the solution": solution} | {f"check {c.id}": c.script for c in answer.checks}
        texts = {name.removeprefix("environment/work/"): data.decode() for name, data in files.items()}
        written.not_told({"the solution": solution}, {"the instruction": instruction})
        written.not_told(secrets, {"the Dockerfile": build_file} | texts)
        share = written.copied([line for step in steps for line in step.splitlines()], self.shown)
        if share > MAX_COPIED:
            raise Unfit("llm-copied", f"{share:.0%} of the solution's lines stand in the tutorial; write a task of your own")
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40]
        spec = TaskSpec(
            name=f"gymsmith/llm-{slug or 'task'}-{self.seed}-{self.number}",
            kind="llm-tutorial",
            description=f"{title}, after {self.tutorial.title}.",
            keywords=("shell", "files"),
            labels=self.labels
            | {"difficulty": DIFFICULTIES[self.number % len(DIFFICULTIES)].split()[0], "steps": str(len(steps))},
            tool=ToolSpec(name="shell", timeout_s=30.0),
            max_turns=30,
            workdir=WORK,
            report="descriptor",
            verifier_timeout_s=90.0,
            expected=tuple(check.id for check in answer.checks),
            hidden=tuple(dict.fromkeys(word for word in answer.must_look_up if word.strip())),
        )
        members = files or {"environment/work/.keep": b""}
        members |= {"environment/Dockerfile": build_file.encode(), "solution/solve.sh": solution.encode(), **checks}
        alternative = answer.alternative.strip()
        return Draft(
            source=self.tutorial.source,
            spec=spec,
            instruction=f"{instruction}\n\n{CLOSING}\n",
            files=members,
            alternatives=(script([alternative], strict=True),) if alternative else (),
            cheats=(
                *((f"without-step-{n}", script([s for m, s in enumerate(steps, 1) if m != n])) for n in range(1, len(steps) + 1)),
                *((f"shortcut-{n}", script([s])) for n, s in enumerate(answer.shortcuts[:4], 1) if s.strip()),
            ),
            executable=frozenset({"tests/test.sh", "solution/solve.sh"}),
        )


def parts_of(tutorial: Tutorial) -> list[str]:
    """The tutorial's text in parts that a question can hold, cut between paragraphs."""
    whole = "\n\n".join(tutorial.texts.values())
    parts, at = [], 0
    while at < len(whole):
        end = len(whole) if len(whole) - at <= MAX_TUTORIAL_CHARS else whole.rfind("\n\n", at, at + MAX_TUTORIAL_CHARS)
        end = end if end > at else at + MAX_TUTORIAL_CHARS
        parts.append(whole[at:end])
        at = end
    return parts or [""]


def script(steps: list[str], *, strict: bool = False) -> str:
    """Steps as one bash script; `strict`: the first command that fails ends it."""
    return "\n\n".join([f"#!/bin/bash\n{'set -e' + chr(10) if strict else ''}cd {WORK}", *steps]) + "\n"


def _checks(checks: list[Check]) -> dict[str, bytes]:
    """tests/ of a task with these checks.

    Raises: Unfit.
    """
    if not 1 <= len(checks) <= 20:
        raise Unfit("llm-text", f"a task has 1 to 20 checks, got {len(checks)}")
    listed: list[dict[str, str]] = []
    members: dict[str, bytes] = {}
    for check in checks:
        if not _ID.match(check.id) or any(row["id"] == check.id for row in listed):
            raise Unfit("llm-text", f"each check needs an id of its own, of a-z, 0-9 and '-', got {check.id[:60]!r}")
        file = f"{check.id}.{'py' if check.language == 'python' else 'sh'}"
        members[f"tests/checks/{file}"] = (written.text(f"check {check.id}", check.script, 1, 20_000) + "\n").encode()
        listed.append({"id": check.id, "file": file, "says": written.text(f"check {check.id}", check.says, 1, 400)})
    members["tests/checks.json"] = (json.dumps(listed, indent=1) + "\n").encode()
    members["tests/checks.py"] = resources.files("env_factory.probe").joinpath("checks.py").read_bytes()
    members["tests/test.sh"] = b"#!/bin/sh\nexec python3 -I -S /tests/checks.py\n"
    return members
