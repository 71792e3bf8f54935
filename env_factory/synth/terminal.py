"""Parametric terminal tasks: `draft(template, level, seed, split)` is a pure function to a `Draft`.

The agent writes a program that is called with a folder; the host judges what the program prints, or what it makes of the folder,
for the data that the agent sees and for two data sets that it never sees, so a program that knows the answer by heart fails. The
right answers are computed here by the template's reference and never enter a sandbox: the verifier runs the agent's program as an
observation (`sandboxes/observations.py`) and the host compares.

A template brings two honest programs: `shell`, written by hand, and its reference `answer`, whose own source becomes the second
one. Nothing of a task is executed here. The templates stand in `templates/terminal/`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import shlex
import string
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from env_factory.templates.terminal import (
    archives,
    box,
    cleanup,
    databases,
    dependencies,
    documents,
    git,
    incidents,
    links,
    logs,
    permissions,
    processes,
    schedules,
    services,
    sqlite,
    startup,
    tables,
)
from env_factory.templates.terminal.template import Files, Params, Template, Watch
from env_factory.templates.words import draw
from gymsmith.errors import ConfigError
from gymsmith.schema import Draft, Source, TaskSpec, ToolSpec
from sandboxes import observations
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
        second = self.fill(template.other) if template.other else python_program(template, self.params)
        made = {"shell": self.fill(template.shell), "reference": second}
        made["by-heart"] = _by_heart(shown, template.watch)
        made["does-nothing"] = "#!/bin/sh\nexit 0\n"
        made["other-folder"] = made["shell"].replace('"$1"', "/work/data").replace("sys.argv[1]", "'/work/data'")
        made |= {name: self.fill(text) for name, text in template.wrong.items()}
        return made

    def observed(self, program: str) -> list[Observation]:
        """What the host asks of a program, with the answers."""
        setup = (box_text(),)
        asked = []
        if self.template.watch != "modes":  # there the tests' user may be unable to read what the agent may
            asked.append(Observation("kept", "digest('/work/data')", repr(terminal_digest(self.visible)), setup))
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
    files = {
        f"environment/work/data/{path.partition('!')[0]}": as_bytes(content)
        for path, content in instance.visible.items()
        if is_file(path)
    }
    files["environment/Dockerfile"] = dockerfile(instance.visible, template.needs).encode()
    asked = instance.observed(instance.path)
    files[observations.MEMBER] = observations.member(asked, (), ())
    files["tests/test.sh"] = TEST
    files["tests/check.py"] = CHECK
    files["solution/solve.sh"] = writes(instance.path, programs.pop("shell")).encode()
    other = writes(instance.path, programs.pop("reference"))
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
        cheats=tuple((name, writes(instance.path, text)) for name, text in programs.items()),
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


def dockerfile(files: Files, needs: tuple[str, ...], root: str = "/work/data") -> str:
    """The image: the data set below `root`, and what a build context cannot hold of it (links, modes, empty folders)."""
    rows = ["FROM gymsmith/host", "WORKDIR /work"]
    if needs:
        rows.append(f"RUN command -v {' '.join(needs)}")
    rows.append(
        "COPY --chown=agent:agent work/ /work/" if any(map(is_file, files)) else "RUN mkdir -p /work && chown agent:agent /work"
    )
    special: list[str] = []
    for name, content in files.items():
        path, _, mode = name.partition("!")
        place = shlex.quote(f"{root}/{path.rstrip('@/')}")
        if path.endswith("@"):
            above = shlex.quote(f"{root}/{path}".rpartition("/")[0])
            special += [f"mkdir -p {above}", f"ln -s {shlex.quote(content)} {place}"]
        elif path.endswith("/"):
            special.append(f"mkdir -p {place}")
        if mode:
            special.append(f"chmod {mode} {place}")
    if special:
        rows += ["USER agent", f"RUN {' && '.join(special)}"]
    return "\n".join(rows) + "\n"


def is_file(name: str) -> bool:
    """Whether this name of a data set is a regular file's."""
    return not name.partition("!")[0].endswith(("@", "/"))


def as_bytes(content: str | bytes) -> bytes:
    """Content of a file."""
    return content.encode() if isinstance(content, str) else content


def writes(path: str, program: str) -> str:
    """A script that puts a program where it belongs."""
    return f"#!/bin/sh\ncat > {path} <<'END_OF_PROGRAM'\n{program}END_OF_PROGRAM\nchmod 755 {path}\n"


def terminal_digest(files: Files) -> str:
    """What `box.digest` says of a folder that holds exactly this data set."""
    plain: Files = {}
    for name, content in files.items():
        try:
            plain[name.partition("!")[0]] = content.decode() if isinstance(content, bytes) else content
        except UnicodeDecodeError:
            plain[name.partition("!")[0]] = content
    return hashlib.sha256(repr(sorted(plain.items())).encode()).hexdigest()


@lru_cache(maxsize=1)
def box_text() -> str:
    """`box.py` as a statement of an observation."""
    return inspect.getsource(box)


def python_program(template: Template, params: Params) -> str:
    """The reference as a program of its own."""
    body = textwrap.dedent(inspect.getsource(template.answer))
    name = template.answer.__name__
    end = f"answer = {name}(tree(sys.argv[1], {template.watch == 'modes'}), json.loads({json.dumps(params)!r}))\n"
    if template.watch == "stdout":
        end += "sys.stdout.write(answer)\n"
    else:
        end += "for name in os.listdir(sys.argv[1]):\n    place = os.path.join(sys.argv[1], name)\n"
        end += "    shutil.rmtree(place) if os.path.isdir(place) and not os.path.islink(place) else os.unlink(place)\n"
        end += "lay(sys.argv[1], answer)\n"
    head = "#!/usr/bin/python3 -I\nfrom __future__ import annotations\nimport json\nimport os\nimport shutil\nimport sys\n"
    return f"{head}{''.join(inspect.getsource(f) for f in (box.lay, box.tree))}\n{body}\n{end}"


def _by_heart(shown: Any, watch: Watch) -> str:
    """A program that gives the answer for the visible data, whatever it is asked."""
    if watch == "stdout":
        return f"#!/usr/bin/python3 -I\nprint({shown!r}, end='')\n"
    head = "#!/usr/bin/python3 -I\nfrom __future__ import annotations\nimport os\nimport shutil\nimport sys\n"
    clear = "shutil.rmtree(sys.argv[1], ignore_errors=True)\nos.makedirs(sys.argv[1], exist_ok=True)\n"
    return f"{head}{inspect.getsource(box.lay)}\n{clear}lay(sys.argv[1], {shown!r})\n"


TEST = b"""#!/bin/sh
# The host has the observations and judges them itself. Where a harness copies the whole folder here, they are judged by check.py.
if [ -f /tests/observations.json ]; then python3 -I /tests/check.py || bad=1; fi
[ ! -d /logs/verifier ] || echo $((1 - ${bad:-0})) > /logs/verifier/reward.txt
"""
CHECK = b'''"""For harnesses that run the tests inside the sandbox: evaluates the observations and compares."""

import ast
import json
import sys

bad = 0
with open("/tests/observations.json") as file:
    rows = json.load(file)["observations"]
for row in rows:
    names = {}
    try:
        for statement in row["setup"]:
            exec(statement, names)
        good = eval(row["expression"], names) == ast.literal_eval(row["expected"])
    except Exception:
        good = False
    print("PASS" if good else "FAIL", row["id"])
    bad += not good
sys.exit(bad != 0)
'''
