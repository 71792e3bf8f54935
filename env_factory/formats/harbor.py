"""Harbor task folders that somebody else wrote (schema 1.x), read as drafts; our own are read by `gymsmith.taskdir`.

Taken over: instruction, Dockerfile with its context, tests, solution, limits, verifier mode, artifacts. Two things differ here.
An agent is an ordinary user, where Harbor's is root, so the folder that the image works in is given to it by one more step; a
task that has to change what lies elsewhere cannot be solved here, and the gates will say so. And there is no network while
agent and tests run: a task whose tests install something fails its oracle. Not taken over: several steps, sidecars, health
checks; a folder that needs them is refused in words.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gymsmith import taskdir
from gymsmith.errors import NotFound, SourceError
from gymsmith.schema import Draft, Source, TaskSpec, digest

_WORKDIR = re.compile(r"^\s*WORKDIR\s+(\S+)\s*$", re.MULTILINE | re.IGNORECASE)
_BYTES = {"k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024.0}


def read(folder: Path) -> Draft:
    """The draft that a folder describes, whoever wrote it.

    Raises: NotFound; SourceError: not a task, or one that needs what is not done here; PolicyRefused: links, special files, size.
    """
    toml = folder / "task.toml"
    try:
        document = tomllib.loads(toml.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"expected a task folder at {folder}, task.toml is missing; check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{toml} must be TOML in UTF-8: {error}; repair it") from error
    if "gymsmith" in document.get("metadata", {}):
        return taskdir.read(folder).draft
    instruction = _instruction(folder)
    files, executable = taskdir.contents(folder)
    for name in ("environment/docker-compose.yaml", "environment/docker-compose.yml", "environment/singularity-compose.yaml"):
        if name in files:
            raise SourceError(
                f"{folder} needs {name}: several containers are not run here; write it as one Dockerfile with services"
            )
    if document.get("steps"):
        raise SourceError(f"{folder} has {len(document['steps'])} steps; one-step tasks alone are read")
    for needed in ("environment/Dockerfile", "tests/test.sh"):
        if needed not in files:
            raise SourceError(f"{folder} must hold {needed}, it does not; add it")
    spec = _spec(document, files["environment/Dockerfile"].decode(errors="replace"), folder.name)
    files["environment/Dockerfile"] += f"\nUSER root\nRUN mkdir -p {spec.workdir} && chown -R 1000:1000 {spec.workdir}\n".encode()
    whole = digest(*(part for name in sorted(files) for part in (name.encode(), files[name])), instruction.encode())
    source = Source(uri=f"file:{folder}", kind="harbor", digest=whole, meta={"format": "harbor"})
    return Draft(source=source, spec=spec, instruction=instruction, files=files, executable=frozenset(executable))


def _instruction(folder: Path) -> str:
    try:
        text = (folder / "instruction.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{folder} must hold instruction.md in UTF-8: {error}") from error
    kept = [line for line in text.splitlines(keepends=True) if "canary GUID" not in line and "harbor-canary" not in line]
    if not "".join(kept).strip():
        raise SourceError(f"{folder}/instruction.md is empty; a task without a text cannot be given to an agent")
    return "".join(kept)


def _spec(document: dict[str, Any], dockerfile: str, name: str) -> TaskSpec:
    environment, verifier, agent = (document.get(key) or {} for key in ("environment", "verifier", "agent"))
    workdir = str(environment.get("workdir") or (_WORKDIR.findall(dockerfile) or ["/app"])[-1])
    workdir = posixpath.normpath(workdir)
    if not re.fullmatch(r"/[\w./-]*\w", workdir):
        raise SourceError(f"the working directory must be an absolute path of plain names, got {workdir!r}; set WORKDIR /app")
    separate = verifier.get("environment_mode") == "separate"
    listed = [each if isinstance(each, str) else str(each.get("source", "")) for each in document.get("artifacts", [])]
    try:
        return TaskSpec(
            name=str(document.get("task", {}).get("name") or f"imported/{name}"),
            kind="harbor",
            description=str(document.get("task", {}).get("description") or ""),
            labels={"format": "harbor"},
            agent_timeout_s=float(agent.get("timeout_sec") or 600.0),
            verifier_timeout_s=float(verifier.get("timeout_sec") or 600.0),
            verifier_mode="separate" if separate else "shared",
            workdir=workdir,
            artifacts=tuple(each for each in listed if each.startswith("/")) or (workdir,),
            report="reward",
            memory_mb=int(environment.get("memory_mb") or _mib(environment.get("memory")) or 1024),
            cpus=float(environment.get("cpus") or 1),
        )
    except (ValidationError, ValueError, TypeError) as error:
        raise SourceError(f"task.toml of {name} has a value of the wrong kind: {error}") from error


def _mib(text: object) -> int:
    """MiB of Harbor's older words, such as "2G"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt])i?b?", str(text).strip().lower()) if text else None
    return int(float(match.group(1)) * _BYTES[match.group(2)]) if match else 0
