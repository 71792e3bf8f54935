"""Function reconstruction: a documented function loses its body; name, signature and docstring say what has to be written.

    pool     documented functions that passing tests enter, in seeded order
    screen   without its body: which tests fail; with a body that does nothing: which values differ, for the host to compare;
             with faults in the original body: how many of them do those tests notice (the mutation score)
    draft    the package without the body; the original body is the solution, its mutants are dishonest attempts

Turned down are functions of which the tests or the docstring say too little, and those whose original somebody could copy: from
an installed package, a vendored one, byte code, another file or another function. The setting is SWE-Flow's and commit0's; that
docstrings and tests are enough has to be shown for each function.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from env_factory.candidates import Proposal
from env_factory.sources import Package
from env_factory.swe import folder, operators
from env_factory.swe.documented import MIN_DOC, MIN_NODES, Documented, documented
from env_factory.swe.operators import Site
from env_factory.swe.patch import edit_script
from env_factory.swe.rewriting import other_words
from env_factory.swe.screening import Screen, tree
from env_factory.swe.selection import Judged, judge, observed, reaching
from env_factory.swe.survey import Survey
from gymsmith.schema import Draft
from sandboxes.observations import Observation

MIN_TESTS = 3
"""Passing tests that must enter a function."""
MUTANTS = 8
"""Faults of a body that its tests are tried on, at most."""
MIN_MUTANTS = 2
MIN_SCORE = 0.75
"""Share of them that the tests must notice. With less, the gates' own mutants turn most drafts down, at the price of a proof."""
MOST_BROKEN = 0.8
"""Share of the suite that may need the function."""
SAME = 0.8
"""Share of a body's lines that, found in one other place, makes a copy of it."""
WAVE = 6
MUTANT_CHEATS = 3
SCAN_S = 180.0


@dataclass(slots=True)
class _Tried:
    """What is known of a candidate in the middle of screening."""

    index: int
    function: Documented
    healthy: str
    tests: list[str] = field(default_factory=list)
    judged: Judged = field(default_factory=Judged)
    failures: list[Mapping[str, Any]] = field(default_factory=list)
    """Of the body that does nothing and of the mutants, on the tests that were kept."""
    mutants: list[Site] = field(default_factory=list)
    noticed: list[Site] = field(default_factory=list)
    observed: list[Observation] = field(default_factory=list)
    reason: str = ""

    @property
    def score(self) -> float:
        """Share of the mutants that the tests notice."""
        return len(self.noticed) / len(self.mutants) if self.mutants else 0.0


def pool(package: Package, known: Survey, seed: int) -> list[Documented]:
    """Documented functions that some passing test enters, in seeded order."""
    found = [f for f in documented(package) if (f.path, f.first_line) in known.touching]
    random.Random(f"reconstruction/{seed}").shuffle(found)
    return found


def eligible(function: Documented, known: Survey) -> str:
    """Why a function cannot be asked for, as far as that can be told without running anything; empty when it can."""
    place = (function.path, function.first_line)
    if place in known.everywhere:
        return "import-time"
    if len(function.doc) < MIN_DOC:
        return "short-docstring"
    if function.nodes < MIN_NODES:
        return "trivial"
    return "few-tests" if len(known.touching.get(place, ())) < MIN_TESTS else ""


async def draft(
    package: Package, known: Survey, screen: Screen, seed: int, *, done: frozenset[int] = frozenset()
) -> AsyncIterator[Proposal]:
    """Each function in seeded order, with its draft or the reason why there is none. `done`: indices that are settled."""
    functions = pool(package, known, seed)
    copied: Mapping[str, str] | None = None
    for start in range(0, len(functions), WAVE):
        wave = [
            _Tried(start + n, function, package.files[function.path].decode())
            for n, function in enumerate(functions[start : start + WAVE])
            if start + n not in done
        ]
        if wave and copied is None:
            copied = await copies(package, screen, functions)
        for each in wave:
            assert copied is not None
            place = (each.function.path, each.function.first_line)
            each.reason = eligible(each.function, known) or _copied(package, each, copied)
            each.tests = [] if each.reason else reaching(known, *place)
        await _screen([each for each in wave if not each.reason], package, known, screen, seed)
        for each in wave:
            made = each.reason or _draft(package, each, known, seed)
            yield Proposal.of(each.index, made)


async def copies(package: Package, screen: Screen, functions: Sequence[Documented]) -> Mapping[str, str]:
    """Key of each function that can be found on the machine outside /work -> where."""
    asked = {
        each.key: {
            "file": PurePosixPath(each.path).name,
            "lines": each.lines(package.files[each.path].decode()),
            "doc": max(each.doc.split("\n"), key=len),
        }
        for each in functions
    }
    request = {
        "skip": ["/proc", "/sys", "/dev", "/work", "/tests", "/tmp"],
        "archives": [package.name.lower().replace("-", "_")],
        "functions": {key: told for key, told in asked.items() if told["lines"]},
    }
    found: dict[str, str] = await screen.ask("copies.py", request, timeout_s=SCAN_S)
    return found


