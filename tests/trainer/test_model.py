"""The transformer: document masks, grouped heads, initialisation."""

from __future__ import annotations

import pytest
import torch

from trainer.model.config import ModelConfig
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
