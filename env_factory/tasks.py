"""The doors through which jobs enter: generate, verify, judge, corpus.

A door checks its payload, runs on the loop of its process (`sandboxes.worker`), and may be killed at any moment: the next attempt
goes on from the ledger. Payloads are described by the models below and by `Order`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from env_factory import sessions, sources
from env_factory.candidates import Proposal
from env_factory.cpu_time import cpu_seconds
from env_factory.gates import labelled
from env_factory.gates.mutants import Rules
from env_factory.gates.stages import Level
from env_factory.gates.trial import Around
from env_factory.intake import prove_again
from env_factory.lessons import documentation
from env_factory.llm import orders
from env_factory.llm.account import BudgetSpent
from env_factory.llm.review import Reviewer
from env_factory.orders import lessons, seeded, swe
from env_factory.orders.errand import Errand, Order, intake, python_of
from env_factory.payload import checked
from env_factory.synth import corpus as text
from gymsmith import taskdir
from gymsmith.errors import ConfigError, SourceError, StoreError
from gymsmith.schema import JobContext, Word, digest, last_of_admission
from sandboxes.worker import Worker, process_worker


class Corpus(Word):
    """Payload of a corpus job."""

    seed: int = 0
    sessions: int = Field(default=3000, ge=1)
    """Really executed shell sessions."""
    drills: float = Field(default=1.0, ge=0)
    """Characters of exercises per character of sessions."""


class Read(Word):
    """What a payload says of a reading by a language model; see `llm/review.py`."""

    review: bool = False
    model: str = ""
    """As in `Order`, and the budgets."""
    budget_tokens: int = Field(default=0, ge=0)
    budget_usd: float = Field(default=0.0, ge=0)


class Proofs(Read):
    """Payload of a verify job."""

    environments: tuple[str, ...] = Field(min_length=1)
    gates: Level = "full"

    @model_validator(mode="after")
    def _reviewed_in_full(self) -> Self:
        last_of_admission(self.review, self.gates)
        return self


class Bench(Read):
    """Payload of a judge job."""

    folder: str
    """Labelled tasks; see `labelled.py`."""
    noticed: float = Field(default=0.8, ge=0, le=1)
    """Share of wrong work that tests must notice."""


def generate(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Make environments. Result: admitted ids in order, candidates, reasons, seconds, cpu_seconds.

    Raises:
        ConfigError, SourceError and its kin: the order cannot be carried out as asked.
        InfrastructureError: sandboxes failed; the same job goes on where it was.
    """
    order = checked(Order, payload)
    worker = process_worker(ctx.settings)
    started, cpu = time.perf_counter(), cpu_seconds()
    try:
        made: dict[str, Any] = worker.run(_generate(Errand(order, worker, ctx)), ctx)
    except OSError as error:
        raise _unwritable(error, ctx) from error
    made["seconds"] = round(time.perf_counter() - started, 3)
    made["cpu_seconds"] = round(cpu_seconds() - cpu, 3)
    return made


