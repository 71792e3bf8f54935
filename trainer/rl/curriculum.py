"""Chooses the environments of a step: families that still fail come more often, each environment once before any comes twice.

Choice and seeds are counters over (seed, step, group, attempt): the same run draws the same, whatever happened in between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.config import RLConfig


class Curriculum:
    """Draws environments by family. `families` maps environment id to family."""

    def __init__(self, families: Mapping[str, str], config: RLConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.members: dict[str, list[str]] = defaultdict(list)
        for environment in sorted(families):
            self.members[families[environment]].append(environment)
        self.families = sorted(self.members)
        self.rate = dict.fromkeys(self.families, 0.5)
        """Recent pass rate."""
        self.drawn = dict.fromkeys(self.families, 0)

    def draw(self, step: int, count: int) -> list[str]:
        """Environment ids for the groups of a step."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        weights = np.array([self.config.family_floor + 1 - self.rate[f] for f in self.families])
        chosen = rng.choice(len(self.families), size=count, p=weights / weights.sum())
        return [self._next(self.families[i]) for i in chosen]

    def observe(self, family: str, rewards: Sequence[float]) -> None:
        """Take in the rewards of one group."""
        if rewards:
            keep = self.config.family_decay
            self.rate[family] = keep * self.rate[family] + (1 - keep) * float(np.mean(rewards))

    def state(self) -> dict[str, Any]:
        """Rates and cursors."""
        return {"rate": dict(self.rate), "drawn": dict(self.drawn)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.rate |= state["rate"]
        self.drawn |= state["drawn"]

    def _next(self, family: str) -> str:
        members, at = self.members[family], self.drawn[family]
        self.drawn[family] += 1
        turn, place = divmod(at, len(members))
        key = [self.seed, (self.families.index(family) << 32) + turn]
        return members[np.random.Generator(np.random.Philox(key=key)).permutation(len(members))[place]]


def attempt_seed(seed: int, step: int, group: int, attempt: int) -> int:
    """A sampling seed below 2^53 (exact in JSON) for one attempt."""
    sequence = np.random.SeedSequence([seed, step, group, attempt])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(11))
