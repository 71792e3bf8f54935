"""Mutations: edits that are what they say, reports that a reader can use, second solutions that mean the same."""

from __future__ import annotations

import ast
import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.swe import operators
from env_factory.swe.patch import edit_script
from env_factory.swe.rewriting import other_words
from env_factory.swe.symptom import observations, observe, report
from gymsmith import taskdir

SAMPLE = '''"""Über alles: offsets count bytes."""
import functools


@functools.lru_cache(maxsize=8)
def clip(x, low=0, high=10):
    """Not 1 == 2 but a docstring."""
    if x < low:
        return low  # ä
    if not x <= high and high is not None:
        x = min(x, high)
    total = 0
    for i in range(x):
        if i == 3: continue
        total += i * 2
    return total if total >= low else -total


class Box:
    def put(self, *items, **named):
        self.items = list(items)
        self.items.append(named.get("last", len(items) + 1))
        if not items:
            raise ValueError(f"{1 + 1} nothing")
        return self.items[1:-1], sorted(self.items, key=str, reverse=True)
'''


def test_every_operator_applies_where_it_says_and_nowhere_else() -> None:
    sites = operators.sites("a.py", SAMPLE)
    assert {"compare-flip", "compare-boundary", "negate-condition", "return-none", "drop-assign", "binary", "and-or", "constant",
            "drop-call", "drop-guard", "drop-not", "drop-raise", "loop-control", "name-swap", "off-by-one", "bool-flip",
            "drop-keyword", "swap-arguments"} <= {s.operator for s in sites}  # fmt: skip
    lines = SAMPLE.splitlines()
    for site in (s for s in sites if s.valid(SAMPLE)):
        faulty = site.apply(SAMPLE)
        assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(SAMPLE)), site
        touched = [i for i, (a, b) in enumerate(itertools.zip_longest(lines, faulty.splitlines())) if a != b]
        assert touched and touched[0] + 1 >= site.line - 1, site
        assert "lru_cache(maxsize=8)" in faulty and "docstring" in faulty and "low=0, high=10" in faulty
        assert "{1 + 1}" in faulty or site.operator in ("drop-raise", "drop-guard")
    assert {s.first_line for s in sites if s.function == "clip"} == {5}, (
        "where the interpreter says that a decorated function starts"
    )
    assert {s.function for s in sites} == {"clip", "Box.put"}


def test_the_order_is_seeded_and_operators_take_turns() -> None:
    sites = operators.sites("a.py", SAMPLE)
    one = operators.order(sites, 1)
    assert one == operators.order(list(sites), 1) != operators.order(sites, 2)
    assert sorted(map(repr, one)) == sorted(map(repr, sites))
    kinds = len({s.operator for s in sites})
    assert len({s.operator for s in one[:kinds]}) == kinds


def test_other_words_mean_the_same() -> None:
    def results(text: str) -> list[object]:
        scope: dict[str, Any] = {}
        exec(text, scope)
        found: list[object] = [scope["clip"](x, low, high) for x in (-5, 0, 4, 12) for low in (-2, 3) for high in (7, 9)]
        for items in ((), (3, 1, 2)):
            try:
                found.append(scope["Box"]().put(*items, last=7))
            except ValueError as error:
                found.append(str(error))
        return found

    sites = operators.sites("a.py", SAMPLE)
    rewritten = {s: other for s in sites if (other := other_words(SAMPLE, s)) is not None}
    assert len(rewritten) > 0.8 * len(sites)
    wanted = results(SAMPLE)
    for site, other in rewritten.items():
        assert other != SAMPLE and results(other) == wanted, (site, other)


def test_observations_are_what_the_host_can_compare() -> None:
    """Equalities with a literal, whose names can all be imported; what the report does not tell comes first."""
    homes = {"plural": "tool.words", "Cache": "tool"}
    word = failure(source="assert tool.plural(word) == expected", compared=["==", "'foots'", "'feet'"],
                   values={"word": "'foot'", "expected": "'feet'"}, modules=["tool"], homes=homes)  # fmt: skip
    longer = word | {"values": {"word": "'a long foot'", "expected": "'long feet'"}, "compared": ["==", "'foots'", "'long feet'"]}
    built = failure(source="assert c.size == len(c)", compared=["==", "2", "3"], builtin=["len"], public={"Cache": "Cache"},
                    before=["c = Cache(maxsize=n)"], values={"n": "4"}, homes=homes)  # fmt: skip
    told = report([word, built])
    found = observations([word, longer, built], told)
    assert [(o.expression, o.expected) for o in found] == [
        ("len(c)", "2"),
        ("plural('a long foot')", "'long feet'"),
        ("plural('foot')", "'feet'"),
    ]
    assert found[1].imports == (("plural", "tool.words:plural"),)
    assert found[0].setup == ("c = Cache(maxsize=4)",) and found[0].imports == (("Cache", "tool:Cache"),)
    assert observations([word | {"homes": {}}], []) == [], "a name that nobody can import"
    assert observations([word | {"compared": ["==", "'foots'", "<Feet>"]}], []) == [], "no literal"
    assert observations([word | {"compared": ["<", "3", "2"]}], []) == [], "no equality"


