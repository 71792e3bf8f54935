"""Scaling laws from a handful of small runs: what a larger budget will buy, and how sure that is.

Compute is C = 6 N D FLOPs for N parameters and D tokens (Kaplan et al., 2020, arXiv 2001.08361, section 2.1). Losses follow
L(C) = E + a C^-b: E is what no compute removes (Hoffmann et al., 2022, arXiv 2203.15556, equation 2). For a fixed E the rest is
a straight line in logarithms, so only E is searched for. Uncertainty is a parametric bootstrap: the fit is repeated on losses
redrawn around it. The best size for a budget comes from parabolas of loss over log N at equal compute (there, approach 2).

Deliberately not here: runs. Points come from whoever trained them. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gymsmith.errors import ConfigError

Array = NDArray[np.float64]
BOOTSTRAP = 400
"""Refits behind an interval."""
GOLDEN = (math.sqrt(5) - 1) / 2


def compute(parameters: float, tokens: float) -> float:
    """FLOPs of training: 6 per parameter and token, attention and embedding look-ups left out."""
    return 6.0 * parameters * tokens


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the bounds between which 95% of the refits fall."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """L(C) = floor + scale * (C / unit) ** -exponent, with everything that the bootstrap refitted."""

    floor: Interval
    scale: Interval
    exponent: Interval
    unit: float
    """Geometric mean of the compute budgets seen: `scale` is the reducible loss there."""
    residual: float
    """Standard deviation of the losses around the curve."""
    refits: Array
    """(BOOTSTRAP, 3): floor, scale, exponent."""

    def predict(self, flops: float) -> Interval:
        """The loss at a budget. The interval holds for the curve itself; one run scatters around it by `residual` more."""
        x = flops / self.unit
        values = self.refits[:, 0] + self.refits[:, 1] * x ** -self.refits[:, 2]
        return _interval(self.floor.value + self.scale.value * x**-self.exponent.value, values)


def power_law(flops: Sequence[float], losses: Sequence[float], seed: int = 0) -> PowerLaw:
    """Fit L(C) to runs.

    Raises:
        ConfigError: fewer than four budgets (three numbers are fitted), or a value that is not positive and finite.
    """
    x, y = np.asarray(flops, np.float64), np.asarray(losses, np.float64)
    if x.shape != y.shape or len(set(x.tolist())) < 4:
        raise ConfigError(f"a power law needs at least 4 different budgets with a loss each, got {len(set(x.tolist()))}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise ConfigError("budgets and losses must be positive and finite; leave diverged runs out, and say so")
    unit = float(np.exp(np.log(x).mean()))
    scaled = x / unit
    best = _fit(scaled, y[None])[0]
    curve = best[0] + best[1] * scaled ** -best[2]
    freedom = len(x) - 3
    spread = float(np.sqrt(((y - curve) ** 2).sum() / freedom))
    rng = np.random.Generator(np.random.Philox(seed))
    redrawn = np.empty((0, len(x)))
    while len(redrawn) < BOOTSTRAP:
        # A few points know their own noise badly: its size is redrawn too, which is what widens a t interval beyond a normal one.
        sizes = spread * np.sqrt(freedom / rng.chisquare(freedom, (BOOTSTRAP, 1)))
        drawn = curve + sizes * rng.standard_normal((BOOTSTRAP, len(x)))
        # No run has a loss below zero, so none is redrawn there.
        redrawn = np.concatenate((redrawn, drawn[(drawn > 0).all(1)]))[:BOOTSTRAP]
    refits = _fit(scaled, redrawn)
    floor, scale, exponent = (_interval(best[i], refits[:, i]) for i in range(3))
    return PowerLaw(floor, scale, exponent, unit, spread, refits)


def _fit(x: Array, y: Array) -> Array:
    """Least squares in the loss for each row of y (R, n) -> (R, 3): floor, scale, exponent.

    The floor by golden section, the other two as a line in logarithms, weighted so that its errors are errors of the loss.
    """
    u = np.log(x)

    def at(floor: Array) -> tuple[Array, Array, Array]:
        rest = y - floor[:, None]
        weight, v = rest**2, np.log(rest)
        total = weight.sum(1)
        mean_u, mean_v = (weight * u).sum(1) / total, (weight * v).sum(1) / total
        centred = u - mean_u[:, None]
        slope = (weight * centred * v).sum(1) / (weight * centred**2).sum(1)
        scale = np.exp(mean_v - slope * mean_u)
        return ((rest - scale[:, None] * x ** slope[:, None]) ** 2).sum(1), scale, -slope

    low, high = np.zeros(len(y)), y.min(1) * (1 - 1e-9)
    for _ in range(60):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        nearer = at(left)[0] < at(right)[0]
        low, high = np.where(nearer, low, left), np.where(nearer, right, high)
    floor = (low + high) / 2
    _, scale, exponent = at(floor)
    return np.stack([floor, scale, exponent], 1)


@dataclass(frozen=True, slots=True)
class Optimum:
    """Best sizes at equal compute, and the law through them: N_best = size_at_unit * (C / unit) ** exponent."""

    sizes: Mapping[float, float]
    """Budget -> the number of parameters with the lowest loss."""
    exponent: Interval
    size_at_unit: float
    unit: float

    def size(self, flops: float) -> float:
        """Parameters to choose for a budget; D follows from C = 6 N D."""
        return self.size_at_unit * (flops / self.unit) ** self.exponent.value


def levels(runs: Sequence[tuple[float, float, float]]) -> dict[float, list[tuple[float, float]]]:
    """Runs (parameters, tokens, loss) of equal compute, to a tenth, as `optimum` takes them; those of fewer than three sizes are
    left out."""
    found: list[tuple[float, dict[float, float]]] = []
    for n, tokens, loss in sorted(runs, key=lambda run: compute(run[0], run[1])):
        if not found or compute(n, tokens) > 1.1 * found[-1][0]:
            found.append((compute(n, tokens), {}))
        found[-1][1][n] = loss
    return {budget: sorted(sizes.items()) for budget, sizes in found if len(sizes) >= 3}


def optimum(runs: Mapping[float, Sequence[tuple[float, float]]], seed: int = 0) -> Optimum:
    """From budget -> [(parameters, loss), ...], at least three sizes each, at least two budgets.

    Raises:
        ConfigError: too few, or a budget whose best size lies outside what was tried: try a larger or smaller one.
    """
    if len(runs) < 2 or min(len(points) for points in runs.values()) < 3:
        raise ConfigError(f"expected 2 budgets with 3 sizes each at least, got { ({c: len(p) for c, p in runs.items()}) }")
    sizes: dict[float, float] = {}
    spread: dict[float, float] = {}
    for budget, points in sorted(runs.items()):
        u = np.log([n for n, _ in points])
        y = np.array([loss for _, loss in points])
        square, slope, level = np.polyfit(u - u.mean(), y, 2)
        best = -slope / (2 * square) if square > 0 else math.inf
        if not u.min() <= best + u.mean() <= u.max():
            tried = f"{math.exp(u.min()):.3g} to {math.exp(u.max()):.3g}"
            raise ConfigError(f"at {budget:.3g} FLOPs the best size lies outside {tried} parameters; train one beyond that")
        sizes[budget] = math.exp(best + u.mean())
        residual = y - np.polyval([square, slope, level], u - u.mean())
        # How far the vertex moves when the losses move by their residual: d(vertex) = d(slope) / (2 square).
        spread[budget] = float(np.sqrt((residual**2).mean()) / (2 * square * (u.std() + 1e-12) * math.sqrt(len(u))))
    budgets = np.array(list(sizes))
    unit = float(np.exp(np.log(budgets).mean()))
    logs = np.log(np.array(list(sizes.values())))
    rng = np.random.Generator(np.random.Philox(seed))
    noise = rng.standard_normal((BOOTSTRAP, len(logs))) * np.array(list(spread.values()))
    slopes = np.array([np.polyfit(np.log(budgets / unit), logs + row, 1)[0] for row in noise])
    slope, level = np.polyfit(np.log(budgets / unit), logs, 1)
    return Optimum(sizes, _interval(float(slope), slopes), math.exp(float(level)), unit)


def _interval(value: float, refits: Array) -> Interval:
    low, high = np.quantile(refits, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))
