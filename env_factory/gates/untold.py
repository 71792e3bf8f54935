"""What tests want and nobody could know: it stands in the solution, and neither in the text nor in the environment.

    nowhere the text leads to a file of the task's folder that is not there and that nobody makes
    status  tests look at an exit status or at standard error, and the text speaks of nothing that goes wrong
    number  the solution reckons with a number of its own; with another one the tests fail
    word    what the solution writes into a file, or what its programs print, holds a word of its own; with another one the tests
            fail

The last two are tried (`Variant`): a number that makes no difference may be anybody's choice.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from env_factory.gates.effects import Effect, read_plain
from env_factory.gates.mutants import Variant, named
from env_factory.gates.reading import programs, texts, within
from gymsmith.taskdir import Task
from sandboxes.base import Image
from sandboxes.image.layer import lookup

MAX_TRIED = 4
MAX_KNOWN_BYTES = 200_000
_WRONG = re.compile(
    r"\b(errors?|fail\w*|status|exits?|missing|invalid|malformed|broken|stderr|standard error|cannot|can't|absent|"
    r"(?:does|do|is|are) not|reject\w*|refus\w*|abort\w*|usage|warn\w*|complain\w*|return(?:s|ed)? code|non-?zero|unknown|"
    r"unreadable|crash\w*|stops?|otherwise|without|bad|illegal|exception)\b",
    re.IGNORECASE,
)
"""What a text says that has thought of things going wrong."""
_LEAVES = re.compile(
    r"\b(?:sys\.)?exit\(?\s*[1-9]|\bexit [1-9]|\bSystemExit\([1-9]|>&2|sys\.stderr|console\.error|\bstatus = [1-9]"
)
_LOOKED_AT = re.compile(
    r"\breturncode\b[^\n]*(?:==|!=|in)\s*\(?[1-9]|(?:\bif\b|assert|==|!=|bool\()[^\n]*\.stderr\b|\bstderr\b\s*(?:==|!=)|"
    r"\[\[? *\"?\$(?:\?|rc|status|code)\"? +(?:-eq|-ne|=|!=|==) +[1-9]"
)
_NUMBER = re.compile(r"(?<![\w.$%:/-])(\d+\.\d*[1-9]|\d{3,})(?![\w.:/%-])")
_MODE = re.compile(r"\b(chmod|install|umask|mode|0o\w*)\b|-m ")
_COMMON = frozenset(
    re.findall(
        r"\S+",
        "0.5 0.25 0.75 1.5 2.5 0.1 0.01 0.001 0.05 0.2 1.8 2.54 3.14 3.1416 3.14159 9.81 100 1000 10000 100000 1000000 "
        "1000000000 256 255 127 128 512 1024 2048 4096 8192 65535 65536 1048576 1073741824 "
        "3600 86400 604800 365 366 360 180 1440 1900 1970 "
        "2000 999 9999 200 400 404 500",
    )
)
"""Numbers that people know: units, bounds of machines, rounding."""
_QUOTED = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'")
_TECHNICAL = frozenset(
    ("replace", "ignore", "strict", "ascii", "latin", "main", "surrogateescape", "backslashreplace", "__main__")
)
"""Words that a language wants."""
_PLACEHOLDER = re.compile(
    r"\b(e\.g\.|for example|for instance|such as|like|example|never|not|no|don't|without|if)\b[^.\n]*$", re.I
)
_TOKEN = re.compile(r"[A-Za-z][A-Za-z_]{3,}")


def silent(task: Task, effects: Sequence[Effect]) -> list[str]:
    """A status or a message that only solution and tests know of, in words."""
    if "tests/run.py" in task.files or _WRONG.search(task.instruction):
        return []
    left, seen = _LEAVES.search(programs(task, effects)), _LOOKED_AT.search("\n".join(texts(task, "tests/")))
    if not left or not seen:
        return []
    return [
        f"the tests look at {seen.group(0).strip()[:40]!r} and the solution has {left.group(0)!r}; the text knows of no failure"
    ]


def nowhere(task: Task, effects: Sequence[Effect], image: Image) -> list[str]:
    """Files that the text speaks of and that exist neither before nor after the work, in words."""
    if not image.layers:
        return []
    others = "\n".join([task.solution, *texts(task, "tests/"), *texts(task, "environment/")])
    found = []
    for match in re.finditer(r"(?<![\w/.*<{$-])(/[\w@-][\w@./-]*\.[A-Za-z]\w{0,4})(?![\w/*>}-])", task.instruction):
        path, before = match.group(1), task.instruction[max(0, match.start() - 60) : match.start()]
        made = any(effect.path == path for effect in effects)
        if not within(path, task) or made or path in others or _PLACEHOLDER.search(before) or PurePosixPath(path).name in others:
            continue
        if lookup(image.layers, path, follow_last=False)[1] is None:
            found.append(f"the text speaks of {path}, which is not there and which nobody makes")
    return found[:2]


def variants(task: Task, effects: Sequence[Effect], image: Image) -> list[Variant]:
    """The solution with another number or word where nothing says which it is to be."""
    if "tests/run.py" in task.files or task.spec.kind == "layout":  # what a page is to look like is told in people's words
        return []
    # A number in what was asked for is an answer: it may follow from what is there, and a solution may have it by heart.
    answers = "\n".join(e.after or "" for e in effects if e.kind == "created" and not e.is_source and not e.is_script)

    def unknown(known: str) -> list[Variant]:
        return [*_numbers(task, f"{known}\n{answers}"), *_words(task, effects, known.lower())]

    told = "\n".join([task.instruction, *texts(task, "environment/")])
    # The image is looked through only where there is something to look for.
    return unknown("\n".join([told, *_inside(task, image)]))[:MAX_TRIED] if unknown(told) else []


def _inside(task: Task, image: Image) -> Iterator[str]:
    """Names and contents of the task's own files in the image, as far as they are small: some are made as it is built."""
    for top in image.layers:
        for root in task.spec.artifacts:
            for place in sorted(Path(f"{top}{root}").rglob("*")) if root != "/" else ():
                yield place.name
                data = None if place.is_dir() else read_plain(str(place), MAX_KNOWN_BYTES)
                if data:
                    yield data.decode(errors="replace")


