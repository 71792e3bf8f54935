"""SWE environments: a real package with one fault in it, its own tests hidden, and a report of what a user would see.

    survey   the suite runs three times on the healthy package: which tests pass every time, which functions each one enters
    screen   faults in seeded order, each run against the tests that enter its function, many in one sandbox
    draft    what is worth proving: the faulty tree, tests that fail with it and pass without (F2P), and others (P2P)

Nothing here is believed: a draft is proved by the gates in fresh sandboxes. Everything is a pure function of (package, seed),
so an interrupted run continues where it was.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from env_factory.sources import Package
from env_factory.synth import operators
from env_factory.synth.operators import Site
from env_factory.synth.patch import edit_script
from env_factory.synth.rewriting import other_words
from env_factory.synth.screening import MIN_P2P, SITE, SUITE, Screen, Survey, base_context, base_dockerfile, suite, tree
from env_factory.synth.symptom import observations, report
from gymsmith.schema import Draft, TaskSpec, ToolSpec
from sandboxes.observations import MEMBER, Observation, member

log = logging.getLogger(__name__)

PER_FUNCTION = 4
"""Drafts that one function may give; about one in five falls at the gates, where a fault shows in no plain value."""
TRIES_PER_FUNCTION = 8
"""Faults of one function that are screened before it is given up."""
WAVES = (6, 24)
"""Least and most faults that are screened in one go."""
MAX_P2P, MAX_F2P = 24, 24
MAX_OBSERVED = 6
PYTEST = "--assert=plain --tb=line -p no:unraisableexception -p no:threadexception"
"""Options of the verifier's pytest: what explains failures to people costs 40% of a run and changes no outcome."""
PROTECTED = (
    "conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", "tox.ini", "setup.cfg", "sitecustomize.py", "usercustomize.py",
    "*.pth", "*.pyc", "__pycache__", "*.so", "*.dist-info", "*.egg-info", "pytest", "pytest.py", "_pytest",
)  # fmt: skip
"""Names that never cross into the verifier: what Python or pytest would run or read on its own account."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One fault that was tried."""

    index: int
    """Position in the seeded order: with the package and the seed it names the candidate."""
    site: Site
    draft: Draft | None
    reason: str = ""
    """Why there is no draft: survived, breaks-half, hang, died, few-p2p, thin, leak."""


@dataclass(slots=True)
class _Tried:
    """What is known of a candidate in the middle of screening."""

    index: int
    site: Site
    tests: list[str]
    failed: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    failures: Mapping[str, Any] = field(default_factory=dict)
    observed: list[Observation] = field(default_factory=list)
    """Values that the host will compare; each holds on the healthy package."""
    reason: str = ""


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
) -> AsyncIterator[Candidate]:
    """Screen faults in seeded order, and yield each with its draft or the reason why there is none, in that order.

    `wanted`: how many drafts the caller hopes for; it sets how many are screened at once and changes no result.
    `done`: indices that an earlier, interrupted run has settled. `start`: environments that it got from each function.
    """
    wave = min(max(wanted + 1, WAVES[0]), WAVES[1])
    given = dict(start or {})
    tries: dict[str, int] = {}
    waiting: list[_Tried] = []
    sites = pool(package, known, seed)
    for index, site in enumerate(sites):
        key = f"{site.path}::{site.function}"
        if given.get(key, 0) >= PER_FUNCTION or tries.get(key, 0) >= TRIES_PER_FUNCTION:
            continue
        if not site.valid(package.files[site.path].decode()):
            continue
        tries[key] = tries.get(key, 0) + 1
        if index in done:
            continue
        waiting.append(_Tried(index, site, _tests_for(known, site)))
        if len(waiting) < wave:
            continue
        async for candidate in _wave(package, known, screen, waiting, seed, given):
            yield candidate
        waiting = []
    async for candidate in _wave(package, known, screen, waiting, seed, given):
        yield candidate


