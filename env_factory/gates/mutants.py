"""Wrong work that looks like the solution: parts of it, and all of it with one thing wrong. Hidden tests must notice.

    halves    the solution's effects with one hunk or one asked-for file taken back; of many hunks, random halves too
    mutants   the effects with one fault: a single-site fault in the changed lines of a Python file, a step of a shell program
              left out, a number that is off, a file that is empty or ends in the middle. Where the effect is no text (a
              database), the fault is in the Python that the solution's script runs

Both are made of what the solution does to files (`effects.py`), never of how it is written. Not every change is asked for: a file
that the solution leaves and that no text names is its own affair, and so are notes for people in a repository of code.
Where state is no list of files (tasks graded in place) whole steps of the script are left out instead.
The share that has to fail is a rule (`Rules`), because some mutants mean the same as the solution; the idea and the operators are
those of mutation testing (DeMillo, Lipton and Sayward 1978: "the coupling effect").
"""

from __future__ import annotations

import ast
import contextlib
import json
import random
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

from env_factory.gates.effects import Effect, Effects, Hunk
from env_factory.gates.reading import within
from env_factory.swe import operators
from gymsmith.schema import digest
from gymsmith.taskdir import Task

DOCUMENTS = frozenset({".md", ".rst", ".markdown", ".adoc"})
NUMBER = re.compile(r"(?<![\w.#])\d+(?![\w#])|(?<=[:=, ])\d+\b")
MAX_TEXT = 200_000
MIN_STEPS = 4
"""Of fewer steps one that makes no difference would weigh too much."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How much wrong work a task's tests must notice, and how much of it is tried."""

    halves: float = 0.8
    """Share of the halves that has to fail."""
    mutants: float = 0.8
    max_halves: int = 6
    max_steps: int = 8
    """Programs with one step left out."""
    max_mutants: int = 6


MAX_LEFT, MAX_BESIDE = 20_000, 4_000
"""Characters of a text that a variant changes, and of one beside it, that a reader is shown."""


class Variant(NamedTuple):
    """Wrong work: paths as they were (None) or with another text; or, without files, another script."""

    name: str
    writes: Mapping[str, str | None]
    script: str = ""


def leaving(effects: Effects | None, variant: Variant) -> str:
    """A script that leaves what a variant does, for whoever reads it: what it changes in full, what is long by name."""
    lines = ["#!/bin/bash", "# Modes are as the reference leaves them."]
    for effect in effects.found if effects else ():
        text = variant.writes.get(effect.path, effect.after)
        place = shlex.quote(effect.path)
        if effect.path in variant.writes and text is None:
            continue
        if effect.kind == "removed" and text is None:
            lines.append(f"rm -r {place}")
        elif text is None or len(text) > (MAX_LEFT if effect.path in variant.writes else MAX_BESIDE):
            lines.append(f"# {effect.path} is left as the reference leaves it")
        else:
            mark = f"END_{digest(text.encode())[:8]}"
            lines.append(f"mkdir -p {shlex.quote(str(PurePosixPath(effect.path).parent))}")
            lines.append(f"cat > {place} <<'{mark}'\n{text.rstrip(chr(10))}\n{mark}" if text else f": > {place}")
    return "\n".join(lines) + "\n"