def verify(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Prove stored environments again. Result: statuses and reasons by id."""
    asked = checked(Proofs, payload)
    worker = process_worker(ctx.settings)
    try:
        return worker.run(_verify(asked, worker, ctx), ctx)
    except OSError as error:
        raise _unwritable(error, ctx) from error


def judge(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Bring labelled tasks before the gates. Result: a row for each, precision and recall of turning down the defective ones."""
    asked = checked(Bench, payload)
    worker = process_worker(ctx.settings)
    folder = Path(asked.folder)
    total = len(labelled.labels(folder))

    async def work() -> tuple[list[labelled.Judged], dict[str, Any]]:
        def report(done: int) -> None:
            ctx.progress(done=done, total=total, unit="tasks")

        rules = Rules(halves=asked.noticed, mutants=asked.noticed)
        provider, images = await worker.provider(), await worker.images()
        async with _reviewing(asked, ctx, judged=str(folder)) as reviewer:
            around = Around(reviewed=reviewer)
            judged = await labelled.judge(folder, provider, images, worker.slots, rules=rules, around=around, report=report)
        return judged, _spent(reviewer)

    judged, spent = worker.run(work(), ctx)
    measured = labelled.quality(judged)
    return {"tasks": labelled.table(judged), **{name: score.model_dump() for name, score in measured._asdict().items()}, **spent}


def corpus(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Make a pre-training corpus out of really executed sessions and drills. Result: path under the state folder, documents."""
    asked = checked(Corpus, payload)
    worker = process_worker(ctx.settings)
    rng = random.Random(f"corpus/{asked.seed}")
    planned = [text.session(rng) for _ in range(asked.sessions)]

    async def play() -> list[list[str]]:
        provider, images = await worker.provider(), await worker.images()

        def report(done: int) -> None:
            ctx.progress(done=done, total=asked.sessions, unit="sessions")

        return await sessions.play(planned, provider, images.base().id, worker.slots, report)

    path, documents = sessions.write(planned, worker.run(play(), ctx), asked.drills, rng, ctx.settings.home / "corpora")
    return {"path": str(path.relative_to(ctx.settings.home)), "documents": documents}


@asynccontextmanager
async def _reviewing(asked: Read | Order, ctx: JobContext, **key: Any) -> AsyncIterator[Reviewer | None]:
    """A reviewer with a desk of its own; None where none is asked for."""
    if not asked.review:
        yield None
        return
    async with orders.desk(asked, ctx, review=True, **key) as at:
        yield Reviewer(at)


async def _generate(errand: Errand) -> dict[str, Any]:
    order = errand.order
    if order.kind.startswith("llm-"):
        return await _llm(errand)
    async with _reviewing(order, errand.ctx, kind=order.kind, source=order.source, seed=order.seed) as reviewer:
        return await _made(replace(errand, reviewer=reviewer)) | _spent(reviewer)


def _spent(reviewer: Reviewer | None) -> dict[str, Any]:
    return reviewer.desk.account.summary() | {"unread": reviewer.unread} if reviewer else {}


async def _made(errand: Errand) -> dict[str, Any]:
    order, settings = errand.order, errand.ctx.settings
    if order.kind in seeded.KINDS:
        return await seeded.carry_out(errand)
    scheme = order.source.partition(":")[0]
    if scheme in seeded.KINDS:
        raise ConfigError(f"expected kind {scheme} for {order.source!r}, got {order.kind!r}")
    python = await python_of(errand.worker)
    if order.kind == "issue":
        return await swe.of_changes(errand, sources.members(order.source), python)
    if order.kind == "examples":
        return await lessons.documented(errand, python)
    fetched = [await asyncio.to_thread(sources.read, uri, settings, python=python) for uri in sources.lessons(order.source)]
    if order.kind in swe.KINDS:
        package = fetched[0]
        if isinstance(package, sources.Repository):
            package = await asyncio.to_thread(sources.package_of, package, settings, python=python)
        if not isinstance(package, sources.Package):
            raise SourceError(f"{order.kind} needs a package (pypi:NAME==VERSION or git:PLACE), got {order.source!r}")
        return await swe.of_package(errand, package)
    if order.kind == "commit":
        if not isinstance(fetched[0], sources.Repository):
            raise SourceError(f"commit needs a repository with its history (git:PLACE), got {order.source!r}")
        return await swe.of_changes(errand, fetched[0], python)
    tutorials = [each for each in fetched if isinstance(each, sources.Tutorial)]
    if len(tutorials) != len(fetched):
        raise SourceError(f"tutorial needs a text (file:PATH or man:PAGE), got {order.source!r}")
    return await lessons.tutorials(errand, tutorials)


async def _llm(errand: Errand) -> dict[str, Any]:
    """Kinds that ask a language model; see `llm/orders.py`."""
    order, worker, ctx = errand.order, errand.worker, errand.ctx
    # Whoever wrote it is not there to be asked, so what a model wrote has to stand everything that there is.
    strict = replace(errand, order=order.model_copy(update={"gates": "admission"})) if order.gates == "full" else errand

    key = {"kind": order.kind, "source": order.source, "seed": order.seed, "issue": digest(order.issue.encode())}

    async def take(proposals: AsyncGenerator[Proposal, None], key: dict[str, Any], wheels: Path | None = None) -> dict[str, Any]:
        reviewed = replace(strict, reviewer=reviewer) if reviewer else strict
        return await reviewed.take(proposals, key, at_once=orders.AT_ONCE, wheels=wheels)

    async with orders.desk(order, ctx, **key) as at:
        provider, images = await worker.provider(), await worker.images()
        reviewer = Reviewer(at) if order.review else None
        house = orders.House(ctx.settings, ctx.store, provider, images, await python_of(worker))
        return await orders.carry_out(order, at, house, take) | at.account.summary() | _spent(reviewer)


async def _verify(asked: Proofs, worker: Worker, ctx: JobContext) -> dict[str, Any]:
    async with _reviewing(asked, ctx, verified=True) as reviewer:
        return await _proved(asked, worker, ctx, reviewer) | _spent(reviewer)


async def _proved(asked: Proofs, worker: Worker, ctx: JobContext, reviewer: Reviewer | None) -> dict[str, Any]:
    statuses: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for done, environment_id in enumerate(asked.environments):
        ctx.progress(done=done, total=len(asked.environments), unit="environments")
        environment = await asyncio.to_thread(ctx.store.environment, environment_id)
        task = await asyncio.to_thread(taskdir.read, taskdir.folder_of(ctx.settings.tasks_dir, environment_id))
        wheels = None
        if environment.spec.kind == "examples":
            python = await python_of(worker)
            book = await asyncio.to_thread(documentation.read, environment.source.uri, ctx.settings, python)
            wheels = book.wheels
        elif "/wheelhouse" in task.dockerfile:
            package = await asyncio.to_thread(swe.package_behind, environment.source, ctx.settings, await python_of(worker))
            wheels = package.wheels if package else None
        try:
            now = await prove_again(await intake(asked.gates, worker, ctx, wheels, reviewer), environment, task)
        except BudgetSpent as error:
            return {"statuses": statuses, "reasons": reasons, "stopped": "budget", "detail": str(error)}
        statuses[environment_id], reasons[environment_id] = now.status.value, now.reason
    ctx.progress(done=len(asked.environments), total=len(asked.environments), unit="environments")
    return {"statuses": statuses, "reasons": reasons}


def _unwritable(error: OSError, ctx: JobContext) -> StoreError:
    return StoreError(
        f"the state folder {ctx.settings.home} failed: {error}; free space there, make it writable, or set GYMSMITH_HOME"
    )