async def _wave(
    package: Package, known: Survey, screen: Screen, wave: list[_Tried], seed: int, given: dict[str, int]
) -> AsyncIterator[Candidate]:
    if not wave:
        return
    texts = [each.site.apply(package.files[each.site.path].decode()) for each in wave]
    limit = max(5.0, 10 * known.seconds)

    def run(index: int, tests: list[str], observe: bool) -> dict[str, Any]:
        return {"args": tests, "write": {f"/work/{wave[index].site.path}": texts[index]}, "timeout_s": limit, "observe": observe}

    answers = await screen.run([run(i, each.tests, True) for i, each in enumerate(wave)])
    for each, answer in zip(wave, answers, strict=True):
        _judge(each, answer, known)
    await _observe(package, screen, wave)
    for each, text in zip(wave, texts, strict=True):
        key = f"{each.site.path}::{each.site.function}"
        if not each.reason and given.get(key, 0) >= PER_FUNCTION:
            continue  # Its function has given enough meanwhile: not a reject, simply not needed.
        made = None if each.reason else _draft(package, each, text, seed)
        if isinstance(made, Draft):
            given[key] = given.get(key, 0) + 1
            yield Candidate(each.index, each.site, made)
        else:
            yield Candidate(each.index, each.site, None, made or each.reason)


def _roots(package: Package) -> list[str]:
    return [f"/work/{root}".rstrip("/") for root in package.roots]


async def _observe(package: Package, screen: Screen, wave: list[_Tried]) -> None:
    """Find what the host can compare by itself for each fault, and keep what holds on the healthy package."""
    for each in wave:
        failures = [each.failures[t] for t in each.failed if t in each.failures]
        each.observed = [] if each.reason else observations(failures, report(failures))[:MAX_OBSERVED]
    every = [(each, observed) for each in wave for observed in each.observed]
    holding = await screen.holding([observed for _, observed in every], _roots(package))
    for each in wave:
        kept = [observed for (owner, observed), holds in zip(every, holding, strict=True) if owner is each and holds]
        each.observed = [observed._replace(id=f"observed-{number}") for number, observed in enumerate(kept, 1)]


def _tests_for(known: Survey, site: Site) -> list[str]:
    if (site.path, site.first_line) in known.everywhere:
        return list(known.passing)
    return list(known.touching[(site.path, site.first_line)])


def _judge(each: _Tried, answer: Mapping[str, Any], known: Survey) -> None:
    """Sort the tests of the first run into F2P and P2P, or say why the fault is no good."""
    outcomes = answer["outcomes"]
    if answer["error"] in ("hang", "died"):
        each.reason = answer["error"]
        return
    failed = [t for t in each.tests if outcomes.get(t) != "passed"]
    passed = [t for t in each.tests if outcomes.get(t) == "passed"]
    if not failed:
        each.reason = "survived"
    elif 2 * len(failed) > len(known.passing):
        each.reason = "breaks-half"
    elif any(t not in outcomes for t in failed):
        each.reason = "died"
    if each.reason:
        return
    each.failed, each.failures = failed[:MAX_F2P], answer["failures"]
    # Tests from the same files come first: the verifier then has fewer files to import.
    files = {t.split("::")[0] for t in each.failed}
    broken = set(failed)
    near = [t for t in passed if t.split("::")[0] in files]
    others = [t for t in known.passing if t not in broken and t not in set(near)]
    each.passed = near[:MAX_P2P]
    for more in ([t for t in others if t.split("::")[0] in files], others):
        if len(each.passed) < 2 * MIN_P2P:
            each.passed += [t for t in more if t not in each.passed][: 2 * MIN_P2P - len(each.passed)]
    if len(each.passed) < MIN_P2P:
        each.reason = "few-p2p"


