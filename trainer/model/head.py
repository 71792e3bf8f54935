"""The output head's loss, a piece of positions at a time: logits for all positions never exist together.

Each piece computes its logits, its loss and at once the gradients with respect to hidden states and head, which the backward pass
only scales. So the peak is one piece's logits (chunk x vocabulary, float32) instead of all of them. Gradients accumulate in
float32. Cross entropy, z-loss (PaLM, 2022, section 5) and soft cap are computed together, over a few rows at a time in place.

    loss = sum_n w_n (lse_n - x_n[y_n] + z lse_n^2)         x = c tanh(h W^T / c)

Shapes: N positions, D channels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.data.packing import IGNORE
from trainer.model.transformer import Transformer

TOGETHER = 1 << 18
"""Logits whose elementwise work happens together; their temporaries are the only memory beside a piece's logits."""


@dataclass(slots=True)
class HeadLoss:
    """Weighted sums over positions with a target; divide by the denominator of your choice."""

    total: Tensor
    """Cross entropy and z-loss, with gradient."""
    cross_entropy: Tensor
    """Without gradient."""
    z: Tensor
    """Without gradient, weighted by `ModelConfig.z_loss`."""


def head_loss(model: Transformer, hidden: Tensor, targets: Tensor, weights: Tensor) -> HeadLoss:
    """The loss of `targets` (...) with `weights` (...) after `hidden` (..., D). IGNORE marks positions that predict nothing.

    In pieces of `model.memory.head_chunk` positions, or all together when that is 0.
    """
    live = targets != IGNORE
    h, y = hidden[live], targets[live]
    z, chunk = model.config.z_loss, model.memory.head_chunk
    if chunk:
        h = h if model.gain is None else h * model.gain.exp()
        w = weights[live].float()
        total, parts = (model.head_pieces or _Pieces.apply)(h, model.head.weight, y, w, z, model.config.logit_softcap, chunk)
        return HeadLoss(total, parts[0], parts[1])
    logits = model.logits(h)
    losses = F.cross_entropy(logits, y, reduction="none")
    w = weights[live].to(losses.dtype)
    total = (losses * w).sum()
    if not z:
        return HeadLoss(total, total.detach(), total.new_zeros(()))
    wide = torch.promote_types(logits.dtype, torch.float32)
    drift = z * (logits.to(wide).logsumexp(-1).square() * w).sum()
    return HeadLoss(total + drift, total.detach(), drift.detach())


class _Pieces(torch.autograd.Function):
    """Loss and both gradients in one pass over pieces."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, h_ND: Tensor, weight_VD: Tensor, y_N: Tensor, w_N: Tensor, z: float, cap: float | None, chunk: int
    ) -> tuple[Tensor, Tensor]:
        device = h_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h_ND.dtype
        wide = torch.promote_types(dtype, torch.float32)
        parts = h_ND.new_zeros(2, dtype=wide)
        wants_h, wants_weight = ctx.needs_input_grad[:2]
        d_h = torch.empty(h_ND.shape, dtype=wide, device=h_ND.device) if wants_h else None
        d_weight = torch.zeros(weight_VD.shape, dtype=wide, device=h_ND.device) if wants_weight else None
        with torch.autocast(device, enabled=False):
            matrix = weight_VD.to(dtype)
            few = max(1, TOGETHER // len(matrix))
            for at in range(0, len(h_ND), chunk):
                piece = slice(at, min(at + chunk, len(h_ND)))
                h = h_ND[piece].to(dtype)
                x_NV = (h @ matrix.mT).to(wide)
                for i in range(0, len(x_NV), few):
                    rows = slice(at + i, min(at + i + few, piece.stop))
                    parts += _rows(x_NV[i : i + few], y_N[rows], w_N[rows].to(wide), z, cap)
                x_NV = x_NV.to(dtype)
                if d_h is not None:
                    d_h[piece] = x_NV @ matrix
                if d_weight is not None:
                    d_weight.addmm_(x_NV.mT, h) if dtype == wide else d_weight.add_(x_NV.mT @ h)
                # Before the next piece's logits are made.
                del x_NV
        ctx.save_for_backward(d_h, d_weight)
        ctx.dtypes = h_ND.dtype, weight_VD.dtype
        ctx.mark_non_differentiable(parts)
        return parts.sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_h, d_weight = ctx.saved_tensors
        d_h = None if d_h is None else d_h.mul_(grad).to(ctx.dtypes[0])
        d_weight = None if d_weight is None else d_weight.mul_(grad).to(ctx.dtypes[1])
        return d_h, d_weight, None, None, None, None, None


def _rows(x: Tensor, y: Tensor, w: Tensor, z: float, cap: float | None) -> Tensor:
    """Losses (2,) of a few rows of raw logits x (n, V), which become their own gradient."""
    if cap is not None:
        x.div_(cap).tanh_().mul_(cap)
    lse = x.logsumexp(-1)
    hit = x.gather(1, y[:, None])[:, 0]
    slope = None if cap is None else 1 - (x / cap).square_()
    x.sub_(lse[:, None]).exp_().mul_((w * (1 + 2 * z * lse))[:, None])
    x.scatter_add_(1, y[:, None], -w[:, None])
    if slope is not None:
        x.mul_(slope)
    return torch.stack(((w * (lse - hit)).sum(), z * (w * lse.square()).sum()))
