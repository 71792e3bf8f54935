"""Collectives that gradients flow through. Each names what its backward does; together they keep every rank's gradient exact."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        y = x.clone()
        dist.all_reduce(y, group=group)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.rank, ctx.parts = dist.get_rank(group), dist.get_world_size(group)
        pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ctx.parts)]
        dist.all_gather(pieces, x.contiguous(), group=group)
        return torch.cat(pieces, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].chunk(ctx.parts, -1)[ctx.rank], None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = dist.get_world_size(group)
        out = x.new_empty((parts * x.size(0), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out.unflatten(0, (parts, -1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        whole = grads[0].contiguous()
        grad = torch.empty_like(whole[0])
        dist.reduce_scatter_tensor(grad, whole.flatten(0, 1), group=ctx.group)
        return grad, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, give: list[int], take: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.splits, ctx.group = (give, take), group
        out = x.new_empty((sum(take), *x.shape[1:]))
        dist.all_to_all_single(out, x.contiguous(), take, give, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        give, take = ctx.splits
        grad = grads[0].new_empty((sum(give), *grads[0].shape[1:]))
        dist.all_to_all_single(grad, grads[0].contiguous(), give, take, group=ctx.group)
        return grad, None, None, None


def enter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Into a region where each rank computes a part: x as it is; the parts' gradients are summed on the way back."""
    return _Copy.apply(x, group)


def leave(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Out of such a region: the sum of all ranks' x; the gradient goes back to each as it is."""
    return _Reduce.apply(x, group)


def columns(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All ranks' channels side by side (..., parts * C), for a loss that every rank computes alike: back goes each one's own."""
    return _Columns.apply(x, group)


def stack(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """All ranks' x (parts, *x.shape), used differently by each: the gradients of a part are summed and sent home."""
    return _Rows.apply(x, group)


def exchange(x: Tensor, give: list[int], take: list[int], group: dist.ProcessGroup) -> Tensor:
    """Rows of x to their ranks: the first give[0] to rank 0 and so on; back come take[0] rows from rank 0 and so on."""
    return _Exchange.apply(x, give, take, group)