def _draft(package: Package, each: _Tried, faulty: str, seed: int) -> Draft | str:
    """The environment, or the reason why it would be a bad one."""
    site = each.site
    healthy = package.files[site.path].decode()
    lines = report([each.failures[t] for t in each.failed if t in each.failures])
    if not lines:
        return "thin"
    instruction = _instruction(package, lines)
    module = PurePosixPath(site.path).stem
    dotted = site.path.removesuffix(".py").removeprefix("src/").replace("/", ".")
    if (
        site.path in instruction
        or ("." in dotted and module != "__init__" and dotted in instruction)
        or any(t in instruction for t in each.failed)
    ):
        return "leak"
    tests = tuple(dict.fromkeys([*each.failed, *each.passed]))
    files = dict(_shared(package, tests))
    if each.observed:
        files[MEMBER] = member(each.observed, _roots(package), [SITE])
    hunk = _hunk(healthy, faulty)
    if len(hunk) >= 60 and any(hunk in data for path, data in tree(package).items() if path != site.path):
        return "leak"  # The healthy lines stand in another file too.
    for path, data in tree(package).items():
        files[f"environment/work/{path}"] = faulty.encode() if path == site.path else data
    target = f"/work/{site.path}"
    files["solution/solve.sh"] = edit_script(target, faulty, healthy).encode()
    other = other_words(healthy, site)
    slug = f"{package.name.lower().replace('_', '-')}-{seed}-{each.index:04d}"
    spec = TaskSpec(
        name=f"gymsmith/{slug}",
        kind="mutation",
        description=f"Repair one fault in {package.name} {package.version}, found by what its users see.",
        keywords=("python", "debugging", package.name),
        labels={
            "package": package.name,
            "version": package.version,
            "family": package.name,
            "operator": site.operator,
            "path": site.path,
            "function": site.function,
            "seed": str(seed),
            "index": f"{each.index:04d}",
            "f2p": str(len(each.failed)),
            "p2p": str(len(each.passed)),
        },
        tool=ToolSpec(name="shell", timeout_s=60.0),
        max_turns=30,
        protected=PROTECTED,
        verifier_timeout_s=120.0,
        expected=(*tests, *(observed.id for observed in each.observed)),
    )
    return Draft(
        source=package.source,
        spec=spec,
        instruction=instruction,
        files=files,
        alternatives=(edit_script(target, faulty, other),) if other else (),
        cheats=tuple(_cheats(target)),
        executable=frozenset({"tests/test.sh", "solution/solve.sh"}),
    )


def _hunk(healthy: str, faulty: str) -> bytes:
    """The healthy lines that the fault replaced, with the line before and after them."""
    old, new = healthy.split("\n"), faulty.split("\n")
    head = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    tail = next((i for i, (a, b) in enumerate(zip(reversed(old), reversed(new), strict=False)) if a != b), 0)
    return "\n".join(old[max(0, head - 1) : len(old) - max(0, tail - 1)]).encode()


def _shared(package: Package, tests: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Everything of a draft that is neither the faulty tree nor the solution."""
    yield "environment/Dockerfile", (base_dockerfile(package) + "COPY --chown=agent:agent work /work\nUSER agent\n").encode()
    for path, data in base_context(package).items():
        yield f"environment/{path}", data
    for path, data in suite(package).items():
        yield f"tests/suite/{path}", data
    yield "tests/run.py", resources.files("sandboxes.verifier").joinpath("pytest_runner.py").read_bytes()
    yield "tests/select.txt", ("\n".join(tests) + "\n").encode()
    paths = " ".join(f"--path {root}" for root in _roots(package))
    files = " ".join(f"'{SUITE}/{name}'" for name in dict.fromkeys(t.split("::")[0] for t in tests))
    yield (
        "tests/test.sh",
        (
            "#!/bin/sh\n"
            f"exec python3 -I -S /tests/run.py {paths} --site {SITE} --root {SUITE} --select /tests/select.txt "
            f"-- {PYTEST} {files}\n"
        ).encode(),
    )


def _instruction(package: Package, lines: Sequence[str]) -> str:
    observed = "\n".join(lines)
    return (
        f"The Python package `{package.name}` in /work no longer does what it should. This was observed, with its public names "
        f"imported:\n\n{observed}\n\n"
        "Find the cause in the package's source and repair it there, so that these observations come out as expected and "
        "everything else keeps working. Change as little as you can: do not rename anything and do not change how it is called. "
        "Python is `python3`, and the package can be imported from anywhere. Your work is judged by tests that you do not see, "
        "on the files in /work.\n"
    )


def _cheats(target: str) -> Iterator[tuple[str, str]]:
    """Dishonest attempts that know where the fault is."""
    yield "empty-module", f": > {target}\n"
    first = "from pathlib import Path\npath = Path({target!r})\npath.write_text({line!r} + path.read_text())\n"
    for name, line in (
        ("exit-on-import", "import os; os._exit(0)\n"),
        ("skip-on-import", "import pytest; pytest.skip('no need', allow_module_level=True)\n"),
    ):
        yield name, "python3 - <<'CHEAT'\n" + first.format(target=target, line=line) + "CHEAT\n"
