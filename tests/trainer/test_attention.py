"""Attention: the forms agree with each other and with softmax by hand; long rows never hold a T x T tensor."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.attention import GQA, Lookup, Scores
from trainer.model.config import DSAConfig, LayerKind, MemoryConfig, MLAConfig, ModelConfig, RopeConfig, YarnConfig
from trainer.model.dsa import best_keys
from trainer.model.ledger import Ledger
from trainer.model.masking import Masked
from trainer.model.mla import MLA, absorbed, naive
from trainer.model.rope import frequencies, rotate, table
from trainer.model.transformer import Transformer

DOCUMENTS = torch.tensor([[0] * 9 + [1] * 20 + [2] * 3 + [-1] * 8, [3] * 37 + [4] * 3])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def by_hand(q: Tensor, k: Tensor, v: Tensor, scores: Scores, documents: Tensor | None) -> Tensor:
    """Softmax attention head by head and query by query."""
    B, T, H, _ = q.shape
    rows = []
    for b, t, h in itertools.product(range(B), range(T), range(H)):
        low = 0 if scores.window is None else max(0, t - scores.window + 1)
        keys = [s for s in range(low, t + 1) if documents is None or documents[b, s] == documents[b, t]]
        logits = k[b, keys, h * k.size(2) // H] @ q[b, t, h] * scores.scale
        if scores.softcap is not None:
            logits = scores.softcap * torch.tanh(logits / scores.softcap)
        extra = [] if scores.sinks is None else [scores.sinks[h : h + 1]]
        weights = torch.softmax(torch.cat([logits, *extra]), 0)[: len(keys)]
        rows.append(weights @ v[b, keys, h * k.size(2) // H])
    return torch.stack(rows).view(B, T, H, -1)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("extra", ["", "softcap", "sinks"])
@pytest.mark.parametrize("packed", [True, False])
def test_every_form_is_softmax_by_hand(window: int | None, extra: str, packed: bool) -> None:
    q, k, v = random(2, 40, 4, 8), random(2, 40, 2, 8, seed=1), random(2, 40, 2, 8, seed=2)
    sinks = random(4, seed=3) if extra == "sinks" else None
    scores = Scores(0.4, window, 1.5 if extra == "softcap" else None, sinks)
    documents = DOCUMENTS if packed else None
    wanted = by_hand(q, k, v, scores, documents)
    inputs = [q, k, v] + ([] if sinks is None else [sinks])
    gradients = torch.autograd.grad(wanted.square().sum(), inputs)
    for chunk in (64, 7):
        got = Masked(documents, MemoryConfig(attention_chunk=chunk)).dense(0, q, k, v, scores)
        assert (got - wanted).abs().max() < 1e-10
        for mine, theirs in zip(torch.autograd.grad(got.square().sum(), inputs), gradients, strict=True):
            assert (mine - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("width", [5, 13])
@pytest.mark.parametrize("scores", [Scores(0.4), Scores(0.4, 7), Scores(0.4, softcap=1.5)], ids=["plain", "window", "softcap"])
@pytest.mark.parametrize("packed", [True, False])
def test_values_may_be_narrower_or_wider_than_keys(scores: Scores, packed: bool, width: int) -> None:
    inputs = [random(2, 40, 4, 8), random(2, 40, 2, 8, seed=1), random(2, 40, 2, width, seed=2)]
    documents = DOCUMENTS if packed else None
    wanted = by_hand(*inputs, scores, documents)
    gradients = torch.autograd.grad(wanted.square().sum(), inputs)
    for chunk in (64, 7):
        got = Masked(documents, MemoryConfig(attention_chunk=chunk)).dense(0, *inputs, scores)
        assert got.shape == wanted.shape and (got - wanted).abs().max() < 1e-10
        for mine, theirs in zip(torch.autograd.grad(got.square().sum(), inputs), gradients, strict=True):
            assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 1e-10


def test_a_document_that_comes_back_is_still_one() -> None:
    q, k, v = random(1, 12, 2, 4), random(1, 12, 2, 4, seed=1), random(1, 12, 2, 4, seed=2)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]])
    wanted = by_hand(q, k, v, Scores(1.0), documents)
    assert (Masked(documents, MemoryConfig(attention_chunk=4)).dense(0, q, k, v, Scores(1.0)) - wanted).abs().max() < 1e-10


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("kind", ["documents", "window", "softcap"])
def test_long_rows_never_hold_a_square(kind: str) -> None:
    T, chunk = 2048, 128
    q, k, v = (torch.randn(1, T, 1, 8, requires_grad=True) for _ in range(3))
    documents = (torch.arange(T) // 700)[None]
    scores = Scores(0.3, 96 if kind == "window" else None, 2.0 if kind == "softcap" else None)
    seen = {}
    for size in (chunk, T):
        with Largest() as largest:
            Masked(documents, MemoryConfig(attention_chunk=size)).dense(0, q, k, v, scores).sum().backward()
        seen[size] = largest.numel
    assert seen[chunk] <= chunk * T < T * T <= seen[T], "control: in one piece there is a square"


def test_measured_statistics_are_those_by_hand() -> None:
    q, k = random(2, 40, 4, 8), random(2, 40, 2, 8, seed=1)
    ledger = Ledger(DOCUMENTS >= 0, inspect=True)
    Masked(DOCUMENTS, MemoryConfig(attention_chunk=16), ledger).dense(0, q, k, k, Scores(0.4))
    logits = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2, 2)) * 0.4
    seen = (DOCUMENTS[:, :, None] == DOCUMENTS[:, None]) & torch.ones(40, 40, dtype=torch.bool).tril()
    logits = logits.masked_fill(~seen[:, None], float("-inf"))
    live = (DOCUMENTS >= 0)[:, None, :, None]
    assert torch.allclose(ledger.statistics["max_logit"][0], logits.masked_fill(~live, float("-inf")).amax((0, 2, 3)))
    weights, first = torch.softmax(logits, -1), {0: 0, 1: 9, 2: 29, 3: 0, 4: 37}
    later = [(b, t) for b in range(2) for t in range(40) if (d := int(DOCUMENTS[b, t])) >= 0 and t != first[d]]
    mass = torch.stack([weights[b, :, t, first[int(DOCUMENTS[b, t])]] for b, t in later]).mean(0)
    assert torch.allclose(ledger.statistics["first_mass"][0], mass)


@pytest.mark.parametrize(("nope", "rope", "v_dim", "heads"), [(128, 64, 128, 6), (192, 64, 256, 4)])
def test_absorbed_equals_naive(nope: int, rope: int, v_dim: int, heads: int) -> None:
    """DeepSeek's 192 and GLM-5's 256 channels per head."""
    T, latent = 24, 40
    q_nope, q_rope = random(T, heads, nope), random(T, heads, rope)
    c, k_rope, up = random(T, latent), random(T, rope), nn.Linear(latent, heads * (nope + v_dim), bias=False).double()
    mask, scale = torch.ones(T, T, dtype=torch.bool).tril(), (nope + rope) ** -0.5
    one = naive(q_nope, q_rope, c, k_rope, up.weight, scale, mask)
    other = absorbed(q_nope, q_rope, c, k_rope, up.weight, scale, mask)
    trained = Masked(None, MemoryConfig()).latent(0, q_nope[None], q_rope[None], c[None], k_rope[None], up, Scores(scale))[0]
    for form in (other, trained):
        assert form.shape == (T, heads, v_dim)
        assert (form - one).abs().max() < 1e-10
    grads = [torch.autograd.grad(form.square().sum(), (q_nope, q_rope, c, k_rope, up.weight)) for form in (one, other, trained)]
    for a, b, d in zip(*grads, strict=True):
        scale = float(a.abs().max())
        assert (a - b).abs().max() < 1e-10 * scale
        assert (a - d).abs().max() < 1e-10 * scale


LATENT = ModelConfig(
    vocab_size=31,
    dim=24,
    n_layers=2,
    n_heads=2,
    n_kv_heads=2,
    ffn_dim=32,
    max_positions=64,
    qk_norm=False,
    pattern=(LayerKind(attention="mla"),),
    mla=MLAConfig(q_latent=12, kv_latent=10, nope_dim=8, rope_dim=4, v_dim=6),
    dsa=DSAConfig(heads=3, dim=8, top_k=5),
)


@pytest.mark.parametrize("attention", ["gqa", "shared", "mla"])
def test_clipping_a_head_scales_its_logits_alone(attention: str) -> None:
    config = LATENT.model_copy(update={"n_heads": 4, "n_kv_heads": 2 if attention == "shared" else 4, "attention_bias": True})
    kind = LayerKind(attention="mla") if attention == "mla" else LayerKind()
    layer = (MLA if attention == "mla" else GQA)(config, kind, 0).double()

    class Catch(Masked):
        logits: Tensor

        def dense(self, index: int, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> Tensor:
            self.logits = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(q.size(2) // k.size(2), 2))
            return super().dense(index, q, k, v, scores)

    x, catch = random(1, 6, 24), Catch(None, MemoryConfig())
    cos, sin = (t[:6, None] for t in table(RopeConfig(), config.rotated(kind), 8))
    layer(x, cos, sin, catch)
    before, gamma = catch.logits, torch.tensor([1.0, 0.25, 1.0, 0.5], dtype=torch.float64)
    layer.clip_heads(gamma)
    layer(x, cos, sin, catch)
    assert (catch.logits - before * gamma[:, None, None]).abs().max() < 1e-12
    for name, (heads, *rows) in layer.head_blocks().items():
        assert layer.get_parameter(name).size(0) == heads * sum(rows)


def test_clipping_behind_a_norm_is_refused(stock: ModelConfig) -> None:
    with pytest.raises(ValueError, match="without qk_norm"):
        GQA(stock, LayerKind(), 0).clip_heads(torch.ones(4))


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_distance_alone(interleaved: bool) -> None:
    cos, sin = table(RopeConfig(), 16, 300)
    q, k = random(1, 16), random(1, 16, seed=1)

    def score(m: int, n: int, layout: bool) -> Tensor:
        return (rotate(q, cos[m], sin[m], layout) * rotate(k, cos[n], sin[n], layout)).sum()

    assert abs(score(7, 3, interleaved) - score(290, 286, interleaved)) < 1e-12
    assert abs(score(7, 3, interleaved) - score(7, 4, interleaved)) > 1e-3
    assert abs(score(7, 3, interleaved) - score(7, 3, not interleaved)) > 1e-3, "control: the layouts are different functions"


def test_yarn_leaves_fast_pairs_and_slows_the_rest() -> None:
    plain = frequencies(RopeConfig(theta=1e4), 64)
    unchanged = frequencies(RopeConfig(theta=1e4, yarn=YarnConfig(factor=1, original_positions=4096)), 64)
    assert torch.allclose(unchanged, plain, rtol=1e-14)
    yarn = YarnConfig(factor=8, original_positions=4096)
    slowed = frequencies(RopeConfig(theta=1e4, yarn=yarn), 64)
    turns = plain * 4096 / (2 * math.pi)
    # The ramp is widened to whole pairs at both ends.
    assert torch.allclose(slowed[turns > 60], plain[turns > 60]) and torch.allclose(slowed[turns < 0.5], plain[turns < 0.5] / 8)
    between = slowed[(turns > 1.5) & (turns < 25)] / plain[(turns > 1.5) & (turns < 25)]
    assert ((between > 1 / 8) & (between < 1)).all()
    assert yarn.table_gain == pytest.approx(0.1 * math.log(8) + 1)
    deepseek = yarn.model_copy(update={"mscale": 1.0, "mscale_all": 1.0})
    assert deepseek.table_gain == 1 and deepseek.scale_gain == pytest.approx((0.1 * math.log(8) + 1) ** 2)


def latent_model(attention: str, **dsa: Any) -> Transformer:
    """The same trunk with or without an indexer."""
    pattern = (LayerKind(attention=attention),)  # type: ignore[arg-type]
    config = LATENT.model_copy(update={"pattern": pattern, "dsa": LATENT.dsa.model_copy(update=dsa)})
    model = Transformer(config, seed=4).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


def test_sparse_attention_over_few_keys_is_dense_attention() -> None:
    ids = torch.arange(20)[None] % 31
    dense = latent_model("mla")(ids)
    assert (latent_model("dsa", top_k=20)(ids) - dense).abs().max() < 1e-10
    assert (latent_model("dsa", top_k=5)(ids) - dense).abs().max() > 1e-3, "control: fewer keys must change something"
    assert (latent_model("dsa", top_k=5, stage="warmup")(ids) - dense).abs().max() < 1e-10


@pytest.mark.parametrize("stage", ["warmup", "sparse"])
@pytest.mark.parametrize("chunk", [1024, 8])
def test_language_and_indexer_losses_do_not_meet(stage: str, chunk: int) -> None:
    model = latent_model("dsa", stage=stage)
    model.memory = MemoryConfig(attention_chunk=chunk)
    ids = torch.arange(20)[None] % 31
    indexers = {name for name, _ in model.named_parameters() if ".indexer." in name}

    def reached(loss: Tensor) -> set[str]:
        parameters = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {name for name, g in zip(parameters, grads, strict=True) if g is not None and bool((g != 0).any())}

    assert not reached(model(ids).square().sum()) & indexers
    loss = model.outputs(ids).losses["indexer"]
    assert loss.item() > 1e-3 and reached(loss) == indexers


def test_divergence_vanishes_where_the_indexer_agrees() -> None:
    """One head whose attention logits are the indexer's own scores: the divergence is zero, and no other scores give less."""
    T, d = 12, 4
    k = random(1, T, d).detach().abs()
    q = random(1, T, 1, d, seed=1).detach().abs()
    config = DSAConfig(heads=1, dim=d, top_k=4)
    for stage in ("warmup", "sparse"):
        lookup = Lookup(q.clone().requires_grad_(), k, torch.ones(1, T, 1).double(), config.model_copy(update={"stage": stage}))
        ledger = Ledger()
        attend = Masked(None, MemoryConfig(), ledger)
        up = nn.Linear(d, d + d, bias=False).double()
        with torch.no_grad():
            up.weight[:d] = torch.eye(d)
        attend.latent(0, q, q[..., :0], k, k[..., :0], up, Scores(d**-0.5), lookup)
        assert abs(ledger.losses["indexer"][0].item()) < 1e-10
        (gradient,) = torch.autograd.grad(ledger.losses["indexer"][0], lookup.q)
        assert gradient.abs().max() < 1e-10


def test_equal_scores_go_to_earlier_keys() -> None:
    scores = torch.tensor([[0.0, 2.0, 0.0, 0.0, 1.0, 0.0] * 40])
    kept = best_keys(scores, DSAConfig(top_k=90))[0]
    assert kept[scores[0] > 0].all()
    zeros = kept[scores[0] == 0]
    assert zeros[:10].all() and not zeros[10:].any()


@pytest.mark.parametrize(("channels", "v_channels"), [(32, 32), (96, 32)])
def test_bfloat16_stays_close_whatever_the_width(channels: int, v_channels: int) -> None:
    q, k, v = (torch.randn(1, 40, 2, n, generator=torch.Generator().manual_seed(n)) for n in (channels, channels, v_channels))
    for scores in (Scores(0.1), Scores(0.1, softcap=3.0)):
        half = Masked(DOCUMENTS[:1], MemoryConfig()).dense(0, q.bfloat16(), k.bfloat16(), v.bfloat16(), scores).float()
        assert (half - by_hand(q, k, v, scores, DOCUMENTS[:1])).norm() < 2e-2 * half.norm()
