"""Whether a task's text, its solution and its tests speak of the same thing, as far as that can be seen without understanding it.

Each check needs two witnesses: something that the text says, and something that the solution made or the tests want which cannot
both hold. One alone (a number that is used nowhere, a name that the text leaves out) is how good texts are written too. What is
found is told in words, so that an author can judge it; what needs understanding is not found.

    paths      the text asks for a file that nobody makes; the tests need one that neither the text nor the environment names
    numbers    the text says `port 8080`, the solution or the tests say `port=9090`, and 8080 stands nowhere else
    form       the text says JSON, CSV, upper case, descending, ...; what the solution made is not
    bounds     the text forbids to change what the solution changes
    opposites  the text asks for the largest; solution and tests speak of the smallest alone
    unknowable the solution writes down a secret that stands neither in the text nor in the environment
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from env_factory.gates.effects import Effect
from env_factory.gates.mutants import Variant, named
from gymsmith.taskdir import Task

MAX_ENVIRONMENT_BYTES = 8_000_000
_PATH = r"`?((?:/|\./)?(?:[\w.@-]+/)*[\w@-]+\.[A-Za-z][\w]{0,5})`?"
_MAKES = re.compile(r"\b(write|save|store|put|create|produce|output|export|generate|copy|append)s?\b", re.IGNORECASE)
_INTO = re.compile(
    rf"\b(?:to|into|in|as|called|named|file|writes?|creates?|produces?|generates?)\s+(?:the\s+|a\s+)?(?:file\s+)?(?:called\s+|named\s+)?{_PATH}",
    re.I,
)
_FORBIDS = re.compile(
    r"\b(?:do not|don't|must not|never|without)\s+(?:modify|change|edit|touch|delete|remove|rename|alter|mov)\w*\s+"
    rf"(?:the\s+)?(?:file\s+)?{_PATH}",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"\b([A-Za-z][A-Za-z_-]{2,})`?(?:\s+(?:is|of|to|must be|should be|number))*[\s=:`\"']{1,4}(\d+(?:\.\d+)?)\b(?!\.\d)"
)
_NUMBER = re.compile(r"(?<![\w.-])\d{3,}(?![\w.-])")
_ARCHIVED = re.compile(
    r"\.(tar|tgz|zip|gz|bz2|xz|7z|cpio|deb|rpm|whl|patch|diff|bundle)\b|\b(extract|unpack|clone|archive)\b", re.I
)
_SPLITS = re.compile(r"\bsplit\b", re.I)
_OPPOSITES = (
    (r"largest|maximum|highest|greatest|biggest|longest", r"smallest|minimum|lowest|shortest", r"max", r"min"),
    (r"sum", r"average|mean|median|product", r"sum", r"mean|avg"),
    (r"upper-?case", r"lower-?case", r"upper|toupper", r"lower|tolower"),
    (r"oldest|earliest", r"newest|latest", r"oldest", r"newest"),
    (r"celsius", r"fahrenheit", r"celsius", r"fahrenheit"),
)
"""Words of texts, and the words that programs have for them."""
_READS_SOLUTION = re.compile(r"(?<![\w.])/solution\b(?!\.\w)|\bsolve\.sh\b")


def reads_solution(task: Task) -> str:
    """The hidden test that looks at the solution instead of the work, or ""."""
    for name, data in sorted(task.files.items()):
        if name.startswith("tests/") and name.count("/") == 1 and _READS_SOLUTION.search(data.decode(errors="replace")):
            return name
    return ""


def contradictions(task: Task, effects: Sequence[Effect]) -> list[str]:
    """What cannot both be meant, in words."""
    said = _prose(task)
    works = _Works(task, effects)
    return [
        *_paths(said, works),
        *_numbers(said, works),
        *_form(said, works),
        *_bounds(said, works),
        *_opposites(said, works),
        *_unknowable(said, works),
    ]


def _prose(task: Task) -> str:
    """The text; of a package's task without the code in it: a docstring speaks to its callers, an observation is measured."""
    if "tests/run.py" not in task.files:
        return task.instruction
    fenced = re.sub(r"^[ \t]*(```|~~~).*?^[ \t]*\1", " ", task.instruction, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*\([^`\n]*`", " ", fenced)


def unnamed(task: Task, effects: Sequence[Effect]) -> list[Variant]:
    """The solution without one file each that nothing names: where the tests then fail, nobody could have known it."""
    if _ARCHIVED.search(task.instruction) or "tests/run.py" in task.files:
        return []
    works = _Works(task, effects)
    stems = {PurePosixPath(name).name.split(".")[0] for name in task.files if name.startswith("environment/")}
    found = []
    for effect in effects:
        path = PurePosixPath(effect.path)
        stem = path.name.split(".")[0]
        derived = any(other == stem or (len(other) > 1 and (other in stem or stem in other)) for other in stems if other)
        # Nobody makes a hidden file because its folder was spoken of.
        said = path.name in task.instruction if path.name.startswith(".") else derived or named(path, task.instruction)
        told = said or path.name in works.environment
        told = told or bool(re.search(rf"[`'\"]{re.escape(stem)}[`'\"]", task.instruction))
        told = told or (effect.is_source and bool(re.search(rf"\b{re.escape(stem)}\b", task.instruction)))
        # Whoever splits a file makes many that no text names, but none that are hidden.
        if effect.kind == "created" and not told and (path.name.startswith(".") or not _SPLITS.search(task.instruction)):
            found.append(Variant(f"without {effect.path}, which nothing names", {effect.path: None}))
    return found[:4]


class _Works:
    """The texts besides the instruction."""

    def __init__(self, task: Task, effects: Sequence[Effect]) -> None:
        self.effects = effects
        self.solution = task.solution
        self.tests = _texts(task, "tests/")
        self.environment = _texts(task, "environment/")
        self.made = "\n".join(line.strip() for effect in effects for line in _added(effect))
        self.names = {PurePosixPath(effect.path).name for effect in effects}

    def hold(self, text: str) -> bool:
        """Whether anything besides the instruction holds a text."""
        return any(text in each for each in (self.solution, self.tests, self.made, self.environment))


def _texts(task: Task, top: str) -> str:
    parts, size = [], 0
    for name in sorted(task.files):
        data = task.files[name]
        if name.startswith(top) and name != "tests/run.py" and b"\0" not in data[:4096] and size < MAX_ENVIRONMENT_BYTES:
            parts.append(f"{name}\n{data.decode(errors='replace')}")
            size += len(data)
    return "\n".join(parts)


def _added(effect: Effect) -> list[str]:
    if effect.before is None:
        return effect.lines
    return [line for hunk in effect.hunks for line in effect.lines[hunk.start : hunk.end]]


def _paths(said: str, works: _Works) -> Iterator[str]:
    if all(name in said for name in works.names):
        return
    for sentence in re.split(r"(?<=[.!?:])\s+|\n\n", said):
        for match in _INTO.finditer(sentence) if _MAKES.search(sentence) else ():
            name = PurePosixPath(match.group(1)).name
            if name not in works.names and not works.hold(name):
                yield f"the text asks for {match.group(1)}, which neither the solution makes nor the tests look at"


def _numbers(said: str, works: _Works) -> Iterator[str]:
    theirs = f"{works.made}\n{works.tests}\n{works.solution}"
    for word, number in _SETTING.findall(said):
        if _number_in(number, works) or word.lower() in ("than", "least", "most", "the", "and", "within", "about", "python"):
            continue
        for match in re.finditer(rf"\b{re.escape(word)}\b[\"'`]?[\s=:]{{1,4}}[\"'`]?(\d+(?:\.\d+)?)\b", theirs, re.IGNORECASE):
            if not re.search(rf"(?<![\d.]){re.escape(match.group(1))}(?![\d.])", said):
                yield f"the text says {word} {number}, the solution or the tests say {match.group(0)!r}"
                return
    unused = [number for number in _NUMBER.findall(said) if not _number_in(number, works)]
    wanted = {
        number
        for number in _NUMBER.findall(works.tests)
        if number in _NUMBER.findall(works.solution) and number not in said and number not in works.environment
    }
    for number in unused:
        if other := next((each for each in sorted(wanted) if len(each) == len(number)), ""):
            yield f"the text says {number}, which is used nowhere; the tests want {other}, of which nothing speaks"
            return


def _number_in(number: str, works: _Works) -> bool:
    pattern = re.compile(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)")
    return any(pattern.search(each) for each in (works.solution, works.tests, works.made, works.environment))


def _form(said: str, works: _Works) -> Iterator[str]:
    data = [e for e in works.effects if e.kind == "created" and e.after and not e.is_source and not e.is_script]
    outputs = [e for e in data if named(PurePosixPath(e.path), said)]
    for effect in outputs:
        text = effect.after or ""
        lines = [line for line in text.splitlines() if line.strip()]
        sole = len(outputs) == 1
        if (effect.path.endswith(".json") or (sole and re.search(r"\b(as|in|is|valid|a) JSON\b", said))) and not _is_json(text):
            yield f"{effect.path} is to be JSON, the solution's is not"
        if (
            sole
            and re.search(r"\b(as|in|a) (CSV|comma[- ]separated)\b", said, re.I)
            and lines
            and not any("," in line for line in lines)
        ):
            yield f"{effect.path} is to be comma-separated, the solution's is not"
        if sole and re.search(r"\btab[- ]separated\b|\bTSV\b", said, re.I) and lines and not any("\t" in line for line in lines):
            yield f"{effect.path} is to be tab-separated, the solution's is not"
        letters = "".join(re.findall(r"[A-Za-z]", text))
        if sole and len(letters) >= 4:
            upper, lower = (
                re.search(r"\b(upper[- ]?case|capital letters)\b", said, re.I),
                re.search(r"\blower[- ]?case\b", said, re.I),
            )
            if (upper and not lower and letters.islower()) or (lower and not upper and letters.isupper()):
                yield f"{effect.path} is to be in {(upper or lower).group(0)}, the solution's is the opposite"  # type: ignore[union-attr]
        if sole and len(lines) >= 3:
            yield from _direction(effect.path, said, lines)


def _direction(path: str, said: str, lines: Sequence[str]) -> Iterator[str]:
    up = re.search(r"\b(ascending|increasing|smallest first|lowest first)\b", said, re.I)
    down = re.search(r"\b(descending|decreasing|largest first|highest first|reverse alphabetical)\b", said, re.I)
    if bool(up) == bool(down):
        return
    columns: list[list[float] | list[str]] = [list(lines)]
    numbers = [[float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", line)] for line in lines]
    if all(numbers):
        columns += [[each[0] for each in numbers], [each[-1] for each in numbers]]
    rises = any(column == sorted(column) for column in columns)  # type: ignore[type-var]
    falls = any(column == sorted(column, reverse=True) for column in columns)  # type: ignore[type-var]
    if (up and falls and not rises) or (down and rises and not falls):
        yield f"{path} is to be {(up or down).group(0)}, the solution's is the opposite"  # type: ignore[union-attr]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        try:
            return all(isinstance(json.loads(line), dict | list) for line in text.splitlines() if line.strip())
        except ValueError:
            return False
    return True


def _bounds(said: str, works: _Works) -> Iterator[str]:
    for match in _FORBIDS.finditer(said):
        name = PurePosixPath(match.group(1)).name
        for effect in works.effects:
            if effect.kind in ("changed", "removed") and PurePosixPath(effect.path).name == name:
                yield f"the text forbids to change {name}, and the solution does"


def _opposites(said: str, works: _Works) -> Iterator[str]:
    theirs = re.sub(r"[_\d]", " ", f"{works.solution}\n{works.tests}")
    for left, right, left_code, right_code in _OPPOSITES:
        for mine, mine_code, other, other_code in ((left, left_code, right, right_code), (right, right_code, left, left_code)):
            asked = re.search(rf"\b({mine})\b", said, re.I)
            found = re.search(rf"\b({other}|{other_code})\b", theirs, re.I)
            also = re.search(rf"\b({other})\b", said, re.I) or re.search(rf"\b({mine}|{mine_code})\b", theirs, re.I)
            if asked and found and not also:
                yield f"the text asks for {asked.group(0)!r}, solution and tests speak of {found.group(0)!r} alone"


def _unknowable(said: str, works: _Works) -> Iterator[str]:
    known = f"{said}\n{works.environment}".lower()
    for effect in works.effects:
        text = (effect.after or "").strip()
        if effect.kind != "created" or not 4 <= len(text) <= 80 or "\n" in text or text not in works.solution:
            continue
        words = [word.lower() for word in re.findall(r"[A-Za-z]{3,}", text)]
        secret = bool(re.fullmatch(r"[\w-]+", text)) and bool(re.search(r"\d", text)) and bool(words)
        if text.lower() not in known and (secret or len(words) >= 2) and not any(word in known for word in words):
            yield f"the solution writes {text!r} into {effect.path}, which stands neither in the text nor in the environment"
    for number in dict.fromkeys(re.findall(r"(?<![\w])[0-9a-f]{16,}(?!\w)", works.solution)):
        if number in works.made and re.search(r"[a-f]", number) and re.search(r"\d", number) and number not in known:
            yield f"the solution knows {number[:40]}, which stands neither in the text nor in the environment"
