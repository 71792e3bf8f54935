"""Folding: which rounds of a long episode the next prompt still shows.

Keep-recent-k (GLM-5 report, 4.2.4): what is older than the last k rounds leaves the prompt. `fold = "observations"` is the
report's form: an old observation becomes a short marker and the actions stay; `fold = "turns"` drops whole rounds, which
suits a small model. On top of both lies a hard limit: a prompt that would not fit starts again from the instruction and the
last rounds.

A fold edits the prefix, so the next prompt is no extension of the last one and a new segment begins (see `transcript`).
Folding in blocks of `every` rounds makes segments longer: between folds the prompt only grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from context_mgmt.chat import Chat
from gymsmith.schema import Word

OMITTED = "omitted"
"""Stands for an observation that was folded away."""


class FoldConfig(Word):
    """How much of an episode a prompt may show."""

    keep_recent_k: int | None = Field(default=None, ge=1)
    """Rounds that are never folded; None folds nothing, and an episode that outgrows the limit ends."""
    fold: Literal["turns", "observations"] = "turns"
    """What leaves the prompt: a whole old round, or only its observation."""
    every: int = Field(default=1, ge=1)
    """Fold in blocks of this many rounds: k .. k + every - 1 recent rounds are shown."""
    limit_tokens: int = Field(default=320, ge=16)
    """Prompt and action together."""
    observation_tokens: int = Field(default=56, ge=1)
    """Ids of one observation's text; the middle of a longer one is cut out."""


class Round(NamedTuple):
    """One action with its closing token, and the observation up to the opening of the next action."""

    action: list[int]
    observation: list[int]


class Window:
    """The rounds of one episode and what of them is shown."""

    def __init__(self, chat: Chat, instruction: str, config: FoldConfig) -> None:
        self.config = config
        self.rounds: list[Round] = []
        self.folded = 0
        """Rounds [0, folded) have lost their observation in the present prompt."""
        self.dropped = 0
        """Rounds [0, dropped) are not in the present prompt at all; never more than `folded`."""
        self._start = chat.start(instruction)
        self._omitted = chat.observation(OMITTED, config.observation_tokens)

    def add(self, action: Sequence[int], observation: Sequence[int]) -> None:
        """Append a round. `action` holds the ids exactly as produced, and the closing token if they lack it."""
        self.rounds.append(Round(list(action), list(observation)))

    def prompt(self, reserve_tokens: int) -> list[int] | None:
        """Ids of the next call, leaving `reserve_tokens` of the limit for the action; None when even the least does not fit."""
        k, room, n = self.config.keep_recent_k, self.config.limit_tokens - reserve_tokens, len(self.rounds)
        if k is not None and n - self.folded >= k + self.config.every:
            self.folded = n - k
            if self.config.fold == "turns":
                self.dropped = self.folded
        ids = self._render()
        if len(ids) <= room:
            return ids
        if k is None:
            return None
        for keep in range(min(k, n), 0, -1):
            self.folded = self.dropped = n - keep
            ids = self._render()
            if len(ids) <= room:
                return ids
        return None

    def _render(self) -> list[int]:
        ids = list(self._start)
        for i in range(self.dropped, len(self.rounds)):
            ids += self.rounds[i].action
            ids += self._omitted if i < self.folded else self.rounds[i].observation
        return ids
