"""A Dockerfile as stages of steps that this house is willing to execute.

The text is split into instructions by the `dockerfile-parse` library, here-documents are taken out before it sees them; this file
decides what is allowed. What is refused, is refused by line and name before anything runs: custom frontends (`# syntax=`), RUN
with mounts, secrets, a network of its own or `--security`, ONBUILD. Shell features of RUN are the shell's business, not ours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dockerfile_parse import DockerfileParser

from gymsmith.errors import PolicyRefused
from sandboxes.image import dockerfile_words as words_of

EXECUTED = ("FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "WORKDIR", "USER", "SHELL")
KEPT = ("CMD", "ENTRYPOINT", "HEALTHCHECK", "LABEL", "EXPOSE", "VOLUME", "STOPSIGNAL", "MAINTAINER")
"""Kept in the image's configuration; nothing of it acts in a sandbox, which runs its own PID 1 and has no ports."""
SCRATCH = "scratch"
MAX_CHARS = 1 << 20
MAX_DOCUMENTS = 200

_DIRECTIVE = re.compile(r"^\s*#\s*([A-Za-z]+)\s*=\s*(.*?)\s*$")
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S*))?(?:\s+|$)")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9-_.]*\Z")
_FLAGS: Mapping[str, frozenset[str]] = {
    "FROM": frozenset({"platform"}),
    "RUN": frozenset({"network"}),
    "COPY": frozenset({"from", "chown", "chmod", "link"}),
    "ADD": frozenset({"chown", "chmod", "checksum", "link"}),
    "HEALTHCHECK": frozenset({"interval", "timeout", "start-period", "start-interval", "retries"}),
}
_INSTEAD = {
    "mount": "secrets, ssh agents, caches and binds do not enter a build; COPY what the step needs and remove the flag",
    "security": "a build step never gets more rights than the others; remove the flag",
    "network": "the network of a build is one policy for all its steps; remove the flag and build with --network",
    "platform": "images are for this machine's own platform; remove the flag",
}


@dataclass(frozen=True, slots=True)
class Document:
    """A here-document: `<<NAME` in the instruction, then its text."""

    word: str
    """As it stands in the instruction, such as <<-"EOF"."""
    name: str
    text: str
    expands: bool
    """Its name stood without quotes, so COPY replaces variables in it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction; `value` is its text after the flags, variables not yet expanded."""

    name: str
    value: str
    line: int
    """1-based line of its first word, for messages."""
    flags: Mapping[str, str] = field(default_factory=dict)
    documents: tuple[Document, ...] = ()

    def refused(self, why: str) -> PolicyRefused:
        """The error that says so, with line and name."""
        return PolicyRefused(f"Dockerfile line {self.line}: {self.name} {why}")


@dataclass(frozen=True, slots=True)
class Stage:
    """FROM and what follows it."""

    origin: Step
    base: str
    """What FROM names, variables not yet expanded."""
    name: str
    """After AS, lower case; empty without."""
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """ARGs that stand before the first FROM, and the stages."""

    early: tuple[Step, ...]
    stages: tuple[Stage, ...]

    def find(self, word: str, before: int) -> int | None:
        """The stage that FROM or COPY --from in stage number `before` means by a name or a number; None: it means an image."""
        for index in range(before - 1, -1, -1):
            if self.stages[index].name == word.lower() and word:
                return index
        return int(word) if word.isdecimal() and int(word) < before else None

    def target(self, name: str) -> int:
        """Number of the stage to build: the last one, or the one named or numbered. Raises: PolicyRefused."""
        found = self.find(name, len(self.stages)) if name else len(self.stages) - 1
        if found is None:
            known = ", ".join(stage.name for stage in self.stages if stage.name) or "none with a name"
            raise PolicyRefused(f"target must be a stage of the Dockerfile, got {name[:80]!r}; it has {known}")
        return found


