"""An order for SWE environments of one package: its suite is surveyed once, candidates are screened, drafts are handed over.

One sandbox holds the healthy package, and copies of it share what they do not write; a candidate is a fork of a process in one
of them and costs no set-up. What is drafted is proved elsewhere (`intake.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from env_factory.intake import Ledger, Proposal
from env_factory.sources import Package
from env_factory.synth import combination, mutation, reconstruction, screening, survey
from env_factory.synth.screening import Screen
from env_factory.synth.swe import Candidate
from gymsmith.config import Settings
from gymsmith.schema import digest
from sandboxes.base import MIB, SandboxSpec
from sandboxes.worker import Worker

KINDS = ("mutation", "reconstruction", "combination")
LANES = 2
"""Sandboxes in which candidates are screened at once, at most one per processor."""
SURVEY_FORMAT = 1
"""Part of every survey's name: raised when surveys are made or written differently."""


@contextlib.asynccontextmanager
async def opened(package: Package, worker: Worker) -> AsyncIterator[Screen]:
    """A screen with the healthy package in it. Not counted against the worker's slots: proofs wait for those meanwhile."""
    provider, images = await worker.provider(), await worker.images()
    base = await images.build(screening.base_dockerfile(package), screening.base_context(package), wheelhouse=package.wheels)
    spec = SandboxSpec(image=base.id, user="agent", memory_bytes=1024 * MIB, disk_bytes=512 * MIB, pids=256)
    sandbox = await provider.create(spec)
    screen = Screen(sandbox, package)
    try:
        await screen.prepare()
        yield screen
    finally:
        await screen.close()
        await sandbox.destroy()


async def proposals(
    kind: str, package: Package, screen: Screen, ledger: Ledger, settings: Settings, *, seed: int, wanted: int, per_function: int,
    base_digest: str, whole: bool,
) -> AsyncGenerator[Proposal, None]:  # fmt: skip
    """Candidates of `kind` that the ledger has not settled.

    wanted: environments that are still to be admitted. per_function: drafts from one function; 0 means the kind's own number.
    """
    done = frozenset(ledger.lines)
    made: AsyncIterator[Candidate | mutation.Candidate]
    if kind == "mutation":
        given = Counter(f"{s.labels['path']}::{s.labels['function']}" for s in ledger.lines.values() if "function" in s.labels)
        known = await survey.survey(package, screen)
        more: dict[str, Any] = {"per_function": per_function} if per_function else {}
        made = mutation.draft(package, known, screen, seed, wanted=wanted, done=done, start=given, whole=whole, **more)
    else:
        path = settings.home / "factory" / "surveys" / f"{_name(package, base_digest)}.json"
        known = await survey.kept(package, screen, path, lines=True)
        await screen.widen(min(LANES, os.cpu_count() or 1))
        draft = {"reconstruction": reconstruction.draft, "combination": combination.draft}[kind]
        made = draft(package, known, screen, seed, done=done)
    async for candidate in made:
        yield Proposal(candidate.index, candidate.draft, candidate.reason)


def _name(package: Package, base_digest: str) -> str:
    """Of a survey's file: everything that it follows from."""
    return digest(str(SURVEY_FORMAT).encode(), package.source.digest.encode(), repr(package.pins).encode(), base_digest.encode())[
        :24
    ]
