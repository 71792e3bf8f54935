"""The doors through which jobs enter: rollout, evaluate, evaluate_swebench, render.

A door is synchronous, runs in a Celery thread, checks its payload, prepares what needs the store, and hands the rest to the
process's loop (`worker`). Payloads carry ids; what the attempts give goes into the store in batches, under the job's fence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from context_mgmt.budget import Limits
from context_mgmt.chat import Chat
from context_mgmt.fold import FoldConfig
from gymsmith.errors import ConfigError, InfrastructureError
from gymsmith.policy import ScriptedPolicy
from gymsmith.schema import EvalReport, JobContext, Policy, Trajectory, Word
from gymsmith.taskdir import Task
from sandboxes import tools
from sandboxes.evaluate import Outcome, Play, Summary, attempt_all
from sandboxes.rollout import Attempt, Terms
from sandboxes.rollout import rollout as play_one
from sandboxes.worker import Ready, Worker, process_worker

STORE_EVERY = 64
"""Trajectories per chunk file of an evaluation; more would hold more bodies in memory."""

UNLIMITED = 1 << 20


class PolicyRef(Word):
    """Who acts: an engine (its address may be left to the Run row), or the environment's own reference solution."""

    kind: Literal["engine", "solution"] = "engine"
    url: str = ""
    version: str = ""
    run_id: str = ""
    """The run whose row says where its engine is now; empty: the run of the attempts."""


class Sampling(Word):
    """How an engine samples."""

    temperature: float = Field(default=1.0, ge=0.0)
    max_new_tokens: int = Field(default=24, ge=1)


class Item(Word):
    """One attempt of a rollout job."""

    environment_id: str
    group: str = ""
    attempt: int = 0
    seed: int = 0


class _Order(Word):
    """What rollout and evaluate payloads have in common."""

    run_id: str
    policy: PolicyRef = PolicyRef()
    tokenizer: str = ""
    """File name under the tokenizers folder; only a reference solution can do without."""
    sampling: Sampling | None = None
    context: FoldConfig | None = None
    max_turns: int | None = Field(default=None, ge=1)
    """None: what each environment says."""


class RolloutOrder(_Order):
    """Payload of a rollout job."""

    items: list[Item]


class EvaluateOrder(_Order):
    """Payload of an evaluate job."""

    name: str
    environments: list[str] | dict[str, Any]
    """Ids, or a filter: kind, status, labels."""
    mode: Literal["sampled", "greedy"] = "sampled"
    seed: int = 0
    concurrency: int | None = Field(default=None, ge=1)


class SweBenchOrder(Word):
    """Payload of an evaluate_swebench job."""

    dataset: str
    predictions: str = "gold"
    """gold, empty, or a predictions file."""
    environments: list[str] = []
    """Environments to write into `dataset` first; empty: the file is there."""
    run_id: str = ""


