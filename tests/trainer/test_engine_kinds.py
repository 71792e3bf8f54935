"""The engine decodes every kind of layer as the full forward does: from a cache of its own, in chunks, on reused prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainer.checkpoint import own_weights
from trainer.config import EngineConfig
from trainer.engine.cache import Cache
from trainer.engine.decoder import Decoder
from trainer.engine.geometry import Geometry
from trainer.engine.scheduler import Engine, Request
from trainer.hf.document import read
from trainer.hf.families import FAMILIES
from trainer.hf.oracles import CONFIGS, SMALL, randomise
from trainer.model.config import DSAConfig, LayerKind, MLAConfig, ModelConfig, MoEConfig, RopeConfig
from trainer.model.transformer import Transformer

SHAPES = EngineConfig(slots=16, context=64, chunk=8, prefill_batch=3, prefill_wait=2)
FIXED = Geometry(query_rows=8, elastic=False, keys=(64,))
ELASTIC = Geometry(query_rows=8, elastic=True, keys=(64,), exact=False)
"""Rows are dropped and caches reused, whatever the bits."""
EVERYTHING = ModelConfig(
    vocab_size=96,
    dim=32,
    n_layers=6,
    head_dim=8,
    ffn_dim=48,
    max_positions=64,
    smear=1,
    norm_place="sandwich",
    attention_gate=True,
    attention_sinks=True,
    attention_softcap=4.0,
    logit_softcap=9.0,
    ropes=(RopeConfig(name="part", fraction=0.5, layout="interleaved"),),
    mla=MLAConfig(q_latent=12, kv_latent=10, nope_dim=6, rope_dim=4, v_dim=13),
    dsa=DSAConfig(heads=3, dim=8, top_k=7),
    moe=MoEConfig(experts=6, top_k=2, dim=20, shared_dim=16),
    pattern=(
        LayerKind(window=5, position="part"),
        LayerKind(attention="mla", ffn="moe"),
        LayerKind(position="none", ffn="relu2"),
        LayerKind(attention="dsa"),
        LayerKind(attention="dsa", ffn="moe"),
        LayerKind(window=40, ffn="geglu"),
    ),
)


def config_of(name: str) -> ModelConfig:
    """A tiny model of a family, or one of all kinds at once."""
    if name == "everything":
        return EVERYTHING
    return read(SMALL | CONFIGS[name] | {"architectures": [f"{name}ForCausalLM"]}, name)[1]


def answers(model: Transformer, dtype: torch.dtype, geometry: Geometry | None) -> dict[str, Request]:
    """Requests that arrive one by one, and their next turns, which find their slots or copy from others."""
    engine = Engine(model.config, SHAPES, geometry)
    engine.decoder = Decoder(model.config, SHAPES, geometry, dtype)
    engine.update(own_weights(model), "v1")
    done: dict[str, Request] = {}
    generator = torch.Generator().manual_seed(1)

    def ask(rid: str, tokens: list[int], n: int) -> None:
        engine.submit(Request(rid, tokens, n, 1.0, len(done), frozenset(), lambda r: done.__setitem__(r.rid, r)))

    for i, length in enumerate((1, 1, 7, 8, 9, 17, 25, 33, 40)):
        ask(str(i), torch.randint(3, 96, (length,), generator=generator).tolist(), 10)
        engine.step()
    while engine.busy:
        engine.step()
    for i in range(9):
        ask(f"{i} again", [*done[str(i)].tokens[: 30 if i % 2 else None], 5, 6], 4)
        ask(f"{i} beside", [*done[str(i)].tokens, 7], 2)
    while engine.busy:
        engine.step()
    return done


def worst(model: Transformer, done: dict[str, Request]) -> float:
    """Largest difference of a logprob from the full forward's."""
    worst = 0.0
    with torch.no_grad():
        for r in done.values():
            logprobs = torch.log_softmax(model(torch.tensor(r.tokens)[None])[0].double(), -1)
            scored = logprobs[torch.arange(r.prompt - 1, len(r.tokens) - 1), torch.tensor(r.output)]
            worst = max(worst, float((scored - torch.tensor(r.logprobs, dtype=torch.float64)).abs().max()))
    return worst


@pytest.mark.parametrize("name", [*FAMILIES, "everything"])
def test_tokens_one_by_one_equal_the_full_forward(name: str) -> None:
    model = Transformer(config_of(name)).double()
    randomise(model, 2)
    done = answers(model, torch.float64, ELASTIC)
    assert worst(model, done) <= 1e-10
    assert sum(r.cached for r in done.values()) > 270, "the next turns found what was cached"


