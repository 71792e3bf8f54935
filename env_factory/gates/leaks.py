"""Whether an image, or the text of a task, gives away the solution or the hidden tests.

Looked for: five lines in a row of what the solution makes of source code (of less, all of it), of the hidden tests that fail
without it, and of the solution's script; files that are what the solution will make; compiled forms and archives of repaired
modules; ids of hidden tests; the same in every object of a git history, also of one that no branch leads to; caches of pip and of
pytest. A leak is only what an agent can see: what a later layer of the image hides is none.

Not every equal text is a leak: data that a task asks to copy, restore or recover is in its image, and its text says where.
Each layer is read once per process (`Layer`), so the environments of one package share that cost. The machine's own /usr, where
it is the base, is looked through for files that are named like the repaired ones.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from env_factory.gates import git_objects
from env_factory.gates.bytecode import compiled_from
from env_factory.gates.effects import CACHES, Effects, read_plain
from env_factory.gates.mutants import folder_named, named
from gymsmith.schema import Gate, Reward
from gymsmith.taskdir import Task
from sandboxes.base import MIB, Image
from sandboxes.image.layer import lookup

WINDOW = 5
MIN_WINDOW_CHARS = 60
"""Five lines that are shorter than this together say too little to be anybody's."""
LONG_LINE = 20
MAX_FILE_BYTES = 4 * MIB
MAX_WHOLE_BYTES = 64 * 1024
KEPT_LINES = 4_000_000
"""Windows of all layers that stay in memory."""
TELLING_NAME = re.compile(r"answer|solution|solve|oracle|expected|secret|golden?\b|reference", re.IGNORECASE)
ANSWERING = re.compile(r"\b(answer|solution|solve|oracle|expected)\b", re.IGNORECASE)
"""What a comment says that gives a short answer away."""
HISTORY = re.compile(r"\b(git|commits?|history|reflog|stash(ed)?|branch(es)?|revert(ed)?)\b", re.IGNORECASE)
RECOVERS = re.compile(r"\b(restore|recover|undelete|backups?|deleted|lost|trash)\b", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(whl|egg|zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)\Z")
_LITTER = re.compile(r"/\.pytest_cache(/|\Z)|/\.cache/pip(/|\Z)")


@dataclass(slots=True)
class Secrets:
    """What must not be found, each with the words that people read."""

    windows: dict[int, str] = field(default_factory=dict)
    short: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Texts of fewer lines than a window, as they are."""
    wholes: dict[int, str] = field(default_factory=dict)
    """Hash of all lines of a file that the solution makes or changes -> its path."""
    own: dict[str, int] = field(default_factory=dict)
    """Path that the solution changes -> hash of its lines before: the file itself is no copy."""
    ids: tuple[str, ...] = ()
    modules: frozenset[tuple[str, str]] = frozenset()
    """(folder, stem) of the source files that the solution repairs."""
    values: tuple[str, ...] = ()
    """Short contents that the solution writes: not to stand in the environment's variables."""

    def hide(self, lines: Sequence[str], words: str) -> None:
        """Add a text of which nothing may be found."""
        self.windows |= dict.fromkeys(windows(lines), words)
        if 1 < len(lines) < WINDOW and sum(map(len, lines)) >= MIN_WINDOW_CHARS:
            self.short[tuple(lines)] = words

    def first_in(self, text: str) -> str:
        """The words of the first secret that a text holds, or ""."""
        lines = lines_of(text)
        for each in windows(lines):
            if each in self.windows:
                return self.windows[each]
        joined = "\n".join(["", *lines, ""]) if self.short else ""
        return next((words for part, words in self.short.items() if "\n".join(["", *part, ""]) in joined), "")


def lines_of(text: str) -> list[str]:
    """Lines that say something, without the space around them."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def windows(lines: Sequence[str], touched: Iterable[int] | None = None) -> set[int]:
    """Hashes of WINDOW lines in a row; `touched`: only of those that hold one of these lines."""
    starts: Iterable[int] = range(len(lines) - WINDOW + 1)
    if touched is not None:
        starts = {start for n in touched for start in range(n - WINDOW + 1, n + 1)}.intersection(starts)
    found = (tuple(lines[start : start + WINDOW]) for start in starts)
    return {hash(each) for each in found if sum(map(len, each)) >= MIN_WINDOW_CHARS}


def secrets_of(task: Task, effects: Effects | None, nothing: Reward | None) -> Secrets:
    """What this task hides. `nothing`: the verdict on doing nothing, which tells the tests that fail without a repair."""
    secrets = Secrets(ids=tuple(test for test in task.spec.expected if "::" in test))
    modules: set[tuple[str, str]] = set()
    there: set[int] = set()
    for effect in effects.found if effects else ():
        path = PurePosixPath(effect.path)
        before = windows(lines_of(effect.before or ""))
        there |= before
        if (effect.is_source and effect.kind in ("changed", "removed")) or (effect.is_source and "tests/run.py" in task.files):
            modules.add((path.parent.name, path.stem))
        if effect.before is not None:
            secrets.own[effect.path] = _whole(effect.before)
        if effect.after is None:
            continue
        if effect.is_source and effect.before is not None:
            said = lines_of(effect.after)
            new = set(said) - set(lines_of(effect.before))
            fresh = windows(said, [n for n, line in enumerate(said) if line in new]) - before
            secrets.windows |= dict.fromkeys(fresh, f"the repaired {effect.path}")
            if len(said) < WINDOW and new:
                secrets.hide(said, f"the repaired {effect.path}")
        text = "\n".join(lines_of(effect.after))
        if len(text) >= 3:
            secrets.wholes[_whole(effect.after)] = effect.path
        if effect.kind == "created" and 3 <= len(text) < 200 and "\n" not in text:
            secrets.values += (text,)
    secrets.modules = frozenset(modules)
    script = [line for line in lines_of(task.solution) if not line.startswith("#")]
    secrets.hide(script, "the solution's script")
    for each in there:  # A script that writes a whole file again repeats what was in it.
        if secrets.windows.get(each) == "the solution's script":
            del secrets.windows[each]
    for test, body in _hidden_tests(task, nothing):
        secrets.hide(body, f"the hidden test {test}")
    return secrets


def _hidden_tests(task: Task, nothing: Reward | None) -> Iterator[tuple[str, list[str]]]:
    """(id, lines) of the tests that fail without a repair; scripts that are tests as a whole."""
    states = nothing.tests if nothing else {}
    failing = [test for test in task.spec.expected if states.get(test) != "passed" and "::" in test][:50]
    for test in failing:
        file, _, rest = test.partition("::")
        source = next((data for name, data in task.files.items() if name.startswith("tests/") and name.endswith(f"/{file}")), b"")
        if (body := _function(source.decode(errors="replace"), rest.split("[")[0].split("::")[-1])) is not None:
            yield test, body
    if not any("::" in test for test in task.spec.expected):
        for name in sorted(task.files):
            if re.fullmatch(r"tests/[^/]*\.(sh|py|bats)", name) and name != "tests/run.py":
                yield (
                    name.removeprefix("tests/"),
                    [line for line in lines_of(task.files[name].decode(errors="replace")) if not line.startswith("#")],
                )


def _function(source: str, name: str) -> list[str] | None:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name and node.end_lineno:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            return lines_of("\n".join(source.splitlines()[first - 1 : node.end_lineno]))
    return None


def _whole(text: str) -> int:
    """The same for documents that mean the same, however they are laid out."""
    if text.lstrip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, RecursionError):
            return hash(("whole", json.dumps(json.loads(text), sort_keys=True)))
    return hash(("whole", *lines_of(text)))


class Layer:
    """What one directory tree holds, read once. Paths are relative to its top, with a leading slash."""

    def __init__(self, top: Path) -> None:
        self.windows: set[int] = set()
        self.lines: set[int] = set()
        """Hashes of the lines of at least LONG_LINE characters."""
        self.wholes: dict[int, list[str]] = {}
        self.compiled: dict[tuple[str, str], str] = {}
        self.archives: list[str] = []
        self.histories: list[str] = []
        self.litter: list[str] = []
        self.typed: list[str] = []
        """Histories of shells."""
        self.tests: list[tuple[str, str]] = []
        """(line, path) of lines that may name a test."""
        for path, place in _files(top):
            if path.endswith("/.git"):
                self.histories.append(path)
                continue
            if _LITTER.search(path):
                self.litter.append(path)
            if path.endswith("_history"):
                self.typed.append(path)
            name = PurePosixPath(path)
            if path.endswith((".pyc", ".pyo")):
                folder = name.parent.parent if name.parent.name == "__pycache__" else name.parent
                self.compiled[(folder.name, name.name.split(".")[0])] = path
            elif _ARCHIVE.search(path):
                self.archives.append(path)
            elif (text := _read(place)) is not None:
                self._learn(path, text)

    def _learn(self, path: str, text: str) -> None:
        lines = lines_of(text)
        self.windows |= windows(lines)
        self.lines.update(hash(line) for line in lines if len(line) >= LONG_LINE)
        if len(text) <= MAX_WHOLE_BYTES:
            self.wholes.setdefault(_whole(text), []).append(path)
        if "::" in text and len(self.tests) < 20_000:
            self.tests += [(line, path) for line in lines if "::" in line]


_layers: OrderedDict[str, Layer] = OrderedDict()


def _layer(top: Path) -> Layer:
    known = _layers.pop(str(top), None) or Layer(top)
    _layers[str(top)] = known
    while len(_layers) > 1 and sum(len(layer.windows) for layer in _layers.values()) > KEPT_LINES:
        _layers.popitem(last=False)
    return known


def scan(task: Task, image: Image, effects: Effects | None, nothing: Reward | None) -> Gate:
    """The gate. The layers of the image must be on this machine."""
    secrets = secrets_of(task, effects, nothing)
    found = [*_in_text(secrets, task), *_in_variables(secrets, task, image), *_in_comments(secrets, task)]
    for top in image.layers:
        layer = _layer(top)
        hits = list(_in_layer(secrets, task, top, layer))
        found += [said for path, said in hits if _visible(image, path, top)]
    if secrets.modules:
        for host, inside in image.binds:
            found += list(_in_machine(secrets, host, inside))
    return Gate(name="leak-image", passed=not found, detail="; ".join(dict.fromkeys(found))[:1000])


def _visible(image: Image, path: str, top: Path) -> bool:
    entry = lookup(image.layers, path, follow_last=False)[1]
    return entry is not None and f"{top}{path}" in entry.places


def _in_text(secrets: Secrets, task: Task) -> Iterator[str]:
    if said := secrets.first_in(task.instruction):
        yield f"the instruction holds {said}"


def _in_variables(secrets: Secrets, task: Task, image: Image) -> Iterator[str]:
    for name, value in image.env.items():
        if value.strip() in secrets.values and name not in task.instruction:
            yield f"the variable {name} is what the solution writes"


def _in_comments(secrets: Secrets, task: Task) -> Iterator[str]:
    """A short answer on a line that calls it one, in a file of the context that the text does not lead to."""
    if ANSWERING.search(task.instruction):
        return
    for name, data in task.files.items():
        if not name.startswith("environment/") or b"\0" in data[:4096] or named(PurePosixPath(name), task.instruction):
            continue
        for line in lines_of(data.decode(errors="replace")) if name != "environment/Dockerfile" else ():
            if ANSWERING.search(line) and any(re.search(rf"(?<!\w){re.escape(v)}(?!\w)", line) for v in secrets.values):
                yield f"{name} tells the answer: {line[:80]}"


def _in_layer(secrets: Secrets, task: Task, top: Path, layer: Layer) -> Iterator[tuple[str, str]]:
    """(path, what was found)."""
    near = any(all(hash(line) in layer.lines for line in part if len(line) >= LONG_LINE) for part in secrets.short)
    if near or not layer.windows.isdisjoint(secrets.windows):
        for path, place in _files(top):
            text = None if path.endswith("/.git") else _read(place)
            if text and (said := secrets.first_in(text)):
                yield path, f"{path} holds {said}"
    for key, target in secrets.wholes.items():
        for path in layer.wholes.get(key, ()):
            if path != target and secrets.own.get(path) != key and _betrays(path, target, task):
                yield path, f"{path} is what the solution makes of {target}"
    for module in secrets.modules:
        if (path := layer.compiled.get(module, "")) and not _of_what_is_there(f"{top}{path}"):
            yield path, f"{path} is the compiled form of a repaired module"
    wanted = set(secrets.ids)
    for line, path in layer.tests:
        if wanted and any(test in line for test in wanted):
            yield path, f"{path} names a hidden test: {line[:80]}"
    for path in layer.litter:
        yield path, f"{path} is a cache"
    commands = {line for line in lines_of(task.solution) if len(line) >= 12 and not line.startswith(("#", "set ", "cd "))}
    for path in layer.typed:
        if said := next((line for line in lines_of(_read(f"{top}{path}") or "") if line in commands), ""):
            yield path, f"{path} holds a command of the solution: {said[:80]}"
    for path in layer.archives:
        for name, text in _archived(top, path):
            if said := secrets.first_in(text):
                yield path, f"{path} holds {said} ({name})"
    for path in layer.histories:
        yield from _in_history(secrets, task, top, path)


def _in_history(secrets: Secrets, task: Task, top: Path, path: str) -> Iterator[tuple[str, str]]:
    """A history that the text speaks of is part of the task; only hidden tests may not be in it then."""
    spoken_of = bool(HISTORY.search(task.instruction))
    for kind, data in git_objects.objects(Path(f"{top}{path}")):
        text = data.decode(errors="replace")
        said = secrets.first_in(text)
        if not said and kind == "blob" and len(data) <= MAX_WHOLE_BYTES:
            target = secrets.wholes.get(_whole(text), "")
            said = f"what the solution makes of {target}" if target and secrets.own.get(target) != _whole(text) else ""
        if said and (not spoken_of or said.startswith("the hidden test")):
            yield path, f"an object of {path} holds {said}"


def _betrays(path: str, target: str, task: Task) -> bool:
    """Whether a file that equals what the solution makes is a leak: the text does not lead to it.

    A text that names the target names no other file of that name; a hidden folder is nowhere to be sent without a word.
    """
    place = PurePosixPath(path)
    hidden = any(part.startswith(".") for part in place.parts[1:]) and not RECOVERS.search(task.instruction)
    if hidden and place.name == PurePosixPath(target).name:
        return not folder_named(place, task.instruction)
    if named(place, task.instruction):
        return False
    return hidden or not path.startswith(f"{task.spec.workdir.rstrip('/')}/") or bool(TELLING_NAME.search(path))


def _of_what_is_there(path: str) -> bool:
    """Whether byte code is of the source beside it, as the image has it: that is to be repaired, and tells nothing."""
    place = Path(path)
    folder = place.parent.parent if place.parent.name == "__pycache__" else place.parent
    source = folder / f"{place.name.split('.')[0]}.py"
    if any(each.is_symlink() or not each.is_file() or each.stat().st_size > MAX_FILE_BYTES for each in (place, source)):
        return False
    return compiled_from(place.read_bytes(), source.read_bytes())


def _in_machine(secrets: Secrets, host: str, inside: str) -> Iterator[str]:
    for module in secrets.modules:
        for path in _python_files(host).get(module, ()):
            text = _read(f"{host}{path}")
            if text and (said := secrets.first_in(text)):
                yield f"{inside}{path} of this machine holds {said}"


@lru_cache(maxsize=4)
def _python_files(host: str) -> dict[tuple[str, str], list[str]]:
    """(folder, stem) -> paths of Python files below a directory of this machine that is its images' /usr."""
    found: dict[tuple[str, str], list[str]] = {}
    for folder, _, names in os.walk(host):
        for name in names:
            if name.endswith(".py"):
                found.setdefault((os.path.basename(folder), name[:-3]), []).append(f"{folder}/{name}"[len(host) :])
    return found


def _files(top: Path) -> Iterator[tuple[str, str]]:
    """(path inside, path on the host) of the plain files of a tree, no link followed; a .git folder counts as one."""
    pending = [os.fspath(top)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = entry.path[len(os.fspath(top)) :]
                if entry.is_dir(follow_symlinks=False):
                    if entry.name == ".git":
                        yield path, entry.path
                    else:
                        pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.path


def _read(place: str) -> str | None:
    """A text of at most MAX_FILE_BYTES."""
    data = read_plain(place, MAX_FILE_BYTES)
    return None if data is None or b"\0" in data[:4096] else data.decode(errors="replace")


def _archived(top: Path, path: str) -> Iterator[tuple[str, str]]:
    """(name, text) of the source files in an archive, 64 MiB at most; a damaged one holds nothing."""
    left = 64 * MIB
    try:
        if path.endswith((".whl", ".egg", ".zip")):
            with zipfile.ZipFile(f"{top}{path}") as archive:
                for member in archive.infolist():
                    if _wanted(member.filename) and member.file_size <= min(left, MAX_FILE_BYTES):
                        left -= member.file_size
                        yield member.filename, archive.read(member).decode(errors="replace")
        else:
            with tarfile.open(f"{top}{path}") as archive:
                for item in archive:
                    left -= item.size
                    if left < 0:
                        return
                    if item.isreg() and _wanted(item.name) and item.size <= MAX_FILE_BYTES:
                        content = archive.extractfile(item)
                        yield item.name, content.read().decode(errors="replace") if content else ""
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError, RuntimeError):
        return


def _wanted(name: str) -> bool:
    return not CACHES.search(name) and not name.endswith((".so", ".png", ".jpg", ".gif", ".pyc"))