def rollout(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Attempts at environments, stored in item order: {"trajectories", "rewards", "seconds"}.

    Raises:
        ConfigError: the payload is not a RolloutOrder.
        InfrastructureError: every attempt failed through us, so the whole job is worth another try.
    """
    began = time.perf_counter()
    order = _read(RolloutOrder, payload)
    worker = process_worker(ctx.settings)
    attempts = [Attempt(order.run_id, item.environment_id, item.group, item.attempt, item.seed) for item in order.items]
    results: dict[int, Trajectory] = {}

    async def keep(index: int, _: Ready | None, trajectory: Trajectory) -> None:
        results[index] = trajectory
        ctx.progress(done=len(results), total=len(attempts), unit="attempts")

    temperature = order.sampling.temperature if order.sampling else 1.0
    worker.run(attempt_all(worker, ctx.store, attempts, _play(order, worker, ctx, temperature), done=keep), ctx)
    trajectories = [results[i] for i in range(len(attempts))]
    if trajectories and all(x.error for x in trajectories):
        raise InfrastructureError(f"none of {len(trajectories)} attempts could be made: {trajectories[0].error}")
    ctx.store.put_trajectories(trajectories, fence=(ctx.job.id, ctx.job.attempt))
    phases = {name for x in trajectories for name in x.seconds}
    return {
        "trajectories": [x.id for x in trajectories],
        "rewards": [None if x.reward is None else x.reward.value for x in trajectories],
        "seconds": {
            "wall": round(time.perf_counter() - began, 4),
            **{name: round(sum(x.seconds.get(name, 0.0) for x in trajectories), 4) for name in sorted(phases)},
        },
    }


def evaluate(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """One attempt at each environment, and the report over them: {"report_id"}.

    Raises:
        ConfigError: the payload is not an EvaluateOrder, or it names no environment.
        InfrastructureError: every attempt failed through us.
    """
    began = time.perf_counter()
    order = _read(EvaluateOrder, payload)
    chosen = order.environments
    ids = chosen if isinstance(chosen, list) else ctx.store.environment_ids(**chosen)
    if not ids:
        raise ConfigError(f"an evaluation needs environments, got none for {chosen!r}; `gymsmith env list` shows what there is")
    attempts = [Attempt(order.run_id, i, f"{ctx.job.id}/{n}", 0, order.seed) for n, i in enumerate(ids)]
    outcomes: dict[int, Outcome] = {}
    passed = 0
    waiting: list[Trajectory] = []

    def store(batch: list[Trajectory]) -> None:
        ctx.store.put_trajectories(batch, fence=(ctx.job.id, ctx.job.attempt))

    async def keep(index: int, ready: Ready | None, trajectory: Trajectory) -> None:
        nonlocal passed
        outcomes[index] = Outcome.of(ready, trajectory)
        passed += outcomes[index].passed is True
        waiting.append(trajectory)
        if len(waiting) >= STORE_EVERY:
            batch = waiting.copy()
            waiting.clear()
            await asyncio.to_thread(store, batch)
        ctx.progress(done=len(outcomes), total=len(ids), unit="environments", passed=passed)

    worker = process_worker(ctx.settings)
    sampled = order.sampling.temperature if order.sampling else 1.0
    play = _play(order, worker, ctx, 0.0 if order.mode == "greedy" else sampled)
    worker.run(attempt_all(worker, ctx.store, attempts, play, concurrency=order.concurrency, done=keep), ctx)
    if waiting:
        store(waiting)
    seen = [outcomes[i] for i in range(len(ids))]
    summary = Summary.of(seen)
    if summary.errors == len(ids):
        raise InfrastructureError(f"none of {len(ids)} attempts could be made; the trajectories of run {order.run_id} say why")
    report = EvalReport(
        id=ctx.job.id,
        run_id=order.run_id,
        name=order.name,
        policy_version=order.policy.version or next((x.policy_version for x in seen if x.policy_version), ""),
        mode=order.mode,
        seed=order.seed,
        overall=summary.overall,
        groups=summary.groups,
        mean_commands=summary.mean_commands,
        passed_without_look=summary.passed_without_look,
        errors=summary.errors,
        seconds=round(time.perf_counter() - began, 3),
        config=order.model_dump(mode="json", exclude={"environments", "run_id", "name"}) | {"environments": len(ids)},
    )
    ctx.check()
    ctx.store.put_report(report)
    return {"report_id": report.id}


def evaluate_swebench(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """SWE-bench-format rows, run here and graded by the swebench package: {"report_id", "left_out"}.

    Raises:
        ConfigError: the payload, the data set or the predictions cannot be read, or swebench is not installed.
    """
    from sandboxes import swebench_export, swebench_rows

    order = _read(SweBenchOrder, payload)
    worker = process_worker(ctx.settings)
    dataset = Path(order.dataset)
    left_out = worker.run(swebench_export.export(worker, ctx, order.environments, dataset), ctx) if order.environments else {}
    report = worker.run(swebench_rows.evaluate(worker, ctx, dataset, order.predictions, run_id=order.run_id), ctx)
    ctx.check()
    ctx.store.put_report(report)
    return {"report_id": report.id, "left_out": left_out}


def render(payload: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Pages, rendered in order as one trust domain: {"renders": [{"status", "cause", "png", "report"}]}.

    `png` and `report` are names of files below `settings.renders_dir`, "" where there is none.
    Raises:
        ConfigError: the payload is not a RenderOrder.
        PolicyRefused: a page is too large, or its folder is not below the state folder.
        Capacity: no browser can be had here.
    """
    from sandboxes.browser import render_job as browser_job

    order = _read(browser_job.RenderOrder, payload)
    worker = process_worker(ctx.settings)
    return {"renders": worker.run(browser_job.render_all(worker, ctx, order), ctx)}


def _play(order: _Order, worker: Worker, ctx: JobContext, temperature: float) -> Play:
    """How one attempt is made under this order."""
    by_solution = order.policy.kind == "solution"
    context = order.context or FoldConfig()
    max_new_tokens = (order.sampling or Sampling()).max_new_tokens
    if order.tokenizer:
        chat = Chat.load(ctx.settings.tokenizers_dir / order.tokenizer)
    elif by_solution:
        chat = Chat.of_bytes()
        context = context.model_copy(update={"observation_tokens": UNLIMITED})
    else:
        raise ConfigError("an engine needs the name of its tokenizer, got none; the Run row of its checkpoint names it")
    if by_solution:  # a script is no model: nothing of it may be cut
        max_new_tokens = UNLIMITED
        context = context.model_copy(update={"limit_tokens": 100 * UNLIMITED})

    async def play(ready: Ready, who: Attempt) -> Trajectory:
        spec = ready.task.spec
        limits = Limits(order.max_turns or spec.max_turns, max_new_tokens, spec.agent_timeout_s)
        policy: Policy
        if by_solution:
            actions = solution_actions(ready.task)
            policy = ScriptedPolicy([chat.action(action) for action in actions], version="solution")
            limits = Limits(max(limits.max_turns, len(actions)), max_new_tokens, spec.agent_timeout_s)
        else:
            policy = worker.policy(ctx.store, order.policy.run_id or order.run_id, order.policy.url)
        terms = Terms(limits, context, temperature)
        return await play_one(ready.task, ready.image, await worker.provider(), policy, chat, who, terms)

    return play


def solution_actions(task: Task) -> list[str]:
    """The reference solution as actions of the task's tool, with the closing `exit`.

    Under `simple_command` and `programs` each line of solve.sh is an action; else the whole script is one.
    Raises:
        ConfigError: the task brings no solution.
    """
    if not task.solution.strip():
        raise ConfigError(f"task {task.spec.name} brings no solution/solve.sh, so it cannot be played")
    if task.spec.tool.name == "shell":
        return [task.solution, tools.EXIT]
    frame = ("#", "set ", "cd ", "PATH=")  # the script's own frame, which the tool gives anyway
    lines = [line.strip() for line in task.solution.splitlines()]
    return [*(line for line in lines if line and not line.startswith(frame)), tools.EXIT]


W = TypeVar("W", bound=Word)


def _read(kind: Callable[..., W], payload: dict[str, Any]) -> W:
    try:
        return kind(**payload)
    except ValidationError as error:
        raise ConfigError(f"the payload must be a {kind.__name__}, got {error}") from error
