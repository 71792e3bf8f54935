"""What follows from the task itself: clues that contradict it, and attempts that skip the work. Each beside one that is sound."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.gates import labelled
from env_factory.gates.bytecode import compiled_from
from env_factory.gates.clues import clues
from env_factory.gates.effects import Effect
from env_factory.gates.shortcuts import by_heart, constants, copies
from env_factory.gates.still import leak
from gymsmith.taskdir import Task
from tests.env_factory import blind
from tests.env_factory.test_gates import FILES, GOOD

DUE = "import datetime\ntoday = datetime.date.today()\n"
NEWEST = "Print the entries, the newest first, with e.py."
SENTENCE = "Seven grey herons waited beside frozen water"


def found(text: str, made: dict[str, str], tests: str, solve: str = "true\n") -> str:
    files = FILES | {"solution/solve.sh": solve.encode(), "tests/check.py": tests.encode()}
    effects = [Effect(f"/work/{name}", "created", None, after) for name, after in made.items()]
    spec = GOOD.spec.model_copy(update={"artifacts": ("/work",)})
    return "; ".join(clues(Task.of(replace(GOOD, spec=spec, instruction=text, files=files)), effects))


@pytest.mark.parametrize(
    ("text", "made", "tests", "solve", "words"),
    [
        (NEWEST, {}, "assert out == ['2020-01-01 a', '2021-01-01 b', '2022-01-01 c']", "", "falling order"),
        (NEWEST, {}, "assert out == ['2022-01-01 c', '2021-01-01 b', '2020-01-01 a']", "", ""),
        (NEWEST, {}, "given = ['2020-01-01 a', '2021-01-01 b', '2022-01-01 c']", "", ""),
        ("Sort in ascending order.", {}, "self.assertEqual(got, [9, 5, 2])", "", "rising order"),
        ("Print what is due today, with d.py.", {"d.py": DUE}, "assert run('2026-11-29')", "", "fixed dates"),
        ("Print what is due today, with d.py.", {"d.py": DUE}, "assert run(str(date.today())) != '2026-11-29'", "", ""),
        ("Delete what is expired.", {"d.sh": "#!/bin/sh\nx=$(date +%F)\n"}, "assert run('2026-11-29')", "", "fixed dates"),
        ("Delete what is expired.", {"d.sh": '#!/bin/sh\nx=$(date -u -d "$1" +%s)\n'}, "assert run('2026-11-29')", "", ""),
        ("Print what is due on the day that is given.", {"d.py": DUE}, "assert run('2026-11-29')", "", ""),
        ("Write a.sh.", {"a.sh": "x"}, "S = '/work/.seen/done'\nif os.path.exists(S): exit(0)", "", "an agent may put it there"),
        ("Write a.sh.", {"a.sh": "x"}, "S = '/work/a.sh'\nif os.path.exists(S): run(S)", "", ""),
        ("Write a.sh.", {"a.sh": "x"}, "S = '/work/old'\nassert not os.path.exists(S)", "", ""),
        ("Decrypt n.enc into n.txt.", {"n.txt": SENTENCE}, f"assert text == {SENTENCE!r}", f"echo {SENTENCE}", "leads there"),
        ("Decrypt n.enc into n.txt.", {"n.txt": SENTENCE}, f"assert text == {SENTENCE!r}", "openssl enc -d", ""),
        (f"Write this into n.txt: {SENTENCE}", {"n.txt": SENTENCE}, f"t == {SENTENCE!r}", f"echo {SENTENCE}", ""),
        ('Count; s.json should look like {"a": 311, "b": 131}.', {"s.json": '{"a":311,"b":131}\n'}, "", "count", "copying"),
        ('Count; s.json should look like {"a": 100, "b": 200}.', {"s.json": '{"a":311,"b":131}\n'}, "", "count", ""),
        ('Count; s.json looks like {"a": 3, "b": 1}.', {"s.json": '{"a":3,"b":1}\n'}, "", "count", "copying"),
        ('Write s.json: it holds {"a": 3, "b": 1}.', {"s.json": '{"a":3,"b":1}\n'}, "", "count", ""),
    ],
)
def test_two_witnesses_or_none(text: str, made: dict[str, str], tests: str, solve: str, words: str) -> None:
    said = found(text, made, tests, solve)
    assert (words in said) if words else said == ""


def test_a_program_that_may_say_two_things_may_not_say_one() -> None:
    program = "#!/bin/bash\nif check; then echo PASSED; else echo 'FAILED'; fi\n"

    def words(text: str) -> list[str]:
        task = Task.of(replace(GOOD, instruction=text))
        return [variant.name for variant in constants(task, [Effect("/work/v.sh", "created", None, program)])]

    always = ["always-PASSED", "always-PASSED", "always-FAILED", "always-FAILED"]
    assert words("Write v.sh: it prints PASSED when all is well, else FAILED. Never print NOTHING.") == [
        "idle",
        "echoing",
        *always,
    ]
    assert words("Write v.sh: it prints PASSED.") == ["idle", "echoing"], "what can only be said one way may be said so"


def test_programs_that_recite_and_files_that_are_copied() -> None:
    program, given = [Effect("/work/v.py", "created", None, "print(1)\n")], {"/work/in.txt": "a\n"}
    task = Task.of(replace(GOOD, instruction="Write v.py for in.txt, and out.txt."))
    assert len(by_heart(task, program, given)) == 2 and not by_heart(task, program, {})
    made = [Effect("/work/out.txt", "created", None, "b\n")]
    assert [variant.writes for variant in copies(task, made, given)] == [{"/work/out.txt": "a\n"}]
    assert not copies(task, made, {"/work/in.txt": "b\n"}), "a copy that is asked for"


def test_byte_code_of_what_lies_beside_it_tells_nothing(tmp_path: Path) -> None:
    source = b'"""Adds."""\n\ndef add(a, b):\n    return a - b\n'
    (tmp_path / "sums.py").write_bytes(source)
    subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sums"], check=True)
    code = next((tmp_path / "__pycache__").glob("*.pyc")).read_bytes()
    repaired = source.replace(b"a - b", b"a + b")
    assert compiled_from(code, source) and not compiled_from(code, repaired) and not compiled_from(b"\0" * 40, source)
    beside = {"environment/work/sums.py": source, "environment/work/__pycache__/sums.cpython-311.pyc": code}
    assert leak(replace(GOOD, files=FILES | beside)).passed
    assert not leak(replace(GOOD, files=FILES | beside | {"environment/work/sums.py": repaired})).passed


WANTED = {
    "task-04": "cheat-passes", "task-21": "leak", "task-29": "", "task-34": "contradiction", "task-40": "weak-tests",
    "task-41": "cheat-passes",
}  # fmt: skip
"""A sum over the agent's own file, an answer in a hidden folder, a hidden by-product, a constant answer (mutants tell of it
first), a remote's branch; and a sound one, with byte code beside its source."""


def test_shortcuts_are_tried(doorway: Any, tmp_path: Path) -> None:
    result = tasks.judge({"folder": str(blind.write(tmp_path, WANTED))}, doorway)
    assert {row["name"]: row["verdict"].replace("verified", "") for row in result["tasks"]} == WANTED, result["tasks"]
    assert labelled.labels(tmp_path).keys() == WANTED.keys()
