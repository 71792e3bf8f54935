"""Chooses the environments of a step: cells (family and level) whose attempts differ most come most often, then those that fail,
and each environment once before any comes twice.

A group teaches only when its attempts differ, and with pass rate p a reward has variance p (1 - p); so a cell is drawn with
weight floor + 4 p (1 - p) + hard (1 - p). The middle term is learnability (Tzannetos et al., 2023). It is blind to what never
passes yet, which the last term keeps trying: a first success there is rare, and needs many attempts. The floor keeps looking
into what always passes.

Choice and seeds are counters over (seed, step, group, attempt): the same run draws the same, whatever happened in between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainer.config import RLConfig


class Curriculum:
    """Draws environments by cell. `cells` maps environment id to its cell: family and level."""

    def __init__(self, cells: Mapping[str, str], config: RLConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.members: dict[str, list[str]] = defaultdict(list)
        for environment in sorted(cells):
            self.members[cells[environment]].append(environment)
        self.cells = sorted(self.members)
        self.rate = dict.fromkeys(self.cells, config.cell_start)
        """Recent pass rate."""
        self.drawn = dict.fromkeys(self.cells, 0)

    def draw(self, step: int, count: int) -> list[str]:
        """Environment ids for the groups of a step."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        rates = np.array([self.rate[cell] for cell in self.cells])
        weights = self.config.cell_floor + (1 - rates) * (4 * rates + self.config.cell_hard)
        chosen = rng.choice(len(self.cells), size=count, p=weights / weights.sum())
        return [self._next(self.cells[i]) for i in chosen]

    def observe(self, cell: str, rewards: Sequence[float]) -> None:
        """Take in the rewards of one group."""
        if rewards:
            keep = self.config.cell_decay
            self.rate[cell] = keep * self.rate[cell] + (1 - keep) * float(np.mean(rewards))

    def state(self) -> dict[str, Any]:
        """Rates and cursors."""
        return {"rate": dict(self.rate), "drawn": dict(self.drawn)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.rate |= state["rate"]
        self.drawn |= state["drawn"]

    def _next(self, cell: str) -> str:
        members, at = self.members[cell], self.drawn[cell]
        self.drawn[cell] += 1
        turn, place = divmod(at, len(members))
        key = [self.seed, (self.cells.index(cell) << 32) + turn]
        return members[np.random.Generator(np.random.Philox(key=key)).permutation(len(members))[place]]


def attempt_seed(seed: int, step: int, group: int, attempt: int) -> int:
    """A sampling seed below 2^53 (exact in JSON) for one attempt."""
    sequence = np.random.SeedSequence([seed, step, group, attempt])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(11))
