"""Attempts that skip the work, made from the task itself; each must score 0.

    always-WORD    the asked-for program prints one of the words that the text says it may print, whatever it is given
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

from env_factory import git_objects
from env_factory.effects import SOURCE, Effect, Effects, effects_of
from env_factory.leaks import HISTORY
from env_factory.mutants import Variant, named
from env_factory.trial import Trial, gate_of
from gymsmith.schema import Gate
from gymsmith.taskdir import Task
from sandboxes.base import Image
from sandboxes.grade import left_by, verify
from sandboxes.image.layer import lookup

MAX_WORDS, MAX_VERSIONS, MAX_INPUTS = 6, 4, 4
MAX_INPUT_BYTES = 60_000
ALIKE = 0.5
"""Share of equal text above which a blob counts as a version of a file."""
_WORD = re.compile(r"[`\"']([\w-]{2,20})[`\"']|\b([A-Z]{3,20})\b")
_PRINTS = {
    ".py": "print({0!r})\n",
    ".sh": "#!/bin/sh\necho {1}\n",
    ".js": "console.log({0!r})\n",
    ".pl": "print {0!r}, \"\\n\";\n",
    ".rb": "puts {0!r}\n",
}  # fmt: skip


def constants(task: Task, effects: Sequence[Effect]) -> list[Variant]:
    """The asked-for program in a form that always says the same; empty unless there is a choice of what to say."""
    found: list[Variant] = []
    for effect in effects:
        path = PurePosixPath(effect.path)
        ending = path.suffix if path.suffix in _PRINTS else ".sh" if re.match(r"#!.*sh\b", effect.after or "") else ""
        if effect.kind != "created" or not ending or not effect.after or not named(path, task.instruction):
            continue
        words = dict.fromkeys(a or b for a, b in _WORD.findall(task.instruction))
        words = dict.fromkeys(w for w in words if re.search(rf"[\"' ]{re.escape(w)}(?!\w)", effect.after))
        if len(words) >= 2:
            found += [
                Variant(f"always-{w}", {effect.path: _PRINTS[ending].format(w, shlex.quote(w))}) for w in list(words)[:MAX_WORDS]
            ]
    return found


def versions(image: Image, task: Task, effects: Sequence[Effect]) -> list[Variant]:
    """Other versions of what the solution changes, out of the histories in an image."""
    changed = [e for e in effects if e.kind == "changed" and e.before and e.after and len(e.after) < MAX_INPUT_BYTES]
    if not changed or HISTORY.search(task.instruction):
        return []
    found: dict[tuple[str, str], float] = {}
    for top in image.layers:
        for git in _histories(top):
            for kind, data in git_objects.objects(git):
                if kind != "blob" or b"\0" in data or len(data) > MAX_INPUT_BYTES:
                    continue
                text = data.decode(errors="replace")
                for effect in changed:
                    alike = difflib.SequenceMatcher(None, effect.before or "", text, autojunk=False)
                    if text not in (effect.before, effect.after) and alike.real_quick_ratio() > ALIKE and alike.ratio() > ALIKE:
                        found[effect.path, text] = alike.ratio()
    best = sorted(found, key=lambda each: -found[each])[:MAX_VERSIONS]
    return [Variant("other-version", {path: text}) for path, text in best]


def _histories(top: Path) -> list[Path]:
    return sorted(each for each in top.rglob(".git") if each.is_dir() and not each.is_symlink())


def inputs(image: Image, task: Task, effects: Sequence[Effect]) -> dict[str, str]:
    """Data of the image that the text names and the solution leaves alone, by path."""
    taken = {effect.path for effect in effects}
    found: dict[str, str] = {}
    for word in dict.fromkeys(re.findall(r"[\w@./-]+\.[A-Za-z]\w{0,5}\b", task.instruction)):
        path = word if word.startswith("/") else f"{task.spec.workdir.rstrip('/')}/{word.removeprefix('./')}"
        inside = any(path.startswith(f"{root.rstrip('/')}/") for root in task.spec.artifacts)
        if not inside or path in taken or SOURCE.search(path) or "/../" in path:
            continue
        entry = lookup(image.layers, path, follow_last=False)[1]
        data = _plain(entry.places[0]) if entry and not entry.is_dir else None
        if data and not data.startswith("#!"):
            found[path] = data
    return dict(list(found.items())[:MAX_INPUTS])


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
    if trial.image.layers:
        variants += await asyncio.to_thread(versions, trial.image, trial.task, effects.found)
    gates = []
    for variant in variants:
        with closing(effects.variant(variant.writes)) as artifacts:
            reward = await trial.patiently(lambda a=artifacts: verify(trial.provider, trial.image, trial.task, a))  # type: ignore[misc]
        gates.append(gate_of(f"cheat:{variant.name}", [reward], 0.0))
    found = inputs(trial.image, trial.task, effects.found) if trial.image.layers else {}
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
