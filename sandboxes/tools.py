"""What an agent may do in one action: the host-side enforcement of a task's `ToolSpec`.

A tool reads the text of an action and says what to run, or why not; it never runs anything itself. `shell` takes any command
line. `simple_command` takes one command without operators, so that a value can travel from one file to another only through the
agent. `programs` takes one call of a program that the environment brings; what that is, is the environment's business. The action
`exit` ends an episode under every tool.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from gymsmith.schema import ToolSpec
from sandboxes.base import ExecResult

EXIT = "exit"
MAX_ACTION_BYTES = 100_000
"""A little less than the kernel's limit for one argument."""

PROGRAMS = "/opt/tools"
"""Where an environment keeps the programs of a tool `programs`."""

REFUSED_SIMPLE = "refused: one simple command per action\n"
"""What the agent reads after any refusal under `simple_command`; the reason is kept on the step, for people."""

_OPERATORS = re.compile(r"[|;&$()`<\\{}]")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


class Refusal(NamedTuple):
    """The action is not run. `observation` is what the agent reads instead of an output."""

    reason: str
    observation: str


class Command(NamedTuple):
    """A command line for `Sandbox.exec`."""

    line: str


class Finish(NamedTuple):
    """The agent says that it is done."""


def read_action(tool: ToolSpec, text: str) -> Command | Refusal | Finish:
    """What `tool` makes of an action."""
    line = text.strip()
    if line == EXIT:
        return Finish()
    if tool.name == "simple_command":
        reason = _why_not_simple(tool, line)
        return Refusal(reason, REFUSED_SIMPLE) if reason else Command(line)
    if tool.name == "programs":
        return _program_call(tool, line)
    reason = _why_not_at_all(line)
    return Refusal(reason, f"refused: {reason}\n") if reason else Command(line)


def show(tool: ToolSpec, result: ExecResult) -> str:
    """The observation of a command that was run: its merged output, and what else there is to say about how it ended.

    Only under `shell` an exit code is shown: the output of others then reads like that of any plain session.
    """
    text = result.output.decode("utf-8", "replace")
    if result.timed_out:
        note = f"[timed out after {tool.timeout_s:g} s]"
    elif result.oom:
        note = "[out of memory]"
    elif result.signal is not None:
        note = f"[killed by signal {result.signal}]"
    elif tool.name == "shell" and result.exit_code != 0:
        note = f"[exit {result.exit_code}]"
    else:
        return text
    line_break = "\n" if text and not text.endswith("\n") else ""
    return f"{text}{line_break}{note}\n"


def _program_call(tool: ToolSpec, line: str) -> Command | Refusal:
    """The call as a command line in which each word is quoted: nothing of it means anything to a shell."""
    words = _words(line)
    if reason := _why_not_at_all(line):
        return Refusal(reason, f"refused: {reason}\n")
    if not words:
        return Refusal("an open quote", f"refused: a call is NAME WORDS; names are {', '.join(tool.allow)}\n")
    if words[0] not in tool.allow:
        return Refusal(f"no program {words[0]!r}", f"refused: no tool {words[0]!r}; there are {', '.join(tool.allow)}\n")
    return Command(shlex.join([f"{PROGRAMS}/{words[0]}", *words[1:]]))


def _why_not_at_all(line: str) -> str:
    """Why no shell could be given this line; empty when it could."""
    if not line:
        return "the action is empty"
    if "\0" in line:
        return "the action holds a NUL"
    if len(line.encode("utf-8", "surrogatepass")) > MAX_ACTION_BYTES:
        return f"the action is longer than {MAX_ACTION_BYTES} bytes"
    return ""


def _why_not_simple(tool: ToolSpec, line: str) -> str:
    """Why `line` is not one simple command of this tool; empty when it is.

    A shell still sees the line as it is (for globs, quotes and the redirection), so whatever could mean more to a shell than
    words is refused wherever it stands, quoted or not.
    """
    reason = _why_not_at_all(line)
    if reason:
        return reason
    if found := _CONTROL.search(line):
        return f"control character {found[0]!r}"
    if found := _OPERATORS.search(line):
        return f"operator {found[0]!r}"
    command, *targets = line.split(">")
    if len(targets) > 1:
        return "more than one redirection"
    words = _words(command)
    if not words:
        return "no command before the redirection, or an open quote"
    first = words[0]
    # A quoted or glued first word would reach the shell as another command than the one that is looked up here.
    if command.split()[0] != first or _ASSIGNMENT.match(first) or first in ("!", "."):
        return f"{first!r} is not a plain command name"
    if tool.allow and first not in tool.allow:
        return f"command {first!r} is not allowed"
    if targets:
        if first not in tool.redirect:
            return f"{first!r} may not redirect"
        if not command[-1].isspace():
            return "no space before the redirection"  # `echo 5> f` would redirect descriptor 5
        file = _words(targets[0])
        if file is None or len(file) != 1:
            return "a redirection takes one file name"
    return ""


def _words(text: str) -> list[str] | None:
    """Words of a line without operators; None for an open quote."""
    try:
        return shlex.split(text)
    except ValueError:
        return None
