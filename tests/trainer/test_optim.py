"""Muon and AdamW against torch's own, the schedule by hand."""

from __future__ import annotations

import pytest
import torch

from trainer.config import OptimConfig, ScheduleConfig
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.optim.muon import Muon, orthogonalise
from trainer.optim.schedule import scale

SHAPES = [(32, 64), (64, 32), (48, 48), (32, 64)]


def test_muon_follows_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(s, generator=generator) for s in SHAPES]
    ours = [torch.nn.Parameter(w.clone()) for w in start]
    theirs = [torch.nn.Parameter(w.clone()) for w in start]
    a = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1, dtype=torch.bfloat16)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn="original")
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    moved = max(float((q.detach() - w).abs().max()) for q, w in zip(theirs, start, strict=True))
    apart = max(float((p - q).detach().abs().max()) for p, q in zip(ours, theirs, strict=True))
    assert moved > 0.01
    assert apart < 1e-2 * moved, (apart, moved)


def test_newton_schulz_spectrum_and_stacking() -> None:
    wide = torch.randn(3, 32, 160, generator=torch.Generator().manual_seed(1))
    out = orthogonalise(wide)
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.6 and values.max() < 1.21
    for one, stacked in zip(wide, out, strict=True):
        assert torch.allclose(orthogonalise(one), stacked, atol=1e-5)
    assert torch.allclose(orthogonalise(wide.mT), out.mT, atol=1e-5)


def test_muon_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="takes matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


def test_groups_follow_the_rules() -> None:
    config = ModelConfig(vocab_size=16, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16, logit_gain=True, smear=1)
    model = Transformer(config)
    optimizers = Optimizers(model, OptimConfig(weight_decay=0.5, freeze=("head",)))
    muon, _adam = optimizers.all
    owned = {optimizers.names[p]: (o, g["weight_decay"]) for o in optimizers.all for g in o.param_groups for p in g["params"]}
    assert set(owned) == {n for n, _ in model.named_parameters()} - {"head.weight"}
    for name, (optimizer, decay) in owned.items():
        hidden = name.startswith("blocks.") and not name.endswith("norm.weight")
        assert (optimizer is muon) == hidden, name
        assert decay == (0.5 if hidden else 0.0), name
    assert not model.head.weight.requires_grad


def test_adamw_group_equals_torch() -> None:
    config = ModelConfig(vocab_size=16, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16)
    a, b = Transformer(config, 3), Transformer(config, 3)
    ours = Optimizers(a, OptimConfig(hidden="adamw", lr=1e-2, adam_lr=1e-2, weight_decay=0.0, clip=1e9))
    theirs = torch.optim.AdamW(b.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    ids = torch.arange(12)[None]
    for _ in range(5):
        a(ids).square().mean().backward()
        b(ids).square().mean().backward()
        ours.step(1.0)
        theirs.step()
        theirs.zero_grad()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_a_bad_gradient_changes_nothing() -> None:
    model = Transformer(ModelConfig(vocab_size=16, dim=16, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16))
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizers = Optimizers(model, OptimConfig())
    (model(torch.arange(8)[None]).sum() * float("nan")).backward()
    norm = optimizers.step(1.0)
    assert norm != norm
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_schedule_table() -> None:
    config = ScheduleConfig(warmup_steps=4, decay=0.4, final=0.0)
    got = [round(scale(config, s, 10), 3) for s in range(10)]
    assert got == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert scale(ScheduleConfig(warmup_steps=0, decay=1.0, final=0.5), 5, 10) == 0.75
