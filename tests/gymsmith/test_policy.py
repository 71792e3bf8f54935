"""The engine client against a real HTTP server that answers as SGLang 0.5.23 does."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gymsmith.errors import EngineError
from gymsmith.policy import HttpPolicy, ScriptedPolicy, parse
from gymsmith.schema import VersionSpan

RECORDED = {
    "text": "",
    "output_ids": [17, 4, 5],
    "meta_info": {
        "id": "a5",
        "finish_reason": {"type": "stop", "matched": 5},
        "prompt_tokens": 4,
        "completion_tokens": 3,
        "cached_tokens": 0,
        "weight_version": "12",
        "weight_versions": [{"version": "11", "start": 0, "end": 2}, {"version": "12", "start": 2, "end": 3}],
        "output_token_logprobs": [[-0.25, 17, None], [-1.5, 4, None], [-0.125, 5, None]],
        "output_token_logprobs_length": 3,
        "e2e_latency": 0.01,
    },
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def server(handler: Handler, port: int = 0) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/generate", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def recorded(request: web.Request) -> web.Response:
    return web.json_response(RECORDED)


CALL = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3, "stop_token_ids": [5]}


def test_request_and_answer_follow_the_format() -> None:
    seen = {}

    async def handler(request: web.Request) -> web.Response:
        seen.update(await request.json())
        return await recorded(request)

    async def main() -> None:
        async with server(handler) as url, HttpPolicy(url) as policy:
            got = await policy.generate([1, 2, 3, 4], **CALL)
        assert (got.ids, got.logprobs, got.finish) == ([17, 4, 5], [-0.25, -1.5, -0.125], "stop")
        assert got.versions == [VersionSpan(version="11", start=0, end=2), VersionSpan(version="12", start=2, end=3)]

    asyncio.run(main())
    assert seen == {
        "input_ids": [1, 2, 3, 4],
        "sampling_params": {
            "max_new_tokens": 8,
            "temperature": 1.0,
            "sampling_seed": 3,
            "stop_token_ids": [5],
            "skip_special_tokens": False,
            "no_stop_trim": True,
        },
        "return_logprob": True,
    }


def altered(**meta: object) -> dict[str, object]:
    return {**RECORDED, "meta_info": {**RECORDED["meta_info"], **meta}}


def test_older_engines_without_spans_and_null_logprobs() -> None:
    old = altered()
    del old["meta_info"]["weight_versions"]
    assert parse(old).versions == [VersionSpan(version="12", start=0, end=3)]
    nulls = parse(
        altered(
            output_token_logprobs=[[None, 17, None], [-1.0, 4, None], [-1.0, 5, None]],
            finish_reason={"type": "abort", "message": "x"},
        )
    )
    assert math.isnan(nulls.logprobs[0]) and nulls.finish == "abort"


@pytest.mark.parametrize(
    "answer",
    [
        {"text": "hi"},
        {"output_ids": [1], "meta_info": {}},
        altered(output_token_logprobs=[[-1.0, 17, None]]),
        altered(output_token_logprobs=[[-1.0, 17, None], [-1.0, 5, None], [-1.0, 4, None]]),
        altered(finish_reason={"type": "who knows"}),
        altered(weight_versions=[{"version": "1", "start": 0, "end": 2}]),
        [],
    ],
)
def test_an_answer_outside_the_contract_is_an_engine_error(answer: object) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(answer)

    async def main() -> None:
        async with server(handler) as url, HttpPolicy(url, restart_s=0) as policy:
            with pytest.raises(EngineError, match="SGLang's format"):
                await policy.generate([1], **CALL)

    asyncio.run(main())


def test_a_refusal_is_an_engine_error_at_once() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=400, text="input too long")

    async def main() -> None:
        async with server(handler) as url, HttpPolicy(url) as policy:
            with pytest.raises(EngineError, match=r"got 400.*input too long"):
                await policy.generate([1], **CALL)
            assert policy.retries == 0

    asyncio.run(main())


def test_a_killed_engine_is_waited_for_and_found_again_at_its_new_address() -> None:
    """The first engine drops the connection in the middle of the call; the second listens elsewhere and is 503 at first."""
    where = {"url": ""}
    answers = iter([503, 200])

    async def dies(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def recovers(request: web.Request) -> web.Response:
        return await recorded(request) if next(answers) == 200 else web.Response(status=503)

    async def main() -> None:
        async with server(dies) as first, HttpPolicy(lambda: where["url"]) as policy:
            where["url"] = first
            call = asyncio.create_task(policy.generate([1], **CALL))
            await asyncio.sleep(0.15)
            async with server(recovers) as second:
                where["url"] = second
                assert (await call).ids == [17, 4, 5]
            assert policy.retries >= 2

    asyncio.run(main())


def test_an_engine_that_stays_away_is_given_up() -> None:
    async def main() -> None:
        async with HttpPolicy("http://127.0.0.1:9", restart_s=0.2) as policy:
            started = time.monotonic()
            with pytest.raises(EngineError, match=r"must be back within 0\.2 s"):
                await policy.generate([1], **CALL)
            assert time.monotonic() - started < 2

    asyncio.run(main())


def test_a_hanging_engine_is_given_up() -> None:
    async def hangs(request: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.Response()

    async def main() -> None:
        async with server(hangs) as url, HttpPolicy(url, timeout_s=0.1) as policy:
            with pytest.raises(EngineError, match=r"within 0\.1 s"):
                await policy.generate([1], **CALL)

    asyncio.run(main())


def test_scripted_policy_plays_and_cuts() -> None:
    async def main() -> None:
        policy = ScriptedPolicy([[7, 8, 5], [9, 5]])
        first = await policy.generate([1], **CALL)
        assert (first.ids, first.logprobs, first.finish) == ([7, 8, 5], [0.0] * 3, "stop")
        assert (await policy.generate([2], **{**CALL, "max_new_tokens": 1})).finish == "length"
        assert (await policy.generate([3], **CALL)).ids == [9, 5]
        assert policy.prompts == [[1], [2], [3]]
        json.dumps(first.model_dump())

    asyncio.run(main())
    with pytest.raises(ValueError, match="at least one action"):
        ScriptedPolicy([])
