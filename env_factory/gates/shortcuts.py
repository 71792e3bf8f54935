"""Attempts that skip the work, made from the task itself; each must score 0.

    always-WORD    the asked-for program prints one of the words that the text says it may print, whatever it is given: once, or
                   for each line that it reads
    idle, echoing  the asked-for program does nothing, or prints what it is given
    copied-input   the asked-for file is a copy of one of the files that the text names
    by-heart       the asked-for program prints what the solution's prints for a file that the agent has, whatever it is given
    agreed         the asked-for file and one of the agent's own that the tests mention hold the same nonsense
    other-version  another version of the repaired file that lies in a git history of the image, put in its place
    spoiled-input  the solution, after the agent has cut or emptied the data that the text names: where the result differs and the
                   tests still pass, they have asked the agent's own files for the truth

What a text asks for is no shortcut: a program with one word to print gives none, nor does a history that the text speaks of.
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath

from env_factory.gates import git_objects
from env_factory.gates.effects import SOURCE, Effect, Effects, effects_of
from env_factory.gates.mutants import Variant, named
from env_factory.gates.reading import within
from env_factory.gates.trial import Trial, gate_of
from gymsmith.schema import Gate
from gymsmith.taskdir import Task
from sandboxes.base import Image
from sandboxes.grade import left_by, verify
from sandboxes.image.layer import lookup

MAX_WORDS, MAX_VERSIONS, MAX_INPUTS, MAX_COPIES = 6, 4, 4, 4
MAX_INPUT_BYTES = 60_000
ALIKE = 0.35
"""Share of text equal to a file, before or after its repair, above which a blob counts as a version of it."""
_WORD = re.compile(r"[`\"']([\w-]{2,20})[`\"']|\b([A-Z]{3,20})\b")
_PRINTS = {
    ".py": ("print({0!r})\n", "import sys\nfor _ in sys.stdin: print({0!r})\n"),
    ".sh": ("#!/bin/sh\necho {1}\n", "#!/bin/sh\nwhile read -r _; do echo {1}; done\n"),
    ".js": ("console.log({0!r})\n",),
    ".pl": ("print {0!r}, \"\\n\";\n", "print {0!r}, \"\\n\" while <STDIN>;\n"),
    ".rb": ("puts {0!r}\n", "STDIN.each_line {{ puts {0!r} }}\n"),
}  # fmt: skip
_GOES_BACK = re.compile(
    r"\b(history|histories|reflog|stash\w*|revert\w*|bisect\w*|blame|earlier|previous|older|lost|undo|branch\w*|tags?|merg\w*|rebas\w*|"
    r"cherry\w*|git log|check ?out|restore|recover)\b",
    re.IGNORECASE,
)
"""A text in whose work the past of a repository has a part; that something may be committed says nothing of the past."""
_IDLE = {".py": "", ".sh": "#!/bin/sh\n", ".js": "", ".pl": "", ".rb": ""}
_RUNS = {".py": "python3", ".sh": "sh", ".pl": "perl"}
_RECITES = {
    ".py": "import base64, sys\nsys.stdout.buffer.write(base64.b64decode('%s'))\n",
    ".sh": "#!/bin/sh\necho %s | base64 -d\n",
    ".pl": "use MIME::Base64; print decode_base64('%s');\n",
}
_ECHOES = {
    ".py": "import sys\nsys.stdout.write(open(sys.argv[1]).read() if len(sys.argv) > 1 else sys.stdin.read())\n",
    ".sh": '#!/bin/sh\ncat "$@"\n',
    ".pl": "print while <>;\n",
}


def constants(task: Task, effects: Sequence[Effect]) -> list[Variant]:
    """The asked-for program, but it does nothing, repeats what it is given, or always says one of the things it may say."""
    found: list[Variant] = []
    for effect in effects:
        ending = _ending(task, effect)
        if not ending or not effect.after:
            continue
        found.append(Variant("idle", {effect.path: _IDLE[ending]}))
        if ending in _ECHOES:
            found.append(Variant("echoing", {effect.path: _ECHOES[ending]}))
        words = dict.fromkeys(a or b for a, b in _WORD.findall(task.instruction))
        words = dict.fromkeys(w for w in words if re.search(rf"[\"' ]{re.escape(w)}(?!\w)", effect.after))
        if len(words) >= 2:
            found += [
                Variant(f"always-{w}", {effect.path: program.format(w, shlex.quote(w))})
                for w in list(words)[:MAX_WORDS]
                for program in _PRINTS[ending]
            ]
    return found


def by_heart(task: Task, effects: Sequence[Effect], inputs: Mapping[str, str]) -> list[Variant]:
    """The program replaced by its own output for a file, where that is another than for an empty file."""
    found = []
    for effect in effects:
        ending = _ending(task, effect)
        if not (command := _RUNS.get(ending)):
            continue
        for given in list(inputs)[:2]:
            for way, empty in ((f"< {shlex.quote(given)}", "< /dev/null"), (shlex.quote(given), "/dev/null")):
                said, where = f"{command} {shlex.quote(effect.path)}", shlex.quote(effect.path)
                script = (
                    f"\ncd {shlex.quote(task.spec.workdir)}; a=$({said} {way} 2>/dev/null | base64 -w0); "
                    f"b=$({said} {empty} 2>/dev/null | base64 -w0)\n"
                    f'if [ -z "$a" ] || [ "$a" = "$b" ]; then rm -f {where}; exit 0; fi\n'
                    f'printf {shlex.quote(_RECITES[ending])} "$a" > {where}\n'
                )
                found.append(Variant("by-heart", {}, f"{task.solution}\n{script}"))
    return found


def agreed(task: Task, effects: Sequence[Effect], image: Image) -> list[Variant]:
    """The same nonsense in what is asked for and in what the tests mention of the agent's own."""
    tests = b"\n".join(data for name, data in task.files.items() if name.startswith("tests/") and len(data) < MAX_INPUT_BYTES)
    taken = {effect.path for effect in effects}
    made = [effect.path for effect in _asked_data(task, effects)]
    found = []
    for path in dict.fromkeys(re.findall(r"/[\w@./-]+\w", tests.decode(errors="replace"))):
        if made and path not in taken and _text_at(image, task, path):
            writes = "\n".join(f"echo 0 > {shlex.quote(each)}" for each in (path, *made))
            found.append(Variant("agreed", {}, f"{task.solution}\n{writes}\n"))
    return found[:MAX_COPIES]


