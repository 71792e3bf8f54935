"""Which tests an environment gets, and what the host compares by itself, from runs of the tests that a change can reach.

A change can only alter tests that execute what it changes. `reaching` answers from one measured run of the healthy suite: by
line where that was measured, else by function. What is chosen here is proposed; the gates prove it.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from env_factory.sources import Package
from env_factory.swe.screening import Screen
from env_factory.swe.survey import MIN_P2P, Survey
from env_factory.swe.symptom import checkable, observations, report
from sandboxes.observations import Observation

MAX_P2P, MAX_F2P = 24, 24
MAX_OBSERVED = 6


@dataclass(slots=True)
class Judged:
    """What one run of a faulty package says."""

    failed: list[str] = field(default_factory=list)
    """Tests that the fault breaks, at most MAX_F2P."""
    passed: list[str] = field(default_factory=list)
    """Tests that pass either way."""
    failures: Mapping[str, Any] = field(default_factory=dict)
    """What failures looked like, by test (see `probe/screen.py`)."""
    reason: str = ""
    """Why the fault is no good: survived, breaks-half, hang, died, few-p2p."""

    def described(self) -> list[Mapping[str, Any]]:
        """The failures of the tests that were kept."""
        return [self.failures[test] for test in self.failed if test in self.failures]


def reaching(known: Survey, path: str, first_line: int, lines: Iterable[int] = ()) -> list[str]:
    """Passing tests that enter the function at `first_line` of the module `path`, in the suite's order.

    lines: where the change is; tests that execute none of them are left out, where that was measured.
    """
    if (path, first_line) in known.everywhere:
        return list(known.passing)
    mask = 0
    for line in lines:
        mask |= known.lines.get((path, line), 0)
    entering = known.touching.get((path, first_line), ())
    if not mask:
        return list(entering)
    return [test for test in entering if mask >> known.number[test] & 1]


def header(text: str, line: int) -> range:
    """The lines that are executed when the innermost statement around `line` is: all of it, or the head of a block."""
    found: ast.stmt | None = None
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            inner = found is None or (node.lineno, -(node.end_lineno or 0)) > (found.lineno, -(found.end_lineno or 0))
            found = node if inner else found
    if found is None:
        return range(line, line + 1)
    body = getattr(found, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else found.end_lineno or found.lineno
    return range(found.lineno, max(last, line, found.lineno) + 1)


def sample(tests: Sequence[str], most: int, first: Container[str] = ()) -> list[str]:
    """At most `most` of the tests, in their order: those in `first` before others, and of each as spread as they stand.

    A fault that many tests reach is seldom told by the one that comes first; neighbours in a suite are alike.
    """
    chosen: list[str] = []
    for some in ([t for t in tests if t in first], [t for t in tests if t not in first]):
        room = min(most - len(chosen), len(some))
        chosen += [some[n * len(some) // room] for n in range(room)]
    kept = set(chosen)
    return [test for test in tests if test in kept]


def judge(
    tests: Sequence[str],
    answer: Mapping[str, Any],
    known: Survey,
    *,
    most: float = 0.5,
    missing_fails: bool = False,
    reached: int = 0,
) -> Judged:
    """Sort the tests of a run into those that fail and those that pass, or say why the fault is no good.

    most: share of all passing tests that a fault may break. missing_fails: a test that was not run counts as failed, as where
    its file imports a name that is not there yet; else it means that the run died. reached: how many tests could tell the fault,
    where `tests` are a sample of them: what the sample says is taken for all.
    """
    outcomes = answer["outcomes"]
    if answer["error"] in ("hang", "died"):
        return Judged(reason=answer["error"])
    failed = [t for t in tests if outcomes.get(t) != "passed"]
    passed = [t for t in tests if outcomes.get(t) == "passed"]
    if not failed:
        return Judged(reason="survived")
    if len(failed) * max(1.0, reached / len(tests)) > most * len(known.passing):
        return Judged(reason="breaks-half")
    if not missing_fails and any(t not in outcomes for t in failed):
        return Judged(reason="died")
    kept = failed[:MAX_F2P]
    others = beside(kept, failed, passed, known)
    return Judged(kept, others, answer["failures"], "" if len(others) >= MIN_P2P else "few-p2p")


def beside(kept: Sequence[str], failed: Iterable[str], passed: Sequence[str], known: Survey) -> list[str]:
    """Tests to run beside those that fail: from the same files first, since the verifier then has fewer files to import."""
    files = {t.split("::")[0] for t in kept}
    broken = set(failed) | set(kept)
    near = [t for t in passed if t.split("::")[0] in files]
    others = [t for t in known.passing if t not in broken and t not in set(near)]
    chosen = near[:MAX_P2P]
    for more in ([t for t in others if t.split("::")[0] in files], others):
        if len(chosen) < 2 * MIN_P2P:
            chosen += [t for t in more if t not in chosen][: 2 * MIN_P2P - len(chosen)]
    return chosen


class Observed(NamedTuple):
    """What was found out about the values in some failures."""

    values: list[Observation]
    """What the host will compare; each holds on the healthy package."""
    untrue: frozenset[str]
    """Items of a report that do not hold there: a reader must not be told them."""


async def observed(
    package: Package, screen: Screen, every: Sequence[Sequence[Mapping[str, Any]]], *, at_most: int = MAX_OBSERVED, told: int = 3
) -> list[Observed]:
    """For each list of failures: what the host can compare by itself, and which symptoms are untrue of the healthy package.

    told: how many items a report has; those are looked at in any case.
    """
    asked: list[tuple[int, Observation]] = []
    texts: list[dict[Observation, str]] = []
    for owner, failures in enumerate(every):
        found, lines = checkable(failures), report(failures, told)
        texts.append({each: text for text, each in found.items()})
        chosen = observations(failures, lines)[:at_most]
        asked += [(owner, each) for each in dict.fromkeys([*chosen, *(found[text] for text in found if text in lines)])]
    holding = await screen.holding([each for _, each in asked], roots(package))
    seen = [Observed([], frozenset()) for _ in every]
    for (owner, each), holds in zip(asked, holding, strict=True):
        values, untrue = seen[owner]
        if not holds:
            seen[owner] = Observed(values, untrue | {texts[owner][each]})
        elif len(values) < at_most:
            values.append(each._replace(id=f"observed-{len(values) + 1}"))
    return seen


def roots(package: Package) -> list[str]:
    """Where the package's code lies in a sandbox."""
    return [f"/work/{root}".rstrip("/") for root in package.roots]
