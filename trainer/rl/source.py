"""Where trajectories come from, as RL sees it; and a small source of its own.

`Collector` is the real one (jobs, sandboxes, HTTP). `Riddles` plays on the same engine without any of these: for tests of the
loop, and to try an algorithm in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from gymsmith.schema import Reward, Segment, Trajectory, VersionSpan
from trainer.engine.scheduler import Engine, Request
from trainer.rl.curriculum import attempt_seed


class TrajectorySource(Protocol):
    """Serves weights and gets rollouts by them."""

    engine: Engine
    temperature: float

    def serve(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Serve these weights from now on."""
        ...

    def collect(self, name: str, step: int, environments: Sequence[str], attempts: int) -> list[list[Trajectory]]:
        """Rollouts of each environment, in the order of environments and attempts."""
        ...


class Riddles:
    """Environment `riddle/A/B`: after the prompt [A] the reward is 1 for the answer B, else 0. One token, no sandbox."""

    temperature = 1.0

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.seed = engine, seed

    def serve(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Serve these weights from now on."""
        self.engine.retract()
        self.engine.update(weights, version)

    def collect(self, name: str, step: int, environments: Sequence[str], attempts: int) -> list[list[Trajectory]]:
        """All attempts at once, on the engine's own steps."""
        answers: dict[str, Request] = {}
        for group, environment in enumerate(environments):
            asked = int(environment.split("/")[1])
            for attempt in range(attempts):
                seed = attempt_seed(self.seed, step, group, attempt)
                rid = f"{group}/{attempt}"
                self.engine.submit(Request(rid, [asked], 1, 1.0, seed, frozenset(), lambda r: answers.__setitem__(r.rid, r)))
        while self.engine.busy:
            self.engine.step()
        return [
            [
                self._trajectory(environment, f"{name}/{step}/{group}", attempt, answers[f"{group}/{attempt}"])
                for attempt in range(attempts)
            ]
            for group, environment in enumerate(environments)
        ]

    def _trajectory(self, environment: str, group: str, attempt: int, answer: Request) -> Trajectory:
        right = answer.output == [int(environment.split("/")[2])]
        spans = [VersionSpan(version=v, start=1 + i, end=2 + i) for i, v in enumerate(answer.versions)]
        segment = Segment(ids=answer.tokens, mask=[0, 1], logprobs=[0.0, *answer.logprobs], versions=spans)
        return Trajectory(
            id=f"{group}/{attempt}",
            environment_id=environment,
            run_id="riddles",
            group=group,
            attempt=attempt,
            segments=[segment],
            reward=Reward(value=float(right)),
        )
