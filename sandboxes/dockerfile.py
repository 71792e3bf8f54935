"""A Dockerfile as a list of steps that this house is willing to execute.

The text is split by the `dockerfile-parse` library; this file decides what is allowed and expands variables. What is refused, is
refused by name before anything runs: custom frontends (`# syntax=`), `RUN --mount/--network/--security`, `ADD` of a URL,
here-documents, several stages. Shell features of RUN are the shell's business, not ours.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from dockerfile_parse import DockerfileParser
from dockerfile_parse.util import WordSplitter, extract_key_values

from gymsmith.errors import PolicyRefused

EXECUTED = ("FROM", "RUN", "COPY", "ADD", "ENV", "ARG", "WORKDIR", "USER")
IGNORED = ("CMD", "EXPOSE", "LABEL")
"""Accepted without effect: a sandbox runs its own PID 1, has no ports, and labels live in task.toml."""

_DIRECTIVE = re.compile(r"^\s*#\s*([A-Za-z]+)\s*=\s*(.*?)\s*$")
_HEREDOC = re.compile(r"<<-?\s*['\"]?[A-Za-z_]")
_MODIFIER = re.compile(r"\$\{\w+[^\w}]")
_FLAG = re.compile(r"--([a-z]+)(?:=(\S*))?(?:\s+|$)")
_FLAGS: Mapping[str, frozenset[str]] = {"COPY": frozenset({"chown", "chmod"}), "ADD": frozenset({"chown", "chmod"})}


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction; `value` is its text after the flags, variables not yet expanded."""

    name: str
    value: str
    line: int
    """1-based line of its first word, for messages."""
    flags: Mapping[str, str] = field(default_factory=dict)


def parse(text: str) -> tuple[Step, ...]:
    """The steps of a Dockerfile, the first one FROM (ARGs may stand before it).

    Raises: PolicyRefused: something we do not execute, or that is no Dockerfile; the message names line and alternatives.
    """
    _refuse_directives(text)
    lines = text.splitlines()
    source = io.BytesIO(("\n".join(lines) + "\n").encode())
    steps: list[Step] = []
    seen: set[int] = set()
    for row in DockerfileParser(fileobj=source).structure:
        seen.update(range(row["startline"], row["endline"] + 1))
        if row["instruction"] == "COMMENT":
            continue
        steps.append(_step(row["instruction"], row["value"].strip(), row["startline"] + 1))
    for number, line in enumerate(lines):
        if line.strip() and number not in seen:
            raise PolicyRefused(f"Dockerfile line {number + 1}: expected an instruction, got {line.strip()[:80]!r}")
    _check_order(steps)
    return tuple(steps)


def _refuse_directives(text: str) -> None:
    for line in text.splitlines():
        found = _DIRECTIVE.match(line)
        if not found:
            return
        name = found.group(1).lower()
        if name in ("syntax", "escape", "check"):
            raise PolicyRefused(
                f"Dockerfile directive '# {name}={found.group(2)[:60]}' is refused: a custom frontend or escape character "
                "changes what the file means; remove the line"
            )


def _step(name: str, value: str, line: int) -> Step:
    where = f"Dockerfile line {line}"
    if name not in EXECUTED + IGNORED:
        raise PolicyRefused(f"{where}: {name} is not supported; supported are {', '.join(EXECUTED + IGNORED)}")
    if not value:
        raise PolicyRefused(f"{where}: {name} needs an argument, got none")
    flags: dict[str, str] = {}
    while name in ("RUN", "COPY", "ADD", "FROM") and (found := _FLAG.match(value)):
        allowed = _FLAGS.get(name, frozenset())
        if found.group(1) not in allowed:
            raise PolicyRefused(
                f"{where}: {name} --{found.group(1)} is refused; "
                + (f"allowed are {', '.join('--' + a for a in sorted(allowed))}" if allowed else f"{name} takes no flags here")
            )
        flags[found.group(1)] = found.group(2) or ""
        value = value[found.end() :]
    if name in ("RUN", "COPY", "ADD") and _HEREDOC.search(value):
        raise PolicyRefused(f"{where}: here-documents are not supported; COPY a script and RUN it")
    if name == "ADD" and re.search(r"(^|\s|\")(\w+://|git@)", value):
        raise PolicyRefused(
            f"{where}: ADD of a URL is refused, builds have no network; put the file into environment/ and COPY it"
        )
    if name == "FROM" and len(value.split()) != 1:
        raise PolicyRefused(f"{where}: FROM takes one image and no 'AS': several stages are not supported, got {value[:80]!r}")
    return Step(name, value, line, flags)


def _check_order(steps: list[Step]) -> None:
    froms = [s for s in steps if s.name == "FROM"]
    if len(froms) != 1:
        raise PolicyRefused(f"a Dockerfile needs exactly one FROM (several stages are not supported), got {len(froms)}")
    early = next((s for s in steps[: steps.index(froms[0])] if s.name != "ARG"), None)
    if early is not None:
        raise PolicyRefused(f"Dockerfile line {early.line}: only ARG may stand before FROM, got {early.name}")


def expand(value: str, variables: Mapping[str, str], line: int) -> str:
    """`value` with $NAME and ${NAME} replaced (unset: empty) and quotes removed. Raises: PolicyRefused for `${NAME:-...}`."""
    _refuse_modifiers(value, line)
    return WordSplitter(value, args={}, envs=dict(variables)).dequote()


def pairs(step: Step, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """The NAME=VALUE pairs of an ENV step. Raises: PolicyRefused."""
    _refuse_modifiers(step.value, step.line)
    try:
        found = extract_key_values(True, {}, dict(variables), step.value)
    except ValueError as error:
        raise PolicyRefused(f"Dockerfile line {step.line}: {error}") from error
    return [(str(name), str(value)) for name, value in found]


def argument(step: Step, variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (name, default) pairs of an ARG step; no default is an empty string."""
    _refuse_modifiers(step.value, step.line)
    words = list(WordSplitter(step.value).split(dequote=False))
    return [(name, expand(default, variables, step.line)) for name, _, default in (word.partition("=") for word in words)]


def words(step: Step, variables: Mapping[str, str]) -> list[str]:
    """Arguments of COPY or ADD, in either form; at least one source and the destination. Raises: PolicyRefused."""
    _refuse_modifiers(step.value, step.line)
    listed = json_form(step.value)
    if listed is None:
        try:
            listed = shlex.split(step.value)
        except ValueError as error:
            raise PolicyRefused(f"Dockerfile line {step.line}: {error}") from error
    listed = [expand(word, variables, step.line) for word in listed]
    if len(listed) < 2:
        raise PolicyRefused(f"Dockerfile line {step.line}: {step.name} needs SOURCE... DESTINATION, got {step.value[:80]!r}")
    return listed


def json_form(value: str) -> list[str] | None:
    """The words of the exec form `["a", "b"]`, or None when `value` is the shell form."""
    if not value.startswith("["):
        return None
    try:
        listed = json.loads(value)
    except ValueError:
        return None
    return listed if isinstance(listed, list) and listed and all(isinstance(word, str) for word in listed) else None


def _refuse_modifiers(value: str, line: int) -> None:
    found = _MODIFIER.search(value)
    if found:
        raise PolicyRefused(
            f"Dockerfile line {line}: only $NAME and ${{NAME}} are expanded, got {found.group(0)}...; write the value out"
        )
