"""INT4 weights, symmetric, one scale per group of inputs: quantisation-aware training and the very numbers that are served.

    s = bf16(max |w| / 7);   q = clamp(round(w / s), -7, 7);   w' = q s       for each run of `group` inputs of each output

Training computes with w' and passes its gradient straight to w (Bengio et al., 2013), except where the clamp cut. Export writes q
and s from the same function, so what is served equals what was trained bit for bit. Used by GLM-5 and Kimi K2 on experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.moe import Experts
from trainer.precision.half import HALF

TOP = 7


def quantise(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight (..., out, in) -> q int8 (..., out, in), s bfloat16 (..., out, in / group)."""
    grouped = weight.float().unflatten(-1, (-1, group))
    scale = (grouped.abs().amax(-1) / TOP).to(torch.bfloat16)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = (grouped / scale.float()[..., None]).round().clamp(-TOP, TOP)
    return q.to(torch.int8).flatten(-2), scale


def dequantise(q: Tensor, scale: Tensor) -> Tensor:
    """The weights that q and s stand for, (..., out, in), bfloat16: seven bits of scale times three of q, rounded once."""
    return (q.float().unflatten(-1, (scale.size(-1), -1)) * scale.float()[..., None]).flatten(-2).to(torch.bfloat16)


class _Fake(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, group: int) -> Tensor:  # type: ignore[no-untyped-def]
        q, scale = quantise(weight, group)
        beyond = weight.float().unflatten(-1, (-1, group)).abs() > (TOP + 0.5) * scale.float()[..., None]
        ctx.save_for_backward(beyond.flatten(-2))
        return dequantise(q, scale)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def,override]
        (beyond,) = ctx.saved_tensors
        return g.float().masked_fill(beyond, 0), None


def fake(weight: Tensor, group: int) -> Tensor:
    """What export would make of a weight, with a straight-through gradient."""
    return _Fake.apply(weight, group)  # type: ignore[no-untyped-call]


class Int4Linear(nn.Linear):
    """A linear layer that computes with its weight as it will be served."""

    group: int

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(HALF)
        return F.linear(x.to(HALF), fake(self.weight, self.group), bias)


class Int4Experts(Experts):
    """Routed experts likewise."""

    group: int

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
        return super()._product(x.to(HALF), fake(weight, self.group), bias, counts)
