"""Mixtures of experts: routing by brute force, products against loops, balance against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.config import LayerKind, MemoryConfig, ModelConfig, MoEConfig, MTPConfig
from trainer.model.ledger import Ledger
from trainer.model.moe import MoE, choose, routers
from trainer.model.transformer import Transformer


def built(width: int = 12, **options: object) -> MoE:
    config = ModelConfig(vocab_size=8, dim=width, moe=MoEConfig(**options))  # type: ignore[arg-type]
    layer = MoE(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return layer


def inputs(B: int, T: int, dim: int = 12) -> Tensor:
    return torch.randn(B, T, dim, generator=torch.Generator().manual_seed(B * T))


def by_hand(layer: MoE, x: Tensor) -> Tensor:
    """Every token through every chosen expert, one at a time."""
    config, experts = layer.config, layer.experts
    out = []
    for token in x.reshape(-1, x.size(-1)):
        logits = layer.router(token)
        scores = {"sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1), "softmax_top": logits}[config.score]
        biased = scores.detach() + layer.bias
        groups = biased.view(config.groups, -1)
        best = sorted(range(config.groups), key=lambda g: -float(groups[g].sort()[0][-2:].sum()))[: config.groups_kept]
        allowed = [e for e in range(config.experts) if e // groups.size(1) in best]
        chosen = sorted(allowed, key=lambda e: -float(biased[e]))[: config.top_k]
        weights = scores[chosen]
        if config.score == "softmax_top":
            weights = weights.softmax(-1)
        elif config.normalise:
            weights = weights / weights.sum()
        y = torch.zeros_like(token) if layer.shared is None else layer.shared(token)
        for e, weight in zip(chosen, weights * config.scale, strict=True):
            gate, up = experts.gate[e] @ token, experts.up[e] @ token
            if experts.gate_bias is not None and experts.up_bias is not None:
                gate, up = gate + experts.gate_bias[e], up + experts.up_bias[e]
            if config.activation == "clamped":
                gate, up = gate.clamp(max=config.limit), up.clamp(-config.limit, config.limit)
                hidden = gate * torch.sigmoid(config.alpha * gate) * (up + 1)
            else:
                hidden = F.silu(gate) * up
            down = experts.down[e] @ hidden
            y = y + weight * (down if experts.down_bias is None else down + experts.down_bias[e])
        out.append(y)
    return torch.stack(out).view(x.shape)


STYLES = {
    "deepseek": {"experts": 12, "top_k": 3, "groups": 4, "groups_kept": 2, "shared_dim": 10, "scale": 2.5},
    "afmoe": {"experts": 6, "top_k": 2, "router_cast": "logits", "shared_dim": 8},
    "softmax": {"experts": 6, "top_k": 2, "score": "softmax", "normalise": False},
    "gpt-oss": {
        "experts": 6,
        "top_k": 3,
        "score": "softmax_top",
        "activation": "clamped",
        "limit": 0.4,
        "expert_bias": True,
        "router_bias": True,
        "router_cast": "none",
    },
}


@pytest.mark.parametrize("style", sorted(STYLES))
def test_dispatch_is_a_loop_over_tokens(style: str) -> None:
    layer = built(dim=16, **STYLES[style]).double()
    layer.bias.copy_(torch.linspace(-0.2, 0.2, layer.config.experts))
    x = inputs(2, 9).double().requires_grad_()
    wanted, got = by_hand(layer, x), layer(x)
    assert (got - wanted).abs().max() < 1e-10
    sources = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), sources) for y in (got, wanted)), strict=True):
        assert (a - b).abs().max() < 1e-10


def test_grouped_products_are_the_loop() -> None:
    """In float32, an expert without tokens among them."""
    grouped, loop = built(experts=8, top_k=2, dim=16), built(experts=8, top_k=2, dim=16, matmul="loop")
    grouped.bias[3] = loop.bias[3] = -9
    x = inputs(2, 16)
    outs = [layer(x) for layer in (grouped, loop)]
    assert torch.allclose(*outs, atol=1e-6)
    grads = [
        torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y, layer in zip(outs, (grouped, loop), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert grads[0][1][3].abs().max() == 0


def balance(layer: MoE, x: Tensor, name: str, live: Tensor | None = None) -> Tensor:
    ledger = Ledger(live)
    layer(x, 0, ledger)
    return ledger.losses[name][0]


def test_balance_losses_are_those_by_numpy() -> None:
    layer = built(experts=6, top_k=2, sequence_loss=0.1, batch_loss=0.01, z_loss=0.001).double()
    x = inputs(3, 7).double()
    logits = layer.router(x).detach().numpy()
    scores = 1 / (1 + np.exp(-logits))
    shares = scores / scores.sum(-1, keepdims=True)
    hits = np.zeros_like(scores)
    for b, t in np.ndindex(3, 7):
        hits[b, t, np.argsort(-scores[b, t])[:2]] = 1
    rows = [(6 / (2 * 7) * hits[b].sum(0) * shares[b].mean(0)).sum() for b in range(3)]
    whole = (6 / (2 * 21) * hits.sum((0, 1)) * shares.mean((0, 1))).sum()
    assert balance(layer, x, "sequence_balance").item() == pytest.approx(0.1 * np.mean(rows), abs=1e-12)
    assert balance(layer, x, "batch_balance").item() == pytest.approx(0.01 * whole, abs=1e-12)
    z = np.log(np.exp(logits).sum(-1)) ** 2
    assert balance(layer, x, "router_z").item() == pytest.approx(0.001 * z.mean(), abs=1e-12)


def test_an_even_load_costs_alpha_and_rows_do_not_mix() -> None:
    layer = built(4, experts=4, top_k=1, sequence_loss=0.3).double()
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(4))
    even = torch.eye(4, dtype=torch.float64).repeat(2, 1)[None]
    assert balance(layer, even, "sequence_balance").item() == pytest.approx(0.3)
    skewed = torch.zeros(1, 8, 4, dtype=torch.float64)
    skewed[..., 0] = 3
    both = balance(layer, torch.cat((even, skewed)), "sequence_balance").item()
    assert both == pytest.approx((0.3 + balance(layer, skewed, "sequence_balance").item()) / 2)
    assert both > 0.31


def test_padding_is_not_counted() -> None:
    layer = built(experts=4, top_k=2, sequence_loss=0.1, batch_loss=0.1, z_loss=0.1).double()
    x = inputs(2, 6).double()
    live = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    ledger, other = Ledger(live), Ledger(live)
    layer(x, 0, ledger)
    layer(torch.where(live[..., None], x, 50.0), 0, other)
    assert ledger.statistics["expert_counts"][0].sum() == 20
    for name, by_layer in ledger.losses.items():
        assert by_layer[0].item() == pytest.approx(other.losses[name][0].item())


def test_the_sign_rule_in_closed_form() -> None:
    layer = built(experts=3, top_k=1, balance="sign", rate=0.25)
    layer.move(torch.tensor([6.0, 3.0, 0.0]))
    assert torch.equal(layer.bias, torch.tensor([-0.25, 0.0, 0.25]))
    layer.move(torch.tensor([3.0, 3.0, 3.0]))
    layer.move(torch.tensor([7.0, 1.0, 1.0]))
    assert torch.allclose(layer.bias, torch.tensor([-0.25 - 0.25, 0.25, 0.5]) - 1 / 12)
    before = layer.bias.clone()
    layer.move(torch.zeros(3))
    assert torch.equal(layer.bias, before)


def test_smebu_in_closed_form_and_its_limits() -> None:
    layer = built(experts=3, top_k=1, balance="smebu", rate=0.01, kappa=2.0, momentum=0.5)
    layer.move(torch.tensor([6.0, 3.0, 0.0]))
    step = 0.01 * math.tanh(2.0)
    assert torch.allclose(layer.bias, torch.tensor([-step / 2, 0, step / 2]))
    layer.move(torch.tensor([3.0, 3.0, 3.0]))
    assert torch.allclose(layer.bias, torch.tensor([-step * 3 / 4, 0, step * 3 / 4])), "momentum goes on halving"
    hard = built(experts=8, top_k=2, balance="smebu", rate=0.01, kappa=1e9, momentum=0.0)
    sign = built(experts=8, top_k=2, balance="sign", rate=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        counts = torch.randint(0, 40, (8,), generator=generator).float()
        hard.move(counts)
        sign.move(counts)
    assert torch.allclose(hard.bias, sign.bias, atol=1e-6)
    assert abs(hard.bias.sum()) < 1e-6
    assert hard.bias.abs().max() > 0.01


def moe_model(mtp: MTPConfig | None = None) -> Transformer:
    moe = MoEConfig(experts=4, top_k=2, dim=16, balance="sign", rate=0.1, sequence_loss=0.01, z_loss=0.01)
    config = ModelConfig(
        vocab_size=17, dim=16, n_layers=3, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=24, moe=moe, mtp=mtp,
        first_layers=(LayerKind(),), pattern=(LayerKind(ffn="moe"),),
    )  # fmt: skip
    return Transformer(config, seed=1).double()


def test_load_is_counted_once_however_often_blocks_run() -> None:
    ids = torch.arange(24).view(2, 12) % 17
    results = {}
    for recompute in ("none", "block"):
        model = moe_model()
        model.memory = MemoryConfig(recompute=recompute)  # type: ignore[arg-type]
        runs = 0

        def count(*_: object) -> None:
            nonlocal runs
            runs += 1

        for router in routers(model).values():
            router.register_forward_pre_hook(count)
        for _ in range(2):
            out = model.outputs(ids)
            (model.logits(out.hidden).square().sum() + sum(out.losses.values())).backward()
        assert runs == (8 if recompute == "block" else 4), "control: experts do run again"
        loads = {layer: router.counts.clone() for layer, router in routers(model).items()}
        model.after_step()
        biases = [router.bias.clone() for router in routers(model).values()]
        results[recompute] = loads, biases, [p.grad for p in model.parameters()]
        assert all(not router.counts.any() for router in routers(model).values())
    (loads, biases, grads), (again, biases_again, grads_again) = results["none"], results["block"]
    assert set(loads) == {1, 2}
    for layer, load in loads.items():
        assert load.sum() == 2 * 24 * 2 and torch.equal(load, again[layer])
    assert all(torch.equal(a, b) for a, b in zip(biases, biases_again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True) if a is not None and b is not None)


def test_after_step_sums_over_ranks_and_evaluation_does_not_count() -> None:
    model = moe_model()
    ids = torch.arange(24).view(2, 12) % 17
    model.eval().outputs(ids)
    assert not routers(model)[1].counts.any()
    model.train().outputs(ids)
    other = torch.tensor([500.0, 0, 0, 0], dtype=torch.float64)
    model.after_step(lambda counts: counts + other)
    assert torch.allclose(routers(model)[1].bias, torch.tensor([-0.15, 0.05, 0.05, 0.05], dtype=torch.float64))


@pytest.mark.parametrize("share", [False, True])
def test_prediction_modules_have_routers_too(share: bool) -> None:
    model = moe_model(MTPConfig(depth=2, share=share))
    model.outputs(torch.arange(24).view(2, 12) % 17)
    loads = {layer: int(router.counts.sum()) for layer, router in routers(model).items()}
    assert loads == ({1: 48, 2: 48, 3: 84} if share else {1: 48, 2: 48, 3: 44, 4: 40})


def test_no_gradient_reaches_the_bias_and_it_is_saved() -> None:
    model = moe_model()
    assert "blocks.1.ffn.bias" in model.state_dict() and "blocks.1.ffn.counts" not in model.state_dict()
    assert not any(name.endswith("ffn.bias") for name, _ in model.named_parameters())


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="divide into groups"):
        MoEConfig(experts=10, groups=4)
    with pytest.raises(ValueError, match="top_k must be <= the 4"):
        MoEConfig(experts=8, groups=2, groups_kept=1, top_k=5)
    assert choose(torch.arange(8.0)[None], MoEConfig(experts=8, top_k=2)).tolist() == [[7, 6]]
