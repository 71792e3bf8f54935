"""What an episode may spend, and the words for how it ends.

The words are those of `gymsmith.schema.Trajectory.finish`. Context size is a matter of `fold`; this file counts turns, tokens
of an action and wall seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

Finish = Literal["exit", "turns", "length", "timeout", "error"]
"""exit: the agent said so; turns: no turn is left; length: an action or the context outgrew its limit; timeout: the clock;
error: a failure of ours, which never trains."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What every episode of a batch gets."""

    max_turns: int = 6
    """Actions, the final `exit` among them."""
    max_new_tokens: int = 24
    """Ids per action, its closing token among them."""
    timeout_s: float = 600.0
    """Wall seconds from the first prompt to the last observation; grading is not part of it."""


@dataclass(slots=True)
class Budget:
    """What one episode has left."""

    limits: Limits
    turns: int = 0
    generated_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def spend(self, tokens: int) -> None:
        """Count one action of `tokens` ids."""
        self.turns += 1
        self.generated_tokens += tokens

    @property
    def seconds_left(self) -> float:
        """Wall seconds until the deadline, never negative."""
        return max(0.0, self.started + self.limits.timeout_s - time.monotonic())

    def spent(self) -> Finish | None:
        """Why there can be no further action, or None."""
        if self.turns >= self.limits.max_turns:
            return "turns"
        return "timeout" if self.seconds_left <= 0.0 else None
