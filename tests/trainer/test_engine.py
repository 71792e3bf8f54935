"""The engine: what a request returns never depends on company, timing or cache; logprobs are the trainer's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from gymsmith.errors import UserError
from trainer.checkpoint import own_weights
from trainer.config import EngineConfig
from trainer.engine import sampler
from trainer.engine.geometry import Geometry
from trainer.engine.scheduler import Engine, Request
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer

SMALL = EngineConfig(slots=16, context=64, chunk=8, prefill_batch=3, prefill_wait=2)


def weights(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config, seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    return model


FIXED = Geometry(query_rows=8, elastic=False, keys=(64,))


def engine_of(model: Transformer, config: EngineConfig = SMALL, geometry: Geometry | None = None) -> Engine:
    engine = Engine(model.config, config, geometry)
    engine.update(own_weights(model), "v1")
    return engine


def request(rid: int, tokens: list[int], out: dict[str, Request], n: int = 12, temperature: float = 1.0) -> Request:
    return Request(str(rid), list(tokens), n, temperature, rid, frozenset({3}), lambda r: out.__setitem__(r.rid, r))


def drain(engine: Engine) -> None:
    for _ in range(5000):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine never came to rest")


def prompts(n: int, seed: int = 1) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(4, 61) for _ in range(rng.randint(1, 40))] for _ in range(n)]


@pytest.mark.parametrize("geometry", [None, FIXED], ids=["probed", "fixed"])
def test_alone_and_in_company_are_bitwise_equal(config: ModelConfig, geometry: Geometry | None) -> None:
    model = weights(config)
    asked = prompts(40)
    asked[7] = asked[8] = asked[9]
    alone: dict[str, Request] = {}
    for i, tokens in enumerate(asked):
        engine = engine_of(model, geometry=geometry)
        engine.submit(request(i, tokens, alone, temperature=0.0 if i % 5 == 0 else 0.7))
        drain(engine)
    mixed: dict[str, Request] = {}
    engine = engine_of(model, geometry=geometry)
    rng = random.Random(2)
    order = list(range(40))
    rng.shuffle(order)
    for i in order:
        engine.submit(request(i, asked[i], mixed, temperature=0.0 if i % 5 == 0 else 0.7))
        for _ in range(rng.randint(0, 3)):
            engine.step()
    drain(engine)
    for rid, one in alone.items():
        assert one.output == mixed[rid].output
        assert one.logprobs == mixed[rid].logprobs, "same bits"
    assert len({tuple(r.output) for r in alone.values()}) > 20, "control: the requests differ"


def test_a_second_turn_reuses_its_cache_without_changing_a_bit(config: ModelConfig) -> None:
    model = weights(config)
    out: dict[str, Request] = {}
    warm = engine_of(model)
    for i, tokens in enumerate(prompts(16, 3)):
        warm.submit(request(i, tokens[:20], out))
    drain(warm)
    for i in range(16):
        follow = [*out[str(i)].tokens, 5, 6, 7]
        warm.submit(request(100 + i, follow, out, n=8))
        cold = engine_of(model)
        cold.submit(request(200 + i, follow, out, n=8))
        cold.waiting[0].seed = 100 + i
        drain(cold)
    drain(warm)
    for i in range(16):
        a, b = out[str(100 + i)], out[str(200 + i)]
        assert (a.output, a.logprobs) == (b.output, b.logprobs)
        assert a.cached >= len(out[str(i)].tokens) - 1 and b.cached == 0


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_logprobs_are_the_trainers(config: ModelConfig, temperature: float) -> None:
    model = weights(config)
    out: dict[str, Request] = {}
    engine = engine_of(model)
    for i, tokens in enumerate(prompts(20, 4)):
        engine.submit(request(i, tokens, out, temperature=temperature))
    drain(engine)
    worst = 0.0
    for r in out.values():
        with torch.no_grad():
            logits = model(torch.tensor(r.tokens)[None])[0] / (temperature or 1.0)
        scored = torch.log_softmax(logits, -1)[torch.arange(r.prompt - 1, len(r.tokens) - 1), torch.tensor(r.output)]
        worst = max(worst, float((scored - torch.tensor(r.logprobs)).abs().max()))
        if temperature == 0:
            assert logits[r.prompt - 1 : -1].argmax(-1).tolist() == r.output
    assert worst <= 1e-5


def test_static_batching_gives_the_same_and_wastes_slots(stock: ModelConfig) -> None:
    model = weights(stock)
    results: dict[str, dict[str, Request]] = {}
    steps = {}
    for batching in ("continuous", "static"):
        engine = engine_of(model, SMALL.model_copy(update={"batching": batching}))
        out = results[batching] = {}
        for i, tokens in enumerate(prompts(48, 5)):
            engine.submit(request(i, tokens, out, n=2 + (i * 7) % 20))
        drain(engine)
        steps[batching] = engine.counts["decode_steps"]
    for rid, r in results["continuous"].items():
        assert (r.output, r.logprobs) == (results["static"][rid].output, results["static"][rid].logprobs)
    assert steps["continuous"] < steps["static"]


def test_versions_follow_an_update_in_mid_generation(stock: ModelConfig) -> None:
    one, two = weights(stock, 1), weights(stock, 2)
    out: dict[str, Request] = {}
    engine = engine_of(one)
    engine.submit(request(0, [9, 8, 7], out, n=10))
    engine.waiting[0].stop = frozenset()
    while len(engine.decoding) == 0 or len(engine.decoding[0].logprobs) < 4:
        engine.step()
    engine.update(own_weights(two), "v2")
    engine.retract()
    drain(engine)
    r = out["0"]
    assert r.spans() == [{"version": "v1", "start": 0, "end": 4}, {"version": "v2", "start": 4, "end": 10}]
    assert r.retractions == 1
    with torch.no_grad():
        for version, model in (("v1", one), ("v2", two)):
            scored = torch.log_softmax(model(torch.tensor(r.tokens)[None])[0], -1)
            rows = [i for i, v in enumerate(r.versions) if v == version]
            got = scored[[r.prompt - 1 + i for i in rows], [r.output[i] for i in rows]]
            assert (got - torch.tensor([r.logprobs[i] for i in rows])).abs().max() < 1e-5


def test_flush_forgets(stock: ModelConfig) -> None:
    model = weights(stock)
    out: dict[str, Request] = {}
    engine = engine_of(model)
    for rid in (0, 1):
        engine.submit(request(rid, list(range(4, 30)), out))
        drain(engine)
        if rid == 0:
            engine.flush()
    assert out["1"].cached == 0
    engine.submit(request(2, list(range(4, 30)), out))
    drain(engine)
    assert out["2"].cached == 25, "control: without a flush all but the last prompt token is cached"


def test_abort_returns_what_there_is(stock: ModelConfig) -> None:
    out: dict[str, Request] = {}
    engine = engine_of(weights(stock))
    for rid in range(20):
        engine.submit(request(rid, [5, 6], out, n=50))
    for _ in range(5):
        engine.step()
    assert engine.abort("3") == 1 and out["3"].finish == "abort"
    assert engine.abort() + len(out) - 1 >= 19 and engine.load == 0
    assert all(len(r.output) == len(r.logprobs) == len(r.versions) for r in out.values())


@pytest.mark.parametrize("tokens", [[], [61], [-1], [4] * 60])
def test_impossible_requests_are_refused(tokens: list[int], stock: ModelConfig) -> None:
    with pytest.raises(UserError):
        engine_of(weights(stock)).submit(request(0, tokens, {}))


def test_sampling_follows_the_distribution_and_the_counter() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.0, 0.2])).expand(20000, 4)
    seeds = list(range(20000))
    ids, logprobs = sampler.sample(logits, [1.0] * 20000, seeds, [7] * 20000)
    share = np.bincount(ids, minlength=4) / 20000
    assert np.abs(share - [0.5, 0.3, 0.0, 0.2]).max() < 0.012 and share[2] == 0
    assert abs(logprobs[0] - np.log([0.5, 0.3, 0.0, 0.2][ids[0]])) < 1e-6
    assert sampler.sample(logits[:9], [1.0] * 9, seeds[:9], [7] * 9)[0] == ids[:9]
    assert sampler.sample(logits[:99], [1.0] * 99, seeds[:99], [8] * 99)[0] != ids[:99]
    u = sampler.uniform(np.arange(10000, dtype=np.uint64), np.zeros(10000, np.uint64))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01
