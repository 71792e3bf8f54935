"""Policies: ids in, ids out.

`HttpPolicy` speaks SGLang's `/generate` (0.5.23: input_ids, return_logprob, sampling_seed, weight_versions), which the embedded
engine serves too; it is the only client of either. `ScriptedPolicy` plays given actions, for demonstrations and tests. Nothing
here knows text, chat formats or environments.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp

from gymsmith.errors import EngineError
from gymsmith.schema import Generation, VersionSpan

FINISH = frozenset(("stop", "length", "abort"))


class HttpPolicy:
    """A client of one engine. Belongs to one event loop; shared by every episode on it."""

    def __init__(self, url: str | Callable[[], str], *, timeout_s: float = 120.0, restart_s: float = 90.0) -> None:
        """`url`: where the engine is, or how to find out: asked again, in a thread, whenever a connection fails, because a
        restarted engine may come back on another port. `timeout_s`: for one answer. `restart_s`: how long an absent engine is
        waited for.
        """
        self._where = url
        self._url = "" if callable(url) else url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._restart_s = restart_s
        self._session: aiohttp.ClientSession | None = None
        self.calls = 0
        """Answers received."""
        self.retries = 0
        """Calls repeated because the engine was away."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def generate(
        self,
        input_ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        stop_token_ids: Sequence[int],
    ) -> Generation:
        """Continue `input_ids`; see `schema.Policy`. Repeats the call, with the same seed, while the engine restarts.

        Raises:
            EngineError: away for longer than `restart_s`, no answer within `timeout_s`, a refusal, or outside the contract.
        """
        body = {
            "input_ids": list(input_ids),
            "sampling_params": {
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
                "sampling_seed": seed,
                "stop_token_ids": list(stop_token_ids),
                "skip_special_tokens": False,
                "no_stop_trim": True,
            },
            "return_logprob": True,
        }
        status, answer = await self._post("/generate", json.dumps(body, separators=(",", ":")).encode())
        if status != 200:
            raise EngineError(f"{self._url}/generate must answer 200, got {status}: {answer[:300]!r}; look at the engine's log")
        self.calls += 1
        try:
            return parse(json.loads(answer))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise EngineError(
                f"{self._url}/generate must answer in SGLang's format, got {answer[:300]!r} ({type(error).__name__}: {error}); "
                "a router in between may strip meta_info: name the engine itself"
            ) from error

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """One request; an engine that is away or says 503 is asked again until `restart_s` have passed."""
        gone_since: float | None = None
        pause = 0.05
        while True:
            try:
                if not self._url:
                    await self._find()
                status, answer = await self._once(path, body)
                if status != 503:
                    return status, answer
                reason = f"503 {answer[:200]!r}"
            except TimeoutError as error:
                raise EngineError(
                    f"{self._url}{path} must answer within {self._timeout.total:g} s, got nothing; "
                    "is the engine paused or overloaded?"
                ) from error
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, aiohttp.InvalidURL) as error:
                reason = f"{type(error).__name__}: {error}"
            now = time.monotonic()
            gone_since = now if gone_since is None else gone_since
            if now - gone_since > self._restart_s:
                where = self._url or "an unknown address"
                raise EngineError(f"the engine at {where} must be back within {self._restart_s:g} s, got {reason}")
            self.retries += 1
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)
            await self._find()

    async def _once(self, path: str, body: bytes) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # No limit of connections: the caller bounds how many episodes are in flight.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0),
                timeout=self._timeout,
                headers={"Content-Type": "application/json"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        async with self._session.post(self._url + path, data=body) as response:
            return response.status, await response.read()

    async def _find(self) -> None:
        if callable(self._where):
            self._url = (await asyncio.to_thread(self._where)).rstrip("/")


def parse(answer: Any) -> Generation:
    """SGLang's answer as a Generation; a null logprob becomes NaN, which the transcript never trains on.

    Raises:
        ValueError, KeyError, TypeError: it is not in the format, or contradicts itself.
    """
    meta = answer["meta_info"]
    ids = answer["output_ids"]
    triples = meta["output_token_logprobs"]
    if [triple[1] for triple in triples] != ids:
        raise ValueError(f"output_token_logprobs must name the {len(ids)} output_ids in order")
    finish = meta["finish_reason"]["type"]
    if finish not in FINISH:
        raise ValueError(f"finish_reason.type must be one of {sorted(FINISH)}, got {finish!r}")
    spans = meta.get("weight_versions")
    if spans is None:
        spans = [{"version": meta["weight_version"], "start": 0, "end": len(ids)}] if ids else []
    elif sum(span["end"] - span["start"] for span in spans) != len(ids):
        raise ValueError(f"weight_versions must cover the {len(ids)} output_ids, got {spans}")
    return Generation.model_construct(
        ids=ids,
        logprobs=[math.nan if triple[0] is None else triple[0] for triple in triples],
        versions=[VersionSpan.model_construct(version=str(s["version"]), start=s["start"], end=s["end"]) for s in spans],
        finish=finish,
    )


class ScriptedPolicy:
    """Plays actions in order, whatever it is shown; after the last one it repeats it. One per episode.

    Each action is the ids of one turn with its closing token (`Chat.action`). Logprob 0 says that it was certain.
    """

    def __init__(self, actions: Sequence[Sequence[int]], version: str = "scripted") -> None:
        if not actions:
            raise ValueError("a scripted policy needs at least one action, got none; end a script with the action `exit`")
        self._actions = [list(action) for action in actions]
        self._version = version
        self.prompts: list[list[int]] = []
        """What each call was shown."""

    async def generate(
        self,
        input_ids: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        stop_token_ids: Sequence[int],
    ) -> Generation:
        """The next action, cut to `max_new_tokens`."""
        action = self._actions[min(len(self.prompts), len(self._actions) - 1)]
        self.prompts.append(list(input_ids))
        ids = action[:max_new_tokens]
        stopped = bool(ids) and ids[-1] in stop_token_ids
        return Generation.model_construct(
            ids=ids,
            logprobs=[0.0] * len(ids),
            versions=[VersionSpan.model_construct(version=self._version, start=0, end=len(ids))],
            finish="stop" if stopped else "length",
        )
