"""Asking a model for an answer of a shape, and telling it what was wrong until it fits or its tries are used up.

A `Desk` is what all questions of one job share: endpoint, account, journal. A `Talk` is one conversation about one candidate. It
stays short: besides the question a model sees only its last answer and what was wrong with it. Every question is a pure function
of what came before, so an order that is repeated asks the same questions and finds their answers in the journal.
"""

from __future__ import annotations

import json
import re
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from env_factory.llm.account import Account
from env_factory.llm.journal import Journal
from env_factory.llm.prompt import Material, Prompt
from gymsmith.errors import Rejected
from gymsmith.llm import Answer, LlmClient, Message
from gymsmith.schema import digest

TRIES = 4
"""Answers that a model may give for one candidate, the first one counted."""
MAX_TOKENS = 8192
"""Of one answer."""
TEMPERATURE = 0.7
SHOWN_CHARS = 12_000
"""Of a last answer, and of a log, that a model sees again."""
REASONS = (
    "llm-json", "llm-shape", "llm-length", "llm-endless", "llm-declined", "llm-path", "llm-text", "llm-facts", "llm-same",
    "llm-edit", "llm-copied", "llm-requirement", "no-wheel", "tests-fail",
)  # fmt: skip
"""Why an answer cannot become a draft. What a draft then meets are the words of `build`, of screening and of the gates."""

_FENCE = re.compile(r"\A```[a-z]*\n(.*)\n```\Z", re.DOTALL)


class Shape(BaseModel):
    """Base of what a model is asked for. Every field is required: an endpoint's grammar then leaves none out."""

    model_config = ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T", bound=Shape)


class Unfit(Exception):
    """An answer that cannot be used: a typed reason, what the model is told, and what a program said about it."""

    def __init__(self, reason: str, said: str, output: str = "") -> None:
        super().__init__(f"{reason}: {said}")
        self.reason, self.said, self.output = reason, said, output


class Desk:
    """Of one job."""

    def __init__(self, client: LlmClient, account: Account, journal: Journal, job_id: str) -> None:
        self.client, self.account, self.journal, self.job_id = client, account, journal, job_id
        for paid in journal.paid_by(job_id):
            account.book(paid)

    @property
    def provenance(self) -> str:
        """What environments carry that a model had a hand in."""
        return f"llm:{self.client.endpoint.model}"

    async def ask(self, messages: list[Message], schema: dict[str, Any], seed: int, max_tokens: int = MAX_TOKENS) -> Answer:
        """The answer to a question, bought at most once.

        Raises:
            BudgetSpent: it might cost more than is left.
            LlmError, LlmRefused: see `LlmClient.complete`.
        """
        asked = {"model": self.client.endpoint.model, "messages": messages, "schema": schema, "seed": seed}
        asked |= {"max_tokens": max_tokens, "temperature": TEMPERATURE}
        key = digest(json.dumps(asked, sort_keys=True).encode())
        if (known := self.journal.answers.get(key)) is not None:
            self.account.remember()
            return known
        reserved = await self.account.reserve(sum(len(m["content"]) for m in messages), max_tokens)
        answer: Answer | None = None
        try:
            answer = await self.client.complete(
                messages, max_tokens=max_tokens, temperature=TEMPERATURE, seed=seed, schema=schema
            )
            self.journal.add(key, self.job_id, answer)
        finally:
            await self.account.settle(reserved, answer)
        return answer


class Talk(Generic[T]):
    """One conversation. Belongs to one candidate."""

    def __init__(
        self, desk: Desk, prompt: Prompt, shape: type[T], *, seed: int, tries: int = TRIES, max_tokens: int = MAX_TOKENS
    ) -> None:
        self.desk, self.prompt, self.shape, self.seed, self.tries = desk, prompt, shape, seed, tries
        self.max_tokens = max_tokens
        self.asked = 0
        self.problem: Unfit | None = None
        self._last = ""

    async def ask(self) -> T:
        """The next answer that has the shape.

        Raises:
            Rejected: the tries are used up; the reason is that of the last answer.
            BudgetSpent, LlmError, LlmRefused: see `Desk.ask`.
        """
        while True:
            if self.asked >= self.tries:
                assert self.problem is not None
                raise Rejected(self.problem.reason, f"{self.problem.said} {self.problem.output}"[:2000].strip())
            schema = self.shape.model_json_schema()
            answer = await self.desk.ask(self._messages(), schema, self.seed + self.asked, self.max_tokens)
            self.asked += 1
            self._last = answer.text
            try:
                return shaped(answer, self.shape)
            except Unfit as unfit:
                self.object(unfit)

    def object(self, unfit: Unfit) -> None:
        """Say what is wrong with the last answer; the next one is asked for with that."""
        self.problem = unfit

    def _messages(self) -> list[Message]:
        messages: list[Message] = [
            {"role": "system", "content": self.prompt.system},
            {"role": "user", "content": self.prompt.user},
        ]
        if self.problem is None:
            return messages
        output = f"\n{Material(_ends(self.problem.output)).fenced()}" if self.problem.output else ""
        objection = (
            f"This answer was turned down ({self.problem.reason}): {self.problem.said}{output}\n"
            f"Answer once more, with the whole JSON object, repaired. {self.tries - self.asked} tries are left."
        )
        last = {"role": "assistant", "content": _ends(self._last) or "(nothing)"}
        return [*messages, last, {"role": "user", "content": objection}]


def shaped(answer: Answer, shape: type[T]) -> T:
    """The object in an answer.

    Raises: Unfit: there is none, or not of this shape.
    """
    if answer.finish == "endless":
        raise Unfit("llm-endless", "it had no end and was cut off; write one JSON object and stop")
    if answer.finish == "declined":
        raise Unfit("llm-declined", "no JSON object came, but a refusal", answer.text)
    if answer.finish == "length":
        raise Unfit("llm-length", "it reached the limit of tokens and broke off; write less")
    text = answer.text.strip()
    if found := _FENCE.match(text):
        text = found.group(1)
    start, end = text.find("{"), text.rfind("}")
    try:
        document = json.loads(text[start : end + 1] if 0 <= start < end else text)
        # Half a surrogate pair is JSON, but no text that a file could hold.
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Unfit("llm-json", f"expected one JSON object, got text that is none: {str(error)[:200]}") from None
    try:
        return shape.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, p['loc'])) or 'the whole'}: {p['msg']}, got {str(p['input'])[:60]!r}" for p in error.errors()[:8]
        )
        raise Unfit("llm-shape", f"the JSON does not have the shape that was asked for: {problems}") from None


def _ends(text: str) -> str:
    """A long text without its middle."""
    half = SHOWN_CHARS // 2
    return text if len(text) <= SHOWN_CHARS else f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