def halves(effects: Effects, task: Task, rules: Rules) -> list[Variant]:
    """Proper parts of the solution's effects, each lacking something that was asked for."""
    rng = random.Random(f"halves/{task.id}")
    units: list[tuple[str, str, int]] = []
    asked = [effect for effect in effects.found if _asked_for(effect, task)]
    folders = _crowded(asked)
    variants = [
        Variant(f"without {folder}/*", {effect.path: None for effect in asked if effect.path.startswith(f"{folder}/")})
        for folder in folders
    ]
    for effect in asked:
        if any(effect.path.startswith(f"{folder}/") for folder in folders):
            continue
        if effect.kind == "changed" and len(effect.hunks) > 1:
            units += [
                (effect.path, f"hunk {n} of {effect.path}", n) for n, hunk in enumerate(effect.hunks) if _says(effect, hunk)
            ]
        else:
            units.append((effect.path, effect.path, -1))
    by_path = {effect.path: effect for effect in asked}
    total = len(units) + len(variants)
    if total < 2:
        return []
    singles = [Variant(f"without {name}", _taken_back(by_path, [(path, n)])) for path, name, n in units]
    rng.shuffle(singles)
    if len(units) >= 4:
        mixed = units[:]
        rng.shuffle(mixed)
        middle = len(mixed) // 2
        for part in (mixed[:middle], mixed[middle:]):
            variants.append(Variant(f"{len(part)} of {len(mixed)} parts", _taken_back(by_path, [(p, n) for p, _, n in part])))
    return [*variants, *singles][: rules.max_halves]


def mutants(effects: Effects, task: Task, rules: Rules) -> list[Variant]:
    """The effects with one plausible fault each, and programs with one step left out."""
    rng = random.Random(f"mutants/{task.id}")
    by_file: list[list[Variant]] = []
    for effect in effects.found:
        if effect.after is None or len(effect.after) > MAX_TEXT or not _asked_for(effect, task):
            continue
        made = list(_faults(effect, rng))
        rng.shuffle(made)
        by_file.append(made)
    if any(_is_data(effect) and _asked_for(effect, task) for effect in effects.found):
        inline = list(_inline(task.solution, rng))
        by_file.append(inline if len(inline) >= MIN_STEPS else [])
    rng.shuffle(by_file)
    chosen: list[Variant] = []
    while any(by_file) and len(chosen) < rules.max_mutants:
        chosen += [made.pop() for made in by_file if made][: rules.max_mutants - len(chosen)]
    return [*chosen, *_less(effects, task, rng)[: rules.max_steps]]


def restyled(effects: Effects, task: Task) -> list[Variant]:
    """The solution's programs written differently, to the same effect: without comments and blank lines. Tests may not mind."""
    writes: dict[str, str | None] = {}
    for effect in effects.found:
        text = effect.after
        if text is None or effect.kind not in ("changed", "created") or len(text) > MAX_TEXT:
            continue
        if effect.path.endswith(".py"):
            with contextlib.suppress(SyntaxError, ValueError, RecursionError):
                writes[effect.path] = ast.unparse(ast.parse(text)) + "\n"
        elif effect.path.endswith((".sh", ".bash")) and "<<" not in text:
            first, *others = text.splitlines(keepends=True) or [""]
            writes[effect.path] = "".join(
                [first, *(line for line in others if line.strip() and not line.lstrip().startswith("#"))]
            )
    changed = {e.path: e.after for e in effects.found}
    writes = {path: text for path, text in writes.items() if text != changed[path]}
    commented = re.search(r"\b(comments?|formatted|formatting|style|indent\w*)\b", task.instruction, re.IGNORECASE)
    found = [Variant("the solution's programs without comments and blank lines", writes)] if writes and not commented else []
    spaced = {e.path: other for e in effects.found if e.kind == "created" and (other := _spaced(e, task.instruction)) is not None}
    return [*found, Variant("the solution's JSON with other white space", spaced)] if spaced else found


_FORM = re.compile(
    r"\b(white ?space|indent\w*|compact\w*|minif\w*|pretty\w*|byte for byte|byte-\w+|canonical|identical|sort_keys|separators|jq|"
    r"checksums?|sha\d+\w*|md5\w*|digests?|formatted)\b",
    re.IGNORECASE,
)
_MAY_BE_FORM = re.compile(r"\b(exact\w*|format|bytes?|one line|per line|single line|spaces?)\b", re.IGNORECASE)
"""Of a sentence about the file itself."""


