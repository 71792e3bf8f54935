"""Many attempts at once, and what they come to: pass rates with 95% Wilson intervals, by family.

`attempt_all` is what rollout and evaluation jobs share: bounded concurrency, order by item and never by completion, another
try where a failure was ours. A policy, a chat and terms come from the caller.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from gymsmith.errors import EngineError, Fenced, InfrastructureError
from gymsmith.schema import Score, Trajectory
from gymsmith.store import Store
from sandboxes.rollout import Attempt, lost
from sandboxes.worker import Ready, Worker

TRIES = 3
"""How often an attempt is made before a failure of ours is left standing."""

Z95 = 1.959963984540054

Play = Callable[[Ready, Attempt], Awaitable[Trajectory]]


async def attempt_all(
    worker: Worker,
    store: Store,
    attempts: Sequence[Attempt],
    play: Play,
    *,
    concurrency: int | None = None,
    done: Callable[[int, Ready | None, Trajectory], Awaitable[None]],
) -> None:
    """Make every attempt, at most `concurrency` at once, and hand each result to `done` as (index, environment, trajectory);
    the environment is None when it could not be made ready.

    An attempt whose sandbox failed us is made again, up to `TRIES` times; its last trajectory then carries the error. A bug,
    or an exception of `done`, is raised after the siblings at work have ended; those that had not begun are dropped.
    """
    gate = asyncio.Semaphore(concurrency or len(attempts) or 1)
    broken = False

    async def one(index: int, who: Attempt) -> None:
        nonlocal broken
        async with gate, worker.slots:
            if broken:
                return
            try:
                try:
                    ready = await worker.ready(store, who.environment_id)
                except Fenced:
                    raise
                except InfrastructureError as failure:
                    await done(index, None, lost(who, failure))
                    return
                for _ in range(TRIES):
                    trajectory = await play(ready, who)
                    # The client of an engine has waited for it already.
                    if not trajectory.error or trajectory.error.startswith(EngineError.__name__):
                        break
                await done(index, ready, trajectory)
            except BaseException:
                broken = True
                raise

    results = await asyncio.gather(*(one(i, who) for i, who in enumerate(attempts)), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation keeps of one attempt."""

    group: str
    passed: bool | None
    """None: lost to a failure of ours."""
    looked: bool | None
    commands: int
    policy_version: str

    @classmethod
    def of(cls, ready: Ready | None, trajectory: Trajectory) -> Outcome:
        """The outcome of one trajectory; its group is the family of the environment, or its kind."""
        spec = ready.environment.spec if ready else None
        return cls(
            group=(spec.labels.get("family") or spec.kind) if spec else "",
            passed=None if trajectory.reward is None else trajectory.reward.value >= 1.0,
            looked=trajectory.looked,
            commands=sum(1 for step in trajectory.steps if not step.refused),
            policy_version=trajectory.policy_version,
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """Pass rates over outcomes; attempts lost to a failure of ours are counted apart."""

    overall: Score
    groups: dict[str, Score]
    mean_commands: float
    passed_without_look: int
    errors: int

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Summary:
        """Sum up."""
        every = list(outcomes)
        scored = [x for x in every if x.passed is not None]
        by_group: dict[str, list[Outcome]] = defaultdict(list)
        for x in scored:
            by_group[x.group].append(x)
        return cls(
            overall=_score(scored),
            groups={name: _score(by_group[name]) for name in sorted(by_group)},
            mean_commands=sum(x.commands for x in scored) / len(scored) if scored else 0.0,
            passed_without_look=sum(1 for x in scored if x.passed and x.looked is False),
            errors=len(every) - len(scored),
        )


def wilson(passed: int, n: int, z: float = Z95) -> Score:
    """A pass rate with its Wilson score interval (Wilson 1927); [0, 1] when nothing was counted."""
    if n == 0:
        return Score(n=0, passed=0, rate=0.0, low=0.0, high=1.0)
    p, z2 = passed / n, z * z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # The ends are exactly 0 and 1 where nothing or everything passed; rounding must not say otherwise.
    low = 0.0 if passed == 0 else middle - half
    high = 1.0 if passed == n else middle + half
    return Score(n=n, passed=passed, rate=p, low=low, high=high)


def _score(outcomes: Sequence[Outcome]) -> Score:
    return wilson(sum(1 for x in outcomes if x.passed), len(outcomes))
