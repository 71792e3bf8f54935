"""Gradient noise scale: how large a batch still pays (McCandlish et al., 2018, arXiv 1812.06162, section 2.2 and appendix A.1).

A batch of B examples has E|G_B|^2 = |G|^2 + tr(S) / B. Norms at two sizes give both unknowns without bias:

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b)         tr(S) = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B)

and B_noise = tr(S) / |G|^2. Numerator and denominator are averaged over steps each on its own, since their quotient is biased.
Below B_noise doubling the batch nearly halves the steps; far above it the examples are wasted. The unit of B_noise is the unit
of the sizes handed in: tokens, rows or documents. The small batches are what a step has anyway: its micro-batches, or the ranks'
gradients before they are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class NoiseScale:
    """The estimate over many steps."""

    memory: float = 0.99
    """Of the two running means, per step."""
    signal: float = 0.0
    """Running mean of |G|^2, before correction for its start at zero."""
    noise: float = 0.0
    """Running mean of tr(S), likewise."""
    steps: int = 0
    ratios: list[tuple[float, float]] = field(default_factory=list)
    """(tr S, |G|^2) of the latest steps, for the standard error."""

    def add(self, small_squares: Sequence[float], big_square: float, small: float, big: float) -> None:
        """One step: squared norms of the mean gradients of its small batches and of all of them together, and both sizes.

        Raises:
            ValueError: the sizes do not differ.
        """
        if not big > small > 0:
            raise ValueError(
                f"a noise scale needs a small and a larger batch, got {small} and {big}; use two micro-batches or more"
            )
        square = sum(small_squares) / len(small_squares)
        signal = (big * big_square - small * square) / (big - small)
        noise = (square - big_square) / (1 / small - 1 / big)
        self.signal = self.memory * self.signal + (1 - self.memory) * signal
        self.noise = self.memory * self.noise + (1 - self.memory) * noise
        self.steps += 1
        self.ratios = [*self.ratios[-255:], (noise, signal)]

    @property
    def value(self) -> float:
        """B_noise so far; NaN while the gradient drowns in noise, when more steps are needed."""
        return self.noise / self.signal if self.steps and self.signal > 0 else math.nan

    @property
    def error(self) -> float:
        """Standard error of the ratio of means over the latest steps (delta method); NaN before the second."""
        n = len(self.ratios)
        if n < 2:
            return math.nan
        top, bottom = sum(a for a, _ in self.ratios) / n, sum(b for _, b in self.ratios) / n
        if bottom <= 0:
            return math.nan
        spread = sum((a - top / bottom * b) ** 2 for a, b in self.ratios) / (n - 1)
        return math.sqrt(spread / n) / bottom


def measure(parameters: Sequence[Tensor], losses: Sequence[Callable[[], Tensor]], size: float, scale: NoiseScale) -> None:
    """Add one step from micro-batches of `size` examples, each a function that returns its *mean* loss.

    Leaves no gradient behind, so it stands between two steps of training and changes nothing.
    """
    import torch

    total: list[Tensor] | None = None
    squares = []
    for loss in losses:
        grads = torch.autograd.grad(loss(), list(parameters), allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, grads, strict=True)]
        squares.append(_square(flat))
        total = flat if total is None else [a + b for a, b in zip(total, flat, strict=True)]
    if total is None:
        raise ValueError("a noise scale needs two micro-batches or more, got none")
    scale.add(squares, _square(total) / len(squares) ** 2, size, size * len(squares))


def _square(tensors: Sequence[Tensor]) -> float:
    return float(sum(float(t.double().square().sum()) for t in tensors))
