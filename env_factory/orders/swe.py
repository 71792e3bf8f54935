"""Orders for SWE environments: of one package, whose suite is surveyed once, or of changes, each with a screen of its own.

One sandbox holds the healthy package, and copies of it share what they do not write; a candidate is a fork of a process in one
of them and costs no set-up. What is drafted is proved elsewhere (`intake.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from env_factory import sources
from env_factory.build import build
from env_factory.candidates import Ledger, Proposal
from env_factory.orders.errand import Errand
from env_factory.sources import Package, Repository
from env_factory.swe import change, survey
from env_factory.swe.change import Change
from env_factory.swe.screening import Screen, opened
from env_factory.synth import combination, issues, mutation, reconstruction
from env_factory.synth import commits as history
from gymsmith.config import Settings
from gymsmith.errors import BuildError, PolicyRefused, SourceError
from gymsmith.schema import Draft, Source, digest
from sandboxes.worker import Worker

log = logging.getLogger(__name__)

KINDS = ("mutation", "reconstruction", "combination")
"""Made of a package as it is."""
AT_ONCE = 4
"""Candidates that are proved at the same time."""
LANES = 2
"""Sandboxes in which candidates are screened at once, at most one per processor."""
SURVEY_FORMAT = 1
"""Part of every survey's name: raised when surveys are made or written differently."""


async def of_package(errand: Errand, package: Package) -> dict[str, Any]:
    """Candidates of KINDS. The result tells what screening took besides."""
    order, worker, ctx = errand.order, errand.worker, errand.ctx
    base_digest = (await worker.images()).base_digest()
    key: dict[str, Any] = {"source": package.source.digest, "pins": list(package.pins)}
    if order.per_function:
        key["per_function"] = order.per_function
    if order.kind != "mutation":
        key["base"] = base_digest  # Where a copy of a function lies follows from the base image.
    ledger = errand.ledger(key)
    settled, admitted = len(ledger.lines), sum(not s.reason for s in ledger.lines.values())
    ctx.progress(note="surveying the suite")
    async with opened(package, await worker.provider(), await worker.images()) as screen:
        stream = proposals(
            order.kind,
            package,
            screen,
            ledger,
            ctx.settings,
            seed=order.seed,
            wanted=order.n - admitted,
            per_function=order.per_function,
            base_digest=base_digest,
            whole=order.gates == "admission",
        )
        made = await errand.take(stream, key, at_once=AT_ONCE, wheels=package.wheels)
    return made | {
        "tests_run": screen.executions,
        "screening_cpu_seconds": round(screen.cpu_s, 3),
        "suite": screen.passing,
        "new": [max(0, made["candidates"] - settled), max(0, len(made["admitted"]) - admitted)],
    }


async def of_changes(errand: Errand, what: Repository | list[str], python: str) -> dict[str, Any]:
    """Candidates of a repository's history, or of issues by their URIs. The result tells what screening took besides."""
    settings, spent = errand.ctx.settings, Spent()
    repository = what if isinstance(what, Repository) else None
    key = {"source": repository.commit if repository else what, "python": python}
    ledger = errand.ledger(key)
    if isinstance(what, Repository):
        found = commits(what, settings, python, ledger)
    else:
        found = fixes(what, settings, python, ledger)
    errand.ctx.progress(note="reading the history" if repository else "reading the issues")
    made = await errand.take(mirrored(found, errand.worker, spent), key, at_once=AT_ONCE)
    return made | {"tests_run": spent.executions, "screening_cpu_seconds": round(spent.cpu_s, 3)}


