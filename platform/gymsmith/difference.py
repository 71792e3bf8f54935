"""How two environments differ: what was said of them, their settings, their text, their files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymsmith import taskdir
from gymsmith.schema import Environment, Evidence
from gymsmith.taskdir import Task

MAX_LINES = 400
"""Of one file's difference; more are counted, not shown."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Each pair is (of the first, of the second); empty tables mean no difference."""

    ids: tuple[str, str]
    verdict: Mapping[str, tuple[Any, Any]]
    """status, reason, and gate names whose result differs."""
    settings: Mapping[str, tuple[Any, Any]]
    """Fields of the task's specification and of its source, by their path."""
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: Mapping[str, str]
    """Member -> unified diff, or a line that tells of its sizes where it is not text."""

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not (self.verdict or self.settings or self.added or self.removed or self.changed)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "a": self.ids[0],
            "b": self.ids[1],
            "same": self.same,
            "verdict": {name: list(pair) for name, pair in self.verdict.items()},
            "settings": {name: list(pair) for name, pair in self.settings.items()},
            "files": {"added": list(self.added), "removed": list(self.removed), "changed": dict(self.changed)},
        }

    def text(self) -> str:
        """For people."""
        lines = [f"--- {self.ids[0]}", f"+++ {self.ids[1]}"]
        for name, (a, b) in (*self.verdict.items(), *self.settings.items()):
            lines += [f"{name}:", f"  - {a}", f"  + {b}"]
        lines += [f"only in the first:  {name}" for name in self.removed]
        lines += [f"only in the second: {name}" for name in self.added]
        for name, diff in self.changed.items():
            lines += ["", f"{name}:", diff.rstrip("\n")]
        return "\n".join(lines) + "\n"


def of(home: Path, a: Environment, b: Environment, proof_a: Evidence | None, proof_b: Evidence | None) -> Difference:
    """Compare two stored environments. Raises: NotFound, SourceError: a folder is gone or damaged."""
    return between(taskdir.read(home / a.path), taskdir.read(home / b.path), _verdict(a, proof_a), _verdict(b, proof_b))


def between(a: Task, b: Task, said_a: Mapping[str, Any], said_b: Mapping[str, Any]) -> Difference:
    """Compare two tasks and what was said of them."""
    files = [_members(task) for task in (a, b)]
    changed = {
        name: _diff(name, files[0][name], files[1][name])
        for name in sorted(files[0].keys() & files[1].keys())
        if files[0][name] != files[1][name]
    }
    return Difference(
        ids=(a.id, b.id),
        verdict=_pairs(said_a, said_b),
        settings=_pairs(_settings(a), _settings(b)),
        added=tuple(sorted(files[1].keys() - files[0].keys())),
        removed=tuple(sorted(files[0].keys() - files[1].keys())),
        changed=changed,
    )


def _verdict(environment: Environment, evidence: Evidence | None) -> dict[str, Any]:
    gates = {f"gate {gate.name}": "passed" if gate.passed else "failed" for gate in (evidence.gates if evidence else ())}
    return {"status": environment.status.value, "reason": environment.reason} | gates


def _settings(task: Task) -> dict[str, Any]:
    spec = {f"spec.{name}": value for name, value in task.spec.model_dump(mode="json").items()}
    labels = {f"spec.labels.{name}": value for name, value in spec.pop("spec.labels").items()}
    return spec | labels | {f"source.{name}": value for name, value in task.source.model_dump(mode="json").items()}


def _members(task: Task) -> dict[str, bytes]:
    others = {f"{taskdir.ALTERNATIVES}{n}.sh": text.encode() for n, text in enumerate(task.alternatives, 1)}
    cheats = {f"{taskdir.CHEATS}{name}.sh": text.encode() for name, text in task.cheats}
    modes = {f"{name} (executable)": b"" for name in task.executable}
    return {"instruction.md": task.instruction.encode()} | dict(task.files) | others | cheats | modes


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (a.get(name), b.get(name)) for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)}


def _diff(name: str, old: bytes, new: bytes) -> str:
    try:
        lines = list(
            difflib.unified_diff(old.decode().splitlines(), new.decode().splitlines(), f"a/{name}", f"b/{name}", lineterm="", n=2)
        )
    except UnicodeDecodeError:
        return f"{len(old)} bytes and {len(new)} bytes that are not text"
    more = [f"... {len(lines) - MAX_LINES} more lines"] if len(lines) > MAX_LINES else []
    return "\n".join([*lines[:MAX_LINES], *more])