def test_the_edit_script_turns_one_text_into_the_other(tmp_path: Path) -> None:
    target = tmp_path / "a.py"
    for before, after in (
        (SAMPLE, SAMPLE.replace("x < low", "x > low")),
        ("a\r\nb\n", "a\r\nc\r\n'''\"\\\n"),
        ("x", ""),
        ("", "y\n"),
    ):
        target.write_bytes(before.encode())
        subprocess.run(["sh"], input=edit_script(str(target), before, after), text=True, check=True)
        assert target.read_bytes() == after.encode()


def failure(**told: Any) -> dict[str, Any]:
    return {
        "type": "AssertionError",
        "message": "",
        "compared": None,
        "values": {},
        "modules": [],
        "public": {},
        "builtin": [],
    } | told


def test_symptoms_show_values_and_never_the_tests_own_names() -> None:
    compared = failure(
        source="assert tool.plural(word) == expected", compared=["==", "'foots'", "'feet'"],
        values={"word": "'foot'", "expected": "'feet'"}, modules=["tool"],
    )  # fmt: skip
    assert report([compared, compared]) == ["- `plural('foot')` gives `'foots'`; expected `'feet'`."]
    raised = failure(type="KeyError", message="'x'", source="value = f(1)", public={"f": "f"})
    assert observe(raised).text() == "- `f(1)` raises `KeyError: 'x'`; it should not raise."  # type: ignore[union-attr]
    assert "it should raise `ValueError`" in observe(raised | {"context": "pytest.raises(ValueError)"}).text()  # type: ignore[union-attr]
    silent = failure(
        type="Failed",
        message="DID NOT RAISE <class 'ValueError'>",
        source="with pytest.raises(ValueError):\n    f(0)",
        public={"f": "f"},
    )
    assert observe(silent).text() == "- `f(0)` returns without an error; it should raise `ValueError`."  # type: ignore[union-attr]
    built = failure(
        source="assert c.size == len(c)", compared=["==", "2", "3"], builtin=["len"], public={"Cache": "Cache"},
        before=["c = Cache(maxsize=n)", "assert not c", "unrelated = 1"], values={"n": "4"},
    )  # fmt: skip
    told = observe(built | {"source": "assert len(c) == 3"})
    assert told is not None and told.setup == ("c = Cache(maxsize=4)",) and told.expression == "len(c)"
    counted = failure(
        source="assert len(calls) == 1", compared=["==", "0", "1"], values={"calls": "[]"}, builtin=["len"], public={"f": "f"},
        before=["calls = []", "g = f(calls.append)", "g()"],
    )  # fmt: skip
    grown = observe(counted)
    assert grown is not None and grown.setup[0] == "calls = []" and grown.expression == "len(calls)"
    for useless in (
        failure(source="assert len(calls) == 1", compared=["==", "0", "1"], values={"calls": "[]"}, builtin=["len"]),
        built | {"before": ["c = self.make()"], "source": "assert len(c) == 3"},
        compared | {"compared": ["==", "<object object at 0x7f0000000000>", "1"]},
        compared | {"compared": ["==", "1", "1"]},
        compared | {"compared": ["==", "'" + "y" * 500 + "'", "1"]},
        failure(source=None),
    ):
        assert observe(useless) is None, useless


@pytest.mark.network
@pytest.mark.usefixtures("index_reachable")
def test_a_real_package_gives_proved_environments(doorway: Any) -> None:
    payload = {"source": "pypi:inflection==0.5.1", "kind": "mutation", "n": 2, "seed": 5}
    made = tasks.generate(payload, doorway)
    assert len(made["admitted"]) == 2 and sum(made["reasons"].values()) == made["candidates"] - 2, made
    for environment_id in made["admitted"]:
        environment = doorway.store.environment(environment_id)
        task = taskdir.read(doorway.settings.home / environment.path)
        labels = environment.spec.labels
        assert labels["path"] not in task.instruction and not any(test in task.instruction for test in environment.spec.expected)
        assert "expected" in task.instruction or "should" in task.instruction
        assert not any("test" in name for name in task.under("environment/work")), "the suite is hidden"
        gates = {gate.name: gate for gate in doorway.store.evidence(environment_id).gates}
        assert gates["f2p"].rewards[0] >= 1 and gates["p2p"].rewards[0] >= 5 and gates["alternative-1"].passed
        assert sum(name.startswith("cheat:") for name in gates) >= 8
    again = tasks.generate(payload, doorway)
    assert again["admitted"] == made["admitted"] and again["tests_run"] == 0, "what was settled is not settled twice"
