"""bfloat16 computing over float32 masters: parameters, gradients and optimizer state stay float32, all between is bfloat16.

A converted layer rounds its weight when it is used, in the graph, so gradients arrive in float32 and add up there over
micro-batches. Nothing else holds a copy: checkpoints, optimizers and QK-clip see the float32 parameters under their old names.
Unlike autocast, which rounds at products only, the residual stream is bfloat16 too, and no activation is converted twice.

Conversion changes a module's class in place: hooks, tied parameters and names stay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model.moe import Experts
from trainer.model.norm import RMSNorm
from trainer.model.rope import Rope

HALF = torch.bfloat16


class HalfLinear(nn.Linear):
    """A product in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(HALF)
        return F.linear(x.to(HALF), self.weight.to(HALF), bias)


class HalfHead(HalfLinear):
    """The same with float32 logits: the softmax over a vocabulary wants them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class HalfEmbedding(nn.Embedding):
    """Rows looked up in float32, then rounded."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).to(HALF)


class HalfLayerNorm(nn.LayerNorm):
    """Weights rounded to the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class HalfRope(Rope):
    """Tables rounded after they are looked up."""

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().forward(positions)
        return cos.to(HALF), sin.to(HALF)


class HalfExperts(Experts):
    """Grouped products in bfloat16."""

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, counts: Tensor) -> Tensor:
        return super()._product(x.to(HALF), weight.to(HALF), bias, counts)


class HalfNorm(RMSNorm):
    """RMSNorm of bfloat16 with statistics in float32."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight + 1 if self.offset else self.weight
        if x.is_cuda:  # pragma: no cover - needs CUDA
            return F.rms_norm(x, (self.dim,), None if weight is None else weight.to(x.dtype), self.eps)
        return _Norm.apply(x, weight, self.eps)  # type: ignore[no-untyped-call]


class _Norm(torch.autograd.Function):
    """y = n w with n = x r, r = (mean x^2 + eps)^-0.5; dx = r (g w - n mean(g w n)). On CPUs torch takes it apart, slowly."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:  # type: ignore[no-untyped-def]
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        r = torch.rsqrt(norm.square_().div_(x.size(-1)).add_(eps))
        n = (x * r).to(x.dtype)
        ctx.save_for_backward(n, r, weight)
        return n if weight is None else n * weight.to(x.dtype)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[no-untyped-def,override]
        n, r, weight = ctx.saved_tensors
        dw = None
        if weight is not None:
            dw = (g * n).flatten(0, -2).sum(0, dtype=weight.dtype)
            g = g * weight.to(g.dtype)
        mean = torch.linalg.vecdot(g, n).unsqueeze(-1) / n.size(-1)
        return torch.addcmul(g, n, mean, value=-1).mul_(r.to(g.dtype)), dw, None


SWAPS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HalfLinear,
    nn.Embedding: HalfEmbedding,
    nn.LayerNorm: HalfLayerNorm,
    RMSNorm: HalfNorm,
    Rope: HalfRope,
    Experts: HalfExperts,
}


def to_half(model: nn.Module) -> None:
    """Make every part of a model compute in bfloat16, except routers, whose choices are too close for it."""
    for name, module in model.named_modules():
        if type(module) in SWAPS and not name.endswith("router"):
            module.__class__ = HalfHead if name == "head" else SWAPS[type(module)]
