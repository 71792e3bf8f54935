"""What the kinds `llm-...` of a generate job do: open a desk, hand candidates with authors to the intake, say what it cost.

    llm-tutorial   terminal tasks after a tutorial (file:, man:)
    llm-reword     other instructions for environments that are there (env:ID, env:KIND, env:all)

A job that a budget stopped has succeeded: its result says `stopped`, what was admitted stays, and the same order with a larger
budget goes on without buying anything twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from env_factory.intake import Proposal
from env_factory.llm.account import Account
from env_factory.llm.conversation import Desk
from env_factory.llm.journal import Journal
from env_factory.llm.terminal import TerminalAuthor
from env_factory.sources import Tutorial
from gymsmith.config import Settings
from gymsmith.llm import Endpoint, LlmClient
from gymsmith.schema import JobContext

AT_ONCE = 4
"""Candidates that are written and proved at the same time."""
TRIES = 4
"""Candidates per wanted environment before an order is given up."""


class Terms(NamedTuple):
    """What an order says about the model and its cost; 0 and empty mean what the settings say."""

    model: str = ""
    budget_tokens: int = 0
    budget_usd: float = 0.0


Take = Callable[[AsyncGenerator[Proposal, None], dict[str, Any]], Awaitable[dict[str, Any]]]
"""Settles proposals under a ledger's key; see `tasks._take`."""


@asynccontextmanager
async def desk(terms: Terms, ctx: JobContext, **key: Any) -> AsyncIterator[Desk]:
    """The desk of a job. `key`: what all questions of the order follow from, besides the model.

    Raises: ConfigError: no endpoint is configured, or a budget in dollars without prices.
    """
    settings: Settings = ctx.settings
    endpoint = Endpoint.of(settings, terms.model)

    def report(sums: dict[str, Any]) -> None:
        ctx.progress(**sums)

    account = Account(
        endpoint,
        budget_tokens=terms.budget_tokens or settings.llm_budget_tokens,
        budget_usd=terms.budget_usd or settings.llm_budget_usd,
        report=report,
    )
    async with LlmClient(endpoint) as client:
        yield Desk(client, account, Journal.of(settings, model=endpoint.model, **key), ctx.job.id)


async def tutorial(lessons: list[Tutorial], n: int, seed: int, at: Desk, take: Take) -> dict[str, Any]:
    """Terminal tasks after these tutorials, which take turns."""

    async def proposals() -> AsyncGenerator[Proposal, None]:
        for index in range(TRIES * n):
            lesson = lessons[index % len(lessons)]
            yield Proposal(index, None, author=TerminalAuthor(at, lesson, seed, index // len(lessons)))

    key = {"source": [lesson.source.digest for lesson in lessons], "model": at.client.endpoint.model}
    return await take(proposals(), key)
