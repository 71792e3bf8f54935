"""Makes a model compute in the format that a recipe names, layer by layer, and says what stayed behind and why.

Everything computes in bfloat16 over float32 parameters (`half.py`); of that, the linear layers that `config.modules` matches
become FP8 or INT4. Head, embedding, norms and routers never do. Parameter names and values stay as they were, so a checkpoint of
one format continues in another; they are the same objects, so optimizers may exist already.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import PrecisionConfig
from trainer.model.moe import Experts
from trainer.precision import fp8_te
from trainer.precision.fp8 import MULTIPLE, Fp8Linear, to_fp8
from trainer.precision.half import HalfExperts, HalfLinear, to_half
from trainer.precision.int4 import Int4Experts, Int4Linear

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Converted:
    """A converted model's formats, and the state that they keep between steps."""

    config: PrecisionConfig
    model: nn.Module
    formats: dict[str, str] = field(default_factory=dict)
    """Layer -> fp8 or int4."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Layer that `config.modules` matches -> why it computes in bfloat16 nevertheless."""

    def running(self) -> AbstractContextManager[Any]:
        """Around one forward pass."""
        te = self.config.linear == "fp8" and self.config.backend == "te"
        return fp8_te.running(self.config) if te else nullcontext()

    def after_step(self, kept: bool = True, reduce: Callable[[Tensor], Tensor] = lambda most: most) -> None:
        """After an optimizer step: delayed scales move on, or forget a step that was skipped.

        Args:
            reduce: the largest over all ranks, which then scale alike.
        """
        layers = [layer.amax for layer in self._delayed().values() if layer.amax is not None]
        if not layers:
            return
        latest = reduce(torch.stack([amax[:, 0] for amax in layers]))
        for amax, largest in zip(layers, latest, strict=True):
            if kept:
                amax[:, 0] = largest
                amax.copy_(amax.roll(1, 1))
            amax[:, 0] = 0

    def state(self) -> dict[str, Tensor]:
        """What delayed scaling remembers, to be saved beside the optimizer's state."""
        found = {f"{name}/amax": layer.amax for name, layer in self._delayed().items() if layer.amax is not None}
        return {**found, **{f"{name}/te": module.get_extra_state() for name, module in self._te().items()}}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for name, layer in self._delayed().items():
            assert layer.amax is not None
            layer.amax.copy_(tensors[f"{name}/amax"])
        for name, module in self._te().items():  # pragma: no cover - needs Transformer Engine
            module.set_extra_state(tensors[f"{name}/te"])

    def _delayed(self) -> dict[str, Fp8Linear]:
        layers = ((name, m) for name, m in self.model.named_modules() if isinstance(m, Fp8Linear))
        return {name: layer for name, layer in layers if layer.amax is not None}

    def _te(self) -> dict[str, Any]:
        te = self.config.backend == "te" and self.config.recipe == "delayed"
        return {name: self.model.get_submodule(name) for name, kind in self.formats.items() if te and kind == "fp8"}


def convert(model: nn.Module, config: PrecisionConfig) -> Converted:
    """Convert in place.

    Raises:
        ConfigError: the back end is not installed.
    """
    if config.linear == "fp8" and config.backend == "te":
        fp8_te.load()
    to_half(model)
    done = Converted(config, model)
    if config.linear == "bfloat16":
        return done
    for name, module in list(model.named_modules()):
        if type(module) not in (HalfLinear, HalfExperts) or not re.match(config.modules, name):
            continue
        reason = _obstacle(module, config)
        if reason:
            done.reasons[name] = reason
            log.info("layer=%s format=bfloat16 reason=%s", name, reason)
        else:
            _replace(model, name, module, config)
            done.formats[name] = config.linear
    return done


def _obstacle(module: nn.Module, config: PrecisionConfig) -> str:
    """Why a layer cannot have the format; empty when it can."""
    if isinstance(module, Experts):
        widths = {module.gate.size(-1), module.down.size(-1)}
        if config.linear == "fp8":
            return "grouped products of experts have no FP8 back end here"
    else:
        assert isinstance(module, nn.Linear)
        widths = {module.in_features}
        if config.linear == "fp8" and (module.in_features % MULTIPLE or module.out_features % MULTIPLE):
            got = f"{module.in_features} and {module.out_features}"
            return f"FP8 products need features that are multiples of {MULTIPLE}, got {got}"
    if config.linear == "int4" and any(width % config.group for width in widths):
        return f"INT4 needs inputs that are a multiple of the group {config.group}, got {sorted(widths)}"
    return ""


def _replace(model: nn.Module, name: str, module: nn.Module, config: PrecisionConfig) -> None:
    if config.linear == "int4":
        module.__class__ = Int4Experts if isinstance(module, Experts) else Int4Linear
        module.group = config.group  # type: ignore[assignment]
    elif config.backend == "te":  # pragma: no cover - needs Transformer Engine
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, fp8_te.linear(module))  # type: ignore[arg-type]
    else:
        to_fp8(module, config.backend, config.history if config.recipe == "delayed" else 0)  # type: ignore[arg-type]
