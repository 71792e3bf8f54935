"""Function reconstruction and combined faults on a small package made for it: every reason to turn a function down occurs."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from env_factory import sources
from env_factory.build import build
from env_factory.candidates import Proposal
from env_factory.gates.stages import prove
from env_factory.probe.copies import find
from env_factory.swe import survey
from env_factory.swe.documented import documented
from env_factory.swe.screening import opened
from env_factory.swe.selection import header, reaching
from env_factory.swe.suite import MEMBER
from env_factory.synth import combination, reconstruction
from env_factory.wheels import download_wheels
from gymsmith.schema import Source
from gymsmith.taskdir import Task
from sandboxes.grade import attempt_script

SHELF = '''"""Shelves."""
import functools


def _once(call):
    return functools.wraps(call)(call)


@_once
def fit(sizes, width):
    """Put sizes, in order, into rows of at most this width; a larger size gets a row of its own.

    >>> fit([2, 3], 4)
    [[2], [3]]
    """
    rows, used = [], 0
    for size in sizes:
        if not rows or used + size > width:  # a new row
            rows.append([])
            used = 0
        rows[-1].append(size)
        used += size
    return rows  # done


def pairs(items):
    """Give every two neighbours of the items, the last of one pair being the first of the next."""
    before = None
    for number, item in enumerate(items):
        if number > 0:
            yield before, item
        before = item


def longest(rows):
    """The longest."""
    return max(rows, key=lambda row: (len(row), sum(row)), default=[])


def hardly(rows, turns=1):
    """Say whether there are more rows than turns, which nobody has ever really looked at in a test."""
    answer = len(rows) > turns and turns != 7
    return answer if turns < 100 else not answer


def copied(rows):
    """Add up the lengths of all rows that have an even number of things in them."""
    lengths_of_rows = [len(row) for row in rows]
    even_lengths = [length for length in lengths_of_rows if length % 2 == 0]
    return sum(even_lengths)


def total(rows):
    count = 0
    for row in rows:
        count += len(row)
    return count


def first(rows):
    if not rows:
        return None
    return rows[0][0]


def last(rows):
    if not rows:
        return None
    return rows[-1][-1]


def known_to(thing):
    return functools.reduce(lambda a, b: a + 1, __import__("gc").get_referrers(thing), 0)
'''
OTHER = "def twin(rows):\n" + SHELF[SHELF.index("    lengths_of_rows") : SHELF.index("\n\ndef total")] + "\n"
TESTS = """
import pytest
from shelf import copied, first, fit, hardly, known_to, last, longest, pairs, total


ROWS = [([], 3, []), ([2, 3], 4, [[2], [3]]), ([1, 1, 5], 4, [[1, 1], [5]]), ([2, 2], 4, [[2, 2]])]


@pytest.mark.parametrize("sizes, width, rows", ROWS)
def test_fit(sizes, width, rows):
    assert fit(sizes, width) == rows


@pytest.mark.parametrize("items, two", [([], []), ([1], []), ([1, 2, 3], [(1, 2), (2, 3)]), ([None, 0], [(None, 0)])])
def test_pairs(items, two):
    assert list(pairs(items)) == two


@pytest.mark.parametrize("n", [1, 2, 3])
def test_longest(n):
    assert longest([[1] * n]) == [1] * n


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly(n):
    assert hardly([[1]] * n) in (True, False)


@pytest.mark.parametrize("n", [2, 4, 6])
def test_copied(n):
    assert copied([[1] * n]) == n


@pytest.mark.parametrize("rows, many, one, other", [([], 0, None, None), ([[4]], 1, 4, 4), ([[5, 6], [7]], 3, 5, 7)])
def test_small_ones(rows, many, one, other):
    assert total(rows) == many
    assert first(rows) == one
    assert last(rows) == other


def test_meddling():
    assert known_to([]) >= 0
"""


@pytest.fixture(scope="module")
def shelf(doorway: Any, index_reachable: None) -> sources.Package:
    wheels, pins = download_wheels(["pip", "pytest"], doorway.settings.wheelhouse_dir, "3.11")
    files = {"shelf.py": SHELF.encode(), "other.py": OTHER.encode(), "tests/test_shelf.py": TESTS.encode()}
    about = Source(uri="pypi:shelf==1", kind="pypi", digest="shelf")
    code = ("shelf.py", "other.py")
    return sources.Package(about, "shelf", "1", files, ("tests",), ("",), code, wheels, pins, b"Name: shelf\nVersion: 1\n")


Made = tuple[survey.Survey, dict[str, list[Proposal]], int]


@pytest.fixture(scope="module")
def made(doorway: Any, shelf: sources.Package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The survey, every candidate of both kinds, and how many tests were run for them."""
    path = tmp_path_factory.mktemp("surveys") / "shelf.json"

    async def work() -> Made:
        async with opened(shelf, await doorway.worker.provider(), await doorway.worker.images()) as screen:
            known = await survey.kept(shelf, screen, path, lines=True)
            assert await survey.kept(shelf, screen, path) == known, "read again as it was written"
            before = screen.executions
            await screen.widen(2)
            drafts: dict[str, Callable[..., Any]] = {"body": reconstruction.draft, "faults": combination.draft}
            every = {name: [c async for c in draft(shelf, known, screen, 1)] for name, draft in drafts.items()}
            return known, every, screen.executions - before

    yield doorway.worker.run(work())


