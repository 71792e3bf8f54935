"""The HTTP face of the engine: SGLang's format to the letter, control requests, errors."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from gymsmith.errors import Conflict
from trainer import checkpoint
from trainer.config import EngineConfig
from trainer.engine.scheduler import Engine
from trainer.engine.server import EngineServer
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer

SMALL = EngineConfig(slots=8, context=64, chunk=8)
Call = Callable[..., Awaitable[tuple[int, Any]]]


def with_server(model: Transformer, work: Callable[[EngineServer, Call], Awaitable[None]]) -> None:
    """Run `work` against a live server."""

    async def main() -> None:
        engine = Engine(model.config, SMALL)
        engine.update(checkpoint.own_weights(model), "7")
        server = EngineServer(engine)
        url = await server.start()
        async with aiohttp.ClientSession() as session:

            async def call(path: str, body: Any = None, method: str = "POST") -> tuple[int, Any]:
                async with session.request(method, url + path, json=body) as response:
                    text = await response.text()
                    return response.status, json.loads(text) if text else None

            await asyncio.wait_for(work(server, call), 20)
        await server.stop()

    asyncio.run(main())


def body(ids: list[int], seed: int = 1, **params: Any) -> dict[str, Any]:
    return {
        "input_ids": ids,
        "sampling_params": {"max_new_tokens": 6, "temperature": 1.0, "sampling_seed": seed, **params},
        "return_logprob": True,
    }


def test_generate_speaks_sglang(stock: ModelConfig) -> None:
    async def work(server: EngineServer, call: Call) -> None:
        status, got = await call("/generate", {**body([5, 6, 7]), "rid": "abc"})
        assert status == 200
        meta = got["meta_info"]
        assert meta.pop("e2e_latency") > 0
        triples = meta.pop("output_token_logprobs")
        ids = got["output_ids"]
        assert [t[1:] for t in triples] == [[i, None] for i in ids] and all(t[0] < 0 for t in triples)
        assert meta == {
            "id": "abc",
            "finish_reason": {"type": "length", "length": 6},
            "prompt_tokens": 3,
            "completion_tokens": 6,
            "cached_tokens": 0,
            "num_retractions": 0,
            "weight_version": "7",
            "weight_versions": [{"version": "7", "start": 0, "end": 6}],
            "output_token_logprobs_length": 6,
        }
        _, again = await call("/generate", body([5, 6, 7]))
        assert again["output_ids"] == ids, "the seed decides"
        _, stopped = await call("/generate", body([5, 6, 7], stop_token_ids=[ids[2]]))
        assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": ids[2]}
        assert stopped["output_ids"] == ids[: ids.index(ids[2]) + 1]
        _, other = await call("/generate", body([5, 6, 7], seed=2))
        assert other["output_ids"] != ids
        answers = await asyncio.gather(*(call("/generate", body([5, 6, 7, i], seed=i)) for i in range(40)))
        assert all(status == 200 for status, _ in answers)
        status, info = await call("/model_info", method="GET")
        assert (info["weight_version"], info["context_length"]) == ("7", 64)
        assert (await call("/health", method="GET"))[0] == 200
        assert (await call("/server_info", method="GET"))[1]["counts"]["decode_tokens"] > 100

    with_server(Transformer(stock, 1), work)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (body([]), "input_ids"),
        (body([5], max_new_tokens=99), "shorten the prompt"),
        (body([5], top_p=0.5), "top_p"),
        (body([5], temperature=-1), "temperature"),
        ({"text": "hello"}, "input_ids"),
        ([1], "object"),
    ],
)
def test_bad_requests_say_why(stock: ModelConfig, asked: Any, match: str) -> None:
    async def work(server: EngineServer, call: Call) -> None:
        status, got = await call("/generate", asked)
        assert status == 400 and match in got["error"]["message"]
        assert (await call("/generate", body([5])))[0] == 200, "and the server lives on"

    with_server(Transformer(stock, 1), work)


def test_pause_update_continue(stock: ModelConfig, tmp_path: Path) -> None:
    new = Transformer(stock, 2)
    folder = checkpoint.save(tmp_path, 8, new, tokenizer="{}", meta={})

    async def work(server: EngineServer, call: Call) -> None:
        running = [asyncio.create_task(call("/generate", body([5, i], seed=i, max_new_tokens=40))) for i in range(4, 12)]
        while sum(len(r.logprobs) for r in server.engine.decoding) < 40:
            await asyncio.sleep(0)
        assert (await call("/pause_generation", {"mode": "retract"}))[0] == 200
        before = server.engine.counts["decode_tokens"]
        await asyncio.sleep(0.02)
        assert server.engine.counts["decode_tokens"] == before and not any(t.done() for t in running)
        status, got = await call("/update_weights_from_disk", {"model_path": str(folder), "weight_version": "8"})
        assert (status, got["success"]) == (200, True)
        await call("/continue_generation", {})
        for task in running:
            meta = (await task)[1]["meta_info"]
            first, second = meta["weight_versions"]
            assert (first["version"], second["version"]) == ("7", "8")
            assert (first["start"], first["end"], second["end"]) == (0, second["start"], 40)
        with torch.no_grad():
            expected = new(torch.tensor([[9, 9]]))[0, -1].argmax()
        _, greedy = await call("/generate", body([9, 9], temperature=0))
        assert greedy["output_ids"][0] == int(expected), "nothing stale"

    with_server(Transformer(stock, 1), work)


def test_in_place_pause_refuses_a_flush_before_it_touches_weights(stock: ModelConfig, tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 8, Transformer(stock, 2), tokenizer="{}", meta={})

    async def work(server: EngineServer, call: Call) -> None:
        running = asyncio.create_task(call("/generate", body([5], max_new_tokens=40)))
        while not server.engine.decoding:
            await asyncio.sleep(0)
        await call("/pause_generation", {"mode": "in_place"})
        status, got = await call("/update_weights_from_disk", {"model_path": str(folder)})
        assert status == 400 and "retract" in got["message"] and server.engine.version == "7"
        assert (await call("/update_weights_from_disk", {"model_path": str(tmp_path / "no")}))[0] == 404
        assert (await call("/update_weights_from_disk", {"model_path": str(folder), "flush_cache": False}))[0] == 200
        await call("/continue_generation")
        spans = (await running)[1]["meta_info"]["weight_versions"]
        assert [s["version"] for s in spans] == ["7", "8"]

    with_server(Transformer(stock, 1), work)


def test_abort_ends_with_what_there_is(stock: ModelConfig) -> None:
    async def work(server: EngineServer, call: Call) -> None:
        running = [asyncio.create_task(call("/generate", {**body([5], max_new_tokens=50), "rid": str(i)})) for i in range(3)]
        while len(server.engine.decoding) < 3:
            await asyncio.sleep(0)
        await call("/abort_request", {"rid": "1"})
        _, got = await running[1]
        assert got["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(got["output_ids"]) == len(got["meta_info"]["output_token_logprobs"]) < 50
        await call("/abort_request", {"abort_all": True})
        for task in running:
            assert (await task)[1]["meta_info"]["finish_reason"]["type"] == "abort"
        assert (await call("/abort_request", {}))[0] == 400

    with_server(Transformer(stock, 1), work)


def test_a_taken_port_is_said(stock: ModelConfig) -> None:
    async def work(server: EngineServer, call: Call) -> None:
        with pytest.raises(Conflict, match="name another"):
            await EngineServer(server.engine).start(port=int(server.url.rsplit(":", 1)[1]))

    with_server(Transformer(stock, 1), work)


def test_the_program_serves_a_checkpoint(stock: ModelConfig, tmp_path: Path) -> None:
    folder = checkpoint.save(tmp_path, 3, Transformer(stock, 1), tokenizer="{}", meta={})
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-m", "trainer.engine.server", "--checkpoint", str(folder), "--slots", "8"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())

        async def ask() -> Any:
            async with aiohttp.ClientSession() as session, session.post(ready["url"] + "/generate", json=body([5])) as response:
                return await response.json()

        got = asyncio.run(ask())
        assert got["meta_info"]["weight_version"] == ready["weight_version"] == "3"
    finally:
        process.terminate()
        process.communicate()
