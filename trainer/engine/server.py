"""Serves the engine over HTTP in SGLang's format, so that rollout workers need one client for it and for a real SGLang server.

    POST /generate                   {"input_ids", "sampling_params", "return_logprob", "rid"} -> {"output_ids", "meta_info"}
    POST /update_weights_from_disk   {"model_path": checkpoint folder, "weight_version"}
    POST /pause_generation           {"mode": "abort" | "retract" | "in_place"};  POST /continue_generation
    POST /abort_request              {"rid"} or {"abort_all": true};  POST /flush_cache
    GET  /health, /model_info, /server_info

One thread does everything: the engine takes a step, the event loop takes a turn. With a thread of its own the engine would fight
the loop for the interpreter lock. Idle, it sleeps. As a program: `python -m trainer.engine.server --checkpoint DIR --port P`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import torch
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from gymsmith import lifeline
from gymsmith import log as logs
from gymsmith.config import settings
from gymsmith.errors import Conflict, GymsmithError, UserError
from gymsmith.schema import State
from gymsmith.store import Store
from trainer import checkpoint
from trainer.config import EngineConfig
from trainer.data import tokenizer
from trainer.engine.scheduler import Engine, Request

log = logging.getLogger(__name__)


class SamplingParams(BaseModel):
    """The part of SGLang's sampling parameters that this engine has; others are accepted at their neutral value only."""

    model_config = ConfigDict(extra="forbid")
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    stop_token_ids: list[int] | None = None
    sampling_seed: int | None = None
    n: Literal[1] = 1
    top_p: float = Field(default=1, ge=1, le=1)
    top_k: Literal[-1] = -1
    min_p: float = Field(default=0, ge=0, le=0)
    ignore_eos: bool = False
    """With it, stop ids do not stop."""
    skip_special_tokens: bool = False
    no_stop_trim: bool = True


class GenerateBody(BaseModel):
    """A /generate request."""

    model_config = ConfigDict(extra="forbid")
    input_ids: list[int]
    sampling_params: SamplingParams = SamplingParams()
    return_logprob: bool = False
    logprob_start_len: Literal[-1] = -1
    rid: str = ""
    stream: Literal[False] = False


class EngineServer:
    """One engine behind one listening socket. Create and use it in one event loop."""

    def __init__(self, engine: Engine, model_path: str = "") -> None:
        self.engine = engine
        self.model_path = model_path
        self.url = ""
        self.started = time.time()
        self._counter = itertools.count()
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; port 0 takes a free one.

        Returns:
            The URL.
        Raises:
            Conflict: the port is taken.
        """
        app = web.Application(client_max_size=1 << 24, middlewares=[_errors])
        app.router.add_post("/generate", self._generate)
        for name in ("health", "health_generate"):
            app.router.add_get(f"/{name}", self._health)
        for name in ("model_info", "get_model_info"):
            app.router.add_get(f"/{name}", self._model_info)
        app.router.add_get("/server_info", self._server_info)
        for name in ("pause_generation", "continue_generation", "update_weights_from_disk", "flush_cache", "abort_request"):
            app.router.add_post(f"/{name}", getattr(self, f"_{name}"))
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as e:
            await self._runner.cleanup()
            raise Conflict(
                f"expected port {port} on {host} to be free, it is not ({e}); name another or stop what uses it"
            ) from e
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"
        self._pump = asyncio.create_task(self._run())
        return self.url

    async def stop(self) -> None:
        """End every request as aborted and close the socket."""
        self.engine.abort()
        if self._pump:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._runner:
            await self._runner.cleanup()

    async def generate(self, request: Request) -> Request:
        """Submit a request and wait for its end. The request's own `done` is replaced.

        Raises:
            UserError: the request cannot be served as asked.
        """
        finished: asyncio.Future[Request] = asyncio.get_running_loop().create_future()
        request.done = lambda r: None if finished.done() else finished.set_result(r)
        self.engine.submit(request)
        self._wake.set()
        return await finished

    async def _run(self) -> None:
        while True:
            if self.engine.busy:
                self.engine.step()
                await asyncio.sleep(0)
            else:
                self._wake.clear()
                await self._wake.wait()

    async def _generate(self, http: web.Request) -> web.Response:
        started = time.perf_counter()
        body = GenerateBody.model_validate_json(await http.read())
        params = body.sampling_params
        number = next(self._counter)
        request = Request(
            body.rid or f"r{number}",
            body.input_ids,
            params.max_new_tokens,
            params.temperature,
            number if params.sampling_seed is None else params.sampling_seed,
            frozenset(() if params.ignore_eos else params.stop_token_ids or ()),
            _nobody,
        )
        await self.generate(request)
        return _json(answer(request, body.return_logprob, time.perf_counter() - started))

    async def _health(self, http: web.Request) -> web.Response:
        return web.Response()

    async def _model_info(self, http: web.Request) -> web.Response:
        model = self.engine.decoder.config
        return _json(
            {
                "model_path": self.model_path,
                "tokenizer_path": self.model_path,
                "is_generation": True,
                "weight_version": self.engine.version,
                "vocab_size": model.vocab_size,
                "context_length": self.engine.config.context,
            }
        )

    async def _server_info(self, http: web.Request) -> web.Response:
        engine = self.engine
        return _json(
            {
                **engine.config.model_dump(),
                "weight_version": engine.version,
                "paused": engine.paused,
                "running": engine.load,
                "counts": dict(engine.counts),
                "seconds": dict(engine.seconds),
                "uptime_s": time.time() - self.started,
            }
        )

    async def _pause_generation(self, http: web.Request) -> web.Response:
        mode = (await _body(http)).get("mode", "abort")
        if mode == "abort":
            self.engine.abort()
        elif mode == "retract":
            self.engine.retract()
        elif mode != "in_place":
            raise UserError(f"expected mode abort, retract or in_place, got {mode!r}; use one of them")
        self.engine.paused = True
        return _json({"status": "ok", "message": f"paused ({mode})"})

    async def _continue_generation(self, http: web.Request) -> web.Response:
        self.engine.paused = False
        self._wake.set()
        return _json({"status": "ok", "message": "continued"})

    async def _update_weights_from_disk(self, http: web.Request) -> web.Response:
        body = await _body(http)
        if body.get("abort_all_requests"):
            self.engine.abort()
        waiting = len(self.engine.waiting)
        found = checkpoint.load(Path(body["model_path"]))
        if found.model != self.engine.decoder.config:
            raise UserError(f"{found.path} is of another model config than the one being served; start a server for it")
        if body.get("flush_cache", True):
            if self.engine.paused and (self.engine.prefilling or self.engine.decoding):
                raise UserError(
                    "expected no caches in use, got requests paused in_place; pause with retract, or pass flush_cache=false"
                )
            self.engine.retract()
        self.engine.update(found.weights, str(body.get("weight_version") or found.step))
        self.model_path = str(found.path)
        self._wake.set()
        return _json({"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": waiting})

    async def _flush_cache(self, http: web.Request) -> web.Response:
        if self.engine.flush():
            return _json({"success": True, "message": "Cache flushed."})
        raise UserError(f"expected an idle engine, got {self.engine.load} requests; abort them or wait")

    async def _abort_request(self, http: web.Request) -> web.Response:
        body = await _body(http)
        if not body.get("abort_all") and not body.get("rid"):
            raise UserError('expected {"rid": ID} or {"abort_all": true}, got neither; name one')
        self.engine.abort("" if body.get("abort_all") else str(body["rid"]))
        return web.Response()


def answer(request: Request, logprobs: bool, seconds: float) -> dict[str, Any]:
    """A finished request in the shape of SGLang's /generate."""
    output = request.output
    reason: dict[str, Any] = {"type": request.finish}
    if request.finish == "stop":
        reason["matched"] = output[-1]
    elif request.finish == "length":
        reason["length"] = len(output)
    else:
        reason["message"] = "Abort before finish."
    meta: dict[str, Any] = {
        "id": request.rid,
        "finish_reason": reason,
        "prompt_tokens": request.prompt,
        "completion_tokens": len(output),
        "cached_tokens": request.cached,
        "num_retractions": request.retractions,
        "weight_version": request.versions[-1] if request.versions else "",
        "weight_versions": request.spans(),
        "e2e_latency": seconds,
    }
    if logprobs:
        meta["output_token_logprobs"] = [[p, i, None] for p, i in zip(request.logprobs, output, strict=True)]
        meta["output_token_logprobs_length"] = len(output)
    return {"text": "", "output_ids": output, "meta_info": meta}


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Errors of ours as JSON, in SGLang's envelope."""
    try:
        return await handler(request)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return _json({"error": {"message": f"{where}: {first['msg']}, got {first.get('input')!r}"[:500]}}, 400)
    except (KeyError, TypeError, json.JSONDecodeError) as e:
        return _json({"error": {"message": f"expected a JSON object with the documented keys, got {e!r}"}}, 400)
    except GymsmithError as e:
        return _json({"success": False, "error": {"message": str(e)}, "message": str(e)}, e.status)