def _spaced(effect: Effect, said: str) -> str | None:
    """A JSON file with other white space, where the text does not say how it is to be written."""
    name = PurePosixPath(effect.path).name
    about = [each for each in re.split(r"(?<=[.:;!?])\s+|\n\n", said) if name in each or re.search(r"\bJSON\b", each, re.I)]
    fixed = _FORM.search(said) or any(_MAY_BE_FORM.search(each) for each in about)
    if fixed or not effect.path.endswith(".json") or not named(PurePosixPath(effect.path), said):
        return None
    try:
        value = json.loads(effect.after or "")
    except (ValueError, RecursionError):
        return None
    other = json.dumps(value, indent=1 if "\n" not in (effect.after or "").strip() else None, ensure_ascii=False) + "\n"
    return other if other != effect.after else None


def shortened(task: Task, rules: Rules) -> list[Variant]:
    """The solution's script with one step left out, for tasks whose state is no list of files."""
    steps = script_steps(task.solution)
    doing = [n for n, step in enumerate(steps) if not _SETTING.match(step)]
    if len(doing) < 2:
        return []
    rng = random.Random(f"steps/{task.id}")
    rng.shuffle(doing)
    return [
        Variant(f"without `{steps[n].strip().splitlines()[0][:60]}`", {}, "".join(steps[:n] + steps[n + 1 :]))
        for n in doing[: rules.max_halves]
    ]


def _asked_for(effect: Effect, task: Task) -> bool:
    """Whether the task wants this change: repairs of what was there, and what its text names."""
    path = PurePosixPath(effect.path)
    if not within(effect.path, task):
        return named(path, task.instruction)
    if effect.kind == "changed":
        return not (path.suffix.lower() in DOCUMENTS and "tests/run.py" in task.files)
    if effect.kind == "tree":
        return bool(re.search(r"\b(git|commit|branch|merge|repository)\b", task.instruction, re.IGNORECASE))
    if effect.kind in ("removed", "mode"):
        return named(path, task.instruction)
    return named(path, task.instruction) or (effect.is_source and "tests/run.py" in task.files)


def named(path: PurePosixPath, text: str) -> bool:
    """Whether a text names a file, or the folder that it is in below the task's own."""
    if re.search(rf"(?<![\w.-]){re.escape(path.name)}(?![\w-]|\.\w)", text):
        return True
    return folder_named(path, text)


def folder_named(path: PurePosixPath, text: str) -> bool:
    """Whether a text names one of the folders that a file is in, below the task's own."""
    return any(
        re.search(rf"(?<![\w.-]){re.escape(folder.name)}/?(?![\w-]|\.\w|/\w)", text)
        for folder in path.parents
        if len(folder.parts) > 2
    )


def _crowded(asked: Sequence[Effect]) -> list[str]:
    """Folders in which the solution made so many files that they count as one thing."""
    counts: dict[str, int] = {}
    for effect in asked:
        if effect.kind == "created":
            folder = str(PurePosixPath(effect.path).parent)
            counts[folder] = counts.get(folder, 0) + 1
    return sorted(folder for folder, n in counts.items() if n > 4 and folder.count("/") >= 1)


def _says(effect: Effect, hunk: Hunk) -> bool:
    """Whether a hunk holds more than blank lines and comments."""
    lines = [*effect.lines[hunk.start : hunk.end], *hunk.old]
    return any(line.strip() and not line.strip().startswith(("#", "//", "/*", "*")) for line in lines)


def _taken_back(effects: Mapping[str, Effect], parts: Sequence[tuple[str, int]]) -> dict[str, str | None]:
    """What to write so that these parts (path, number of the hunk or -1 for all) are as they were."""
    writes: dict[str, str | None] = {}
    for path in dict.fromkeys(path for path, _ in parts):
        numbers = sorted((n for other, n in parts if other == path), reverse=True)
        effect = effects[path]
        if -1 in numbers:
            writes[path] = None
            continue
        lines, hunks = effect.lines, effect.hunks
        for number in numbers:
            hunk = hunks[number]
            lines[hunk.start : hunk.end] = hunk.old
        writes[path] = "".join(lines)
    return writes


