"""From a stream of candidates to stored environments: build, prove, write, remember.

Candidates are settled in parallel but taken in order, and never more are under way than are still wanted. With the ledger
(`candidates.py`), what an order admits depends on neither timing nor interruption.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from env_factory.build import build
from env_factory.candidates import Ledger, Problem, Proposal, Settled
from env_factory.gates.contamination import Benchmarks
from env_factory.gates.dedup import Near, profile
from env_factory.gates.effects import Effect
from env_factory.gates.rebuild import Rebuilds
from env_factory.gates.stages import Level, prove
from env_factory.gates.trial import Around, Reviewed
from env_factory.llm.account import BudgetSpent
from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.errors import BuildError, ImageMissing, PolicyRefused, Rejected
from gymsmith.schema import Draft, Environment, Evidence, Gate, Status
from gymsmith.store import Store
from gymsmith.taskdir import Task
from sandboxes.base import Image, Provider
from sandboxes.image.images import ImageStore

log = logging.getLogger(__name__)

ELSEWHERE = frozenset({"harbor", "terminal-bench", "swebench"})
"""Kinds of sources whose tasks were made by somebody else."""


@dataclass(slots=True)
class Tally:
    """What a job reports."""

    wanted: int
    admitted: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    candidates: int = 0
    stopped: bool = False
    """An author could not go on, so fewer were admitted than could have been."""

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
        reviewer: Reviewed | None = None,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self.settings, self.store, self.provider, self.images, self.slots = settings, store, provider, images, slots
        self.level: Level = level
        self.wheels = wheels
        self.reviewer = reviewer
        self.report = report
        self.base_digest = images.base_digest()
        self._rebuilds = Rebuilds(images, wheels)
        self._near = Near(settings.home / "factory" / "near.jsonl")
        self._benchmarks = Benchmarks.of(settings.home) if level == "admission" else Benchmarks()
        self._unheld: set[int] = set()
        """Candidates under way that were not yet held against the tasks before them: later ones wait for them."""
        self._held = asyncio.Condition()

    async def take(self, proposals: AsyncGenerator[Proposal, None], ledger: Ledger, wanted: int, *, at_once: int) -> Tally:
        """Settle candidates until `wanted` are admitted or there are none left.

        Raises: InfrastructureError: sandboxes failed; what was settled stays in the ledger.
        """
        tally = Tally(wanted)
        verdicts: dict[int, Settled] = {}
        running: set[asyncio.Task[Settled | None]] = set()

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
                    if settled is None:
                        tally.stopped = True
                        continue
                    ledger.add(settled)
                    count(settled)

        for settled in [ledger.lines[i] for i in sorted(ledger.lines)]:
            if len(tally.admitted) < wanted:
                count(settled)
        try:
            async with contextlib.aclosing(proposals) as stream:
                # Asking the stream for a first candidate may cost a survey: not when the ledger has all that is wanted.
                while len(tally.admitted) < wanted and not tally.stopped:
                    proposal = await anext(stream, None)
                    if proposal is None:
                        break
                    if proposal.index in ledger.lines:
                        continue
                    if proposal.draft is None and proposal.author is None:
                        settled = Settled(proposal.index, "", proposal.reason)
                        ledger.add(settled)
                        count(settled)
                        continue
                    self._unheld.add(proposal.index)
                    running.add(asyncio.create_task(self._settle(proposal, ledger.path.stem)))
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

    async def settle(self, index: int, draft: Draft, image_id: str = "", order: str = "") -> Settled:
        """Build and prove one draft and store it, admitted or not."""
        judged = await self._judge(draft, image_id, order, index)
        await asyncio.to_thread(self._keep, draft, judged)
        return Settled(index, draft.id, judged.reason, dict(draft.spec.labels))

    async def _settle(self, proposal: Proposal, order: str) -> Settled | None:
        """What becomes of a proposal; None when its author or its reviewer cannot go on, for nothing more can be paid."""
        try:
            return await self._settled(proposal, order)
        except BudgetSpent:
            return None
        finally:
            await self._let_pass(proposal.index)

    async def _settled(self, proposal: Proposal, order: str) -> Settled | None:
        """Of several versions the last one is stored."""
        if proposal.author is None:
            assert proposal.draft is not None
            return await self.settle(proposal.index, proposal.draft, proposal.image_id, order)
        last: tuple[Draft, _Judged] | None = None
        problem: Problem | None = None
        reason = ""
        while True:
            try:
                draft = await proposal.author.write(problem)
            except Rejected as error:
                reason = error.reason
                log.info("event=given_up index=%d reason=%s detail=%s", proposal.index, error.reason, error.detail[:200])
                break
            if draft is None:
                return None
            last = draft, await self._judge(draft, proposal.image_id, order, proposal.index)
            if not last[1].reason:
                break
            problem = Problem(last[1].reason, last[1].detail)
        if last is None:
            return Settled(proposal.index, "", reason, dict(proposal.author.labels))
        await asyncio.to_thread(self._keep, *last)
        return Settled(proposal.index, last[0].id, reason or last[1].reason, dict(last[0].spec.labels))

    async def _let_pass(self, index: int) -> None:
        async with self._held:
            self._unheld.discard(index)
            self._held.notify_all()

    async def _novel(self, draft: Draft, effects: tuple[Effect, ...], order: str, index: int) -> Gate:
        """Held against the tasks before it, once all candidates before it were: so the result depends on no timing."""
        mine = await asyncio.to_thread(profile, draft, effects, order, index)
        async with self._held:
            await self._held.wait_for(lambda: not any(other < index for other in self._unheld))
            gate = self._near.gate(mine)
        await self._let_pass(index)
        return gate

    async def _judge(self, draft: Draft, image_id: str, order: str, index: int) -> _Judged:
        """Build and prove, and store nothing."""
        started = time.perf_counter()
        try:
            image = await self._image(draft, image_id)
        except (BuildError, PolicyRefused) as error:
            reason = "build-failed" if isinstance(error, BuildError) else "refused"
            log.info("event=turned_down name=%s reason=%s detail=%s", draft.spec.name, reason, str(error)[:300])
            output = error.log if isinstance(error, BuildError) else ""
            return _Judged(reason, f"{error}\n{output}".strip(), "", None)
        if draft.source.kind in ELSEWHERE and "solution/solve.sh" not in draft.files:
            return _Judged("no-oracle", "it brings no solution, so nothing shows that it can be done", image.id, None)
        around = Around(
            listed=self._benchmarks.gate,
            rebuilt=self._rebuilds.gate,
            novel=lambda draft, effects: self._novel(draft, effects, order, index),
            reviewed=self.reviewer,
        )
        proof = await prove(
            draft, image, self.provider, level=self.level, base_digest=self.base_digest, slots=self.slots, around=around
        )
        log.info(
            "event=settled name=%s reason=%s seconds=%.2f detail=%s",
            draft.spec.name, proof.reason, time.perf_counter() - started, proof.detail[:200],
        )  # fmt: skip
        return _Judged(proof.reason, proof.detail, image.id, proof.evidence)

    async def _image(self, draft: Draft, image_id: str) -> Image:
        if image_id:
            with contextlib.suppress(ImageMissing):
                return self.images.get(image_id)
        return await build(draft, self.images, wheels=self.wheels)

    def _keep(self, draft: Draft, judged: _Judged) -> None:
        status = status_of(draft, judged.reason)
        put(draft, self.settings, self.store, status, judged.reason, judged.image_id, judged.evidence)


def put(
    draft: Draft,
    settings: Settings,
    store: Store,
    status: Status,
    reason: str,
    image_id: str = "",
    evidence: Evidence | None = None,
) -> None:
    """Store a draft as an environment. Folder first, row last: a row never names a folder that is not there."""
    folder = taskdir.folder_of(settings.tasks_dir, draft.id)
    taskdir.write(draft, folder)
    row = Environment(
        id=draft.id,
        source=draft.source,
        spec=draft.spec,
        instruction=draft.instruction,
        status=status,
        reason=reason,
        path=folder.relative_to(settings.home).as_posix(),
        image_id=image_id,
    )
    store.put_environment(row, evidence)


def status_of(draft: Draft, reason: str) -> Status:
    """What a verdict makes of a draft. One that was made elsewhere is not rejected for what this machine cannot do or for what
    its makers did not give: without an image or a solution it stays unproven."""
    if not reason:
        return Status.VERIFIED
    unproven = draft.source.kind in ELSEWHERE and reason in ("build-failed", "refused", "no-oracle")
    return Status.UNPROVEN if unproven else Status.REJECTED


class _Judged(NamedTuple):
    """What the build and the gates said of a draft."""

    reason: str
    """Empty when it stood everything."""
    detail: str
    image_id: str
    evidence: Evidence | None


async def prove_again(intake: Intake, environment: Environment, task: Task) -> Environment:
    """Run every gate on a stored environment and store what they saw now."""
    settled = await intake.settle(0, task.draft)
    log.info("event=proved_again id=%s reason=%s", environment.id, settled.reason)
    return await asyncio.to_thread(intake.store.environment, environment.id)