def _ending(task: Task, effect: Effect) -> str:
    """How a new program that the text names would end; empty for everything else."""
    path = PurePosixPath(effect.path)
    if effect.kind != "created" or not named(path, task.instruction):
        return ""
    return path.suffix if path.suffix in _PRINTS else ".sh" if re.match(r"#!.*sh\b", effect.after or "") else ""


def copies(task: Task, effects: Sequence[Effect], inputs: Mapping[str, str]) -> list[Variant]:
    """Asked-for files as copies of what they are to be made from."""
    made = [effect for effect in _asked_data(task, effects) if effect.after]
    found = [Variant("copied-input", {e.path: text}) for e in made for text in inputs.values() if text != e.after]
    return found[:MAX_COPIES]


def _asked_data(task: Task, effects: Sequence[Effect]) -> list[Effect]:
    """New files that the text names and that are no programs."""
    return [e for e in effects if e.kind == "created" and not _ending(task, e) and named(PurePosixPath(e.path), task.instruction)]


def versions(image: Image, task: Task, effects: Sequence[Effect]) -> list[Variant]:
    """Other versions of what the solution changes, out of the histories in an image."""
    changed = [e for e in effects if e.kind == "changed" and e.before and e.after and len(e.after) < MAX_INPUT_BYTES]
    if not changed or _GOES_BACK.search(task.instruction):
        return []
    found: dict[tuple[str, str], float] = {}
    for top in image.layers:
        for git in _histories(top):
            for kind, data in git_objects.objects(git):
                if kind != "blob" or b"\0" in data or len(data) > MAX_INPUT_BYTES:
                    continue
                text = data.decode(errors="replace")
                for effect in changed:
                    alike = max(_alike(effect.before or "", text), _alike(effect.after or "", text))
                    if text not in (effect.before, effect.after) and alike > ALIKE:
                        found[effect.path, text] = alike
    best = sorted(found, key=lambda each: -found[each])[:MAX_VERSIONS]
    return [Variant("other-version", {path: text}) for path, text in best]


