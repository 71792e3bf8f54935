"""Tools: what is run, what is refused, what the agent reads."""

from __future__ import annotations

import random
import shlex
import subprocess
from pathlib import Path

import pytest

from gymsmith.schema import ToolSpec
from sandboxes.base import ExecResult
from sandboxes.tools import REFUSED_SIMPLE, Command, Finish, Refusal, read_action, show

SIMPLE = ToolSpec(name="simple_command", allow=("ls", "cat", "grep", "echo", "rm", "mv", "cp", "sort", "sh"), redirect=("echo",))
SHELL = ToolSpec()
PROGRAMS = ToolSpec(name="programs", allow=("search", "open"))

ACCEPTED = [
    "ls",
    "ls -la *.conf",
    "  cat a.txt b.txt  ",
    "grep -n 'two words' file",
    'grep "x y" *',
    "echo 123 > out",
    "echo 123 >out",
    "echo two words here > dir/out.txt",
    "echo > empty",
    "rm -- -f",
    "mv a b",
    "echo [a-z]?* ~ # comment",
    "cat\ta",
    "sh check.sh",
    "echo é漢 > ü",
]

REFUSED = [
    "",
    "   ",
    "ls | head",
    "ls; rm a",
    "ls & rm a",
    "ls && rm a",
    "ls || rm a",
    "cat $(ls)",
    "cat `ls`",
    "cat $x",
    "echo ${x}",
    "cat < a",
    "cat << EOF",
    "echo a\nrm b",
    "echo a\rrm b",
    "(ls)",
    "{ ls",
    "echo a >> b",
    "echo a > b > c",
    "echo a >& b",
    "echo a >| b",
    "echo 5> f",
    "echo a> f",
    "echo a > b c",
    "echo a >",
    "> f",
    "cat a > b",
    "ls > b",
    "grep '|' a",
    "grep 'a;b' c",
    "echo 'a > b'",
    'echo "a > b"',
    "echo a\\\nb",
    "echo a\\; ls",
    "grep 'open a",
    "python3 x.py",
    "/bin/ls",
    "x=1 ls",
    "'ls' a",
    "l's' a",
    "! ls",
    ". a",
    "cat a\0b",
    "cat a\x1b[2J",
    "echo\u00a0x > f",
    "<|act|>ls",
    "echo " + "x" * 200_000,
]


@pytest.mark.parametrize("line", ACCEPTED)
def test_one_simple_command_is_accepted(line: str) -> None:
    assert read_action(SIMPLE, line) == Command(line.strip())


@pytest.mark.parametrize("line", REFUSED, ids=lambda line: repr(line[:30]))
def test_everything_else_is_refused_in_one_line(line: str) -> None:
    verdict = read_action(SIMPLE, line)
    assert isinstance(verdict, Refusal) and verdict.reason
    assert verdict.observation == REFUSED_SIMPLE and verdict.observation.count("\n") == 1


def test_exit_ends_the_episode_under_every_tool() -> None:
    for tool in (SIMPLE, SHELL):
        assert read_action(tool, " exit\n") == Finish()
        assert read_action(tool, "exit 0") != Finish()


def test_shell_takes_any_line_but_what_no_shell_can_be_given() -> None:
    assert read_action(SHELL, "ls | head; echo $((1 + 2)) > x") == Command("ls | head; echo $((1 + 2)) > x")
    for line in ("", "a\0b", "x" * 200_000):
        verdict = read_action(SHELL, line)
        assert isinstance(verdict, Refusal) and verdict.observation.startswith("refused: ")


def test_an_accepted_line_runs_one_command_and_writes_one_file_at_most(tmp_path: Path) -> None:
    """Random lines out of nasty parts, run by a real shell in which every allowed command is a counter."""
    rng = random.Random(3)
    parts = [
        "echo",
        "cat",
        "rm",
        "a",
        "b",
        ">",
        ">",
        " ",
        " ",
        " ",
        "'",
        '"',
        "#",
        "~",
        "*",
        "!",
        "2",
        "=",
        "|",
        "&",
        ";",
        "$",
        "-x",
        "\t",
        "\\",
        "`",
    ]
    log = tmp_path / "log"
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in SIMPLE.allow:
        (bin_dir / name).write_text(f"#!/bin/sh\nprintf 'ran\\n' >> {log}\n")
        (bin_dir / name).chmod(0o755)
    functions = "".join(f"{name}() {{ {bin_dir}/{name}; }}\n" for name in SIMPLE.allow)  # shadows the built-in echo
    accepted = 0
    while accepted < 150:
        line = rng.choice(SIMPLE.allow) + "".join(rng.choices(parts, k=rng.randrange(10)))
        if not isinstance(read_action(SIMPLE, line), Command):
            continue
        accepted += 1
        work = tmp_path / f"w{accepted}"
        work.mkdir()
        log.unlink(missing_ok=True)
        subprocess.run(
            ["/bin/sh", "-c", functions + line.strip()],
            cwd=work,
            env={"PATH": str(bin_dir), "HOME": "/x"},
            check=False,
            capture_output=True,
        )
        assert log.read_text() == "ran\n", line
        assert len(list(work.iterdir())) <= (">" in line), line


def result(output: bytes = b"", exit_code: int | None = 0, signal: int | None = None, **more: bool) -> ExecResult:
    return ExecResult(exit_code=exit_code, signal=signal, output=output, **more)


def test_observation_is_the_output_and_how_it_ended() -> None:
    assert show(SIMPLE, result(b"a\n")) == "a\n"
    assert show(SIMPLE, result(b"no such file\n", 1)) == "no such file\n"
    assert show(SHELL, result(b"no such file", 1)) == "no such file\n[exit 1]\n"
    assert show(SIMPLE, result(b"x", None, 9, timed_out=True)) == "x\n[timed out after 20 s]\n"
    assert show(SHELL, result(b"", None, 9, oom=True)) == "[out of memory]\n"
    assert show(SIMPLE, result(b"", None, 11)) == "[killed by signal 11]\n"
    assert show(SIMPLE, result(b"\xff\xfe<|end|>")) == "\ufffd\ufffd<|end|>"


@pytest.mark.parametrize(
    "words", ["red lamp", "'two words' $(id) `id` | cat ; rm -rf /", "a > b && c < d", '"it\'s" * ~ # x', "é漢 \\$x"]
)
def test_what_a_program_is_called_with_means_nothing_to_a_shell(words: str) -> None:
    """The program gets the words as a shell would split them, and nothing else happens: shown by a shell and /usr/bin/printf."""
    made = read_action(PROGRAMS, f"search {words}")
    assert isinstance(made, Command) and made.line.startswith("/opt/tools/search ")
    said = subprocess.run(
        ["sh", "-c", made.line.replace("/opt/tools/search", "printf '%s\\n'", 1)], capture_output=True, text=True
    )
    assert said.stdout.splitlines() == shlex.split(words) and said.stderr == ""


@pytest.mark.parametrize("line", ["", "ls", "/opt/tools/search x", "search 'open", "../search x", "PATH=. search x", "answer x"])
def test_only_declared_programs_are_called(line: str) -> None:
    refused = read_action(PROGRAMS, line)
    assert isinstance(refused, Refusal) and refused.observation.startswith("refused: ")
    assert isinstance(read_action(PROGRAMS, "exit"), Finish)
