"""FP8 products behind a linear layer: e4m3 forward, e5m2 gradients, one scale per tensor (Micikevicius et al., 2022).

    y = (x8 w8^T) / (s_x s_w)     dx = (g8 w8) / (s_g s_w)     dw = (g8^T x8) / (s_g s_x)     t8 = round(clamp(t s_t))

Scales are `current` (from the tensor at hand) or `delayed` (from the largest values of recent steps, which a fused kernel can use
before it has seen the tensor; until there are any, current). Two back ends compute the products: `scaled_mm` on FP8 operands,
and `reference` on dequantised ones, against which it is tested. torch._scaled_mm runs on CPUs too, where it proves the logic and
saves nothing. Transformer Engine stands in `fp8_te.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.precision.half import HALF

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
MULTIPLE = 16
"""Of every dimension of an FP8 product; rows of activations are padded, features must fit."""


def scale_for(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """The factor that brings `amax` to the format's largest value; 1 where there is nothing, or nothing finite, to go by."""
    scale = LARGEST[dtype] / amax.float()
    return torch.where(torch.isfinite(scale) & torch.isfinite(amax) & (amax > 0), scale, torch.ones_like(scale))


def cast(t: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """t * scale in FP8. What lies beyond the largest value becomes it, never infinite or NaN."""
    return (t.float() * scale).clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def quantised(t: Tensor, dtype: torch.dtype, past: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tensor in FP8, and the factor that brings it back.

    Args:
        past: of delayed scaling, the largest absolute values of recent steps, newest first; entry 0 is of the step under way and
            is raised here. A step may come by several times: micro-batches, recomputation.
    """
    largest = amax = t.detach().abs().amax().float()
    if past is not None:
        known = past[1:].amax()
        largest = torch.where(known > 0, known, amax)
        past[0] = torch.maximum(past[0], torch.where(torch.isfinite(amax), amax, 0.0))
    scale = scale_for(largest, dtype)
    return cast(t, scale, dtype), scale.reciprocal()


def product(backend: str, a: Tensor, b: Tensor, a_back: Tensor, b_back: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """a (M, K) times b (K, N), both FP8, with the factors that bring them back. b's columns must be contiguous.

    `fast` allows Hopper's short accumulators: good enough forward, too coarse for gradients.
    """
    if backend == "reference":
        return ((a.float() * a_back) @ (b.float() * b_back)).to(dtype)
    return torch._scaled_mm(a, b, scale_a=a_back, scale_b=b_back, out_dtype=dtype, use_fast_accum=fast)


class _Fp8(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, backend: str, *pasts: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        x_past, w_past, ctx.g_past = pasts
        x8, x_back = quantised(x, E4M3, x_past)
        w8, w_back = quantised(weight, E4M3, w_past)
        ctx.save_for_backward(x8, x_back, w8, w_back)
        ctx.backend = backend
        return product(backend, x8, w8.t(), x_back, w_back, HALF, True)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def,override]
        x8, x_back, w8, w_back = ctx.saved_tensors
        g8, g_back = quantised(g, E5M2, ctx.g_past)
        dx = product(ctx.backend, g8, w8.t().contiguous().t(), g_back, w_back, HALF, False)
        dw = product(ctx.backend, g8.t().contiguous(), x8.t().contiguous().t(), g_back, x_back, torch.float32, False)
        return dx, dw, None, None, None, None


class Fp8Linear(nn.Linear):
    """A linear layer whose three products are in FP8. The weight stays a float32 parameter and gets a float32 gradient."""

    backend: str
    amax: Tensor | None
    """Delayed scaling: (3, history + 1) largest values of input, weight and gradient."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(HALF).reshape(-1, x.size(-1))
        short = -len(rows) % MULTIPLE
        padded = F.pad(rows, (0, 0, 0, short)) if short else rows
        pasts = (None, None, None) if self.amax is None else self.amax.unbind()
        y = _Fp8.apply(padded, self.weight, self.backend, *pasts)  # type: ignore[no-untyped-call]
        y = (y[: len(rows)] if short else y).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(HALF)


def to_fp8(layer: nn.Linear, backend: str, history: int) -> None:
    """Make a linear layer compute in FP8; `history` steps are remembered for delayed scaling, 0 means current."""
    layer.__class__ = Fp8Linear
    layer.backend = backend  # type: ignore[assignment]
    past = torch.zeros(3, history + 1, device=layer.weight.device) if history else None
    layer.register_buffer("amax", past, persistent=False)