def _alike(one: str, other: str) -> float:
    both = difflib.SequenceMatcher(None, one, other, autojunk=False)
    return both.ratio() if both.real_quick_ratio() > ALIKE else 0.0


def _histories(top: Path) -> list[Path]:
    return sorted(each for each in top.rglob(".git") if each.is_dir() and not each.is_symlink())


def inputs(image: Image, task: Task, effects: Sequence[Effect]) -> dict[str, str]:
    """Data of the image that the text names and the solution leaves alone, by path."""
    taken = {effect.path for effect in effects}
    found: dict[str, str] = {}
    for word in dict.fromkeys(re.findall(r"[\w@./-]+\.[A-Za-z]\w{0,5}\b", task.instruction)):
        path = word if word.startswith("/") else f"{task.spec.workdir.rstrip('/')}/{word.removeprefix('./')}"
        data = None if path in taken or SOURCE.search(path) else _text_at(image, task, path)
        if data and not data.startswith("#!"):
            found[path] = data
    return dict(list(found.items())[:MAX_INPUTS])


def _text_at(image: Image, task: Task, path: str) -> str | None:
    """A text of the task's own in the image; None for everything else."""
    if not within(path, task) or "/../" in path:
        return None
    entry = lookup(image.layers, path, follow_last=False)[1]
    return _plain(entry.places[0]) if entry and not entry.is_dir else None


def _plain(place: str) -> str | None:
    path = Path(place)
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_INPUT_BYTES:
        return None
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


async def tried(trial: Trial, effects: Effects) -> list[Gate]:
    """A gate for each shortcut that there is. Raises: InfrastructureError."""
    variants = constants(trial.task, effects.found)
    found = inputs(trial.image, trial.task, effects.found) if trial.image.layers else {}
    variants += copies(trial.task, effects.found, found)
    if trial.image.layers:
        variants += await asyncio.to_thread(versions, trial.image, trial.task, effects.found)
    if _is_shell(trial.task.solution):
        variants += by_heart(trial.task, effects.found, found)
        variants += agreed(trial.task, effects.found, trial.image) if trial.image.layers else []
    rewards = await asyncio.gather(*(trial.variant(effects, variant) for variant in variants))
    gates = [gate_of(f"cheat:{v.name}", [reward], 0.0) for v, reward in zip(variants, rewards, strict=True)]
    if found and _is_shell(trial.task.solution):
        halves = {path: "".join(text.splitlines(keepends=True)[: (text.count("\n") + 1) // 2]) for path, text in found.items()}
        for spoiled in (halves, dict.fromkeys(found, "")):
            gates += await _spoiled(trial, effects, spoiled)
    return gates


async def _spoiled(trial: Trial, effects: Effects, inputs: Mapping[str, str]) -> list[Gate]:
    """The solution on spoiled inputs, if that makes another result; judged once more by what the solution makes twice running."""
    first, _, others = (
        trial.task.solution.partition("\n") if trial.task.solution.startswith("#!") else ("#!/bin/sh", "", trial.task.solution)
    )
    writes = [
        f"printf %s {base64.b64encode(t.encode()).decode()!r} | base64 -d > {shlex.quote(p)} || true\n" for p, t in inputs.items()
    ]
    made = {e.path: e.after for e in effects.found if e.kind == "created"}

    async def result(script: str, judged: bool) -> tuple[set[str], Gate | None]:
        artifacts = await trial.patiently(lambda: left_by(trial.provider, trial.image, trial.task, script))
        with closing(artifacts):
            found = {e.path: e.after for e in (await asyncio.to_thread(effects_of, artifacts, trial.image)).found}
            other = {path for path, text in made.items() if path in found and found[path] != text}
            if not other or not judged:
                return other, None
            reward = await trial.patiently(lambda: verify(trial.provider, trial.image, trial.task, artifacts))
        return other, gate_of("cheat:spoiled-input", [reward], 0.0)

    other, gate = await result("".join([f"{first}\n", *writes, others]), judged=True)
    if gate is None or gate.passed:
        return [gate] if gate else []
    noise, _ = await result(trial.task.solution, judged=False)
    return [gate] if other - noise else []


def _is_shell(script: str) -> bool:
    return not script.startswith("#!") or bool(re.match(r"#!.*\b(ba|da)?sh\b", script))