def _faults(effect: Effect, rng: random.Random) -> Iterator[Variant]:
    lines = effect.lines
    touched = set(range(len(lines)))
    if effect.before is not None:
        touched = {n for hunk in effect.hunks for n in range(hunk.start, hunk.end)}
    if effect.path.endswith(".py") and effect.after:
        yield from _python(effect, touched, rng)
        return
    if effect.is_source or not lines:
        return
    if effect.kind == "created" and (effect.path.endswith((".sh", ".bash")) or re.match(r"#!.*sh\b", lines[0])):
        yield from _shell(effect, rng)
    numbers = [(n, m) for n in sorted(touched) for m in NUMBER.finditer(lines[n]) if not lines[n].lstrip().startswith("#!")]
    if effect.is_script:
        numbers = []  # Many a number of a program (`split("=", 1)`) means the same when it is another.
    rng.shuffle(numbers)
    for n, match in numbers[:3]:
        other = lines[n][: match.start()] + str(int(match.group()) + rng.choice((1, 2, 10))) + lines[n][match.end() :]
        yield Variant(f"{effect.path}:{n + 1} another number", {effect.path: "".join([*lines[:n], other, *lines[n + 1 :]])})
    if effect.kind == "created":
        yield Variant(f"{effect.path} empty", {effect.path: ""})
        if len(lines) >= 2:
            yield Variant(f"{effect.path} ends in the middle", {effect.path: "".join(lines[: len(lines) // 2])})


def _python(effect: Effect, touched: set[int], rng: random.Random) -> Iterator[Variant]:
    assert effect.after is not None
    found = [site for site in _sites(effect.after) if site.line - 1 in touched]
    for site in _spread(found, rng):
        text = site.apply(effect.after)
        if text != effect.before and site.valid(effect.after):
            yield Variant(f"{effect.path}:{site.line} {site.operator}", {effect.path: text})


def _sites(program: str) -> list[operators.Site]:
    """Where a Python program can be wrong so that it shows; nowhere in what is no Python."""
    try:
        return [site for site in operators.sites("", program, top=True) if not _same_work(site, program)]
    except SyntaxError:
        return []


def _spread(sites: Sequence[operators.Site], rng: random.Random) -> list[operators.Site]:
    """Some of the sites, at most one of a kind in a line: what makes no difference there does so twice."""
    shuffled = rng.sample(sites, len(sites))
    return list({(site.line, site.operator): site for site in shuffled}.values())[:12]


def _same_work(site: operators.Site, text: str) -> bool:
    """Whether a fault is none: on a machine whose texts are UTF-8 with plain line ends, or for a program that ends soon."""
    old, after = text.encode()[site.start : site.end].decode(), text.encode()[site.end :].decode()
    if re.match(r",\s*(encoding|newline|errors|flush|exist_ok|check)\s*=", old):
        return True
    if site.operator == "drop-call" and re.match(
        r"[\w.]*\b(close|flush|makedirs|mkdir|reconfigure|seed|setlocale|signal|chdir)\(", old
    ):
        return True
    return site.new in ("split", "rsplit") and bool(re.match(r"\([^,()]*\)", after))


def _less(effects: Effects, task: Task, rng: random.Random) -> list[Variant]:
    """New Python programs, and those that a script runs for an effect that is no text, without one of their steps."""
    found = []
    for effect in effects.found:
        if effect.kind == "created" and effect.path.endswith(".py") and effect.after and _asked_for(effect, task):
            found += [
                Variant(f"{effect.path} without line {site.line}", {effect.path: site.apply(effect.after)})
                for site in _steps(effect.after)
            ]
    if any(_is_data(effect) and _asked_for(effect, task) for effect in effects.found):
        for before, program, after in _programs(task.solution):
            found += [
                Variant(f"the script without line {site.line} of its Python", {}, f"{before}{site.apply(program)}{after}")
                for site in _steps(program)
            ]
    rng.shuffle(found)
    return found if len(found) >= MIN_STEPS else []


def _is_data(effect: Effect) -> bool:
    return effect.after is None and effect.kind in ("created", "changed")


def _steps(program: str) -> list[operators.Site]:
    return [s for s in _sites(program) if s.operator.startswith("drop-") and s.new == "pass" and s.valid(program)]


def _shell(effect: Effect, rng: random.Random) -> Iterator[Variant]:
    """A shell program without one of its steps, or with another bound."""
    text = effect.after or ""
    steps = script_steps(text)
    # A line of an awk program in quotes is no step of the shell's.
    quoted = [sum(step.count("'") for step in steps[:n]) % 2 for n in range(len(steps))]
    doing = [n for n, step in enumerate(steps) if not (quoted[n] or _SETTING.match(step) or _PREPARES.match(step))]
    doing = doing if len(steps) > 2 else []
    found = [
        Variant(f"{effect.path} without `{steps[n].strip()[:40]}`", {effect.path: "".join(steps[:n] + steps[n + 1 :])})
        for n in doing
    ]
    for match in re.finditer(r"-(gt|ge|lt|le)\b", text):
        other = {"gt": "ge", "ge": "gt", "lt": "le", "le": "lt"}[match.group(1)]
        found.append(
            Variant(
                f"{effect.path} with -{other} for {match.group()}",
                {effect.path: f"{text[: match.start(1)]}{other}{text[match.end(1) :]}"},
            )
        )
    rng.shuffle(found)
    yield from found[:4]


_PREPARES = re.compile(
    r"\s*(shopt|declare|local|readonly|typeset|trap|umask|ulimit|IFS=|cleanup|function |\w+ ?\(\)|(?:\w+=\S*\s*)+$)"
)
"""Steps of shell programs that make no difference on many inputs."""
_PYTHON_INSIDE = re.compile(r"\bpython3?\b[^\n]*<<-?\s*([\"']?)(\w+)\1[^\n]*\n(.*?)^\2$", re.MULTILINE | re.DOTALL)


def _inline(script: str, rng: random.Random) -> Iterator[Variant]:
    """The script with a fault in a Python program that it holds."""
    for before, program, after in _programs(script):
        for site in _spread(_sites(program), rng):
            if site.valid(program):
                other = f"{before}{site.apply(program)}{after}"
                yield Variant(f"the solution's script, line {site.line} of its Python: {site.operator}", {}, other)


def _programs(script: str) -> Iterator[tuple[str, str, str]]:
    """Python programs in here-documents, with the script before and after."""
    for match in _PYTHON_INSIDE.finditer(script):
        yield script[: match.start(3)], match.group(3), script[match.end(3) :]


_SETTING = re.compile(r"\s*(#|$|:|set |cd |export |[A-Z_]+=\S*$|sleep|echo [^>|]*$|printf [^>|]*$|exit|true|source |\. )")
_OPENS = re.compile(r"(?:^|[;&|({]\s*|\b(?:then|do|else)\s+)(if|for|while|until|case)\b|\{\s*(?:$|[^}]*$)")
_CLOSES = re.compile(r"(?:^|[;&|]\s*)(fi|done|esac|\})(?=$|[\s;&|)>])")
_HEREDOC = re.compile(r"<<-?\s*([\"']?)(\w+)\1")


def script_steps(script: str) -> list[str]:
    """A shell script in pieces that can be left out: commands with their here-documents, whole loops and conditions."""
    steps: list[str] = []
    ends: list[str] = []
    depth, held = 0, ""
    for line in script.splitlines(keepends=True):
        held += line
        if ends:
            if line.strip() == ends[0]:
                ends.pop(0)
        else:
            text = line.strip()
            ends = [match.group(2) for match in _HEREDOC.finditer(text)]
            depth += len(_OPENS.findall(text)) - len(_CLOSES.findall(text))
        if not ends and depth <= 0 and not held.rstrip("\n").endswith(("\\", "|", "&&", "||")):
            steps.append(held)
            held, depth = "", 0
    return [*steps, held] if held else steps
