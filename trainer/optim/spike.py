"""Skipping updates whose loss or gradient norm is far out (OLMo-core's SkipStepOptimizer, departed from in one place).

An update is an outlier when either value exceeds mean + sigma * deviation of the last SIZE accepted ones, judged once LEAST
are known. OLMo-core lets outliers into the window, where one widens the gate for the next; here they stay out. A level that has
really changed would then be refused for ever, so after PATIENCE outliers in a row the window is forgotten and begins anew.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

SIZE, LEAST, PATIENCE = 128, 64, 16


class SpikeGuard:
    """The window of one run. Kept as float64, so that it comes back from a checkpoint bit for bit."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self.seen: list[tuple[float, ...]] = []
        self.refused = 0
        """Outliers in a row."""

    def refuses(self, *values: float) -> bool:
        """Whether one of the values is an outlier. If none is, they join the window."""
        pasts = zip(*self.seen, strict=True) if len(self.seen) >= LEAST else ()
        if any(self._far(past, value) for past, value in zip(pasts, values, strict=False)):
            self.refused += 1
            if self.refused < PATIENCE:
                return True
            self.seen.clear()
        self.refused = 0
        self.seen = [*self.seen, values][-SIZE:]
        return False

    def _far(self, past: tuple[float, ...], value: float) -> bool:
        return value > statistics.fmean(past) + self.sigma * statistics.pstdev(past)

    def state(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor(self.seen, dtype=torch.float64), "refused": torch.tensor(self.refused)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.seen = [tuple(row) for row in state["seen"].tolist()]
        self.refused = int(state["refused"])
