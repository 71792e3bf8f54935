"""What one job has bought from a model, and how much more it may.

Before a question is asked its dearest possible answer is reserved, so that calls which are under way together cannot overrun a
budget between them; afterwards the reservation becomes what the answer really cost. An endpoint that ignores `max_tokens`, or
counts more tokens than bytes / 3, can exceed a budget by one answer; one that bills answers which never came is not seen through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from gymsmith.errors import ConfigError, GymsmithError
from gymsmith.llm import Answer, Endpoint, guess_tokens


class BudgetSpent(GymsmithError):
    """Nothing more may be bought. Ends an order cleanly: what was admitted stays, and a larger budget goes on from there."""

    code = "budget-spent"


class Reservation(NamedTuple):
    """The most that one question can cost."""

    tokens: int
    usd: float


class Account:
    """Of one job. Belongs to one event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        budget_tokens: int,
        budget_usd: float,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """Budgets of 0 are none. `report` is told the sums after each answer.

        Raises: ConfigError: a budget in dollars without prices.
        """
        if budget_usd and not (endpoint.price_in or endpoint.price_out):
            raise ConfigError(
                f"a budget of {budget_usd:g} USD needs prices; set GYMSMITH_LLM_PRICE_IN and GYMSMITH_LLM_PRICE_OUT "
                "(USD per million tokens), or give a budget in tokens"
            )
        self.endpoint = endpoint
        self.budget_tokens, self.budget_usd = budget_tokens, budget_usd
        self.calls = self.requests = self.remembered = self.estimated = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.cost_usd = 0.0
        self._open: list[Reservation] = []
        self._changed = asyncio.Condition()
        self._report = report

    @property
    def tokens(self) -> int:
        """Bought so far, in and out."""
        return self.prompt_tokens + self.completion_tokens

    async def reserve(self, prompt_characters: int, max_tokens: int) -> Reservation:
        """Set aside what one question may cost; waits while only other questions under way stand against it.

        Raises: BudgetSpent.
        """
        asked = guess_tokens(prompt_characters)
        wanted = Reservation(asked + max_tokens, self.endpoint.cost(asked, max_tokens))
        async with self._changed:
            while True:
                tokens = self.tokens + wanted.tokens + sum(r.tokens for r in self._open)
                usd = self.cost_usd + wanted.usd + sum(r.usd for r in self._open)
                over = (self.budget_tokens and tokens > self.budget_tokens) or (self.budget_usd and usd > self.budget_usd)
                if not over:
                    self._open.append(wanted)
                    return wanted
                if not self._open:
                    raise BudgetSpent(self._said(wanted))
                await self._changed.wait()

    async def settle(self, reserved: Reservation, answer: Answer | None) -> None:
        """Turn a reservation into what was really bought; None: nothing was."""
        async with self._changed:
            self._open.remove(reserved)
            if answer is not None:
                self.book(answer)
            self._changed.notify_all()
        self._report(self.summary())

    def book(self, answer: Answer) -> None:
        """Count an answer that this job has paid for, now or before it was interrupted."""
        self.calls += 1
        self.requests += answer.requests
        self.prompt_tokens += answer.prompt_tokens
        self.completion_tokens += answer.completion_tokens
        self.cost_usd += answer.cost_usd
        self.estimated += answer.estimated

    def remember(self) -> None:
        """Count an answer that was there already and cost nothing."""
        self.remembered += 1
        self._report(self.summary())

    def summary(self) -> dict[str, Any]:
        """The sums, as a job's progress and result show them."""
        return {
            "llm_model": self.endpoint.model,
            "llm_calls": self.calls,
            "llm_requests": self.requests,
            "llm_remembered": self.remembered,
            "llm_prompt_tokens": self.prompt_tokens,
            "llm_completion_tokens": self.completion_tokens,
            "llm_cost_usd": round(self.cost_usd, 6),
            "llm_estimated": self.estimated,
        }

    def _said(self, wanted: Reservation) -> str:
        parts = []
        if self.budget_tokens:
            parts.append(
                f"{self.tokens:,} of {self.budget_tokens:,} tokens are spent and the next answer may take {wanted.tokens:,}"
            )
        if self.budget_usd:
            parts.append(
                f"{self.cost_usd:.4f} of {self.budget_usd:g} USD are spent and the next answer may take {wanted.usd:.4f}"
            )
        return f"{'; '.join(parts)}: order again with a larger budget to go on"
