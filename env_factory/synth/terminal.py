"""Parametric terminal tasks: `draft(template, level, seed, split)` is a pure function to a `Draft`.

The agent writes a program that is called with a folder; the host judges what the program prints, or what it makes of the folder,
for the data that the agent sees and for two data sets that it never sees, so a program that knows the answer by heart fails. The
right answers are computed here by the template's reference and never enter a sandbox: the verifier runs the agent's program as an
observation (`sandboxes/observations.py`) and the host compares.

A template brings two honest programs: `shell`, written by hand, and its reference `answer`, whose own source becomes the second
one. Nothing of a task is executed here. The templates stand in `templates/terminal/`.
"""

from __future__ import annotations

import random
import string
import textwrap
from dataclasses import dataclass
from typing import Any

from env_factory.templates.terminal import (
    archives,
    box,
    cleanup,
    databases,
    dependencies,
    documents,
    git,
    grants,
    incidents,
    links,
    logs,
    permissions,
    processes,
    schedules,
    sent,
    services,
    sqlite,
    startup,
    tables,
)
from env_factory.templates.terminal.template import Files, Params, Template
from env_factory.templates.words import draw
from gymsmith.errors import ConfigError
from gymsmith.schema import Draft, Source, TaskSpec, ToolSpec
from sandboxes.observations import Observation

ROOMS = (
    logs,
    incidents,
    tables,
    cleanup,
    documents,
    services,
    startup,
    permissions,
    archives,
    schedules,
    links,
    sqlite,
    databases,
    grants,
    processes,
    dependencies,
    git,
)
TEMPLATES: dict[str, Template] = {template.name: template for room in ROOMS for template in room.TEMPLATES}
"""By name."""
HIDDEN = 2
"""Data sets that the agent does not see."""
MAX_LEVEL = 9


class Slots(string.Template):
    """Shell and awk are full of dollar signs, so a slot is §name."""

    delimiter = "§"


def named(source: str) -> list[str]:
    """The templates that `terminal:NAME`, `terminal:THEME`, `terminal:all` (training) or `terminal:unseen` stand for.

    Raises: ConfigError: there is none.
    """
    asked = source.removeprefix("terminal:")
    known = {
        "all": sorted(n for n, t in TEMPLATES.items() if not t.held_out),
        "unseen": sorted(n for n, t in TEMPLATES.items() if t.held_out),
    }
    for name, template in TEMPLATES.items():
        known.setdefault(template.theme, []).append(name)
        known[name] = [name]
    if asked not in known:
        raise ConfigError(
            f"expected terminal:NAME with all, unseen, a theme or a template ({', '.join(sorted(known))}), got {source!r}"
        )
    return known[asked]


