"""Tensor parallelism (Shoeybi et al., 2019, arXiv 1909.08053, section 3): heads, channels and words are shared out.

Matrices into a layer's inner width (q, k, v, gate, up) are cut by rows of their weight, matrices out of it (o, down) by columns:
one sum over the ranks where a branch begins (backward) and one where it ends (forward). Between them each rank computes its own
heads and channels. Parameters in between that are not cut (per-head norms, MLA's way down) get a part of their gradient on each
rank. Embedding and head are cut by words.

Model code knows nothing of it: weights are replaced by slices, sums are hooks. Routed experts and routers are computed alike on
all ranks; experts are shared out by `expert` instead.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from trainer.dist import vocabulary
from trainer.dist.collective import enter, leave
from trainer.dist.layout import Layout
from trainer.dist.mesh import World
from trainer.model.config import ModelConfig
from trainer.model.norm import RMSNorm
from trainer.model.transformer import Transformer

CUTS = (
    (re.compile(r"(^|\.)attention\.(q|k|v|gate|q_up|kv_up)\.(weight|bias)$"), 0),
    (re.compile(r"(^|\.)attention\.sinks$"), 0),
    (re.compile(r"(^|\.)attention\.o\.weight$"), 1),
    (re.compile(r"(^|\.)ffn\.(shared\.)?(gate|up)\.(weight|bias)$"), 0),
    (re.compile(r"(^|\.)ffn\.(shared\.)?down\.weight$"), 1),
    (re.compile(r"^(embedding\.token|head)\.weight$"), 0),
)
PARTIAL = re.compile(r"(^|\.)attention\.(?!o\.bias)")
"""Inside the branch, though not cut: each rank's heads send back their share."""


WIDE = re.compile(r"(^|\.)attention\.[qk]_norm\.weight$")
"""Norms over all heads together, where the model has those."""


def layout(name: str, parameter: Tensor, config: ModelConfig) -> Layout:
    """How tensor parallelism lays out the parameter of this name."""
    shape = tuple(parameter.shape)
    if config.qk_norm_width == "full" and WIDE.search(name):
        return Layout(shape, (("tp", 0),))
    for pattern, dim in CUTS:
        if pattern.search(name):
            return Layout(shape, (("tp", dim),))
    return Layout(shape, partial=bool(PARTIAL.search(name)))


def share_out(model: Transformer, world: World) -> None:
    """Hooks and head counts; the weights themselves are cut by `parallelise`."""
    group = world.group(("tp",))

    def entering(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (enter(args[0], group), *args[1:])

    for name, module in model.named_modules():
        if name.endswith("attention"):
            module.register_forward_pre_hook(entering)
            _leaving(module.o, group)
            if getattr(module, "norm_first", False):
                _wide(module.q_norm, world)
                _wide(module.k_norm, world)
        elif name.endswith(("ffn", "ffn.shared")) and isinstance(getattr(module, "down", None), nn.Module):
            module.register_forward_pre_hook(entering)
            _leaving(module.down, group)
    vocabulary.share_out(model, world)


def _leaving(linear: nn.Module, group: Any) -> None:
    """Sum a branch's parts over the ranks; its bias counts once."""
    held: list[Tensor | None] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        held.append(module._parameters.get("bias"))
        module._parameters["bias"] = None

    def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        bias = held.pop()
        module._parameters["bias"] = bias  # type: ignore[assignment]
        total = leave(out, group)
        return total if bias is None else total + bias

    linear.register_forward_pre_hook(before)
    linear.register_forward_hook(after)


def _wide(norm: RMSNorm, world: World) -> None:
    """A norm over channels of which this rank holds some: the mean square is everyone's, and so is its gradient."""
    group = world.group(("tp",))

    def forward(x: Tensor) -> Tensor:
        square = (
            enter(leave(x.to(torch.promote_types(x.dtype, torch.float32)).square().mean(-1, keepdim=True), group), group)
            / world.sizes["tp"]
        )
        y = x * torch.rsqrt(square + norm.eps).to(x.dtype)
        if norm.weight is None:
            return y
        return y * (1 + norm.weight if norm.offset else norm.weight).to(x.dtype)

    norm.forward = forward  # type: ignore[method-assign, assignment]
