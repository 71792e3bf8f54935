"""Combinations: two or three faults in different functions of one module, so that one repair is not enough.

    groups   functions of a module that tests enter, in seeded groups of two or three; a function is in one group at most
    single   in each function the first fault, of a seeded few, that a sample of the tests notices by itself
    screen   all of them at once: each must have a test that fails and a symptom that can be told
    draft    as a mutation; the attempts that leave one fault in are dishonest ones

Most groups come to nothing, so a fault is looked for with few tests: those that reach its function and no other of the group
first. What passed there, and cannot reach the other faults, is not run again with all of them; what failed is. At most 2 x 24
tests become an environment's, so of the hundreds that may reach a parser's fault a sample is enough to choose from.

Functions that `reconstruction.py` would take are left to it, so that both kinds together ask for a function twice at most when
mutations are limited to one per function. Combining faults is SWE-smith's strategy with the highest yield (arXiv 2504.21798,
table 1).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from env_factory.candidates import Proposal
from env_factory.sources import Package
from env_factory.swe import folder, operators
from env_factory.swe.documented import documented
from env_factory.swe.operators import Site
from env_factory.swe.patch import change_script
from env_factory.swe.rewriting import other_words
from env_factory.swe.screening import Screen, tree
from env_factory.swe.selection import MAX_F2P, MAX_OBSERVED, Judged, beside, header, judge, observed, reaching, sample
from env_factory.swe.survey import Survey
from env_factory.swe.symptom import report
from env_factory.synth import reconstruction
from env_factory.synth.mutation import instruction
from gymsmith.schema import Draft
from sandboxes.observations import Observation

TRIES = 4
"""Faults that are tried in one function."""
FEW = 6
"""Tests that look for one fault."""
MOST = 96
"""Tests that look for all faults of a group."""
WAVE = 6
SHOWN = 2
"""Items of the report for one fault."""


@dataclass(slots=True)
class _Part:
    """One function of a group, with the fault that was chosen in it."""

    sites: list[Site]
    """Those still to be tried."""
    site: Site | None = None
    judged: Judged = field(default_factory=Judged)
    passed: frozenset[str] = frozenset()
    """Tests that the chosen fault leaves alone, and that reach no other function of the group."""


@dataclass(slots=True)
class _Tried:
    """One group in the middle of screening."""

    index: int
    path: str
    healthy: str
    parts: list[_Part]
    faulty: str = ""
    judged: Judged = field(default_factory=Judged)
    lines: list[str] = field(default_factory=list)
    """Items of the report."""
    observed: list[Observation] = field(default_factory=list)
    reason: str = ""

    @property
    def chosen(self) -> list[Site]:
        """The faults, in the order of the text."""
        return sorted((p.site for p in self.parts if p.site is not None), key=lambda site: site.start)


def groups(package: Package, known: Survey, seed: int) -> list[list[list[Site]]]:
    """Groups of functions, each function as its faults in the order in which they are tried; all in seeded order."""
    asked = {(f.path, f.first_line) for f in documented(package) if not reconstruction.eligible(f, known)}
    rng = random.Random(f"combination/{seed}")
    found: list[list[list[Site]]] = []
    for path in sorted(package.code):
        try:
            text = package.files[path].decode()
            sites = operators.sites(path, text)
        except (SyntaxError, UnicodeDecodeError):
            continue
        by_function: dict[tuple[str, int], list[Site]] = {}
        for site in sites:
            place = (path, site.first_line)
            if place in known.touching and place not in known.everywhere and place not in asked:
                by_function.setdefault((site.function, site.first_line), []).append(site)
        functions = [operators.order(by_function[key], seed) for key in sorted(by_function)]
        rng.shuffle(functions)
        while len(functions) >= 2:
            size = rng.choice((2, 2, 3))
            size = size if len(functions) - size != 1 else len(functions) if len(functions) == 3 else 2
            found.append(functions[:size])
            functions = functions[size:]
    rng.shuffle(found)
    return found


async def draft(
    package: Package, known: Survey, screen: Screen, seed: int, *, done: frozenset[int] = frozenset()
) -> AsyncIterator[Proposal]:
    """Each group in seeded order, with its draft or the reason why there is none. `done`: indices that are settled."""
    every = groups(package, known, seed)
    for start in range(0, len(every), WAVE):
        wave = []
        for index, functions in enumerate(every[start : start + WAVE], start):
            healthy = package.files[functions[0][0].path].decode()
            parts = [_Part([s for s in sites if s.valid(healthy)][:TRIES]) for sites in functions]
            if index not in done:
                wave.append(_Tried(index, functions[0][0].path, healthy, parts))
        await _singles(wave, known, screen)
        await _together(wave, known, screen, package)
        for each in wave:
            made = each.reason or _draft(package, each, known, seed)
            yield Proposal.of(each.index, made)


async def _singles(wave: Sequence[_Tried], known: Survey, screen: Screen) -> None:
    """Choose a fault for each function: the first that some of FEW tests notice, all functions a step at a time."""
    alone = {id(part): _alone(known, each, part) for each in wave for part in each.parts}
    for _ in range(TRIES):
        hopeful = [each for each in wave if sum(part.site is not None or bool(part.sites) for part in each.parts) >= 2]
        trying = [(each, part, part.sites.pop(0)) for each in hopeful for part in each.parts if part.site is None and part.sites]
        reached = [_reaching(known, each, [site]) for each, _, site in trying]
        some = [sample(tests, FEW, alone[id(part)]) for tests, (_, part, _) in zip(reached, trying, strict=True)]
        texts = [{each.path: site.apply(each.healthy)} for each, _, site in trying]
        answers = await screen.run([known.run_of(tests, text) for tests, text in zip(some, texts, strict=True)])
        for (_, part, site), tests, every, answer in zip(trying, some, reached, answers, strict=True):
            judged = judge(tests, answer, known, reached=len(every))
            if not judged.reason and report(judged.described()):
                part.site, part.judged = site, judged
                passed = (test for test in tests if answer["outcomes"].get(test) == "passed")
                part.passed = frozenset(passed) & alone[id(part)]
    for each in wave:
        each.parts = [part for part in each.parts if part.site is not None]
        if len(each.parts) < 2:
            each.reason = "survived"


async def _together(wave: Sequence[_Tried], known: Survey, screen: Screen, package: Package) -> None:
    """Run the faults of each group at once, and keep what shows that each of them is there."""
    left = [each for each in wave if not each.reason]
    for each in left:
        each.faulty = each.healthy
        for site in reversed(each.chosen):
            each.faulty = site.apply(each.faulty)
    every = [_tests(known, each) for each in left]
    tests = [_some(each, tests) for each, tests in zip(left, every, strict=True)]
    answers = await screen.run([known.run_of(some, {each.path: each.faulty}) for each, some in zip(left, tests, strict=True)])
    for each, reached, some, answer in zip(left, every, tests, answers, strict=True):
        spared = sorted(set().union(*(part.passed for part in each.parts)))
        answer["outcomes"] |= dict.fromkeys(spared, "passed")
        some += spared
        each.judged = judge(some, answer, known, reached=len(reached))
        each.reason = each.judged.reason or _keep(each, some, answer, known)
    left = [each for each in left if not each.reason]
    failures = [[*each.judged.described(), *(f for part in each.parts for f in part.judged.described())] for each in left]
    seen = await observed(package, screen, failures, at_most=MAX_OBSERVED + 2, told=MAX_F2P)
    for each, found in zip(left, seen, strict=True):
        each.observed = found.values
        each.reason = _tell(each, found.untrue)


def _keep(each: _Tried, tests: Sequence[str], answer: Mapping[str, Any], known: Survey) -> str:
    """Choose the tests: some that fail for each fault alone, in turns; or why that is not possible."""
    failed = {t for t in tests if answer["outcomes"].get(t) != "passed"}
    for part in each.parts:
        part.judged.failed = [t for t in part.judged.failed if t in failed]
    alone = [part.judged.failed for part in each.parts]
    if not all(alone):
        return "masked"
    kept = _turns([*alone, [t for t in tests if t in failed]])[:MAX_F2P]
    passed = [t for t in tests if t not in failed]
    each.judged = Judged(kept, beside(kept, failed, passed, known), answer["failures"])
    return ""


def _tell(each: _Tried, untrue: frozenset[str]) -> str:
    """Write the report; or why it cannot be written."""
    for part in each.parts:
        # What the fault alone would show as well: a line that another fault causes says nothing about this one.
        own = report(part.judged.described(), MAX_F2P, untrue=untrue)
        both = [each.judged.failures[t] for t in part.judged.failed if t in each.judged.failures]
        told = [line for line in report(both, MAX_F2P, untrue=untrue) if line in own]
        if not told:
            return "masked" if own else "thin"
        each.lines += told[:SHOWN]
    return ""


def _turns(lists: Sequence[Sequence[str]]) -> list[str]:
    """The members of all lists, one of each in turn, none twice."""
    longest = max(map(len, lists))
    return list(dict.fromkeys(some[n] for n in range(longest) for some in lists if n < len(some)))


def _tests(known: Survey, each: _Tried) -> list[str]:
    """Tests that reach some fault. Those that fail for one alone come first and in turns, for few failures are described."""
    first = _turns([part.judged.failed for part in each.parts])
    return list(dict.fromkeys([*first, *_reaching(known, each, each.chosen)]))


def _some(each: _Tried, tests: Sequence[str]) -> list[str]:
    """Those to be run with all faults in place: not the ones that passed with a fault that no other can add to."""
    failed = {test for part in each.parts for test in part.judged.failed}
    spared = frozenset().union(*(part.passed for part in each.parts))
    return sample([test for test in tests if test not in spared], MOST, failed)


def _alone(known: Survey, each: _Tried, part: _Part) -> frozenset[str]:
    """Tests that enter the function of this part and of no other part of its group."""

    def entering(one: _Part) -> frozenset[str]:
        return frozenset(known.touching.get((each.path, one.sites[0].first_line), ()) if one.sites else ())

    return entering(part).difference(*(entering(other) for other in each.parts if other is not part))


def _reaching(known: Survey, each: _Tried, sites: Sequence[Site]) -> list[str]:
    tests = {t for s in sites for t in reaching(known, s.path, s.first_line, header(each.healthy, s.line))}
    return [test for test in known.passing if test in tests]


def _draft(package: Package, each: _Tried, known: Survey, seed: int) -> Draft | str:
    """The environment, or the reason why it would be a bad one."""
    healthy, sites, work = each.healthy, each.chosen, tree(package)
    text = instruction(package, list(dict.fromkeys(each.lines)))
    if folder.tells(text, [each.path], each.judged.failed):
        return "leak"
    if any(folder.copied(work, each.path, healthy, site.apply(healthy)) for site in sites):
        return "leak"
    target = f"/work/{each.path}"
    other = next((o for site in sites if (o := other_words(healthy, site)) is not None), None)
    halves = [(f"leaves-fault-{n}", site.apply(healthy)) for n, site in enumerate(sites, 1)]
    return folder.draft(
        package,
        each.judged,
        each.observed,
        kind="combination",
        slug=f"{package.slug}-faults-{seed}-{each.index:04d}",
        description=f"Repair {len(sites)} faults in {package.name} {package.version}, found by what its users see.",
        keywords=("python", "debugging", package.name),
        labels=folder.about(
            package,
            operator=" + ".join(site.operator for site in sites),
            path=each.path,
            function=" + ".join(site.function for site in sites),
            seed=seed,
            index=each.index,
        ),
        instruction=text,
        work={**work, each.path: each.faulty.encode()},
        solution=change_script({target: (each.faulty, healthy)}),
        alternatives=(change_script({target: (each.faulty, other)}),) if other else (),
        cheats=(*folder.module_cheats(target), *((name, change_script({target: (each.faulty, half)})) for name, half in halves)),
        whole=known,
    )
