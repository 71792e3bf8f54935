"""Expert parallelism (GShard, 2020, arXiv 2006.16668): each rank holds some experts, and tokens travel to them and back.

Ranks along the ep axis see different rows. A layer's rows arrive here sorted by expert, so what goes to one rank is one run. Two
all-to-alls carry tokens there and results home, one before them the counts. Each expert then sees all ranks' tokens, hence its
gradient is whole over this axis.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.dist.collective import exchange
from trainer.dist.layout import Layout
from trainer.dist.mesh import World
from trainer.model.moe import Experts


def layout(name: str, parameter: Tensor) -> Layout | None:
    """Expert tensors are cut by expert; others are not this module's."""
    return Layout(tuple(parameter.shape), (("ep", 0),)) if ".experts." in f".{name}" else None


def share_out(model: nn.Module, world: World) -> None:
    """Let every set of experts reach all ranks; the tensors themselves are cut by `parallelise`."""
    for module in model.modules():
        if isinstance(module, Experts):
            _spread(module, world)


def _spread(experts: Experts, world: World) -> None:
    ranks, group, local = world.sizes["ep"], world.group(("ep",)), experts.rows

    def rows(x_MD: Tensor, counts_E: Tensor) -> Tensor:
        theirs = torch.empty_like(counts_E)
        dist.all_to_all_single(theirs, counts_E, group=group)
        give, take = counts_E.view(ranks, -1).sum(1).tolist(), theirs.view(ranks, -1).sum(1).tolist()
        own = theirs.numel() // ranks
        expert = torch.arange(own, device=theirs.device).repeat(ranks).repeat_interleave(theirs)
        order = expert.argsort(stable=True)
        y = local(exchange(x_MD, give, take, group)[order], theirs.view(ranks, own).sum(0))
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return exchange(y[back], take, give, group)

    experts.rows = rows  # type: ignore[method-assign]
