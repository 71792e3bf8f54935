"""SWE environments: a real package with one fault in it, its own tests hidden, and a report of what a user would see.

    survey   the suite runs three times on the healthy package: which tests pass every time, which functions each one enters
    screen   faults in seeded order, each run against the tests that enter its function, many in one sandbox
    draft    what is worth proving: the faulty tree, tests that fail with it and pass without (F2P), and others (P2P)

Nothing here is believed: a draft is proved by the gates in fresh sandboxes. Everything is a pure function of (package, seed),
so an interrupted run continues where it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from env_factory.candidates import Proposal
from env_factory.sources import Package
from env_factory.swe import folder, operators
from env_factory.swe.operators import Site
from env_factory.swe.patch import edit_script
from env_factory.swe.rewriting import other_words
from env_factory.swe.screening import Screen, tree
from env_factory.swe.selection import Judged, Observed, judge, observed, reaching
from env_factory.swe.survey import Survey
from env_factory.swe.symptom import report
from gymsmith.schema import Draft

PER_FUNCTION = 4
"""Drafts that one function may give; about one in five falls at the gates, where a fault shows in no plain value."""
TRIES_PER_FUNCTION = 8
"""Faults of one function that are screened before it is given up."""
WAVES = (6, 24)
"""Least and most faults that are screened in one go."""


@dataclass(slots=True)
class _Tried:
    """What is known of a candidate in the middle of screening."""

    index: int
    site: Site
    tests: list[str]
    judged: Judged = field(default_factory=Judged)
    observed: Observed = field(default_factory=lambda: Observed([], frozenset()))


def pool(package: Package, known: Survey, seed: int) -> list[Site]:
    """Every site whose function some passing test enters, in seeded order."""
    found: list[Site] = []
    for path in package.code:
        try:
            found += operators.sites(path, package.files[path].decode())
        except (SyntaxError, UnicodeDecodeError):
            continue  # Code for another Python; no test of this one reaches it.
    return operators.order([s for s in found if (s.path, s.first_line) in known.touching], seed)


async def draft(
    package: Package,
    known: Survey,
    screen: Screen,
    seed: int,
    *,
    wanted: int = 20,
    done: frozenset[int] = frozenset(),
    start: Mapping[str, int] | None = None,
    per_function: int = PER_FUNCTION,
    whole: bool = False,
) -> AsyncIterator[Proposal]:
    """Screen faults in seeded order, and yield each with its draft or the reason why there is none, in that order.

    `wanted`: how many drafts the caller hopes for; it sets how many are screened at once and changes no result.
    `done`: indices that an earlier, interrupted run has settled. `start`: environments that it got from each function.
    `whole`: the solution has to pass the whole suite besides, which costs a run of it.
    """
    wave = min(max(wanted + 1, WAVES[0]), WAVES[1])
    given = dict(start or {})
    tries: dict[str, int] = {}
    waiting: list[_Tried] = []
    sites = pool(package, known, seed)
    for index, site in enumerate(sites):
        key = f"{site.path}::{site.function}"
        if given.get(key, 0) >= per_function or tries.get(key, 0) >= TRIES_PER_FUNCTION:
            continue
        if not site.valid(package.files[site.path].decode()):
            continue
        tries[key] = tries.get(key, 0) + 1
        if index in done:
            continue
        waiting.append(_Tried(index, site, reaching(known, site.path, site.first_line)))
        if len(waiting) < wave:
            continue
        async for candidate in _wave(package, known, screen, waiting, seed, given, per_function, whole):
            yield candidate
        waiting = []
    async for candidate in _wave(package, known, screen, waiting, seed, given, per_function, whole):
        yield candidate


async def _wave(
    package: Package,
    known: Survey,
    screen: Screen,
    wave: list[_Tried],
    seed: int,
    given: dict[str, int],
    per_function: int,
    whole: bool,
) -> AsyncIterator[Proposal]:
    if not wave:
        return
    texts = [each.site.apply(package.files[each.site.path].decode()) for each in wave]
    answers = await screen.run([known.run_of(e.tests, {e.site.path: text}) for e, text in zip(wave, texts, strict=True)])
    for each, answer in zip(wave, answers, strict=True):
        each.judged = judge(each.tests, answer, known)
    seen = await observed(package, screen, [[] if each.judged.reason else each.judged.described() for each in wave])
    for each, text, found in zip(wave, texts, seen, strict=True):
        key = f"{each.site.path}::{each.site.function}"
        if not each.judged.reason and given.get(key, 0) >= per_function:
            continue  # Its function has given enough meanwhile: not a reject, simply not needed.
        each.observed = found
        made = each.judged.reason or _draft(package, each, text, seed, known if whole else None)
        if isinstance(made, Draft):
            given[key] = given.get(key, 0) + 1
        yield Proposal.of(each.index, made)


def _draft(package: Package, each: _Tried, faulty: str, seed: int, whole: Survey | None) -> Draft | str:
    """The environment, or the reason why it would be a bad one."""
    site = each.site
    healthy = package.files[site.path].decode()
    lines = report(each.judged.described(), untrue=each.observed.untrue)
    if not lines:
        return "thin"
    text = instruction(package, lines)
    if folder.tells(text, [site.path], each.judged.failed):
        return "leak"
    work = tree(package)
    if folder.copied(work, site.path, healthy, faulty):
        return "leak"
    target = f"/work/{site.path}"
    other = other_words(healthy, site)
    return folder.draft(
        package,
        each.judged,
        each.observed.values,
        kind="mutation",
        slug=f"{package.slug}-{seed}-{each.index:04d}",
        description=f"Repair one fault in {package.name} {package.version}, found by what its users see.",
        keywords=("python", "debugging", package.name),
        labels=folder.about(package, operator=site.operator, path=site.path, function=site.function, seed=seed, index=each.index),
        instruction=text,
        work={**work, site.path: faulty.encode()},
        solution=edit_script(target, faulty, healthy),
        alternatives=(edit_script(target, faulty, other),) if other else (),
        cheats=tuple(folder.module_cheats(target)),
        whole=whole,
    )


def instruction(package: Package, lines: Sequence[str]) -> str:
    """What the agent reads: items of a report, without a word about where the fault is."""
    observed = "\n".join(lines)
    return (
        f"The Python package `{package.name}` in /work no longer does what it should. This was observed, with its public names "
        f"imported:\n\n{observed}\n\n"
        "Find the cause in the package's source and repair it there, so that these observations come out as expected and "
        "everything else keeps working. Change as little as you can: do not rename anything and do not change how it is called. "
        "Python is `python3`, and the package can be imported from anywhere. Your work is judged by tests that you do not see, "
        "on the files in /work.\n"
    )
