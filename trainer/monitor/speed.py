"""Speed of a run: tokens per second, model FLOPs utilisation on two denominators, and a watchdog that says what became slow.

MFU (Chowdhery et al., 2022, PaLM, appendix B) is FLOPs of the model per second over what the device could do. Two choices hide in
it, and both are reported under their own names: attention counted in full (PaLM) or only below the diagonal (causal), and the
device's datasheet or a matrix product measured on the very machine. Recomputed activations never count.

Deliberately not here: FLOPs per token; `plan.flops` counts them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from trainer.monitor.alerts import Alert

if TYPE_CHECKING:
    import torch

DATASHEET = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
}
"""Dense bfloat16 FLOP/s without sparsity, from the makers' data sheets; the first name that the device's name contains."""


def datasheet(device_name: str) -> float:
    """FLOP/s of a device by its name; NaN when it is not in the table."""
    return next((peak for name, peak in DATASHEET.items() if name in device_name), math.nan)


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int = 8192, rounds: int = 10) -> float:
    """Best FLOP/s of a square matrix product here and now. On a CPU seconds are this thread's own."""
    import torch

    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.thread_time
    best = math.inf
    for _ in range(rounds + 2):
        if gpu:  # pragma: no cover - needs CUDA
            torch.cuda.synchronize()
        started = clock()
        a @ b
        if gpu:  # pragma: no cover - needs CUDA
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    return 2 * size**3 / best


@dataclass(slots=True)
class Meter:
    """Turns (step, metrics) of the loop into speed; what comes back is merged into the metrics."""

    palm: float
    """FLOPs of a trained token, attention in full."""
    causal: float
    """The same with attention below the diagonal only."""
    datasheet: float = math.nan
    """FLOP/s of all devices together."""
    measured: float = math.nan
    """Likewise, from `matmul_ceiling`."""
    tokens: float | None = None
    """Seen at the last step; None before the first, whose own tokens a resumed run cannot know."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        before, self.tokens = self.tokens, metrics["tokens"]
        if before is None:
            return {}
        trained = self.tokens - before
        speed = trained / metrics["seconds"] if metrics["seconds"] > 0 else 0.0
        out = {"tokens_per_second": speed}
        for peak, at in (("datasheet", self.datasheet), ("measured", self.measured)):
            for count, flops in (("palm", self.palm), ("causal", self.causal)):
                if math.isfinite(at):
                    out[f"mfu_{count}_{peak}"] = speed * flops / at
        return out


PARTS = ("loader_seconds", "save_seconds")
"""Parts of a step's seconds that the loop tells apart; the rest is the model's."""


@dataclass(slots=True)
class Watchdog:
    """Speaks when steps stay slow, and names the part of the step that grew."""

    slow: float = 0.8
    """Of the usual speed."""
    patience: int = 5
    window: int = 64
    usual: dict[str, deque[float]] = field(default_factory=dict)
    """Seconds per token of whole steps and of their parts, slow steps left out."""
    since: int = 0
    """Slow steps in a row."""
    tokens: float | None = None

    def __call__(self, step: int, metrics: Mapping[str, float]) -> Alert | None:
        before, self.tokens = self.tokens, metrics["tokens"]
        trained = 0.0 if before is None else self.tokens - before
        if trained <= 0:
            return None
        parts = {name: metrics.get(name, 0.0) / trained for name in ("seconds", *PARTS)}
        parts["model_seconds"] = parts["seconds"] - sum(parts[name] for name in PARTS)
        known = self.usual.get("seconds", deque())
        if len(known) < 8 or parts["seconds"] * self.slow <= median(known):
            self.since = 0
            for name, value in parts.items():
                self.usual.setdefault(name, deque(maxlen=self.window)).append(value)
            return None
        self.since += 1
        if self.since != self.patience:
            return None
        usual = {name: median(values) for name, values in self.usual.items()}
        growth = {name: parts[name] - usual[name] for name in (*PARTS, "model_seconds")}
        worst = max(growth, key=lambda name: growth[name])
        share = usual["seconds"] / parts["seconds"]
        who = {
            "loader_seconds": "the loader: data comes late",
            "save_seconds": "checkpoints: the disk is slow",
            "model_seconds": "the model's own work: look at clocks, heat, other processes or a slow rank",
        }[worst]
        text = f"{self.patience} steps in a row at {100 * share:.0f}% of the usual speed, because of {who}"
        evidence = {"tokens_per_second": 1 / parts["seconds"], "usual_tokens_per_second": 1 / usual["seconds"], "part": worst}
        return Alert(step, "throughput", text, evidence | {f"{name}_per_token": growth[name] for name in growth})