async def _body(http: web.Request) -> dict[str, Any]:
    raw = await http.read()
    return dict(json.loads(raw)) if raw else {}


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json")


def _nobody(request: Request) -> None:
    """Stands in until `generate` knows who waits."""


def serve(folder: Path, host: str, port: int, slots: int, context: int, version: str, run_id: str) -> None:
    """Serve one checkpoint until interrupted; prints {"url": ...} when ready and, with a run, writes it into the Run row."""
    torch.set_num_threads(1)
    found = checkpoint.load(folder)
    config = EngineConfig(slots=slots, context=context or found.model.max_positions // 64 * 64)
    engine = Engine(found.model, config)
    engine.update(found.weights, version or str(found.step))

    async def main() -> None:
        server = EngineServer(engine, str(found.path))
        url = await server.start(host, port)
        if run_id:
            with Store.open(settings()) as store:
                name = tokenizer.store(Tokenizer.from_str(found.tokenizer), store.settings.tokenizers_dir)
                summary = {**store.run(run_id).summary, "tokenizer": name, "checkpoint": str(found.path)}
                store.update_run(
                    run_id, engine_url=url, policy_version=engine.version, summary=summary, state=State.RUNNING, error=""
                )
        print(json.dumps({"url": url, "weight_version": engine.version}), flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            await server.stop()

    asyncio.run(main())


def main(arguments: list[str] | None = None) -> int:
    """The program; its exit code."""
    parser = argparse.ArgumentParser(description="Serve a checkpoint over SGLang's HTTP format.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--context", type=int, default=0, help="tokens per slot, a multiple of 64; 0 is all the model has")
    parser.add_argument("--weight-version", default="", help="default: the checkpoint's step")
    parser.add_argument("--run", default="", help="Run row that gets the address, the version and the tokenizer")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input closes")
    given = parser.parse_args(arguments)
    logs.configure()
    if given.lifeline:
        lifeline.hold_on(grace_s=1.0)
    try:
        serve(given.checkpoint, given.host, given.port, given.slots, given.context, given.weight_version, given.run)
    except GymsmithError as e:
        log.error("engine failed: %s", e)
        if given.run:
            with Store.open(settings()) as store:
                store.update_run(given.run, error=f"{type(e).__name__}: {e}")
        return e.exit_code
    except KeyboardInterrupt:
        log.info("engine stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
