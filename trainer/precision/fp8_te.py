"""FP8 by Transformer Engine 2: the one file that knows it. It is imported when a recipe asks for it, and only then.

A layer becomes a `te.Linear` of the same name over the same parameters. Weights stay float32 and are cast from there: the layer
runs under bfloat16 autocast, the forward pass of the whole model under `te.autocast` (see `Converted.running`), which is what
delayed scaling counts as one step.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from gymsmith.errors import ConfigError
from trainer.config import PrecisionConfig
from trainer.precision.half import HALF


@functools.cache
def load() -> tuple[Any, Any]:
    """Transformer Engine's modules and its recipes.

    Raises:
        ConfigError: it is not installed, or does not run here.
    """
    try:
        import transformer_engine.pytorch as te
        from transformer_engine.common import recipe
    except (ImportError, OSError, RuntimeError) as e:
        got = f"expected Transformer Engine for precision.backend = te, got {type(e).__name__}: {e}"
        raise ConfigError(f"{got}; install gymsmith[fp8] on a machine with a GPU, or set precision.backend = scaled_mm") from e
    return te, recipe


def recipe_of(config: PrecisionConfig) -> Any:  # pragma: no cover - needs Transformer Engine
    """Transformer Engine's recipe of that name."""
    _, recipe = load()
    if config.recipe == "delayed":
        return recipe.DelayedScaling(amax_history_len=config.history, amax_compute_algo="max")
    return recipe.Float8CurrentScaling() if config.recipe == "current" else recipe.Float8BlockScaling()


def running(config: PrecisionConfig) -> AbstractContextManager[Any]:  # pragma: no cover - needs Transformer Engine
    """Around one forward pass: te layers inside compute in FP8."""
    te, _ = load()
    return te.autocast(enabled=True, recipe=recipe_of(config))


def linear(old: nn.Linear) -> nn.Module:  # pragma: no cover - needs Transformer Engine
    """A te.Linear in place of `old`, over its parameters."""
    new = _layer()(
        old.in_features, old.out_features, bias=old.bias is not None, params_dtype=old.weight.dtype, device=old.weight.device
    )
    for name, p in old.named_parameters():
        setattr(new, name, p)
    return new


@functools.cache
def _layer() -> type[nn.Module]:  # pragma: no cover - needs Transformer Engine
    te, _ = load()

    class TELinear(te.Linear):  # type: ignore[misc,name-defined]
        """te.Linear that takes any number of rows and float32 parameters."""

        def forward(self, x: Tensor) -> Tensor:
            rows = x.to(HALF).reshape(-1, x.size(-1))
            padded = nn.functional.pad(rows, (0, 0, 0, -len(rows) % 16))
            with torch.autocast(x.device.type, HALF):
                y = super().forward(padded)
            return y[: len(rows)].view(*x.shape[:-1], -1)

    return TELinear