@pytest.mark.network
def test_the_survey_tells_lines_apart(made: Made) -> None:
    known, _, _ = made
    line = next(n for n, text in enumerate(SHELF.split("\n"), 1) if "return rows[0][0]" in text)
    function = next(place for place in known.touching if place == ("shelf.py", line - 3))
    assert len(reaching(known, *function)) == 3 and len(reaching(known, *function, [line])) == 2, "one test returns before it"
    assert known.limit_s >= 5 and len(known.passing) == 20
    assert not any("meddling" in test for test in known.passing), "it passes, but a verifier would not believe the run"
    assert list(header(SHELF, line - 1)) == [line - 1] and list(header(SHELF, line - 2)) == [line - 2]


@pytest.mark.network
def test_bodies_are_asked_for_where_tests_and_docstring_say_enough(shelf: sources.Package, made: Made) -> None:
    known, every, executions = made
    functions = reconstruction.pool(shelf, known, 1)
    reasons = {function.name: c.reason for function, c in zip(functions, every["body"], strict=True)}
    assert reasons == {"fit": "", "pairs": "", "longest": "short-docstring", "hardly": "weak-tests", "copied": "copy"}
    draft = next(c.draft for f, c in zip(functions, every["body"], strict=True) if f.name == "fit")
    assert draft is not None
    left = draft.files["environment/work/shelf.py"].decode()
    assert "a new row" not in left and "done" not in left and "NotImplementedError" in left and ast.parse(left)
    assert "def fit(sizes, width):" in draft.instruction and "larger size gets a row" in draft.instruction
    assert "`shelf.fit`" in draft.instruction and "rows.append" not in draft.instruction
    names = [name for name, _ in draft.cheats]
    assert {"do-nothing", "mutant-1", "mutant-2", "mutant-3"} <= set(names)
    assert float(draft.spec.labels["mutation_score"]) >= 0.6 and any(t.startswith("observed-") for t in draft.spec.expected)
    whole = json.loads(draft.files[MEMBER])["tests"]
    assert len(whole) == len(known.passing) > len(draft.spec.expected)
    candidates = sum(map(len, every.values()))
    assert executions < candidates * len(known.passing), "fewer than one run of the suite for each candidate"


@pytest.mark.network
def test_several_faults_need_several_repairs(made: Made, shelf: sources.Package) -> None:
    known, every, _ = made
    asked = {f.first_line for f in documented(shelf) if not reconstruction.eligible(f, known)}
    groups = combination.groups(shelf, known, 1)
    assert groups == combination.groups(shelf, known, 1) != combination.groups(shelf, known, 2)
    assert not asked & {sites[0].first_line for group in groups for sites in group}, "what is asked for elsewhere is left alone"
    draft = next(c.draft for c in every["faults"] if c.draft)
    assert draft is not None
    faults = draft.spec.labels["operator"].split(" + ")
    assert len(faults) == len(draft.spec.labels["function"].split(" + ")) == sum(n.startswith("leaves-") for n, _ in draft.cheats)
    assert len(faults) >= 2 and draft.instruction.count("\n- ") >= 2 and "shelf.py" not in draft.instruction


@pytest.mark.network
def test_both_kinds_are_proved(doorway: Any, shelf: sources.Package, made: Made) -> None:
    """A body stands every gate, the whole suite among them; of several faults none may be left."""
    body, faults = (next(c.draft for c in some if c.draft) for some in made[1].values())
    assert body is not None and faults is not None

    async def work() -> tuple[Any, list[float]]:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        proof = await prove(body, await build(body, images, wheels=shelf.wheels), provider, level="admission")
        image, task = await build(faults, images, wheels=shelf.wheels), Task.of(faults)
        tried = [task.solution, *(script for name, script in faults.cheats if name.startswith("leaves-"))]
        return proof, [(await attempt_script(provider, image, task, script)).value for script in tried]

    proof, rewards = doorway.worker.run(work())
    assert (proof.reason, proof.evidence.proved) == ("", True), proof
    gates = {gate.name: gate.rewards for gate in proof.evidence.gates}
    assert gates["suite"] == (1.0,) and sum(name.startswith("cheat:") for name in gates) >= 25
    assert rewards[0] == 1.0 and not any(rewards[1:]) and len(rewards) >= 3


def test_copies_are_found_wherever_they_are(tmp_path: Path) -> None:
    """In an installed copy, as byte code, and in an archive of the package; not in a file that says something else."""
    function = {"file": "shelf.py", "lines": ["rows.append([])", "used += size"], "doc": "Put sizes, in order, into rows"}
    request = {"skip": ["/proc", "/sys", "/dev"], "archives": ["shelf"], "functions": {"fit": function}}
    where = tmp_path / "site-packages/shelf.py"
    where.parent.mkdir()
    where.write_text("rows.append([])\n")
    assert find(request, str(tmp_path)) == {}
    where.write_text("if new:\n    rows.append([])\n    used += size\n")
    assert find(request, str(tmp_path)) == {"fit": str(where)}
    where.unlink()
    compiled = tmp_path / "shelf.cpython-311.pyc"
    compiled.write_bytes(b"\0Put sizes, in order, into rows\0")
    assert find(request, str(tmp_path)) == {"fit": str(compiled)}
    compiled.unlink()
    (tmp_path / "shelf-1.0-py3-none-any.whl").write_bytes(b"PK")
    assert set(find(request, str(tmp_path))) == {"fit"}
