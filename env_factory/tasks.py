"""The doors through which jobs enter: generate, verify, judge, corpus.

A door checks its payload, runs on the loop of its process (`sandboxes.worker`), and may be killed at any moment: the next attempt
goes on from the ledger. Payloads and results are described by the models below.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from env_factory import labelled, seeded, sessions, sources, swe_orders
from env_factory.gates import Level
from env_factory.intake import Intake, Ledger, Proposal, prove_again
from env_factory.lessons import documentation
from env_factory.llm import orders
from env_factory.mutants import Rules
from env_factory.payload import checked
from env_factory.synth import corpus as text
from env_factory.synth import examples, shell, tutorial
from env_factory.templates.shell.families import FAMILIES, TRAINED, UNSEEN
from gymsmith import taskdir
from gymsmith.errors import ConfigError, SourceError, StoreError
from gymsmith.schema import GenerateKind, JobContext, Word
from sandboxes.base import SandboxSpec
from sandboxes.worker import Worker, process_worker

M = TypeVar("M", bound=Word)

FORMAT = 1
"""Part of every ledger's key: raised when synthesizers change what a candidate's number means."""
SHELL_LEVELS = (1, 2, 3)
SHELL_TRIES = 4
"""Candidates per wanted shell environment before the order is given up."""


class Order(Word):
    """Payload of a generate job."""

    source: str
    """pypi:NAME==VERSION, file:PATH, man:PAGE, shell:FAMILY, shell:all or shell:unseen, layout:TEMPLATE or layout:all,
    browse:FAMILY or browse:all, terminal:NAME, repair:NAME and so on."""
    kind: GenerateKind
    n: int = Field(ge=1)
    """Environments to admit."""
    seed: int = 0
    split: Literal["train", "held_out"] = "train"
    """Words of shell, terminal, repair and layout environments."""
    levels: tuple[int, ...] = ()
    """Levels of shell, terminal, repair and browse environments; empty means 1 to 3."""
    gates: Level = "full"
    issue: str = Field(default="", max_length=200_000)
    """llm-issue: the issue's text."""
    model: str = ""
    """Kinds that ask a language model: which one; empty means the configured one. The budgets likewise, 0 for those."""
    budget_tokens: int = Field(default=0, ge=0)
    budget_usd: float = Field(default=0.0, ge=0)
    per_function: int = Field(default=0, ge=0)
    """Mutations of one function; 0 means as many as the kind takes by itself."""


class Corpus(Word):
    """Payload of a corpus job."""

    seed: int = 0
    sessions: int = Field(default=3000, ge=1)
    """Really executed shell sessions."""
    drills: float = Field(default=1.0, ge=0)
    """Characters of exercises per character of sessions."""


class Proofs(Word):
    """Payload of a verify job."""

    environments: tuple[str, ...] = Field(min_length=1)
    gates: Level = "full"


class Bench(Word):
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
        made: dict[str, Any] = worker.run(_generate(order, worker, ctx), ctx)
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

    async def work() -> list[labelled.Judged]:
        def report(done: int) -> None:
            ctx.progress(done=done, total=total, unit="tasks")

        rules = Rules(halves=asked.noticed, mutants=asked.noticed)
        provider, images = await worker.provider(), await worker.images()
        return await labelled.judge(folder, provider, images, worker.slots, rules=rules, report=report)

    judged = worker.run(work(), ctx)
    measured = labelled.quality(judged)
    return {"tasks": labelled.table(judged), **{name: score.model_dump() for name, score in measured._asdict().items()}}


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


async def _generate(order: Order, worker: Worker, ctx: JobContext) -> dict[str, Any]:
    if order.kind == "shell":
        return await _shell(order, worker, ctx)
    if order.kind in seeded.KINDS:
        stream = await seeded.order(
            order.kind, order.source, order.n, order.seed, order.split, order.levels, worker, ctx.settings
        )
        return await _take(order, stream.proposals, stream.key | {"gates": order.gates}, worker, ctx, at_once=stream.at_once)
    if order.kind.startswith("llm-"):
        return await _llm(order, worker, ctx)
    scheme = order.source.partition(":")[0]
    if scheme in ("shell", *seeded.KINDS):
        raise ConfigError(f"expected kind {scheme} for {order.source!r}, got {order.kind!r}")
    python = await _python(worker)
    if order.kind == "issue":
        return await _changes(order, sources.members(order.source), python, worker, ctx)
    if order.kind == "examples":
        return await _examples(order, python, worker, ctx)
    fetched = [await asyncio.to_thread(sources.read, uri, ctx.settings, python=python) for uri in sources.lessons(order.source)]
    if order.kind in swe_orders.KINDS:
        package = fetched[0]
        if isinstance(package, sources.Repository):
            package = await asyncio.to_thread(sources.package_of, package, ctx.settings, python=python)
        if not isinstance(package, sources.Package):
            raise SourceError(f"{order.kind} needs a package (pypi:NAME==VERSION or git:PLACE), got {order.source!r}")
        return await _swe(order, package, worker, ctx)
    if order.kind == "commit":
        if not isinstance(fetched[0], sources.Repository):
            raise SourceError(f"commit needs a repository with its history (git:PLACE), got {order.source!r}")
        return await _changes(order, fetched[0], python, worker, ctx)
    tutorials = [each for each in fetched if isinstance(each, sources.Tutorial)]
    if len(tutorials) != len(fetched):
        raise SourceError(f"tutorial needs a text (file:PATH or man:PAGE), got {order.source!r}")
    return await _tutorial(order, tutorials, worker, ctx)


