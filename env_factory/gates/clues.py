"""Further contradictions between text, solution and tests, found in what the tests write down.

    order      the text says the newest first, the tests compare with lists that have the oldest first
    calendar   the text speaks of today, the solution looks at the clock, and data or tests hold fixed dates: right for a while
    planted    the tests believe a file that nobody makes and of which nobody is told, where an agent can put it
    untold     the solution writes down what the text asks to find out, and nothing leads there
    given      the text holds the very file that is asked for, and the solution computes it: copying is enough
    defined    the text defines what the solution's programs do otherwise (`definitions.py`)
    silent     tests want a status or a message, and the text knows of no failure (`untold.py`)

As in `consistency.py` each takes two witnesses, and what needs understanding is not found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from env_factory.gates.definitions import bounds, slips
from env_factory.gates.effects import Effect
from env_factory.gates.mutants import named
from env_factory.gates.reading import programs, texts, within
from env_factory.gates.untold import silent
from gymsmith.taskdir import Task

DATE = re.compile(r"(?<!\d)(?:19|20)\d\d-[01]\d-[0-3]\d(?!\d)")
_LATE_FIRST = re.compile(r"\b(newest|latest|most recent|youngest)(?: \w+){0,2} (?:first|at the top|before)\b", re.I)
_EARLY_FIRST = re.compile(r"\b(oldest|earliest)(?: \w+){0,2} (?:first|at the top|before)\b|\bchronological", re.I)
_DOWN = re.compile(r"\b(descending|decreasing|largest first|highest first)\b", re.I)
_UP = re.compile(r"\b(ascending|increasing|smallest first|lowest first)\b", re.I)
_TODAY = re.compile(
    r"\b(today|now|current (?:date|day|time|year)|(?:next|last|past|within(?: the next)?) \d+ (?:days|weeks|hours)|ago|overdue|"
    r"expired|upcoming)\b",
    re.I,
)
_CLOCK = re.compile(
    r"\b(?:date|datetime)\.(?:today|now|utcnow)\(|\btime\.(?:time|localtime|gmtime)\(|\bnew Date\(\)|"
    r"(?:`|\$\()date(?![^)`]* (?:-d|--date|-r|--reference)\b)[^)`]*[)`]"
)
"""Asks what time it is; `date -d` reckons with a time that is given."""
_FROZEN = re.compile(r"faketime|freeze|SOURCE_DATE_EPOCH|\bNOW=|monkeypatch")
_ASKS = re.compile(r"\b(recover|decrypt|decode|decipher|crack|guess|find out|reconstruct|deduce|extract)\b", re.I)
_TESTED = re.compile(r"(?:\bexists|\bisfile|\bis_file|\blexists)\(\s*([\w.]+|[\"'][^\"']+[\"'])|\[\[? -[efs] [\"']?([^\s\"'\]]+)")
_STORED = re.compile(r"^\s*(\w+)\s*=\s*(?:Path\(|pathlib\.Path\()?[\"'](/[^\"'\s]+)[\"']", re.M)
_EXAMPLE = re.compile(r"\b(looks? like|for example|e\.g\.|for instance|an example|such as|like this)", re.I)
FEW_KNOWN = 0.3
"""Share of the words of a text that may be known from elsewhere where nothing leads to it."""


def clues(task: Task, effects: Sequence[Effect]) -> list[str]:
    """What cannot both be meant, in words."""
    tests = "\n".join(_members(task, "tests/"))
    return [
        *_order(task.instruction, list(_members(task, "tests/", ".py"))),
        *_calendar(task, effects, tests),
        *_planted(task, effects, tests),
        *_untold(task, effects, tests),
        *_given(task, effects),
        *_defined(task, effects),
        *silent(task, effects),
    ]


def _members(task: Task, top: str, end: str = "") -> Iterator[str]:
    """Texts of the task's own; a package's suite is not."""
    return texts(task, top, end) if "tests/run.py" not in task.files else iter(())


def _order(said: str, tests: Sequence[str]) -> Iterator[str]:
    late, early, down, up = (bool(each.search(said)) for each in (_LATE_FIRST, _EARLY_FIRST, _DOWN, _UP))
    found: list[bool] = []
    for text in tests:
        for listed in _compared(text):
            keys: list[str] | list[float] = [m.group(0) for each in listed if isinstance(each, str) and (m := DATE.search(each))]
            if late == early or len(keys) != len(listed):
                keys = [float(each) for each in listed if isinstance(each, int | float)] if down != up else []
            if len(keys) == len(listed) >= 3 and len(set(keys)) == len(keys) and sorted(keys) in (keys, keys[::-1]):  # type: ignore[type-var]
                found.append(keys == sorted(keys))  # type: ignore[type-var]
    rising = early or up
    if found and all(each is not rising for each in found):
        yield f"the text asks for {'rising' if rising else 'falling'} order, the sorted lists in the tests are the opposite"


def _compared(text: str) -> Iterator[list[object]]:
    """Lists of constants that stand beside ==, or are compared by a method such as assertEqual."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        sides: list[ast.expr] = []
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq):
            sides = [node.left, *node.comparators]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("assertEqual", "assertListEqual")
        ):
            sides = node.args
        for side in sides:
            if isinstance(side, ast.List) and all(isinstance(each, ast.Constant) for each in side.elts):
                yield [each.value for each in side.elts if isinstance(each, ast.Constant)]


