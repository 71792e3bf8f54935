"""The transformer: document masks, layer lists, memory, initialisation."""

from __future__ import annotations

import pytest
import torch

from trainer.model.config import (
    DSAConfig,
    InitConfig,
    LayerKind,
    MemoryConfig,
    MLAConfig,
    ModelConfig,
    MoEConfig,
    RopeConfig,
)
from trainer.model.offload import Away, Offload
from trainer.model.transformer import Transformer


def fresh(config: ModelConfig) -> Transformer:
    """A float64 model whose every weight is random, so that nothing is hidden by a zero."""
    model = Transformer(config, seed=1).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    return model


def test_packed_documents_equal_separate_ones(config: ModelConfig) -> None:
    model = fresh(config)
    generator = torch.Generator().manual_seed(3)
    lengths = [5, 11, 1, 7]
    texts = [torch.randint(0, 61, (n,), generator=generator) for n in lengths]
    ids = torch.cat(texts)[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    packed = model(ids, positions, documents)[0]
    separate = torch.cat([model(t[None])[0] for t in texts])
    assert (packed - separate).abs().max() < 1e-10
    leaking = model(ids, positions)[0]
    assert (leaking - separate).abs().max() > 1e-3, "control: without documents the rows must differ"


def test_another_document_gets_no_gradient(stock: ModelConfig) -> None:
    model = fresh(stock)
    rows = model.embedding.token.weight
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    logits = model(ids, torch.tensor([[0, 1, 2, 0, 1, 2]]), torch.tensor([[0, 0, 0, 1, 1, 1]]))
    (gradient,) = torch.autograd.grad(logits[0, 3:].sum(), rows)
    assert gradient[:4].abs().max() == 0
    assert gradient[4:6].abs().min() > 0


def test_a_tensor_draws_from_its_own_stream(stock: ModelConfig) -> None:
    small = dict(Transformer(stock, seed=5).named_parameters())
    deep = dict(Transformer(stock.model_copy(update={"n_layers": 5}), seed=5).named_parameters())
    other = dict(Transformer(stock, seed=6).named_parameters())
    for name, p in small.items():
        assert torch.equal(p, deep[name])
    assert not torch.equal(small["head.weight"], other["head.weight"])


def test_config_refuses_impossible_heads() -> None:
    with pytest.raises(ValueError, match="multiple of n_kv_heads"):
        ModelConfig(vocab_size=8, n_heads=4, n_kv_heads=3)
    with pytest.raises(ValueError, match="Extra inputs"):
        ModelConfig(vocab_size=8, heads=4)  # type: ignore[call-arg]


def gradients(model: Transformer, ids: torch.Tensor) -> list[torch.Tensor]:
    out = model.outputs(ids)
    loss = model.logits(out.hidden).square().mean() + sum(out.losses.values())
    return [g for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None]


KINDS = (LayerKind(ffn="moe"), LayerKind(window=4, position="none", ffn="geglu"), LayerKind(attention="dsa"))


def test_recomputing_and_offloading_leave_the_gradients_bits() -> None:
    """Over every kind of attention, rows long enough for pieces."""
    config = ModelConfig(
        vocab_size=61,
        dim=32,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_positions=64,
        pattern=KINDS,
        mla=MLAConfig(q_latent=16, kv_latent=12, nope_dim=8, rope_dim=4, v_dim=8),
        dsa=DSAConfig(dim=8, top_k=5),
        moe=MoEConfig(sequence_loss=0.1),
        attention_softcap=3.0,
        attention_sinks=True,
    )
    model, ids = Transformer(config, seed=1), torch.arange(48).view(2, 24) % 61
    model.memory = MemoryConfig(attention_chunk=8)
    wanted = gradients(model, ids)
    model.memory = MemoryConfig(attention_chunk=8, recompute="block", offload=True)
    assert all(torch.equal(a, b) for a, b in zip(gradients(model, ids), wanted, strict=True))

    moved = 0

    class Counting(Offload):
        def pack(self, x: torch.Tensor) -> torch.Tensor | Away:
            nonlocal moved
            away = super().pack(x)
            moved += isinstance(away, Away)
            return away

    for recompute in ("none", "block"):
        model.memory = MemoryConfig(attention_chunk=8, recompute=recompute)  # type: ignore[arg-type]
        before = moved
        with Counting(model, floor_bytes=0):
            offloaded = gradients(model, ids)
        assert all(torch.equal(a, b) for a, b in zip(offloaded, wanted, strict=True))
        assert moved > before + 5, "control: tensors did leave"


def test_fresh_weights_are_spread_as_asked() -> None:
    config = ModelConfig(
        vocab_size=2000, dim=512, n_layers=2, ffn_dim=2048, attention_bias=True, pattern=(LayerKind(), LayerKind(ffn="moe")),
        init=InitConfig(std=0.03, cut=2.0, depth_scaled=True, embedding_std=0.02), moe=MoEConfig(dim=512), norm_offset=True,
    )  # fmt: skip
    fresh = dict(Transformer(config).named_parameters())
    for name, parts in (("embedding.token.weight", 0.02), ("blocks.0.ffn.up.weight", 0.03), ("blocks.1.ffn.experts.up", 0.03)):
        # A normal distribution cut at two sigma keeps 0.8796 of its deviation.
        wanted = parts if name.startswith("embedding") else parts * 0.8796
        assert fresh[name].numel() > 1e6 and fresh[name].std().item() == pytest.approx(wanted, rel=0.01), name
    for name in ("blocks.0.ffn.down.weight", "blocks.1.ffn.experts.down"):
        assert fresh[name].std().item() == pytest.approx(0.03 / 2 * 0.8796, rel=0.01), name
        assert fresh[name].abs().max() <= 0.03
    assert fresh["embedding.token.weight"].abs().max() > 0.06, "the table is not cut"
    assert not fresh["blocks.0.attention.q.bias"].any() and not fresh["norm.weight"].any()


def test_layers_at_both_ends_may_differ() -> None:
    full, near = LayerKind(), LayerKind(window=8)
    config = ModelConfig(vocab_size=8, n_layers=6, pattern=(near, near, near, full), last_layers=(full,), first_layers=(full,))
    assert [kind.window for kind in config.layers] == [None, 8, 8, None, 8, None]
    with pytest.raises(ValueError, match="must fit into n_layers = 2"):
        ModelConfig(vocab_size=8, n_layers=2, first_layers=(full, full), last_layers=(full,))
    with pytest.raises(ValueError, match="position must be one of none, rope, far, got 'near'"):
        ModelConfig(vocab_size=8, ropes=(RopeConfig(name="far"),), pattern=(LayerKind(position="near"),))


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("attention", ["gqa", "dsa"])
def test_autocast_stays_close_and_trains(head_dim: int, attention: str) -> None:
    config = ModelConfig(
        vocab_size=61, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=head_dim, ffn_dim=48, max_positions=64,
        pattern=(LayerKind(attention=attention), LayerKind(ffn="moe")),  # type: ignore[arg-type]
        mla=MLAConfig(q_latent=16, kv_latent=12, nope_dim=head_dim, rope_dim=4, v_dim=8), dsa=DSAConfig(dim=8, top_k=30),
    )  # fmt: skip
    model, ids = Transformer(config, seed=1), torch.arange(48).view(2, 24) % 61
    wanted = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        out = model.outputs(ids, inspect=True)
        logits = model.logits(out.hidden)
        (logits.square().mean() + sum(out.losses.values())).backward()
    assert (logits - wanted).norm() < 3e-2 * wanted.norm()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