@pytest.mark.parametrize("geometry", [None, FIXED], ids=["probed", "fixed"])
@pytest.mark.parametrize("name", ["GptOss", "DeepseekV3"])
def test_in_float32_and_in_fixed_shapes(name: str, geometry: Geometry | None) -> None:
    model = Transformer(config_of(name))
    randomise(model, 2)
    assert worst(model, answers(model, torch.float32, geometry)) <= 1e-5


@pytest.mark.parametrize("broken", ["window", "sinks", "softcap", "top_k", "latent"])
def test_a_cache_that_forgets_its_kind_is_seen(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: each mechanism, left out of the cache, shows."""
    from trainer.engine import cache

    right, fewer = cache.attended, cache.best_keys

    def wrong(q: Any, k: Any, v: Any, seen: Any, scores: Any, sinks: Any) -> Any:
        if broken == "softcap":
            object.__setattr__(scores := cache.Scores(scores.scale), "softcap", None)
        if broken == "window":
            seen = seen | (seen.flip(-1).cumsum(-1).flip(-1) > 0)
        return right(q, k, v, seen, scores, None if broken == "sinks" else sinks)

    if broken == "top_k":
        monkeypatch.setattr(cache, "best_keys", lambda found, config: fewer(found, config.model_copy(update={"top_k": 3})))
    elif broken == "latent":
        monkeypatch.setattr(Cache, "copy", lambda self, source, target, length: None)
    else:
        monkeypatch.setattr(cache, "attended", wrong)
    name = {"top_k": "DeepseekV32", "latent": "DeepseekV3", "softcap": "Gemma2"}.get(broken, "GptOss")
    model = Transformer(config_of(name)).double()
    randomise(model, 2)
    assert worst(model, answers(model, torch.float64, ELASTIC)) > 1e-3


def test_a_cache_is_as_large_as_its_kind_needs() -> None:
    def size(name: str, context: int = 64) -> int:
        return Cache(config_of(name), 8, context, 8).slot_bytes

    assert size("DeepseekV3") == 64 * 4 * 4 * (16 + 8)
    assert size("Qwen3") == 64 * 4 * 4 * 2 * 2 * 16
    assert size("DeepseekV32") == 64 * 4 * 4 * (16 + 8 + 16)
    windows = [kind.window for kind in config_of("Olmo3").layers]
    assert sorted(windows, key=str) == [8, 8, 8, None], "three windows, then a full layer"
    assert size("Olmo3") == (3 * 24 + 64) * 4 * 2 * 2 * 16
    assert size("Olmo3", 1024) == (3 * 24 + 1024) * 4 * 2 * 2 * 16


@pytest.mark.parametrize("checked", [True, False])
def test_a_slot_goes_back_as_far_as_its_rings_and_no_further(checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not checked:  # Control: a slot that goes back further finds other tokens there, and it shows.
        monkeypatch.setattr(Cache, "usable", lambda self, lengths: lengths)
    model = Transformer(config_of("Olmo3")).double()  # Windows of 8, rings of 24.
    randomise(model, 2)
    engine = Engine(model.config, SHAPES, ELASTIC)
    engine.decoder = Decoder(model.config, SHAPES, ELASTIC, torch.float64)
    engine.update(own_weights(model), "v1")
    tokens = torch.randint(3, 96, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    done: dict[str, Request] = {}

    def cached(prompt: list[int], n: int = 2) -> int:
        rid = str(len(done))
        engine.submit(Request(rid, prompt, n, 1.0, 0, frozenset(), lambda r: done.__setitem__(r.rid, r)))
        while engine.busy:
            engine.step()
        return done[rid].cached

    first = cached(tokens, 4)  # The rest of its last chunk fills the ring up to 64, so it holds 40 to 63.
    whole = cached([*tokens[:47], 5, 6])  # The next token sees 40 to 47.
    beyond = cached([*tokens[:46], 5, 6])  # Computed anew in a slot of its own, which holds 24 to 47 then.
    both = cached([*tokens[:30], 5, 6])
    third = cached([*tokens[:29], 5, 6])
    if checked:
        assert (first, whole, beyond, both, third) == (0, 47, 0, 0, 29)
        assert worst(model, done) <= 1e-10
    else:
        assert beyond == 46 and worst(model, done) > 1e-3