def parse(text: str) -> Dockerfile:
    """Raises: PolicyRefused: something we do not execute, or that is no Dockerfile; the message names line and next move."""
    if "\0" in text or len(text) > MAX_CHARS:
        what = "NUL bytes" if "\0" in text else f"{len(text)} characters"
        raise PolicyRefused(f"a Dockerfile must be text of at most {MAX_CHARS} characters, got one with {what}")
    _refuse_directives(text)
    lines = text.splitlines()
    documents: dict[int, tuple[Document, ...]] = {}
    rows = _rows(lines)
    while found := next((row for row in rows if row["startline"] not in documents and _markers(row)), None):
        documents[found["startline"]] = _take_documents(found, lines)
        if len(documents) > MAX_DOCUMENTS:
            raise PolicyRefused(
                f"Dockerfile line {found['startline'] + 1}: at most {MAX_DOCUMENTS} here-documents; COPY files instead"
            )
        rows = _rows(lines)
    seen: set[int] = set()
    steps: list[Step] = []
    for row in rows:
        seen.update(range(row["startline"], row["endline"] + 1))
        if row["instruction"] != "COMMENT":
            taken = documents.get(row["startline"], ())
            steps.append(_step(row["instruction"], row["value"].strip(), row["startline"] + 1, taken))
    for number, line in enumerate(lines):
        if line.strip() and number not in seen:
            raise PolicyRefused(f"Dockerfile line {number + 1}: expected an instruction, got {line.strip()[:80]!r}")
    return _staged(steps)


