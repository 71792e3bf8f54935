"""The one chat client: OpenAI's wire format (`POST URL/chat/completions`), whoever serves it: a vendor, vLLM, SGLang, llama.cpp.

One call, one answer. What is a matter of the wire is settled here: an endpoint that is busy, away or cut off is asked again after
a pause with full jitter (Brooker, "Exponential Backoff And Jitter", 2015) or one that it names; a parameter that it does not know
is left out from then on; an answer without an end is cut off. What an answer says, what it may cost and where it is kept is the
caller's business (`env_factory/llm`). The key stands in one header and nowhere else: every text that comes from the endpoint is
searched for it before anybody sees it.

It is built on aiohttp, which `policy.py` needs anyway: the vendor's package would bring a second HTTP client and ten times the
code for the one request that is made here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import aiohttp

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, LlmError, LlmRefused
from gymsmith.schema import Word

log = logging.getLogger(__name__)

TRIES = 6
"""Requests for one answer before the endpoint counts as away."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024
"""An answer that goes on behind this is cut off and counts as endless."""
LEAST_SECRET = 8
"""Characters of a key that is one; servers of one's own take "x", "none" or "EMPTY"."""
BYTES_PER_TOKEN = 3
"""For what an endpoint does not count itself; English and code have four, so budgets are met rather early."""
OPTIONAL = ("response_format", "max_tokens", "temperature", "seed")
"""Parameters that some endpoints do not know."""

Message = Mapping[str, str]
"""role (system, user or assistant) and content."""


class Answer(Word):
    """One completion and what it cost."""

    text: str
    finish: Literal["stop", "length", "endless", "declined"]
    """`length`: it ran into max_tokens. `endless`: it was cut off here. `declined`: the model would not."""
    model: str
    """As the endpoint calls what answered."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    estimated: bool = False
    """The endpoint did not count, so the tokens are what the bytes suggest."""
    requests: int = 1
    """How often it had to be asked."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is asked, and at what price."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    price_in: float = 0.0
    """US dollars per million tokens, as `price_out`; 0 where unknown."""
    price_out: float = 0.0
    timeout_s: float = 300.0

    @classmethod
    def of(cls, settings: Settings, model: str = "") -> Endpoint:
        """The endpoint that is configured; `model` asks for another one there.

        Raises: ConfigError: none is configured, or not in a way that can be used.
        """
        if not settings.llm_url:
            raise ConfigError(
                "a language model is asked for and none is configured; set GYMSMITH_LLM_URL (such as https://HOST/v1), "
                "GYMSMITH_LLM_KEY and GYMSMITH_LLM_MODEL, or go without --review and the kinds llm-..."
            )
        parts = urlsplit(settings.llm_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"GYMSMITH_LLM_URL must be http(s)://HOST[:PORT]/PATH, got one with scheme {parts.scheme!r}")
        if parts.username or parts.password:
            raise ConfigError("GYMSMITH_LLM_URL must not hold a name or a password, it may be shown; set GYMSMITH_LLM_KEY")
        if not (model or settings.llm_model):
            raise ConfigError("the endpoint needs the name of a model; set GYMSMITH_LLM_MODEL or give --model")
        return cls(
            settings.llm_url, model or settings.llm_model, settings.llm_key,
            settings.llm_price_in, settings.llm_price_out, settings.llm_timeout_s,
        )  # fmt: skip

    @property
    def where(self) -> str:
        """The address for people: without a query, which may hold a secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")

    @property
    def target(self) -> str:
        """Where requests go."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        return parts._replace(path=path, fragment="").geturl()

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars for so many tokens, by the configured prices."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


