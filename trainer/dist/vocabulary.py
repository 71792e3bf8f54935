"""Embedding and head cut by words (Shoeybi et al., 2019, arXiv 1909.08053, section 3).

A rank looks up and scores its own words. Logits that somebody asks for are put side by side; a training loss in pieces
(`trainer/model/head.py`) never gathers them: ranks exchange two numbers per position, the largest logit first, then the sum of
exponentials and the target's logit together.

Shapes: N positions, n of a piece, D channels, W words of this rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.dist.collective import columns, enter, leave
from trainer.dist.mesh import World
from trainer.model.transformer import Transformer


def share_out(model: Transformer, world: World) -> None:
    """Lookups and logits over all ranks' words; the tables themselves are cut by `parallelise`."""
    group, number, table = world.group(("tp",)), world.rank(("tp",)), model.embedding.token

    def lookup(ids: Tensor) -> Tensor:
        # Others' words are zero here, and the sum finds each.
        own = ids - number * table.weight.size(0)
        mine = (own >= 0) & (own < table.weight.size(0))
        # As its class looks up, which may round.
        return leave(type(table).forward(table, own.where(mine, 0)) * mine[..., None], group)

    def pieces(h_ND: Tensor, weight_WD: Tensor, y_N: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return _Pieces.apply(h_ND, weight_WD, y_N - number * weight_WD.size(0), *rest, group)

    table.forward = lookup  # type: ignore[method-assign, assignment]
    model.head.register_forward_pre_hook(lambda module, args: (enter(args[0], group),))
    model.head.register_forward_hook(lambda module, args, out: columns(out, group))
    model.head_pieces = pieces


class _Pieces(torch.autograd.Function):
    """The loss of `head._Pieces` when each rank has some of the words."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        h_ND: Tensor,
        weight_WD: Tensor,
        own_N: Tensor,
        w_N: Tensor,
        z: float,
        cap: float | None,
        chunk: int,
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        device = h_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h_ND.dtype
        wide = torch.promote_types(dtype, torch.float32)
        parts = h_ND.new_zeros(2, dtype=wide)
        d_h, d_weight = torch.empty_like(h_ND, dtype=wide), torch.zeros_like(weight_WD, dtype=wide)
        with torch.autocast(device, enabled=False):
            matrix = weight_WD.to(dtype)
            for at in range(0, len(h_ND), chunk):
                piece = slice(at, at + chunk)
                h, w, own = h_ND[piece].to(dtype), w_N[piece].to(wide), own_N[piece]
                x = (h @ matrix.mT).to(wide)
                if cap is not None:
                    x = cap * torch.tanh(x / cap)
                top = x.amax(-1)
                dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
                inside, word = (own >= 0) & (own < len(matrix)), own.clamp(0, len(matrix) - 1)[:, None]
                both = torch.stack(((x - top[:, None]).exp().sum(-1), x.gather(1, word)[:, 0] * inside))
                dist.all_reduce(both, group=group)
                lse = top + both[0].log()
                parts += torch.stack(((w * (lse - both[1])).sum(), z * (w * lse.square()).sum()))
                d_x = (x - lse[:, None]).exp() * (w * (1 + 2 * z * lse))[:, None]
                d_x.scatter_add_(1, word, -(w * inside)[:, None])
                if cap is not None:
                    d_x *= 1 - (x / cap).square()
                d_h[piece] = d_x.to(dtype) @ matrix
                d_weight += d_x.to(dtype).mT @ h
        dist.all_reduce(d_h, group=group)
        ctx.save_for_backward(d_h, d_weight)
        ctx.dtypes = h_ND.dtype, weight_WD.dtype
        ctx.mark_non_differentiable(parts)
        return parts.sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        d_h, d_weight = ctx.saved_tensors
        return (d_h * grad).to(ctx.dtypes[0]), (d_weight * grad).to(ctx.dtypes[1]), *[None] * 6
