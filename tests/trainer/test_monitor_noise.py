"""The noise scale of a problem whose gradient noise is known in closed form."""

from __future__ import annotations

import pytest
import torch

from trainer.monitor.noise import NoiseScale, measure


@pytest.mark.parametrize(("spread", "truth"), [(1.5, 9.0), (3.0, 36.0)])
def test_the_known_noise_scale_is_found(spread: float, truth: float) -> None:
    """loss = w.(g + s e) with e standard normal per example: |G|^2 = |g|^2 and tr(S) = s^2 n, whatever w is."""
    n, rows, pieces = 64, 4, 8
    gradient = torch.full((n,), 0.5)
    assert truth == spread**2 * n / float(gradient.square().sum())
    w = torch.zeros(n, requires_grad=True)
    draws = torch.Generator().manual_seed(1)
    scale = NoiseScale(memory=0.995)
    for _ in range(400):
        noise = spread * torch.randn(pieces, rows, n, generator=draws)
        losses = [lambda e=e: ((gradient + e) @ w).mean() for e in noise]
        measure([w], losses, rows, scale)
    assert w.grad is None
    assert scale.value == pytest.approx(truth, rel=0.25)
    assert abs(scale.value - truth) < 5 * scale.error


def test_without_noise_the_scale_is_zero_and_without_two_sizes_there_is_none() -> None:
    scale = NoiseScale()
    scale.add([4.0, 4.0], 4.0, 8, 16)
    assert scale.value == 0.0
    with pytest.raises(ValueError, match="larger batch"):
        scale.add([4.0], 4.0, 8, 8)


def test_how_sure_it_is_cannot_be_said_before_the_second_step_nor_of_a_lost_signal() -> None:
    scale = NoiseScale()
    scale.add([5.0, 7.0], 4.0, 8, 16)
    assert scale.error != scale.error
    scale.add([5.0, 6.0], 4.0, 8, 16)
    assert 0 < scale.error < 10
    lost = NoiseScale()
    for square in (9.0, 8.0):
        lost.add([square], 1.0, 8, 16)
    assert lost.value != lost.value and lost.error != lost.error
    with pytest.raises(ValueError, match="two micro-batches or more, got none"):
        measure([torch.zeros(2, requires_grad=True)], [], 4, scale)