def _calendar(task: Task, effects: Sequence[Effect], tests: str) -> Iterator[str]:
    if not (today := _TODAY.search(task.instruction)) or not (clock := _CLOCK.search(programs(task, effects))):
        return
    dated = any(DATE.search(each) for each in (tests, *_members(task, "environment/")))
    if dated and not _CLOCK.search(tests) and not _FROZEN.search(tests):
        yield f"the text speaks of {today.group(0)!r} and the solution asks {clock.group(0)!r}, data or tests hold fixed dates"


def _planted(task: Task, effects: Sequence[Effect], tests: str) -> Iterator[str]:
    stored = dict(_STORED.findall(tests))
    made = {each.path for each in effects}
    environment = {f"/{name.partition('/')[2]}" for name in task.files if name.startswith("environment/")}
    for line in tests.splitlines():
        for match in _TESTED.finditer(line) if "assert" not in line else ():
            word = match.group(1) or match.group(2)
            path = stored.get(word, word.strip("\"'"))
            if not within(path, task) or path in made or named(PurePosixPath(path), task.instruction):
                continue
            if not any(path.endswith(each) for each in environment) and path in tests:
                yield f"the tests look whether {path} is there, which nobody makes and no text names: an agent may put it there"
                return


def _untold(task: Task, effects: Sequence[Effect], tests: str) -> Iterator[str]:
    if not (asked := _ASKS.search(task.instruction)):
        return
    known = "\n".join([task.instruction, *_members(task, "environment/")]).lower()
    for effect in effects:
        text = (effect.after or "").strip()
        if effect.kind != "created" or len(text) < 20 or text not in task.solution or text not in tests:
            continue
        words = {word.lower() for word in re.findall(r"[A-Za-z]{4,}", text)}
        if len(words) >= 4 and sum(word in known for word in words) <= FEW_KNOWN * len(words):
            yield f"the text asks to {asked.group(0)}, the solution writes {text[:40]!r} down, and nothing leads there"


def _defined(task: Task, effects: Sequence[Effect]) -> Iterator[str]:
    if "tests/run.py" not in task.files:
        written = programs(task, effects)
        yield from (*slips(task.instruction, written), *bounds(task.instruction, written))


def _given(task: Task, effects: Sequence[Effect]) -> Iterator[str]:
    said, solution = ("".join(each.split()) for each in (task.instruction, task.solution))
    example = _EXAMPLE.search(task.instruction)
    for effect in effects:
        text = "".join((effect.after or "").split())
        if effect.kind != "created" or effect.is_source or effect.is_script or len(text) < 12:
            continue
        told = example or len(set(re.findall(r"(?<![\d.])\d{2,}", text))) >= 2
        if told and text in said and text not in solution and named(PurePosixPath(effect.path), task.instruction):
            yield f"the text holds {effect.path} as it is to be, which the solution computes: copying it is enough"
