"""An environment on disk: a task folder in Harbor's format (schema 1.4), and the one place that knows its keys.

    task.toml                      the host's: every field of `TaskSpec`, under Harbor's own key where Harbor has one
    instruction.md                 what the agent reads
    environment/Dockerfile, ...    the build context
    tests/test.sh, ...             copied into the verifier's sandbox after the agent has ended
    solution/solve.sh, ...         the oracle
    solution/alternatives/1.sh     other honest solutions
    solution/cheats/NAME.sh        dishonest attempts particular to this task

A field stands in exactly one place: what Harbor knows (name, timeouts, limits, network, verifier mode, artifacts) under
Harbor's key, the rest in the table `[metadata.gymsmith]`, which Harbor passes over. Reading back what was written gives an
equal `Task`. Not here: reading other people's folders that lack our table (an import has to be proved first), and where
status and evidence live (the store).
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import tomli_w
from pydantic import ValidationError

from gymsmith.errors import NotFound, PolicyRefused, SourceError
from gymsmith.schema import Draft, Source, TaskSpec

SCHEMA_VERSION = "1.4"
MAX_FOLDER_BYTES = 256 * 1024 * 1024
"""A folder larger than this is refused when it is read."""

ALTERNATIVES = "solution/alternatives/"
CHEATS = "solution/cheats/"
_TOP = ("environment", "tests", "solution")
_CHEAT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}\Z")

# TaskSpec field -> (table path in task.toml, key) for what Harbor has a word for.
_HARBOR: dict[str, tuple[tuple[str, ...], str]] = {
    "name": (("task",), "name"),
    "description": (("task",), "description"),
    "keywords": (("task",), "keywords"),
    "difficulty": (("metadata",), "difficulty"),
    "agent_timeout_s": (("agent",), "timeout_sec"),
    "verifier_timeout_s": (("verifier",), "timeout_sec"),
    "verifier_mode": (("verifier",), "environment_mode"),
    "cpus": (("environment",), "cpus"),
    "memory_mb": (("environment",), "memory_mb"),
    "workdir": (("environment",), "workdir"),
    "network": (("environment",), "network_mode"),
    "allowed_hosts": (("environment",), "allowed_hosts"),
    "artifacts": ((), "artifacts"),
}
_OPTIONAL = frozenset({"allowed_hosts"})
"""Fields that a folder may leave out under Harbor's key."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task folder in memory. The fields are those of `Draft`; `path` is where it was read from."""

    spec: TaskSpec
    source: Source
    instruction: str
    files: Mapping[str, bytes]
    """Members below environment/, tests/ and solution/, by their path relative to the folder, without the two kinds below."""
    alternatives: tuple[str, ...] = ()
    cheats: tuple[tuple[str, str], ...] = ()
    executable: frozenset[str] = frozenset()
    path: Path | None = field(default=None, compare=False)

    @classmethod
    def of(cls, draft: Draft) -> Task:
        """The task that `read(write(draft, folder))` would give, without touching the disk."""
        cheats = tuple(sorted(draft.cheats))
        return cls(draft.spec, draft.source, draft.instruction, dict(draft.files), draft.alternatives, cheats, draft.executable)

    @property
    def draft(self) -> Draft:
        """The same, as what the gates take."""
        return Draft(self.source, self.spec, self.instruction, self.files, self.alternatives, self.cheats, self.executable)

    @property
    def id(self) -> str:
        """Content hash, equal to the draft's."""
        return self.draft.id

    def under(self, top: str) -> dict[str, bytes]:
        """Members below `top` (environment, tests or solution), keyed by their path inside it."""
        return {name[len(top) + 1 :]: data for name, data in self.files.items() if name.startswith(top + "/")}

    @property
    def dockerfile(self) -> str:
        """Text of environment/Dockerfile."""
        return self.files["environment/Dockerfile"].decode()

    @property
    def solution(self) -> str:
        """Text of solution/solve.sh; empty when the task brings none."""
        return self.files.get("solution/solve.sh", b"").decode()


def folder_of(tasks_dir: Path, environment_id: str) -> Path:
    """Where the environment of this id lives below the state's tasks folder."""
    return tasks_dir / environment_id[:2] / environment_id


def write(draft: Draft | Task, folder: Path) -> Task:
    """Write the folder so that it appears whole or not at all; an equal folder that is already there is left alone.

    Raises:
        PolicyRefused: a member's path would leave the folder or lies outside environment/, tests/ and solution/.
        SourceError: there is no instruction, Dockerfile or tests/test.sh.
    """
    task = Task.of(draft) if isinstance(draft, Draft) else draft
    members = _members(task)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        made = {scratch}
        for name, data in members.items():
            target = scratch / name
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            target.write_bytes(data)
            os.chmod(target, 0o755 if name in task.executable else 0o644)
        os.chmod(scratch, 0o755)
        _swap_in(scratch, folder, task)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Task(
        task.spec, task.source, task.instruction, task.files, task.alternatives, task.cheats, task.executable, path=folder
    )


def read(folder: Path) -> Task:
    """Read a folder that `write` made.

    Raises:
        NotFound: there is no task.toml.
        SourceError: task.toml is not ours or not valid.
        PolicyRefused: the folder holds a link or a special file, or is too large.
    """
    toml_path = folder / "task.toml"
    try:
        document = tomllib.loads(toml_path.read_text(encoding="utf-8"))
        instruction = (folder / "instruction.md").read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"expected a task folder at {folder}, {Path(error.filename).name} is missing; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{folder} is not a readable task folder: {error}; write it again from its source") from error
    spec, source = _from_document(document, toml_path)
    files, executable = contents(folder)
    alternatives = {PurePosixPath(name).stem: files.pop(name).decode() for name in list(files) if name.startswith(ALTERNATIVES)}
    cheats = {PurePosixPath(name).stem: files.pop(name).decode() for name in list(files) if name.startswith(CHEATS)}
    return Task(
        spec=spec,
        source=source,
        instruction=instruction,
        files=files,
        alternatives=tuple(alternatives[stem] for stem in sorted(alternatives, key=lambda stem: (len(stem), stem))),
        cheats=tuple(sorted(cheats.items())),
        executable=frozenset(name for name in executable if name in files),
        path=folder,
    )