def _copied(package: Package, each: _Tried, copied: Mapping[str, str]) -> str:
    """Whether the body can be read somewhere."""
    said = set(each.function.lines(each.healthy))
    if not said:
        return "trivial"
    if each.function.key in copied:
        return "copy"
    if len([line for line in said if line in each.function.doc]) >= 0.5 * len(said):
        return "leak"
    places = {path: data for path, data in tree(package).items() if path != each.function.path}
    places[each.function.path] = each.function.without_body(each.healthy).encode()
    for data in places.values():
        lines = {line.strip() for line in data.decode(errors="replace").split("\n")}
        if len(said & lines) >= SAME * len(said):
            return "copy"
    return ""


async def _screen(wave: Sequence[_Tried], package: Package, known: Survey, screen: Screen, seed: int) -> None:
    """Find tests, values and the mutation score of each."""
    blanks = [{each.function.path: each.function.without_body(each.healthy)} for each in wave]
    without = [known.run_of(each.tests, blank, observe=False) for each, blank in zip(wave, blanks, strict=True)]
    for each, answer in zip(wave, await screen.run(without), strict=True):
        each.judged = judge(each.tests, answer, known, most=MOST_BROKEN)
        each.reason = each.judged.reason
        if not each.reason and len(each.judged.failed) < MIN_TESTS:
            each.reason = "few-tests"
    left = [each for each in wave if not each.reason]
    for each in left:
        each.mutants = mutants(each.function, each.healthy, seed)
    runs: list[tuple[_Tried, Site | None, str]] = [(each, None, each.function.silent(each.healthy)) for each in left]
    runs += [(each, site, site.apply(each.healthy)) for each in left for site in each.mutants]
    answers = await screen.run([known.run_of(each.judged.failed, {each.function.path: text}) for each, _, text in runs])
    for (each, site, _), answer in zip(runs, answers, strict=True):
        each.failures += answer["failures"].values()
        broken = answer["error"] in ("hang", "died") or any(answer["outcomes"].get(t) != "passed" for t in each.judged.failed)
        if site is not None and broken:
            each.noticed.append(site)
    for each in left:
        if len(each.mutants) < MIN_MUTANTS or each.score < MIN_SCORE:
            each.reason = "weak-tests"
    left = [each for each in left if not each.reason]
    for each, found in zip(left, await observed(package, screen, [each.failures for each in left]), strict=True):
        each.observed = found.values


def mutants(function: Documented, healthy: str, seed: int) -> list[Site]:
    """Faults of the body, in seeded order, operators taking turns."""
    every = [
        site
        for site in operators.sites(function.path, healthy)
        if site.first_line == function.first_line and site.function == function.name and site.valid(healthy)
    ]
    return operators.order(every, seed)[:MUTANTS]


def _draft(package: Package, each: _Tried, known: Survey, seed: int) -> Draft | str:
    """The environment, or the reason why it would be a bad one."""
    function, healthy = each.function, each.healthy
    text = _instruction(package, each)
    if any(test in text for test in each.judged.failed):
        return "leak"
    blank, target = function.without_body(healthy), f"/work/{function.path}"
    other = next((o for site in each.mutants if (o := other_words(healthy, site)) is not None), None)
    wrong = [("do-nothing", function.silent(healthy))]
    wrong += [(f"mutant-{n}", site.apply(healthy)) for n, site in enumerate(each.noticed[:MUTANT_CHEATS], 1)]
    return folder.draft(
        package,
        each.judged,
        each.observed,
        kind="reconstruction",
        slug=f"{package.slug}-body-{seed}-{each.index:04d}",
        description=f"Write a function of {package.name} {package.version} from its signature and docstring.",
        keywords=("python", "implementation", package.name),
        labels=folder.about(
            package, operator="reconstruction", path=function.path, function=function.name, seed=seed, index=each.index
        )
        | {"mutation_score": f"{each.score:.2f}"},
        instruction=text,
        work={**tree(package), function.path: blank.encode()},
        solution=edit_script(target, blank, healthy),
        alternatives=(edit_script(target, blank, other),) if other else (),
        cheats=(*folder.module_cheats(target), *((name, edit_script(target, blank, bad)) for name, bad in wrong)),
        whole=known,
    )


def _instruction(package: Package, each: _Tried) -> str:
    fence = "~~~" if "```" in each.function.head else "```"
    return (
        f"In the Python package `{package.name}` in /work, `{_public_name(each)}` has lost its body: it raises "
        "NotImplementedError. This is what is left of it:\n\n"
        f"{fence}python\n{each.function.head}\n{fence}\n\n"
        "Write the body again, in the same place, so that it does what the docstring says and what the rest of the package "
        "relies on. Leave the name, the signature and the docstring as they are, and everything else working. Python is "
        "`python3`, and the package can be imported from anywhere. Your work is judged by tests that you do not see, on the "
        "files in /work.\n"
    )


def _public_name(each: _Tried) -> str:
    """As a user of the package would import it, if the tests do; else by its module."""
    first, _, rest = each.function.name.partition(".")
    homes = {failure["homes"][first] for failure in each.failures if first in failure.get("homes", {})}
    module = each.function.path.removesuffix(".py").removesuffix("/__init__").removeprefix("src/").replace("/", ".")
    home = min(homes, key=lambda name: (name.count("."), name), default=module)
    return ".".join(part for part in (home, first, rest) if part)
