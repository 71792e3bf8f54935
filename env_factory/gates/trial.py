"""One draft in front of its gates: attempts in fresh sandboxes, asked again where a sandbox fails us, and what became of them.

Which attempts are made, and what they must come to, is said by `gates/stages.py` and the files beside it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from env_factory.gates.effects import Effect, Effects
from env_factory.gates.mutants import Rules, Variant
from gymsmith.errors import InfrastructureError
from gymsmith.schema import Draft, Gate, Reward
from gymsmith.taskdir import Task
from sandboxes.base import Image, Provider
from sandboxes.grade import attempt_script, tried, verify

log = logging.getLogger(__name__)

RETRIES = 3
DETAIL_CHARS = 500
T = TypeVar("T")


Reviewed = Callable[["Trial"], Awaitable[list[Gate]]]
"""Reads a task that stood every other gate, and tells the gates of its own."""


@dataclass(frozen=True, slots=True)
class Around:
    """What a draft is held against outside of itself; what is None is not asked."""

    listed: Callable[[Draft], Gate] | None = None
    """Is it a benchmark's?"""
    rebuilt: Callable[[Draft], Awaitable[Gate]] | None = None
    """Can its image be built again?"""
    novel: Callable[[Draft, tuple[Effect, ...]], Awaitable[Gate]] | None = None
    """Is it unlike those before it?"""
    reviewed: Reviewed | None = None
    """Does somebody who reads it come to the same?"""


class Doubt(NamedTuple):
    """What a gate holds against a task, for a reader to weigh: a rule that no program can be sure of."""

    gate: str
    said: str
    scripts: tuple[str, ...] = ()
    """Work that the tests accept and that lacks something; as scripts that leave the same."""
    allowed: int = 0
    """How many of these may be wrong."""


class Trial:
    """Belongs to one event loop. `slots` bounds how many attempts are under way in this process."""

    def __init__(
        self,
        draft: Draft,
        image: Image,
        provider: Provider,
        slots: asyncio.Semaphore | None = None,
        rules: Rules = Rules(),
        around: Around = Around(),
    ) -> None:
        self.rules = rules
        self.around = around
        self.draft = draft
        self.task = Task.of(draft)
        self.image = image
        self.provider = provider
        self.slots = slots or asyncio.Semaphore(8)
        self.gates: list[Gate] = []
        self.nothing: Reward | None = None
        """The verdict on doing nothing, once it is known."""
        self.doubts: list[Doubt] = []
        """What the reader has to weigh; empty where none is asked: such a gate fails then."""
        self.effects: tuple[Effect, ...] = ()
        """What the solution does to files, once it was looked at."""

    async def attempt(
        self,
        script: str | None,
        *,
        task: Task | None = None,
        unchanged: Reward | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Reward:
        """The reward of a scripted agent. Raises: InfrastructureError: sandboxes failed us RETRIES times."""
        return await self.patiently(
            lambda: attempt_script(self.provider, self.image, task or self.task, script, unchanged=unchanged, env=env or {})
        )

    def hold(self, gate: Gate, *scripts: str, allowed: int = 0) -> Gate:
        """A gate that may fail by a mistake of ours: where there is a reader it passes, and the reader is told."""
        if gate.passed or self.around.reviewed is None:
            return gate
        self.doubts.append(Doubt(gate.name, gate.detail, scripts, allowed))
        return gate.model_copy(update={"passed": True, "detail": f"left to the reader: {gate.detail}"[:DETAIL_CHARS]})

    async def tried(self, script: str) -> tuple[Reward, str]:
        """The reward of a script, and how it failed by itself; made again as `control` does. Raises: InfrastructureError."""
        for _ in range(RETRIES):
            reward, said = await self.patiently(
                lambda: tried(self.provider, self.image, self.task, script, unchanged=self.nothing)
            )
            if reward.seconds < self.task.spec.verifier_timeout_s:
                break
        return reward, said

    async def control(self, script: str | None, *, task: Task | None = None, env: Mapping[str, str] | None = None) -> Reward:
        """An attempt that is no cheat. One that ran into the time limit may have met a busy machine, so it is made again."""
        limit = (task or self.task).spec.verifier_timeout_s
        for _ in range(RETRIES):
            reward = await self.attempt(script, task=task, env=env)
            if reward.seconds < limit:
                break
        return reward

    async def variant(self, effects: Effects | None, variant: Variant) -> Reward:
        """The reward of wrong work: of its script, or of the solution's effects as it changes them."""
        if effects is None or variant.script:
            return await self.attempt(variant.script)
        with closing(effects.variant(variant.writes)) as artifacts:
            return await self.patiently(lambda: verify(self.provider, self.image, self.task, artifacts))

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gives, in one of the slots."""
        async with self.slots:
            return await asking_again(ask)

    @property
    def failed(self) -> Gate | None:
        """The first gate that did not pass."""
        return next((gate for gate in self.gates if not gate.passed), None)


def gate_of(name: str, rewards: Sequence[Reward], wanted: float) -> Gate:
    """A gate that passes when every reward is the wanted one."""
    wrong = next((r for r in rewards if r.value != wanted), None)
    return Gate(
        name=name,
        passed=wrong is None,
        rewards=tuple(r.value for r in rewards),
        seconds=round(sum(r.seconds for r in rewards), 4),
        detail="" if wrong is None else (wrong.detail or f"expected reward {wanted:g}, got {wrong.value:g}")[-DETAIL_CHARS:],
    )


async def asking_again(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` gives; where a sandbox fails us it is asked RETRIES times. Raises: InfrastructureError, the last one."""
    for turn in range(RETRIES):
        try:
            return await ask()
        except InfrastructureError as error:
            if turn == RETRIES - 1:
                raise
            log.warning("event=gate_retry turn=%d error=%s", turn + 1, error)
            await asyncio.sleep(0.2 * 4**turn)
    raise AssertionError("unreachable")
