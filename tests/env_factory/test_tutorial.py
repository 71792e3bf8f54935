"""Tutorials: what they tell to type is read, executed and turned into environments whose every step is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from env_factory import sources, tasks
from env_factory.lessons import commands, state
from env_factory.lessons.state import Node, changes, describe, script
from env_factory.synth import tutorial
from gymsmith import demo, taskdir
from gymsmith.errors import SourceError

MARKDOWN = """---
title: x
---
# Files

Make a folder called `notes` for everything that you are going to write down:

```bash
$ mkdir notes
```

::: challenge
```bash
$ rm -r notes
```
:::

## Counting

Keep the number of lines of the list in a file called `total.txt`:

```bash
$ for f in list.txt
> do
>     wc -l $f > notes/total.txt
> done
$ ls notes
```
```output
total.txt
```
Then put a copy of the list beside it, so that nothing can get lost.
```bash
$ cp list.txt notes
```
"""


def test_markdown_commands_with_prompts_loops_and_boxes() -> None:
    found = commands.lines("a.md", MARKDOWN)
    assert [line.command for line in found] == [
        "mkdir notes",
        "for f in list.txt\ndo\n    wc -l $f > notes/total.txt\ndone",
        "ls notes",
        "cp list.txt notes",
    ]
    assert found[0].heading == "Files" and "Make a folder" in found[0].prose and found[1].heading == "Counting"


def test_rst_and_manual_pages() -> None:
    rst = "Title\n=====\n\nDo this now::\n\n    $ touch a\n    $ mv a b\n\nAnd:\n\n.. code-block:: bash\n\n   rm b\n"
    assert [line.command for line in commands.lines("a.rst", rst)] == ["touch a", "mv a b", "rm b"]
    man = '.TH X 1\n.SH NAME\nx\n.SH EXAMPLES\nPack it:\n.EX\n$ \\fBtar\\fR \\-cf a.tar b\n.EE\n.SH "SEE ALSO"\n.EX\n$ no\n.EE\n'
    assert [line.command for line in commands.lines("x.1", man)] == ["tar -cf a.tar b"]


def test_an_editor_writes_what_the_text_says() -> None:
    text = "```bash\n$ nano middle.sh\n```\n\nwith this line:\n\n```source\nhead -n 2 x\n```\n\n```bash\n$ sh middle.sh\n```\n"
    first = commands.lines("a.md", text)[0]
    assert first.writes == ("middle.sh", "head -n 2 x\n")


def test_the_state_script_agrees_with_the_state_and_with_nothing_else(tmp_path: Path) -> None:
    start = {
        "a.txt": Node("file", 0o644, b"one\n"), "old": Node("dir", 0o755), "old/b": Node("file", 0o644, b"b"),
        "kept file": Node("file", 0o644, b"%s\\n"),
    }  # fmt: skip
    end = {
        "a.txt": Node("file", 0o600, b"one\n"), "c.txt": Node("file", 0o644, b"one\n"), "new": Node("dir", 0o755),
        "new/n": Node("file", 0o644, b"  3  x\n"), "l": Node("link", 0o777, b"a.txt"), "kept file": start["kept file"],
    }  # fmt: skip
    changed = changes(start, end)
    assert changed["old"] is None and "old/b" not in changed and "kept file" not in changed
    test, expected = script(start, changed)
    told = describe(start, changed)
    assert "`c.txt` | is a file with exactly the content that `a.txt` has" in told and "`old` | does not exist" in told
    assert "mode 600" in told and "`3 x`" in told

    def run(tree: dict[str, Node]) -> set[str]:
        root = Path(subprocess.run(["mktemp", "-d", "-p", tmp_path], capture_output=True, text=True, check=True).stdout.strip())
        for path, node in sorted(tree.items()):
            if node.kind == "dir":
                (root / path).mkdir()
            elif node.kind == "link":
                (root / path).symlink_to(node.data.decode())
            else:
                (root / path).write_bytes(node.data)
                (root / path).chmod(node.mode)
        out = subprocess.run(
            ["sh", "-c", test.replace("cd /work", f"cd {root}")], capture_output=True, text=True, check=True
        ).stdout
        lines = [line.split(" ", 1) for line in out.splitlines()]
        assert [name for _, name in lines] == list(expected)
        return {name for word, name in lines if word == "FAIL"}

    assert run(end) == set()
    assert run(end | {"new/n": Node("file", 0o644, b"3 x\n")}) == set(), "blanks do not count where a command computed"
    assert run(end | {"c.txt": Node("file", 0o644, b"one \n")}) == {"c.txt"}, "a copy is exact"
    assert run(end | {"extra": Node("file", 0o644, b"")}) == {"only"}
    assert run(end | {"kept file": Node("file", 0o644, b"")}) == {"kept"}
    assert run(end | {"a.txt": start["a.txt"]}) == {"a.txt"}
    assert len(run(start)) == len(expected) - 1


def test_other_words_have_the_same_effect(tmp_path: Path) -> None:
    commands = [
        "mkdir d",
        "mkdir -p e/f",
        "cp a d",
        "cp -r d g",
        "mv a b",
        "mv b d",
        "sort d/b > s",
        "rm s",
        "rm -r e",
        "touch t",
    ]

    def run(name: str, lines: list[str]) -> str:
        root = tmp_path / name
        root.mkdir()
        (root / "a").write_text("2\n1\n")
        subprocess.run(["bash", "-e", "-c", "\n".join(lines)], cwd=root, check=True)
        return subprocess.run(
            "find . -type f -exec cksum {} + -o -print | sort", shell=True, cwd=root, capture_output=True, text=True
        ).stdout

    other = [tutorial._other_words(command) for command in commands]
    assert all(a != b for a, b in zip(commands, other, strict=True))
    assert run("one", commands) == run("two", other)


def test_a_tutorial_becomes_environments_that_need_every_step(doorway: Any, tmp_path: Path) -> None:
    lesson = tmp_path / "lesson"
    (lesson / "data").mkdir(parents=True)
    (lesson / "data" / "list.txt").write_text("b\na\nc\n")
    (lesson / "text.md").write_text(MARKDOWN + "\nWrite down when this was done.\n\n```bash\n$ date +%N > notes/when.txt\n```\n")
    made = tasks.generate({"source": f"file:{lesson}", "kind": "tutorial", "n": 3, "seed": 3}, doorway)
    assert len(made["admitted"]) == 3, made
    for environment_id in made["admitted"]:
        environment = doorway.store.environment(environment_id)
        task = taskdir.read(doorway.settings.home / environment.path)
        assert "date" not in task.solution, "what differs from run to run is no part of an environment"
        assert "$" not in task.instruction and "wc -l" not in task.instruction and "| path | at the end |" in task.instruction
        steps = int(environment.spec.labels["steps"])
        evidence = doorway.store.evidence(environment_id)
        without = [gate for gate in evidence.gates if gate.name.startswith("cheat:without-step")]
        assert len(without) == (steps if steps > 1 else 0) and all(gate.rewards == (0.0,) for gate in without)


def test_a_text_without_commands_is_refused(doorway: Any, tmp_path: Path) -> None:
    (tmp_path / "prose.md").write_text("# Nothing\n\nOnly words.\n")
    with pytest.raises(SourceError, match="no shell commands"):
        tasks.generate({"source": f"file:{tmp_path / 'prose.md'}", "kind": "tutorial", "n": 1}, doorway)


def test_norm_of_an_unchanged_tree_is_empty() -> None:
    assert state.changes({"a": Node("file", 0o644, b"")}, {"a": Node("file", 0o644, b"")}) == {}


@pytest.mark.parametrize("plan", [demo.Plan.full(), demo.Plan.quick()], ids=lambda plan: plan.name)
def test_the_lessons_of_the_demo_are_lessons(plan: demo.Plan) -> None:
    """What else lies in the examples is none of them."""
    lessons = sources.lessons(demo.tutorial(plan))
    assert [Path(lesson).name for lesson in lessons] == ["hpc-shell", "shell-novice"]