def check_member(name: str) -> None:
    """Raise PolicyRefused unless `name` is a plain relative path below environment/, tests/ or solution/."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and "\\" not in name and "\0" not in name
    if not plain or len(parts) < 2 or parts[0] not in _TOP:
        raise PolicyRefused(f"expected a member below environment/, tests/ or solution/, got {name!r}; no '..', no absolute path")


def _members(task: Task) -> dict[str, bytes]:
    """Every file of the folder by name."""
    if not task.instruction.strip():
        raise SourceError("expected an instruction, got none; a task without a text cannot be given to an agent")
    for required in ("environment/Dockerfile", "tests/test.sh"):
        if required not in task.files:
            raise SourceError(f"expected {required} among the members, got {sorted(task.files)}; add it to the draft")
    for name in task.files:
        check_member(name)
        if name.startswith((ALTERNATIVES, CHEATS)):
            raise PolicyRefused(f"{name!r} is a reserved place; pass it as `alternatives` or `cheats` of the draft")
    if stray := sorted(task.executable - set(task.files)):
        raise SourceError(f"expected executable members to exist, got {stray}; name only members of the draft")
    members = {"task.toml": tomli_w.dumps(_document(task)).encode(), "instruction.md": task.instruction.encode()}
    members |= task.files
    for number, text in enumerate(task.alternatives, start=1):
        members[f"{ALTERNATIVES}{number}.sh"] = text.encode()
    for cheat, text in task.cheats:
        if not _CHEAT_NAME.match(cheat):
            raise PolicyRefused(f"expected a cheat's name of letters, digits, '-', '_', '.', got {cheat!r}")
        members[f"{CHEATS}{cheat}.sh"] = text.encode()
    return members


def _document(task: Task) -> dict[str, Any]:
    fields = task.spec.model_dump(mode="json")
    document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "artifacts": []}
    for name, (tables, key) in _HARBOR.items():
        table = document
        for step in tables:
            table = table.setdefault(step, {})
        value = fields.pop(name)
        # Harbor reads whole CPUs as an integer.
        table[key] = int(value) if name == "cpus" and float(value).is_integer() else value
    document.setdefault("metadata", {})["gymsmith"] = {"spec": fields, "source": task.source.model_dump(mode="json")}
    document["metadata"]["category"] = task.spec.kind
    for phase, open_ in (("agent", True), ("verifier", task.spec.verifier_network)):
        document[phase]["network_mode"] = task.spec.network if open_ else "no-network"
        if open_ and task.spec.allowed_hosts:
            document[phase]["allowed_hosts"] = list(task.spec.allowed_hosts)
    return document


def _from_document(document: dict[str, Any], path: Path) -> tuple[TaskSpec, Source]:
    try:
        ours = document["metadata"]["gymsmith"]
        fields = dict(ours["spec"])
        for name, (tables, key) in _HARBOR.items():
            table: Any = document
            for step in tables:
                table = table[step]
            if name not in _OPTIONAL or key in table:
                fields[name] = table[key]
        return TaskSpec.model_validate(fields), Source.model_validate(ours["source"])
    except (KeyError, TypeError) as error:
        raise SourceError(f"{path} lacks {error}; expected a task written by gymsmith (schema {SCHEMA_VERSION})") from error
    except ValidationError as error:
        raise SourceError(f"{path} does not hold a valid task: {error}") from error


def contents(folder: Path) -> tuple[dict[str, bytes], set[str]]:
    """Members of the three sub-folders and which of them are executable. Links are refused, never followed."""
    files: dict[str, bytes] = {}
    executable: set[str] = set()
    total = 0
    pending = [folder / top for top in reversed(_TOP)]
    while pending:
        here = pending.pop()
        if here.is_symlink():
            raise PolicyRefused(f"{here} is a symbolic link; a task folder holds plain files only")
        if not here.is_dir():
            continue
        for entry in sorted(os.scandir(here), key=lambda e: e.name):
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                pending.append(Path(entry.path))
                continue
            if not stat.S_ISREG(info.st_mode):
                raise PolicyRefused(f"{entry.path} is not a plain file; a task folder holds plain files only")
            total += info.st_size
            if total > MAX_FOLDER_BYTES:
                raise PolicyRefused(f"{folder} is larger than {MAX_FOLDER_BYTES} bytes; remove what the task does not need")
            name = Path(entry.path).relative_to(folder).as_posix()
            files[name] = Path(entry.path).read_bytes()
            if info.st_mode & 0o100:
                executable.add(name)
    return dict(sorted(files.items())), executable


def _swap_in(scratch: Path, folder: Path, task: Task) -> None:
    """Rename the finished scratch folder to its name; replace a different one that is there."""
    for _ in range(3):
        try:
            os.rename(scratch, folder)
            return
        except OSError:
            if not folder.is_dir():
                raise
        try:
            if read(folder) == task:
                return
        except (NotFound, SourceError, PolicyRefused):
            pass  # A broken folder is replaced like any other that differs.
        aside = Path(tempfile.mkdtemp(prefix=".replaced-", dir=folder.parent))
        try:
            os.rename(folder, aside / "old")
        except FileNotFoundError:
            pass  # Another writer replaced it first; try again.
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    os.rename(scratch, folder)
