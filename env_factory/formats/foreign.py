"""What tasks of other people's formats have in common when they become drafts of ours.

A draft that is made here has been proved by nobody. Its agent works as an ordinary user, in a working directory that is given to
that user, without a network; its tests run as another user and say what they found in Harbor's reward file. What a format asks
for beyond that is either refused by name or written into the task's labels.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from env_factory.source_kinds import licence
from env_factory.source_kinds.tree import Tree
from gymsmith.errors import PolicyRefused, SourceError
from gymsmith.schema import Draft, Source, TaskSpec

MAX_INSTRUCTION_CHARS = 200_000
_CANARY = re.compile(r"(<!--.*canary.*-->|#.*canary.*)\Z", re.I)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_DOWNLOADS = re.compile(
    r"\b(apt(-get)?\s+(-\S+\s+)*(update|install)|curl|wget|uvx?|pip3?\s+install|git\s+clone|npm\s+(i|install|ci))\b"
)
_PLACE = re.compile(r"/[A-Za-z0-9._/+-]{1,200}\Z")
_ENV = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def instruction_of(text: str, what: str) -> str:
    """The text for the agent: without the marks against training on benchmarks that stand at its top.

    Raises:
        SourceError: nothing is left, or it is too long.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    while lines and (_CANARY.match(lines[0].strip()) or not lines[0].strip()):
        lines.pop(0)
    told = "\n".join(lines)
    if not told.strip() or len(told) > MAX_INSTRUCTION_CHARS:
        raise SourceError(f"{what}: expected an instruction of 1 to {MAX_INSTRUCTION_CHARS} characters, got {len(told.strip())}")
    return told


def text(tree: Tree, path: str, what: str) -> str:
    """A member as text. Raises: SourceError: it is missing or not UTF-8."""
    if path not in tree.files:
        raise SourceError(f"{what}: expected {path}, it is missing; there are {', '.join(list(tree.files)[:8]) or 'no files'}")
    try:
        return tree.files[path].decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{what}: expected {path} to be UTF-8 text: {error}") from error


def no_links(tree: Tree, what: str) -> None:
    """Raise when a tree holds a symbolic link: a task is made of plain files. Raises: PolicyRefused."""
    if tree.links:
        path, target = next(iter(tree.links.items()))
        raise PolicyRefused(f"{what}: {path!r} is a symbolic link to {target[:200]!r}; a task folder holds plain files only")


def workdir_of(dockerfile: str, declared: object, what: str) -> str:
    """The agent's working directory: as declared, else what WORKDIR says last, else /app.

    Raises:
        SourceError: what is declared is no absolute path of plain names.
    """
    if declared is not None and (not isinstance(declared, str) or not _PLACE.match(declared) or ".." in declared):
        raise SourceError(f"{what}: expected a working directory such as /app, got {str(declared)[:80]!r}")
    place = declared or ""
    if not place:
        for match in re.finditer(r"^\s*WORKDIR\s+(\S+)\s*$", dockerfile, re.I | re.M):
            said = match.group(1).strip("\"'")
            place = said if said.startswith("/") else f"{place.rstrip('/')}/{said}"
    plain = re.sub(r"/+", "/", place).rstrip("/")
    return plain if plain and _PLACE.match(plain) and ".." not in plain.split("/") else "/app"


def dockerfile_of(text: str, workdir: str, env: Mapping[str, str], what: str) -> str:
    """The Dockerfile, and behind it what makes our agent at home there. Raises: SourceError: a value cannot be written down."""
    lines = [text.rstrip("\n")]
    for name, value in env.items():
        if not _ENV.match(name) or "${" in value or "\n" in value:
            raise SourceError(
                f"{what}: expected a variable with a plain value, got {name[:40]!r}={value[:60]!r}; it needs the host's"
            )
        lines.append(f"ENV {name}={_quoted(value)}")
    place = shlex.quote(workdir)
    lines += ["USER root", f"WORKDIR {workdir}", f"RUN mkdir -p {place} && chown -R 1000:1000 {place}"]
    return "\n".join(lines) + "\n"


def with_environment(script: str, env: Mapping[str, str], what: str) -> str:
    """A shell script that sets variables first. Raises: SourceError: a value needs the host's variables."""
    if not env:
        return script
    exports = []
    for name, value in env.items():
        if not _ENV.match(name) or "${" in str(value):
            raise SourceError(f"{what}: expected a variable with a plain value, got {name[:40]!r}={str(value)[:60]!r}")
        exports.append(f"export {name}={shlex.quote(str(value))}")
    head, newline, rest = script.partition("\n") if script.startswith("#!") else ("#!/bin/bash", "\n", script)
    return f"{head}{newline}" + "\n".join(exports) + f"\n{rest}"


def wants_network(*scripts: str) -> bool:
    """Whether a script downloads or installs while the tests run, which finds no network here."""
    return any(_DOWNLOADS.search(line) for script in scripts for line in script.splitlines() if not line.lstrip().startswith("#"))


def draft(
    *,
    source: Source,
    fields: Mapping[str, Any],
    instruction: str,
    files: Mapping[str, bytes],
    executable: frozenset[str],
    what: str,
) -> Draft:
    """A draft from the fields of a TaskSpec. Raises: SourceError: a field is wrong; the message names it and its value."""
    try:
        spec = TaskSpec.model_validate(dict(fields))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}, got {str(p['input'])[:80]!r}" for p in error.errors())
        raise SourceError(f"{what}: {problems}") from error
    return Draft(source, spec, instruction, dict(sorted(files.items())), executable=executable & files.keys())


def source_of(kind: str, where: str, tree: Tree, meta: Mapping[str, str], commit: str = "") -> Source:
    """The source of a task that was read from `where`."""
    about = {key: value[:500] for key, value in meta.items() if value}
    return Source.model_validate(
        {"uri": f"{kind}:{where}", "kind": kind, "digest": tree.digest, "licence": licence.of_tree(tree.files), "commit": commit,
         "meta": about}
    )  # fmt: skip


def name_of(given: object, folder: str) -> str:
    """ORG/NAME, from what the task says or from its folder."""
    if isinstance(given, str) and _NAME.match(given) and len(given) <= 200:
        return given
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", str(given or folder).rpartition("/")[2]).strip("-._")[:150]
    return f"imported/{plain or 'task'}"


def seconds(given: Any, otherwise: float, what: str) -> float:
    """A limit in seconds. Raises: SourceError: it is no positive number."""
    if given is None:
        return otherwise
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < 1e6:
        raise SourceError(f"{what}: expected seconds between 0 and 1000000, got {given!r}")
    return float(given)


def _quoted(value: str) -> str:
    return '"' + re.sub(r'(["\\$])', r"\\\1", value) + '"'