async def proposals(
    kind: str, package: Package, screen: Screen, ledger: Ledger, settings: Settings, *, seed: int, wanted: int, per_function: int,
    base_digest: str, whole: bool,
) -> AsyncGenerator[Proposal, None]:  # fmt: skip
    """Candidates of `kind` that the ledger has not settled.

    wanted: environments that are still to be admitted. per_function: drafts from one function; 0 means the kind's own number.
    """
    done = frozenset(ledger.lines)
    made: AsyncIterator[Proposal]
    if kind == "mutation" and not whole:
        known = await survey.survey(package, screen)
    else:
        known = await survey.kept(package, screen, survey_path(package, settings, base_digest), lines=True)
        await screen.widen(min(LANES, os.cpu_count() or 1))
    screen.passing = len(known.passing)
    if kind == "mutation":
        given = Counter(f"{s.labels['path']}::{s.labels['function']}" for s in ledger.lines.values() if "function" in s.labels)
        more: dict[str, Any] = {"per_function": per_function} if per_function else {}
        made = mutation.draft(package, known, screen, seed, wanted=wanted, done=done, start=given, whole=whole, **more)
    else:
        draft = {"reconstruction": reconstruction.draft, "combination": combination.draft}[kind]
        made = draft(package, known, screen, seed, done=done)
    async for candidate in made:
        yield candidate


@dataclass(slots=True)
class Spent:
    """What screening took, over all candidates of an order."""

    executions: int = 0
    cpu_s: float = 0.0


async def mirrored(changes: Iterator[tuple[int, Change | str]], worker: Worker, spent: Spent) -> AsyncGenerator[Proposal, None]:
    """Each change with its draft or the reason why there is none. Every change has a screen of its own: its tree, its wheels."""
    while (found := await asyncio.to_thread(next, changes, None)) is not None:
        index, made = found
        if isinstance(made, str):
            yield Proposal(index, None, made)
            continue
        image_id = ""
        try:
            async with opened(made.after, await worker.provider(), await worker.images()) as screen:
                drafted = await change.draft(made, screen)
                spent.executions += screen.executions
                spent.cpu_s += screen.cpu_s
            if isinstance(drafted, Draft):
                image_id = (await build(drafted, await worker.images(), wheels=made.after.wheels)).id
        except (BuildError, PolicyRefused) as error:
            log.info("event=no_image change=%s error=%s", made.slug, str(error)[:300])
            drafted = "build-failed"
        yield replace(Proposal.of(index, drafted), image_id=image_id)


def commits(repository: Repository, settings: Settings, python: str, ledger: Ledger) -> Iterator[tuple[int, Change | str]]:
    """Commits that the ledger has not settled."""
    return history.changes(repository, settings, python, done=frozenset(ledger.lines))


def fixes(uris: Sequence[str], settings: Settings, python: str, ledger: Ledger) -> Iterator[tuple[int, Change | str]]:
    """Issues with their fixes that the ledger has not settled."""
    for index, uri in enumerate(uris):
        if index not in ledger.lines:
            issue = sources.read(uri, settings, python=python)
            if not isinstance(issue, sources.Issue):
                raise SourceError(f"expected an issue with its fix (issue:, github: or swebench:), got {uri!r}")
            yield index, issues.change(issue, index, settings, python)


def package_behind(source: Source, settings: Settings, python: str) -> Package | None:
    """The package that an environment of this source was made of, for its wheels; None where it was made of none."""
    if source.kind not in ("pypi", "git", "archive", "issue", "swebench"):
        return None
    fetched = sources.read(source.uri, settings, python=python)
    if isinstance(fetched, sources.Issue):
        fetched = sources.read(f"git:{fetched.place}#{fetched.base_commit}", settings, python=python)
    if isinstance(fetched, Repository):
        return sources.package_of(fetched, settings, python=python)
    return fetched if isinstance(fetched, Package) else None


def survey_path(package: Package, settings: Settings, base_digest: str) -> Path:
    """Where a package's survey is kept; the name tells everything that it follows from."""
    parts = (str(SURVEY_FORMAT), package.source.digest, repr(package.pins), base_digest)
    return settings.home / "factory" / "surveys" / f"{digest(*(part.encode() for part in parts))[:24]}.json"
