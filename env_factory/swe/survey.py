"""What a healthy package's suite does: which tests pass every time, and which functions and lines each of them executes.

Measured once per package. A file keeps it, since the order for more environments of a package begins with the same question.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from env_factory.sources import Package
from env_factory.swe.screening import Screen
from gymsmith.errors import NoTests

log = logging.getLogger(__name__)

MIN_P2P = 5
"""Tests that have to pass with and without a fault."""
SLOWER = 4.0
"""How many times the CPU time of the whole suite some of its tests may take before they count as hanging."""


@dataclass(frozen=True)
class Survey:
    """What the healthy package's suite does."""

    passing: tuple[str, ...]
    """Ids that passed in every run, in the suite's order."""
    touching: Mapping[tuple[str, int], tuple[str, ...]]
    """(path of a module in the sdist, first line of a function) -> passing tests that enter it."""
    everywhere: frozenset[tuple[str, int]]
    """Functions that run while the package is imported: every test depends on them."""
    seconds: float
    """Wall time of the whole suite, the faster of two runs."""
    cpu_s: float = 0.0
    """Its CPU time, which other load hardly changes."""
    lines: Mapping[tuple[str, int], int] = field(default_factory=dict)
    """(path of a module, line) -> bit n is set where test n of `passing` executes it; empty where lines were not measured."""

    @cached_property
    def number(self) -> Mapping[str, int]:
        """Place of each test in `passing`."""
        return {test: n for n, test in enumerate(self.passing)}

    @property
    def limit_s(self) -> float:
        """CPU time after which a run of some tests counts as hanging."""
        return max(5.0, SLOWER * self.cpu_s)

    def run_of(self, tests: Iterable[str], texts: Mapping[str, str | None], *, observe: bool = True) -> dict[str, Any]:
        """A run for `Screen.run`: some tests, with files of the package (by path; None: it is not there) exchanged."""
        write = {f"/work/{path}": text for path, text in texts.items()}
        return {"args": list(tests), "write": write, "timeout_s": self.limit_s, "observe": observe}


async def kept(package: Package, screen: Screen, path: Path, *, lines: bool = False) -> Survey:
    """The survey in the file `path`, made now where there is none. The name has to tell everything that it follows from."""
    if path.is_file():
        return _read(json.loads(path.read_text(encoding="utf-8")))
    found = await survey(package, screen, lines=lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(_written(found)), encoding="utf-8")
    scratch.replace(path)
    return found


def _written(known: Survey) -> dict[str, Any]:
    """As JSON: tests by their number, sets of them as hexadecimal bit sets."""
    return {
        "passing": known.passing,
        "touching": [[*place, [known.number[test] for test in tests]] for place, tests in known.touching.items()],
        "everywhere": sorted(known.everywhere),
        "seconds": known.seconds,
        "cpu_s": known.cpu_s,
        "lines": [[*place, f"{tests:x}"] for place, tests in known.lines.items()],
    }


def _read(told: Mapping[str, Any]) -> Survey:
    passing = tuple(told["passing"])
    return Survey(
        passing=passing,
        touching={(path, line): tuple(passing[n] for n in tests) for path, line, tests in told["touching"]},
        everywhere=frozenset((path, line) for path, line in told["everywhere"]),
        seconds=told["seconds"],
        cpu_s=told["cpu_s"],
        lines={(path, line): int(tests, 16) for path, line, tests in told["lines"]},
    )


async def survey(package: Package, screen: Screen, *, lines: bool = False) -> Survey:
    """Run the healthy suite three times.

    lines: measure which lines each test executes, which takes the first run longer, and keep only tests that pass in a verifier
    as well.

    Raises:
        NoTests: fewer tests pass every time than an environment needs.
    """
    run = {"args": list(package.tests), "timeout_s": 300.0}
    first = (await screen.run([run], touch=True, lines=lines))[0]
    again = await screen.run([run, run], hash_seed=1)
    runs = [first, *again]
    counted = Counter(first["order"])
    passing = [
        test
        for test in first["order"]
        if counted[test] == 1 and _plain(test) and all(r["outcomes"].get(test) == "passed" for r in runs)
    ]
    if lines and passing:
        judged = await screen.as_verified(passing)
        log.info("event=survey_verified package=%s lost=%s", package.name, ",".join(t for t in passing if t not in judged)[:300])
        passing = [test for test in passing if test in judged]
    if len(passing) < MIN_P2P + 1:
        why = next((r["error"] for r in runs if r["error"]), "") or f"{len(first['outcomes'])} tests were found"
        raise NoTests(
            f"{package.name}=={package.version}: expected {MIN_P2P + 1} or more tests that pass every time, got {len(passing)}; "
            f"{why[-600:]}"
        )
    touching: dict[tuple[str, int], list[str]] = {}
    for test in passing:
        for filename, line in first["touch"].get(test, ()):
            touching.setdefault((filename.removeprefix("/work/"), line), []).append(test)
    everywhere = frozenset((filename.removeprefix("/work/"), line) for filename, line in first["imported"])
    seconds, cpu_s = (min(r[name] for r in again) for name in ("seconds", "cpu_s"))
    log.info("event=survey package=%s tests=%d passing=%d seconds=%.2f", package.name, len(first["order"]), len(passing), seconds)
    executed = _lines(first, passing) if lines else {}
    return Survey(tuple(passing), {k: tuple(v) for k, v in touching.items()}, everywhere, seconds, cpu_s, executed)


def _lines(answer: Mapping[str, Any], passing: Sequence[str]) -> dict[tuple[str, int], int]:
    """The bit sets of an answer, over `passing` instead of over all tests."""
    place = {test: n for n, test in enumerate(answer["order"])}
    places = [place[test] for test in passing]
    found: dict[tuple[str, int], int] = {}
    for filename, told in answer["lines"].items():
        for line, text in told.items():
            every = int(text, 16)
            found[filename.removeprefix("/work/"), int(line)] = sum(1 << n for n, old in enumerate(places) if every >> old & 1)
    return found


def _plain(test: str) -> bool:
    """Whether an id can stand on a line of its own."""
    return test.isprintable() and len(test) < 400 and test == test.strip()
