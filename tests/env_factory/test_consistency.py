"""What a text can contradict, and what only looks like it: each case beside one that differs in what matters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from env_factory.gates.consistency import contradictions, reads_solution, unnamed
from env_factory.gates.effects import Effect
from gymsmith.taskdir import Task
from tests.env_factory.test_gates import FILES, GOOD


def said(text: str, made: dict[str, str], solve: str = "true\n", tests: str = "true\n", changed: bool = False) -> str:
    files = FILES | {"solution/solve.sh": solve.encode(), "tests/test.sh": tests.encode()}
    task = Task.of(replace(GOOD, instruction=text, files=files))
    effects = [Effect(f"/work/{n}", "changed" if changed else "created", "0\n" if changed else None, t) for n, t in made.items()]
    return "; ".join(contradictions(task, effects))


@pytest.mark.parametrize(
    ("text", "made", "more", "words"),
    [
        ("Write the sum into total.txt.", {"sum.txt": "5\n"}, {}, "asks for total.txt"),
        ("Write the sum into sum.txt.", {"sum.txt": "5\n"}, {}, ""),
        ("Set port to 9090 in a.conf.", {"a.conf": "port = 9191\n"}, {}, "port"),
        ("Set port to 9090 in a.conf.", {"a.conf": "port = 9090\n"}, {}, ""),
        ("Sort n.txt in descending order into s.txt.", {"s.txt": "1\n2\n9\n"}, {}, "descending"),
        ("Sort n.txt in descending order into s.txt.", {"s.txt": "9\n2\n1\n"}, {}, ""),
        ("Write a report as JSON to r.json.", {"r.json": "a,b\n"}, {}, "JSON"),
        ("Write a report as JSON to r.json.", {"r.json": '{"a": 1}\n'}, {}, ""),
        ("Write the names in upper case to u.txt.", {"u.txt": "ida\nbob\n"}, {}, "upper case"),
        ("Do not change a.txt. Write b.txt.", {"a.txt": "1\n"}, {"changed": True}, "forbids"),
        ("Do not change c.txt. Change a.txt.", {"a.txt": "1\n"}, {"changed": True}, ""),
        ("Write the largest number to m.txt.", {"m.txt": "7\n"}, {"solve": "python3 -c 'print(min(x))'\n"}, "largest"),
        ("Write the largest number to m.txt.", {"m.txt": "7\n"}, {"solve": "sort -n x | tail -n 1\n"}, ""),
        ("Write at least 5 lines to m.txt.", {"m.txt": "7\n"}, {"solve": "python3 -c 'print(max(x))'\n"}, ""),
        ("Write the password to p.txt.", {"p.txt": "rose-9917\n"}, {"solve": "echo rose-9917 > p.txt\n"}, "stands neither"),
        ("Write the number of rows to p.txt. There are 300 columns.", {"p.txt": "502\n"}, {"tests": "grep -x 502 p.txt\n"}, ""),
    ],
)
def test_two_witnesses(text: str, made: dict[str, str], more: dict[str, object], words: str) -> None:
    found = said(text, made, **more)  # type: ignore[arg-type]
    assert words in found if words else not found, found


def test_files_that_nothing_names_are_tried_without() -> None:
    task = Task.of(replace(GOOD, instruction="Write the sum of both numbers."))
    assert [v.name for v in unnamed(task, [Effect("/work/result.txt", "created", None, "5\n")])] == [
        "without /work/result.txt, which nothing names"
    ]
    derived = [Effect("/work/a.bak", "created", None, "5\n"), Effect("/work/old.txt", "changed", "1\n", "2\n")]
    assert not unnamed(task, derived), "a name that follows from one of the environment's, and a file that was there"


@pytest.mark.parametrize(
    ("line", "reads"), [("diff /solution/solve.sh x", True), ("python3 /app/solution.py", False), ("true", False)]
)
def test_tests_that_look_at_the_solution(line: str, reads: bool) -> None:
    task = Task.of(replace(GOOD, files=FILES | {"tests/test.sh": line.encode()}))
    assert bool(reads_solution(task)) is reads


def test_what_a_docstring_says_is_no_order() -> None:
    text = "Write the body again.\n\n~~~python\ndef f():\n    '''Listens on port 9090.'''\n~~~\n\n- `f(port=8080)` gives 1\n"
    text += "\n  ```python\n  f(port=7070)\n  ```\n"
    files = FILES | {"tests/check.py": b"port = 9191\n"}
    own = Task.of(replace(GOOD, instruction=text, files=files))
    assert "port 9090" in "; ".join(contradictions(own, ())), "of a task that speaks for itself it is"
    assert contradictions(Task.of(replace(GOOD, instruction=text, files=files | {"tests/run.py": b""})), ()) == []