def _numbers(task: Task, known: str) -> Iterator[Variant]:
    lines = [line for line in task.solution.splitlines() if not _MODE.search(line) and not line.lstrip().startswith("#")]
    given = {_plain(number) for number in re.findall(r"\d+(?:\.\d+)?", known)}
    tried = set[str]()
    for match in _NUMBER.finditer("\n".join(lines)):
        number = match.group(1)
        # A percentage may be used as a share, a share as a percentage, and both may be added to one.
        value = float(number)
        forms = {_plain(str(each)) for each in (value, value * 100, value / 100, 1 - value, value - 1, (value - 1) * 100)}
        if number in _COMMON or forms & given or number in tried:
            continue
        tried.add(number)
        other = re.sub(rf"(?<![\w.]){re.escape(number)}(?![\w.])", number[:-1] + str((int(number[-1]) + 3) % 10), task.solution)
        yield Variant(f"with another number than {number}, of which nothing speaks", {}, other)


def _plain(number: str) -> str:
    return f"{float(number):.6g}"


def _words(task: Task, effects: Sequence[Effect], known: str) -> Iterator[Variant]:
    tests = "\n".join(texts(task, "tests/"))
    for effect in effects:
        text = effect.after or ""
        if effect.kind != "created" or len(text) > 20_000 or not named(PurePosixPath(effect.path), task.instruction):
            continue
        program = effect.path.endswith(".py")
        if not program and not effect.path.endswith((".json", ".csv", ".tsv", ".txt")):
            continue
        said = "\n".join(_strings(text)) if program else text
        for word in dict.fromkeys(_TOKEN.findall(said)):
            quoted = re.search(rf"[\"']{word}[\"']", tests) if program else re.search(rf"[\"'\n][^\"'\n]*\b{word}\b", tests)
            if (
                quoted
                and re.search(rf"\b{word}\b", task.solution)
                and not _led_to(word.lower(), known)
                and word not in _TECHNICAL
            ):
                other = re.sub(rf"\b{word}\b", f"{word}ing", text)
                yield Variant(f"with another word than {word!r} in {effect.path}, of which nothing speaks", {effect.path: other})


def _strings(program: str) -> list[str]:
    """What stands in quotes."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError):
        return _QUOTED.findall(program)
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _led_to(word: str, known: str) -> bool:
    """Whether a word or its stem stands in what is known; of a word of several parts all, one after the other."""
    parts = [part for part in word.split("_") if part]
    if len(parts) == 1:
        return word[: max(4, len(word) - 3)] in known
    return bool(re.search(r"[ _-]?".join(map(re.escape, parts)), known))