def _refuse_directives(text: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        found = _DIRECTIVE.match(line)
        if not found:
            return
        name = found.group(1).lower()
        if name in ("syntax", "escape", "check"):
            raise PolicyRefused(
                f"Dockerfile line {number}: directive '# {name}={found.group(2)[:60]}' is refused: a custom frontend or escape "
                "character changes what the file means; remove the line"
            )


def _rows(lines: Sequence[str]) -> list[dict[str, Any]]:
    """What the library finds. It ends an instruction at an empty line, Docker does not: there it sees a comment instead."""
    tidy: list[str] = []
    continued = False
    for line in lines:
        if continued and not line.strip():
            line = "#"
        if not line.lstrip().startswith("#"):
            continued = line.rstrip().endswith("\\")
        tidy.append(line)
    try:
        source = io.BytesIO(("\n".join(tidy) + "\n").encode("utf-8", "surrogateescape"))
        return list(DockerfileParser(fileobj=source).structure)
    except UnicodeError as error:
        raise PolicyRefused(f"a Dockerfile must be UTF-8, got {error}") from error


def _markers(row: Mapping[str, Any]) -> list[str]:
    if row["instruction"] not in ("RUN", "COPY", "ADD") or row["value"].lstrip().startswith("["):
        return []
    found = (word.lstrip("0123456789") for word in words_of.split(row["value"]))
    return [word for word in found if word.startswith("<<") and word.lstrip("<").strip("-'\"") and not word.startswith("<<<")]


def _take_documents(row: Mapping[str, Any], lines: list[str]) -> tuple[Document, ...]:
    """The here-documents of an instruction, whose lines are emptied."""
    at = row["endline"] + 1
    taken = []
    for word in _markers(row):
        quoted = word.removeprefix("<<")
        tabs = quoted.startswith("-")
        name = quoted.removeprefix("-").strip("'\"")
        body: list[str] = []
        while True:
            if at >= len(lines):
                raise PolicyRefused(
                    f"Dockerfile line {row['startline'] + 1}: {row['instruction']} {word} has no line {name!r} that ends it"
                )
            line = lines[at].lstrip("\t") if tabs else lines[at]
            lines[at] = ""
            at += 1
            if line == name:
                break
            body.append(line + "\n")
        taken.append(Document(word, name, "".join(body), not ("'" in quoted or '"' in quoted)))
    return tuple(taken)


def _step(name: str, value: str, line: int, documents: tuple[Document, ...]) -> Step:
    step = Step(name, value, line)
    if name not in EXECUTED + KEPT:
        raise step.refused(f"is not supported; supported are {', '.join(EXECUTED + KEPT)}")
    flags: dict[str, str] = {}
    allowed = _FLAGS.get(name, frozenset())
    while name in _FLAGS and (found := _FLAG.match(value)):
        flag, given = found.group(1), found.group(2)
        may = flag in allowed and not (name == "RUN" and given not in ("default", "none"))
        if not may:
            known = ", ".join(f"--{a}" for a in sorted(allowed)) if name != "RUN" else "none"
            raise step.refused(f"--{flag} is refused: {_INSTEAD.get(flag, f'its flags here are {known}')}")
        flags[flag] = given or ""
        value = value[found.end() :]
    if not value:
        raise step.refused("needs an argument, got none")
    if name == "HEALTHCHECK" and value.partition(" ")[0].upper() not in ("CMD", "NONE"):
        raise step.refused(f"must be CMD ... or NONE, got {value[:40]!r}")
    if name == "SHELL" and not words_of.json_form(value):
        raise step.refused(f'needs the form ["program", "flag"], got {value[:80]!r}')
    return Step(name, value, line, flags, documents)


def _staged(steps: list[Step]) -> Dockerfile:
    starts = [index for index, step in enumerate(steps) if step.name == "FROM"]
    if not starts:
        raise PolicyRefused("a Dockerfile needs at least one FROM, got none; begin with FROM gymsmith/host")
    early = steps[: starts[0]]
    for step in early:
        if step.name != "ARG":
            raise step.refused("stands before FROM, where only ARG may; move it down")
    stages: list[Stage] = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        origin = steps[start]
        listed = origin.value.split()
        if len(listed) not in (1, 3) or (len(listed) == 3 and listed[1].upper() != "AS"):
            raise origin.refused(f"takes IMAGE or IMAGE AS NAME, got {origin.value[:80]!r}")
        name = listed[2].lower() if len(listed) == 3 else ""
        if name and (not _STAGE_NAME.match(name) or name == SCRATCH):
            raise origin.refused(f"AS needs a name of letters, digits, '-', '_' and '.', got {listed[2][:80]!r}")
        if name and any(stage.name == name for stage in stages):
            raise origin.refused(f"AS {name!r} is the name of an earlier stage; choose another")
        stages.append(Stage(origin, listed[0], name, tuple(steps[start + 1 : end])))
    return Dockerfile(tuple(early), tuple(stages))


def words(step: Step, variables: Mapping[str, str]) -> list[str]:
    """Arguments of COPY or ADD, in either form, here-documents by their word; at least one source and the destination.

    Raises: PolicyRefused.
    """
    listed = words_of.json_form(step.value)
    if listed is None:
        listed = step.value.split()
    known = {document.word for document in step.documents}
    listed = [word if word in known else words_of.expand(word, variables, step.line) for word in listed]
    if len(listed) < 2 or not all(listed):
        raise step.refused(f"needs SOURCE... DESTINATION, got {step.value[:80]!r}")
    return listed


def command(step: Step, shell: Sequence[str]) -> list[str]:
    """The argument vector of RUN, CMD or ENTRYPOINT. Raises: PolicyRefused."""
    listed = words_of.json_form(step.value)
    if listed is not None:
        if not listed and step.name == "RUN":
            raise step.refused("needs a program, got []")
        return listed
    if not step.documents:
        return [*shell, step.value]
    only = step.documents[0]
    if len(step.documents) == 1 and step.value.strip() == only.word:
        if only.text.startswith("#!"):
            raise step.refused(f"{only.word} with a '#!' line is not supported; name the interpreter: RUN python3 - {only.word}")
        return [*shell, only.text]
    return [*shell, "\n".join([step.value, *(f"{d.text}{d.name}" for d in step.documents)]) + "\n"]
