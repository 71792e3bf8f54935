"""Definitions that are missed, and what nobody could know: each case beside one that is sound and looks like it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from env_factory.gates.definitions import bounds, slips
from env_factory.gates.effects import Effect, Effects
from env_factory.gates.mutants import Rules, mutants, restyled
from env_factory.gates.untold import silent, variants
from gymsmith.taskdir import Task
from sandboxes.artifacts import Artifacts
from sandboxes.base import Image
from tests.env_factory.test_gates import FILES, GOOD

HALF = "The tax is rounded to whole cents; half a cent is rounded up."
MIDDLE = "For an even number of values it is the mean of the two middle ones."


@pytest.mark.parametrize(
    ("said", "program", "named"),
    [
        (HALF, "print(round(net * rate / 100))", "half is rounded up"),
        (HALF, "print((net * rate + 50) // 100)", ""),
        (HALF, "print(Decimal(x).quantize(Decimal(1), ROUND_HALF_UP))", ""),
        ("Round to whole cents.", "print(round(net * rate / 100))", ""),
        (MIDDLE, "print(v[len(v) // 2])", "median"),
        (MIDDLE, "print((v[(n - 1) // 2] + v[n // 2]) / 2)", ""),
        (MIDDLE, "print(statistics.median(v))", ""),
        ("Print the population standard deviation.", "statistics.stdev(v)", "population"),
        ("Print the population standard deviation.", "statistics.pstdev(v)", ""),
        ("Sort them numerically.", "cut -d' ' -f2 x | sort | uniq", "sort as numbers"),
        ("Sort them numerically.", "cut -d' ' -f2 x | sort -k1,1n", ""),
        ("Percentiles are by the nearest-rank method.", "v[len(v) * p // 100]", "nearest rank"),
        ("Percentiles are by the nearest-rank method.", "v[math.ceil(len(v) * p / 100) - 1]", ""),
        ("List the names, case-insensitive.", "sorted(names)", "case"),
        ("List the names, case-insensitive.", "sorted(names, key=str.casefold)", ""),
        ("Print the largest first.", "sorted(sizes)", "order falls"),
        ("Print the largest first.", "sorted(sizes)[::-1]", ""),
    ],
)
def test_definitions_that_are_missed(said: str, program: str, named: str) -> None:
    found = "; ".join(slips(said, program))
    assert (named in found) if named else found == ""


@pytest.mark.parametrize(
    ("said", "program", "wrong"),
    [
        ("slow if it took 500 ms or longer", "if ($5 + 0 > 500) n++", True),
        ("slow if it took 500 ms or longer", "if ($5 + 0 >= 500) n++", False),
        ("slow if it took 500 ms or longer", "fast = ms < 500", False),
        ("at least three words", "if len(words) > 3:", True),
        ("at least three words", "if 3 <= len(words):", False),
        ("more than 10 lines", "[ $n -ge 10 ]", True),
        ("more than 10 lines", "[ $n -gt 10 ]", False),
        ("at most 8 letters", "if len(word) < 8:", True),
        ("at most 8 letters", "if len(word) <= LIMIT:", False),
    ],
)
def test_bounds_that_are_off_by_one(said: str, program: str, wrong: bool) -> None:
    assert bool(bounds(said, program)) is wrong


def task(text: str, solve: str = "true\n", tests: str = "", environment: str = "") -> Task:
    files = FILES | {
        "solution/solve.sh": solve.encode(),
        "tests/check.py": tests.encode(),
        "environment/data": environment.encode(),
    }
    return Task.of(replace(GOOD, spec=GOOD.spec.model_copy(update={"artifacts": ("/work",)}), instruction=text, files=files))


def test_a_status_that_no_text_speaks_of() -> None:
    made = [Effect("/work/c.py", "created", None, "import sys\nsys.exit(2)\n")]
    looks = "assert run('gone').returncode == 2"
    assert silent(task("Write c.py, which counts lines.", tests=looks), made)
    assert not silent(task("Write c.py, which counts lines; its status is 2 for a missing file.", tests=looks), made)
    assert not silent(task("Write c.py, which counts lines.", tests="assert run('a').returncode == 0"), made)


def test_numbers_and_words_of_the_solution_alone_are_tried() -> None:
    def tried(text: str, solve: str, made: str = "", tests: str = "", environment: str = "", name: str = "out.json") -> list[str]:
        effects = [Effect(f"/work/{name}", "created", None, made)] if made else []
        return [variant.name for variant in variants(task(text, solve, tests, environment), effects, Image("none"))]

    rate = "python3 -c 'print(12 * 1.03)' > euros.txt\n"
    assert "1.03" in tried("Write the euros into euros.txt.", rate)[0]
    assert not tried("Write the euros into euros.txt.", rate, environment="CHF 1.03")
    assert not tried("Write the euros into euros.txt, 3% more.", rate), "a share may be told in percent"
    assert not tried("Make it private.", "chmod 640 out.json\n")
    assert not tried("Write the sum into sum.txt.", "echo 7314 > sum.txt\n", "7314\n", name="sum.txt"), (
        "an answer may be worked out"
    )
    program = "import json\nprint(json.dumps({'revenue_cents': 1}))\n"
    solve, tests = f"cat > out.py <<'E'\n{program}E\n", "want = {'revenue_cents': 1}"
    assert "revenue_cents" in tried("Write out.py, which prints the sum of the cents.", solve, program, tests, name="out.py")[0]
    assert not tried("Write out.py, which prints the revenue (cents).", solve, program, "want = 1", name="out.py")
    assert not tried("Write out.py, which prints `revenue_cents`.", solve, program, tests, name="out.py")


def test_json_may_be_written_with_other_white_space() -> None:
    effects = Effects(Artifacts(Path("/"), (), ()), (Effect("/work/o.json", "created", None, '{\n  "a": 1\n}\n'),))
    free = restyled(effects, task("Read one number per line. Write o.json: an object with `a`."))
    assert [variant.writes for variant in free] == [{"/work/o.json": '{"a": 1}\n'}]
    assert not restyled(effects, task("Write o.json: an object with `a`. Indent it by two."))


def test_what_runs_at_the_start_and_what_a_script_runs_gets_faults_too() -> None:
    def names(effect: Effect, solve: str = "true\n") -> str:
        effects = Effects(Artifacts(Path("/"), (), ()), (effect,))
        return " ".join(
            v.name for v in mutants(effects, task("Write p.py, r.sh and the database d.db.", solve), Rules(max_mutants=20))
        )

    plain = "import sys\nfor line in open(sys.argv[1], encoding='utf-8'):\n    if len(line) > 3:\n        print(line)\n"
    found = names(Effect("/work/p.py", "created", None, plain))
    assert "compare" in found and "drop-keyword" not in found
    shell = "#!/bin/sh\nset -e\ncut -f1 in > a\nsort a > b\n[ $(wc -l < b) -gt 3 ] || exit 1\n"
    found = names(Effect("/work/r.sh", "created", None, shell))
    assert "without `sort a > b`" in found and "-ge for -gt" in found
    inside = "python3 - <<'E'\nn = 1\nn += 2\nstore(n)\nE\n"
    assert "its Python" in names(Effect("/work/d.db", "created", None, None), inside)
    assert "its Python" not in names(Effect("/work/p.py", "created", None, "x = 1\n"), inside), (
        "where the effect is text, that has faults"
    )