@dataclass(frozen=True, slots=True)
class Instance:
    """A template at one place: its slots filled, its data sets made."""

    template: Template
    params: Params
    visible: Files
    hidden: tuple[Files, ...]

    @classmethod
    def of(cls, name: str, level: int, seed: int, split: str = "train") -> Instance:
        """Raises: ConfigError: unknown template or split, or a level out of range."""
        if not 1 <= level <= MAX_LEVEL:
            raise ConfigError(f"expected a level from 1 to {MAX_LEVEL}, got {level}")
        template = TEMPLATES.get(name)
        if template is None:
            raise ConfigError(f"expected a template out of {sorted(TEMPLATES)}, got {name!r}")
        rng = random.Random(f"terminal/{name}/{level}/{seed}/{split}")
        words = draw(rng, split, 24)
        params = {"program": template.program, "level": level, **template.params(rng, words, level)}
        visible, *hidden = (template.data(random.Random(rng.random()), params) for _ in range(1 + HIDDEN))
        return cls(template, params, visible, tuple(hidden))

    def fill(self, text: str) -> str:
        """A text of the template with its slots filled."""
        return Slots(textwrap.dedent(text).strip("\n")).substitute(self.params) + "\n"

    @property
    def path(self) -> str:
        """Where the program is to stand."""
        return f"/work/{self.template.program}"

    def programs(self) -> dict[str, str]:
        """Every program that is known: `shell` and `reference` are right, all others wrong."""
        template = self.template
        shown = template.answer(self.visible, self.params)
        second = self.fill(template.other) if template.other else sent.python_program(template, self.params)
        made = {"shell": self.fill(template.shell), "reference": second}
        made["by-heart"] = sent.by_heart(shown, template.watch)
        made["does-nothing"] = "#!/bin/sh\nexit 0\n"
        made["other-folder"] = made["shell"].replace('"$1"', "/work/data").replace("sys.argv[1]", "'/work/data'")
        made |= {name: self.fill(text) for name, text in template.wrong.items()}
        return made

    def observed(self, program: str) -> list[Observation]:
        """What the host asks of a program, with the answers."""
        setup = (sent.box_text(),)
        asked = []
        if self.template.watch != "modes":  # there the tests' user may be unable to read what the agent may
            asked.append(Observation("kept", "digest('/work/data')", repr(sent.digest(self.visible)), setup))
        for number, files in enumerate((self.visible, *self.hidden)):
            place = "data" if number < HIDDEN else "other data"
            expression = f"case({program!r}, {files!r}, {self.template.watch!r}, {place!r})"
            name = f"hidden-{number}" if number else "visible"
            asked.append(Observation(name, expression, repr([0, self.wanted(files)]), setup))
        return asked

    def wanted(self, files: Files) -> Any:
        """The right answer for a data set, as `box.case` tells it."""
        right = self.template.answer(dict(files), self.params)
        if self.template.watch == "stdout":
            return box.tidy(right)
        return {name: box.told(content) for name, content in right.items()}


def draft(name: str, level: int, seed: int, split: str = "train") -> Draft:
    """The task of these four coordinates; the same arguments give the same task on every machine.

    Raises: ConfigError: see `Instance.of`.
    """
    instance = Instance.of(name, level, seed, split)
    template = instance.template
    programs = instance.programs()
    asked = instance.observed(instance.path)
    files = sent.context(instance.visible, "data") | sent.tests(asked)
    files["environment/Dockerfile"] = sent.dockerfile(instance.visible, template.needs).encode()
    files["solution/solve.sh"] = sent.writes(instance.path, programs.pop("shell")).encode()
    other = sent.writes(instance.path, programs.pop("reference"))
    return Draft(
        source=Source(uri=f"terminal:{name}", kind="parametric", licence="Apache-2.0", meta={"seed": str(seed)}),
        spec=TaskSpec(
            name=f"gymsmith/terminal-{name}-{level}-{seed}-{split.replace('_', '-')}",
            kind="terminal",
            description=f"{template.theme}: {name}, level {level}",
            keywords=("terminal", template.theme),
            labels={
                "family": name,
                "theme": template.theme,
                "level": str(level),
                "seed": str(seed),
                "split": "held_out" if template.held_out else split,
            },
            tool=ToolSpec(name="shell", timeout_s=30.0),
            max_turns=30,
            expected=tuple(each.id for each in asked),
            verifier_timeout_s=120.0,
            memory_mb=256,
            pids=64,
        ),
        instruction=instance.fill(template.text) + "\n" + contract(template),
        files=files,
        alternatives=(other,),
        cheats=tuple((name, sent.writes(instance.path, text)) for name, text in programs.items()),
        executable=frozenset({"tests/test.sh", "solution/solve.sh"}),
    )


def contract(template: Template) -> str:
    """How the program is called, in words."""
    does = {
        "stdout": "prints its answer for the data in that folder to standard output, changes nothing there",
        "tree": "brings that folder into the state described above",
        "modes": "brings that folder into the state described above",
    }[template.watch]
    return (
        f"Write the program `/work/{template.program}`: an executable file in any language this machine runs. It is called "
        f"with one argument, the path of a folder laid out like `/work/data` (which may hold blanks), {does}, and exits with "
        "code 0. It will be run on what `/work/data` holds and on other data that you do not see, in UTC, in the locale "
        "C.UTF-8 and from another working folder. Leave `/work/data` itself as it is.\n"
    )