async def _shell(order: Order, worker: Worker, ctx: JobContext) -> dict[str, Any]:
    name = order.source.removeprefix("shell:")
    families = sorted(TRAINED) if name == "all" else sorted(UNSEEN) if name == "unseen" else [name]
    if unknown := [f for f in families if f not in FAMILIES]:
        raise ConfigError(f"expected shell:all, shell:unseen or one of {', '.join(sorted(FAMILIES))}, got {unknown[0]!r}")
    levels = order.levels or SHELL_LEVELS

    async def proposals() -> AsyncGenerator[Proposal, None]:
        for index in range(SHELL_TRIES * order.n):
            family, level = families[index % len(families)], levels[index // len(families) % len(levels)]
            task = shell.make(family, level, order.seed * 1_000_000 + index, order.split)
            yield Proposal(index, shell.draft(task))

    key = {"source": order.source, "split": order.split, "levels": list(levels), "gates": order.gates}
    return await _take(order, proposals(), key, worker, ctx, at_once=16)


async def _swe(order: Order, package: sources.Package, worker: Worker, ctx: JobContext) -> dict[str, Any]:
    base_digest = (await worker.images()).base_digest()
    key: dict[str, Any] = {"source": package.source.digest, "pins": list(package.pins), "gates": order.gates}
    if order.per_function:
        key["per_function"] = order.per_function
    if order.kind != "mutation":
        key["base"] = base_digest  # Where a copy of a function lies follows from the base image.
    ledger = _ledger(order, key, ctx)
    settled, admitted = len(ledger.lines), sum(not s.reason for s in ledger.lines.values())
    ctx.progress(note="surveying the suite")
    async with swe_orders.opened(package, worker) as screen:
        proposals = swe_orders.proposals(
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
        made = await _take(order, proposals, key, worker, ctx, at_once=4, wheels=package.wheels)
    return made | {
        "tests_run": screen.executions,
        "screening_cpu_seconds": round(screen.cpu_s, 3),
        "suite": screen.passing,
        "new": [max(0, made["candidates"] - settled), max(0, len(made["admitted"]) - admitted)],
    }


async def _changes(
    order: Order, what: sources.Repository | list[str], python: str, worker: Worker, ctx: JobContext
) -> dict[str, Any]:
    """Of a repository's history, or of issues by their URIs."""
    repository = what if isinstance(what, sources.Repository) else None
    key = {"source": repository.commit if repository else what, "python": python, "gates": order.gates}
    ledger, spent = _ledger(order, key, ctx), swe_orders.Spent()
    if isinstance(what, sources.Repository):
        found = swe_orders.commits(what, ctx.settings, python, ledger)
    else:
        found = swe_orders.fixes(what, ctx.settings, python, ledger)
    ctx.progress(note="reading the history" if repository else "reading the issues")
    made = await _take(order, swe_orders.mirrored(found, worker, spent), key, worker, ctx, at_once=4)
    return made | {"tests_run": spent.executions, "screening_cpu_seconds": round(spent.cpu_s, 3)}


async def _tutorial(order: Order, lessons: list[sources.Tutorial], worker: Worker, ctx: JobContext) -> dict[str, Any]:
    key = {"source": [lesson.source.digest for lesson in lessons], "gates": order.gates}
    provider, images = await worker.provider(), await worker.images()

    async def proposals() -> AsyncGenerator[Proposal, None]:
        """Candidates of the lessons in turns; a candidate's number tells its lesson."""
        streams = {n: tutorial.draft(lesson, provider, images, order.seed) for n, lesson in enumerate(lessons)}
        while streams:
            for n, stream in list(streams.items()):
                made = await anext(stream, None)
                if made is None:
                    del streams[n]
                    continue
                yield Proposal(made.index * len(lessons) + n, made.draft, made.reason)

    return await _take(order, proposals(), key, worker, ctx, at_once=4)


async def _examples(order: Order, python: str, worker: Worker, ctx: JobContext) -> dict[str, Any]:
    books = [await asyncio.to_thread(documentation.read, uri, ctx.settings, python) for uri in sources.lessons(order.source)]
    key = {"source": [book.tutorial.source.digest for book in books], "gates": order.gates}
    provider, images = await worker.provider(), await worker.images()

    async def proposals() -> AsyncGenerator[Proposal, None]:
        """Candidates of one book after the other; a candidate's number tells its book."""
        for n, book in enumerate(books):
            async for made in examples.draft(book, provider, images, order.seed):
                yield Proposal(made.index * len(books) + n, made.draft, made.reason)

    return await _take(order, proposals(), key, worker, ctx, at_once=4, wheels=books[0].wheels)


async def _llm(order: Order, worker: Worker, ctx: JobContext) -> dict[str, Any]:
    """Kinds that ask a language model; see `llm/orders.py`."""

    async def take(proposals: AsyncGenerator[Proposal, None], key: dict[str, Any], wheels: Any = None) -> dict[str, Any]:
        # Whoever wrote it is not there to be asked, so what a model wrote has to stand everything that there is.
        strict = order.model_copy(update={"gates": "admission"}) if order.gates == "full" else order
        named = key | {"gates": strict.gates}
        return await _take(strict, proposals, named, worker, ctx, at_once=orders.AT_ONCE, wheels=wheels)

    async with orders.desk(order, ctx) as at:
        provider, images = await worker.provider(), await worker.images()
        house = orders.House(ctx.settings, ctx.store, provider, images, await _python(worker))
        return await orders.carry_out(order, at, house, take) | at.account.summary()


async def _take(
    order: Order,
    proposals: AsyncGenerator[Proposal, None],
    key: dict[str, Any],
    worker: Worker,
    ctx: JobContext,
    *,
    at_once: int,
    wheels: Any = None,
) -> dict[str, Any]:
    intake = await _intake(order.gates, worker, ctx, wheels)
    tally = await intake.take(proposals, _ledger(order, key, ctx), order.n, at_once=at_once)
    made = {"admitted": tally.admitted, "candidates": tally.candidates, "reasons": dict(tally.reasons)}
    return made | ({"stopped": "budget"} if tally.stopped else {})


async def _intake(level: Level, worker: Worker, ctx: JobContext, wheels: Any = None) -> Intake:
    provider, images = await worker.provider(), await worker.images()

    def report(fields: dict[str, Any]) -> None:
        ctx.progress(**fields)

    return Intake(ctx.settings, ctx.store, provider, images, worker.slots, level=level, wheels=wheels, report=report)


def _ledger(order: Order, key: dict[str, Any], ctx: JobContext) -> Ledger:
    return Ledger.of(ctx.settings, format=FORMAT, kind=order.kind, seed=order.seed, **key)


async def _python(worker: Worker) -> str:
    """Version of Python in the base image, as "3.11"."""
    provider, images = await worker.provider(), await worker.images()
    sandbox = await provider.create(SandboxSpec(image=images.base().id))
    try:
        said = await sandbox.exec(["python3", "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    finally:
        await sandbox.destroy()
    if not said.ok:
        raise ConfigError(f"expected python3 in the base image, got {said.output.decode(errors='replace')[-200:]!r}; install it")
    return said.output.decode().strip()


async def _verify(asked: Proofs, worker: Worker, ctx: JobContext) -> dict[str, Any]:
    statuses: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for done, environment_id in enumerate(asked.environments):
        ctx.progress(done=done, total=len(asked.environments), unit="environments")
        environment = await asyncio.to_thread(ctx.store.environment, environment_id)
        task = await asyncio.to_thread(taskdir.read, taskdir.folder_of(ctx.settings.tasks_dir, environment_id))
        wheels = None
        if environment.spec.kind == "examples":
            python = await _python(worker)
            book = await asyncio.to_thread(documentation.read, environment.source.uri, ctx.settings, python)
            wheels = book.wheels
        elif "/wheelhouse" in task.dockerfile:
            package = await asyncio.to_thread(swe_orders.package_behind, environment.source, ctx.settings, await _python(worker))
            wheels = package.wheels if package else None
        intake = await _intake(asked.gates, worker, ctx, wheels)
        now = await prove_again(intake, environment, task)
        statuses[environment_id], reasons[environment_id] = now.status.value, now.reason
    ctx.progress(done=len(asked.environments), total=len(asked.environments), unit="environments")
    return {"statuses": statuses, "reasons": reasons}


def cpu_seconds() -> float:
    """CPU time of this process and of everything below it, sandboxes and what runs in them included, so far."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    tick = os.sysconf("SC_CLK_TCK")
    pending = _children(os.getpid())
    while pending:
        child = pending.pop()
        pending += _children(child)
        try:
            with open(f"/proc/{child}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(ticks) for ticks in fields[11:15]) / tick
    return total


def _children(pid: int) -> list[int]:
    """Processes that a process has started, of all its threads; none when it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def _unwritable(error: OSError, ctx: JobContext) -> StoreError:
    return StoreError(
        f"the state folder {ctx.settings.home} failed: {error}; free space there, make it writable, or set GYMSMITH_HOME"
    )