class LlmClient:
    """A client of one endpoint. Belongs to one event loop; any number of calls may be in flight."""

    def __init__(self, endpoint: Endpoint, *, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self.endpoint = endpoint
        self._first_pause_s = first_pause_s
        self._session: aiohttp.ClientSession | None = None
        self._unknown: set[str] = set()
        """Members of OPTIONAL that this endpoint refused."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> Answer:
        """One answer. `schema`: the JSON schema that it is asked to follow; whether it does is for the caller to see.

        Raises:
            LlmRefused: key, model or request are not taken.
            LlmError: no answer in TRIES requests.
        """
        wanted: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed % 2**31}
        if schema is not None:
            shape = {"name": str(schema.get("title", "answer")), "schema": schema}
            wanted["response_format"] = {"type": "json_schema", "json_schema": shape}
        pause, why, requests = self._first_pause_s, "", 0
        while requests < TRIES:
            body = {"model": self.endpoint.model, "messages": list(messages)} | wanted
            for name in self._unknown & set(body):
                value = body.pop(name)
                if name == "max_tokens":
                    body["max_completion_tokens"] = value
            requests += 1
            asked_for_s: float | None = None
            try:
                status, headers, data, ended = await self._post(json.dumps(body).encode())
            except (TimeoutError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                why = self.clean(f"{type(error).__name__} {error}".strip())
            else:
                if status == 200 and not ended:
                    return self._endless(messages, data, requests)
                if status == 200 and (made := self._parsed(messages, data, requests)) is not None:
                    return made
                shown = self.clean(data.decode(errors="replace"))[:300]
                why = f"{status} {shown!r}"
                if status in (400, 422) and (name := _named(data, body)):
                    log.info("event=llm_parameter_dropped endpoint=%s name=%s", self.endpoint.where, name)
                    self._unknown.add(name)
                    requests -= 1
                    continue
                final = status != 200 and status < 500 and status not in (408, 409, 425, 429)
                if final or b"insufficient_quota" in data:
                    raise LlmRefused(
                        f"{self.endpoint.where} must answer for model {self.endpoint.model!r}, got {why}; {_cure(status)}"
                    )
                asked_for_s = _retry_after(headers.get("Retry-After", ""))
            if requests < TRIES:
                wait_s = random.uniform(0, pause) if asked_for_s is None else asked_for_s + random.uniform(0, self._first_pause_s)
                log.warning(
                    "event=llm_retry endpoint=%s request=%d wait_s=%.2f why=%s", self.endpoint.where, requests, wait_s, why
                )
                await asyncio.sleep(min(wait_s, LONGEST_PAUSE_S))
                pause = min(2 * pause, LONGEST_PAUSE_S)
        raise LlmError(
            f"{self.endpoint.where} must answer within {TRIES} requests, the last got {why}; is it up, and not overloaded?"
        )

    async def models(self) -> list[str]:
        """The models that the endpoint lists; costs nothing.

        Raises:
            LlmRefused: it does not take the key.
            LlmError: it does not answer, or lists nothing.
        """
        session = self._open()
        where = self.endpoint.target.replace("/chat/completions", "/models")
        try:
            async with session.get(where, timeout=aiohttp.ClientTimeout(total=5.0), allow_redirects=False) as response:
                status, data = response.status, await response.content.read(MAX_ANSWER_BYTES)
            if status in (401, 403):
                raise LlmRefused(f"{self.endpoint.where} does not take the key ({status}); {_cure(status)}")
            return [str(row["id"]) for row in json.loads(data)["data"]]
        except (TimeoutError, aiohttp.ClientError) as error:
            raise LlmError(f"{self.endpoint.where} does not answer: {self.clean(str(error)) or type(error).__name__}") from None
        except (ValueError, KeyError, TypeError):
            raise LlmError(
                f"{self.endpoint.where} lists no models (it answers {status}); is this where /chat/completions is?"
            ) from None

    def clean(self, text: str) -> str:
        """The text without the key, should an endpoint repeat it. Short ones are placeholders, which stand in any text."""
        return text.replace(self.endpoint.key, "[key]") if len(self.endpoint.key) >= LEAST_SECRET else text

    async def _post(self, body: bytes) -> tuple[int, Mapping[str, str], bytes, bool]:
        """(status, headers, body up to MAX_ANSWER_BYTES, whether that was all of it)."""
        session = self._open()
        limit = aiohttp.ClientTimeout(total=self.endpoint.timeout_s)
        received = bytearray()
        # A redirect would carry the prompt, and perhaps the key, to a place that nobody configured.
        async with session.post(self.endpoint.target, data=body, timeout=limit, allow_redirects=False) as response:
            whole = True
            try:
                async for chunk in response.content.iter_chunked(65536):
                    received += chunk
                    if len(received) > MAX_ANSWER_BYTES:
                        whole = False
                        break
            except TimeoutError:
                # Out of time in the middle of an answer: asking again would be as endless, and would be paid again.
                if response.status != 200 or not received:
                    raise
                whole = False
            if not whole:
                response.close()
            return response.status, response.headers, bytes(received), whole

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self.endpoint.key:
                headers["Authorization"] = f"Bearer {self.endpoint.key}"
            self._session = aiohttp.ClientSession(headers=headers, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    def _parsed(self, messages: Sequence[Message], data: bytes, requests: int) -> Answer | None:
        """The answer in a body, or None where the body is not in OpenAI's format."""
        try:
            document = json.loads(data)
            choice = document["choices"][0]
            said = choice["message"].get("content")
            if isinstance(said, list):
                said = "".join(part.get("text", "") for part in said)
            text = self.clean(said or "")
            finish: Literal["stop", "length", "declined"] = "length" if choice.get("finish_reason") == "length" else "stop"
            if choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter":
                finish, text = "declined", text or self.clean(str(choice["message"].get("refusal") or ""))
            usage = document.get("usage") or {}
            counted = isinstance(usage.get("prompt_tokens"), int) and isinstance(usage.get("completion_tokens"), int)
            asked, said_tokens = (usage["prompt_tokens"], usage["completion_tokens"]) if counted else _guess(messages, len(data))
            stated = usage.get("cost")
            cost = self.endpoint.cost(asked, said_tokens) or (float(stated) if isinstance(stated, int | float) else 0.0)
            if min(asked, said_tokens, cost) < 0 or not math.isfinite(cost):
                raise ValueError("usage must not be negative")
            model = self.clean(str(document.get("model") or self.endpoint.model))
            return Answer(
                text=text, finish=finish, model=model, prompt_tokens=asked, completion_tokens=said_tokens,
                cost_usd=cost, estimated=not counted, requests=requests,
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return None

    def _endless(self, messages: Sequence[Message], data: bytes, requests: int) -> Answer:
        asked, said = _guess(messages, len(data))
        return Answer(
            text="", finish="endless", model=self.endpoint.model, prompt_tokens=asked, completion_tokens=said,
            cost_usd=self.endpoint.cost(asked, said), estimated=True, requests=requests,
        )  # fmt: skip


def guess_tokens(characters: int) -> int:
    """How many tokens so many characters may be."""
    return math.ceil(characters / BYTES_PER_TOKEN)


def _guess(messages: Sequence[Message], answered: int) -> tuple[int, int]:
    return guess_tokens(sum(len(m["content"]) for m in messages)), guess_tokens(answered)


def _named(data: bytes, body: Mapping[str, Any]) -> str:
    """The optional parameter of a request that its refusal speaks of; empty when it speaks of none."""
    said = data[:4000].decode(errors="replace")
    return next((name for name in OPTIONAL if name in body and name in said), "")


def _retry_after(value: str) -> float | None:
    """Seconds that an endpoint asks to be left alone for; None where it does not say so in seconds."""
    try:
        seconds = float(value)
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_PAUSE_S) if math.isfinite(seconds) else None


def _cure(status: int) -> str:
    match status:
        case 401 | 403:
            return "look at GYMSMITH_LLM_KEY"
        case 404:
            return "look at GYMSMITH_LLM_URL (it ends before /chat/completions) and GYMSMITH_LLM_MODEL"
        case 413:
            return "give a shorter source"
        case 429:
            return "the account has no credit left"
        case _:
            return "the endpoint's own words say what it misses"
