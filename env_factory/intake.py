"""From a stream of candidates to stored environments: build, prove, write, remember.

A ledger per (source digest, kind, seed, ...) holds one line for every settled candidate, so a run that was killed goes on behind
the last line, and an order for more continues an order for fewer. Candidates are settled in parallel but taken in order, and
never more are under way than are still wanted: what an order admits depends on neither timing nor interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from env_factory.build import build
from env_factory.gates import Level, prove
from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.errors import BuildError, PolicyRefused
from gymsmith.schema import Draft, Environment, Evidence, Status, digest
from gymsmith.store import Store
from gymsmith.taskdir import Task
from sandboxes.base import Provider
from sandboxes.image import ImageStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A candidate as a synthesizer hands it over."""

    index: int
    """Its place in the synthesizer's order."""
    draft: Draft | None
    reason: str = ""
    """Why there is no draft."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a candidate."""

    index: int
    id: str
    """Of the environment; empty when it was turned down before it was built."""
    reason: str
    """Empty when it was admitted."""
    labels: dict[str, str] = field(default_factory=dict)


class Ledger:
    """An append-only file with one JSON line per settled candidate. A torn last line is passed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[int, Settled] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    settled = Settled(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                self.lines[settled.index] = settled

    @classmethod
    def of(cls, settings: Settings, **key: Any) -> Ledger:
        """The ledger of an order; `key` is everything that its candidates follow from."""
        name = digest(json.dumps(key, sort_keys=True).encode())[:24]
        return cls(settings.home / "factory" / f"{name}.jsonl")

    def add(self, settled: Settled) -> None:
        """Remember one; a single write, so two writers cannot mix their lines."""
        self.lines[settled.index] = settled
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = {"index": settled.index, "id": settled.id, "reason": settled.reason, "labels": settled.labels}
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, b"\n" + json.dumps(row).encode() + b"\n")
        finally:
            os.close(handle)


@dataclass(slots=True)
class Tally:
    """What a job reports."""

    wanted: int
    admitted: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    candidates: int = 0

    def progress(self) -> dict[str, Any]:
        """Fields of a job's progress."""
        return {
            "done": len(self.admitted),
            "total": self.wanted,
            "unit": "environments",
            "admitted": len(self.admitted),
            "candidates": self.candidates,
            "reasons": dict(self.reasons),
        }


class Intake:
    """Admits drafts into one state folder. Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        provider: Provider,
        images: ImageStore,
        slots: asyncio.Semaphore,
        *,
        level: Level,
        wheels: Path | None = None,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.settings, self.store, self.provider, self.images, self.slots = settings, store, provider, images, slots
        self.level: Level = level
        self.wheels = wheels
        self.report = report
        self.base_digest = images.base_digest()

    async def take(self, proposals: AsyncGenerator[Proposal, None], ledger: Ledger, wanted: int, *, at_once: int) -> Tally:
        """Settle candidates until `wanted` are admitted or there are none left.

        Raises: InfrastructureError: sandboxes failed; what was settled stays in the ledger.
        """
        tally = Tally(wanted)
        verdicts: dict[int, Settled] = {}
        running: set[asyncio.Task[Settled]] = set()

        def count(settled: Settled) -> None:
            verdicts[settled.index] = settled
            tally.candidates += 1
            if settled.reason:
                tally.reasons[settled.reason] += 1
            else:
                tally.admitted.append(settled.id)
            self.report(tally.progress())

        async def drain(until: int) -> None:
            while len(running) > until:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                running.difference_update(done)
                for each in done:
                    settled = each.result()
                    ledger.add(settled)
                    count(settled)

        for settled in [ledger.lines[i] for i in sorted(ledger.lines)]:
            if len(tally.admitted) < wanted:
                count(settled)
        try:
            async with contextlib.aclosing(proposals) as stream:
                # Asking the stream for a first candidate may cost a survey: not when the ledger has all that is wanted.
                while len(tally.admitted) < wanted:
                    proposal = await anext(stream, None)
                    if proposal is None:
                        break
                    if proposal.index in ledger.lines:
                        continue
                    if proposal.draft is None:
                        settled = Settled(proposal.index, "", proposal.reason)
                        ledger.add(settled)
                        count(settled)
                        continue
                    running.add(asyncio.create_task(self.settle(proposal.index, proposal.draft)))
                    await drain(at_once - 1)
                    # What is under way may all be admitted: start another only if that would still be too few.
                    while running and len(tally.admitted) + len(running) >= wanted:
                        await drain(len(running) - 1)
            await drain(0)
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        tally.admitted = [verdicts[i].id for i in sorted(verdicts) if not verdicts[i].reason]
        return tally

    async def settle(self, index: int, draft: Draft) -> Settled:
        """Build and prove one draft and store it, admitted or not."""
        started = time.perf_counter()
        labels = dict(draft.spec.labels)
        try:
            image = await build(draft, self.images, wheels=self.wheels)
        except (BuildError, PolicyRefused) as error:
            reason = "build-failed" if isinstance(error, BuildError) else "refused"
            log.info("event=turned_down name=%s reason=%s detail=%s", draft.spec.name, reason, str(error)[:300])
            await asyncio.to_thread(self._keep, draft, Status.REJECTED, reason, "", None)
            return Settled(index, draft.id, reason, labels)
        proof = await prove(draft, image, self.provider, level=self.level, base_digest=self.base_digest, slots=self.slots)
        status = Status.REJECTED if proof.reason else Status.VERIFIED
        await asyncio.to_thread(self._keep, draft, status, proof.reason, image.id, proof.evidence)
        log.info(
            "event=settled name=%s status=%s reason=%s seconds=%.2f detail=%s",
            draft.spec.name, status, proof.reason, time.perf_counter() - started, proof.detail[:200],
        )  # fmt: skip
        return Settled(index, draft.id, proof.reason, labels)

    def _keep(self, draft: Draft, status: Status, reason: str, image_id: str, evidence: Evidence | None) -> None:
        """Folder first, row last: a row never names a folder that is not there."""
        folder = taskdir.folder_of(self.settings.tasks_dir, draft.id)
        taskdir.write(draft, folder)
        self.store.put_environment(
            Environment(
                id=draft.id,
                source=draft.source,
                spec=draft.spec,
                instruction=draft.instruction,
                status=status,
                reason=reason,
                path=folder.relative_to(self.settings.home).as_posix(),
                image_id=image_id,
            ),
            evidence,
        )


async def prove_again(intake: Intake, environment: Environment, task: Task) -> Environment:
    """Run every gate on a stored environment and store what they saw now."""
    settled = await intake.settle(0, task.draft)
    log.info("event=proved_again id=%s reason=%s", environment.id, settled.reason)
    return await asyncio.to_thread(intake.store.environment, environment.id)
