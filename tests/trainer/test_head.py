"""The head's loss in pieces: equal to the whole, with a piece's memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from trainer.data.packing import IGNORE
from trainer.model.config import MemoryConfig, ModelConfig
from trainer.model.head import HeadLoss, head_loss
from trainer.model.transformer import Transformer


def small(**options: object) -> Transformer:
    return Transformer(ModelConfig(vocab_size=57, dim=16, n_layers=1, logit_gain=True, **options), seed=2)  # type: ignore[arg-type]


def loss_of(model: Transformer, chunk: int, hidden: Tensor, targets: Tensor, weights: Tensor) -> HeadLoss:
    model.memory = MemoryConfig(head_chunk=chunk)
    return head_loss(model, hidden, targets, weights)


@pytest.mark.parametrize("options", [{}, {"logit_softcap": 0.2}, {"z_loss": 1e-2}, {"logit_softcap": 0.2, "z_loss": 1e-2}])
def test_pieces_equal_the_whole(options: dict[str, float]) -> None:
    model = small(**options).double()
    generator = torch.Generator().manual_seed(1)
    hidden = (torch.randn(2, 35, 16, generator=generator) * 9).double().requires_grad_()
    targets = torch.randint(0, 57, (2, 35), generator=generator)
    targets[0, 5:15] = IGNORE
    weights = torch.rand(2, 35, generator=generator)
    assert model.gain is not None
    sources = [hidden, model.head.weight, model.gain]
    whole = loss_of(model, 0, hidden, targets, weights)
    wanted = torch.autograd.grad(whole.total / 7, sources)
    # By its definition, with autograd.
    x = model.logits(hidden)[targets != IGNORE]
    lse, y, w = x.logsumexp(-1), targets[targets != IGNORE], weights[targets != IGNORE]
    by_definition = (w * (lse - x[torch.arange(len(y)), y] + options.get("z_loss", 0.0) * lse.square())).sum()
    assert abs(whole.total - by_definition) < 1e-9
    for chunk in (1, 16, 23, 1000):
        pieces = loss_of(model, chunk, hidden, targets, weights)
        for a, b in ((pieces.total, whole.total), (pieces.cross_entropy, whole.cross_entropy), (pieces.z, whole.z)):
            assert abs(a - b) < 1e-9
        for a, b in zip(torch.autograd.grad(pieces.total / 7, sources), wanted, strict=True):
            assert (a - b).norm() <= 1e-10 * b.norm()


def test_pieces_in_single_precision_and_under_autocast() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 16, generator=generator)
    targets, weights = torch.randint(0, 57, (64,), generator=generator), torch.ones(64)
    grads = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = small().to(torch.float64 if dtype == torch.float64 else torch.float32)
        h = hidden.to(model.head.weight.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            total = loss_of(model, 16, h, targets, weights).total
        grads[dtype] = [total.detach().double(), *(g.double() for g in torch.autograd.grad(total, [h, model.head.weight]))]
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        for a, b in zip(grads[dtype], grads[torch.float64], strict=True):
            assert (a - b).norm() <= tolerance * b.norm()


def test_a_tied_head_sums_both_gradients() -> None:
    ids = torch.arange(30)[None] % 57
    tied, untied = small(tied_head=True).double(), small().double()
    with torch.no_grad():
        untied.head.weight.copy_(untied.embedding.token.weight)
    for model in (tied, untied):
        loss_of(model, 8, model.hidden(ids), ids.roll(-1, 1), torch.ones(1, 30)).total.backward()
    both = untied.embedding.token.weight.grad, untied.head.weight.grad
    assert both[0] is not None and both[1] is not None and tied.head.weight.grad is not None
    assert (tied.head.weight.grad - both[0] - both[1]).abs().max() < 1e-12
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 57 * 16


def peak_bytes(chunk: int, model: Transformer, hidden: Tensor, targets: Tensor) -> int:
    """The most that is allocated at once beyond what there was before, gradients included."""
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss_of(model, chunk, hidden, targets, torch.ones(len(targets))).total.backward()
    now = most = 0
    for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_peak_memory_is_one_piece_of_logits() -> None:
    vocab, dim, n, chunk = 32768, 16, 768, 256
    model = Transformer(ModelConfig(vocab_size=vocab, dim=dim, n_layers=1), seed=1)
    hidden = torch.randn(n, dim, requires_grad=True)
    targets = torch.arange(n)
    gradients = 4 * (vocab * dim + n * dim)
    piece = peak_bytes(chunk, model, hidden, targets) - gradients
    whole = peak_bytes(0, model, hidden, targets) - gradients
    assert 0.9 * chunk * vocab * 4 < piece <= 1.15 * chunk * vocab * 4
    assert whole >= 2 * n * vocab * 4, "control: all at once needs the logits and more"
