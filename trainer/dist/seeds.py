"""Whether ranks hold what they should: slices that differ, copies that agree.

Seeding each rank alike before drawing its own slice makes every slice of a matrix the same numbers: the model has a fraction of
its width and nothing fails. Seeding each rank differently makes copies drift apart. Here a parameter is drawn whole, from a
stream that only its name and the seed decide, and then cut, so neither can happen by our own hand; this check finds both, also
in weights that came from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from gymsmith.errors import GymsmithError
from trainer.dist.layout import Layout, local
from trainer.dist.mesh import AXES, World


class SplitError(GymsmithError):
    """Ranks hold the same slice, or different copies. The message names the parameter and the axis."""

    code = "split"


@torch.no_grad()
def check(parameters: Iterator[tuple[str, Tensor]], layouts: Mapping[str, Layout], world: World) -> None:
    """Compare a fingerprint of every parameter along every axis. All processes must call it, and all raise alike.

    Raises:
        SplitError: see the class.
    """
    if world.mesh is None:
        return
    names, prints = [], []
    for name, p in parameters:
        names.append(name)
        prints.append(_fingerprint(local(p)))
    mine = torch.stack(prints).to(world.device)
    verdict = torch.zeros(len(AXES), len(names), dtype=torch.int64, device=world.device)
    for row, axis in enumerate(AXES):
        if world.sizes[axis] == 1:
            continue
        others = [torch.empty_like(mine) for _ in range(world.sizes[axis])]
        dist.all_gather(others, mine, group=world.group((axis,)))
        for column, name in enumerate(names):
            seen = [tuple(o[column].tolist()) for o in others]
            constant = all(low == high for low, high, *_ in seen)
            if axis not in layouts[name].axes and len(set(seen)) > 1:
                verdict[row, column] = 1
            elif axis in layouts[name].axes and not constant and len(set(seen)) < len(seen):
                verdict[row, column] = 2
    for row, column in world.max(verdict, AXES).nonzero().tolist():
        axis, name = AXES[row], names[column]
        if int(verdict[row, column]) == 1:
            raise SplitError(f"{name}: expected the same values on all {axis} ranks, got different ones; seed them alike")
        raise SplitError(
            f"{name}: expected another slice on each {axis} rank, got the same one twice; draw the whole tensor by name, then cut"
        )


def _fingerprint(t: Tensor) -> Tensor:
    """Least, largest, and two sums of which one depends on the order; (4,) float64."""
    if not t.numel():
        return torch.zeros(4, dtype=torch.float64)
    flat = t.reshape(-1).double()
    weights = torch.linspace(1, 2, flat.numel(), dtype=torch.float64, device=t.device)
    return torch.stack((flat.min(), flat.max(), flat.sum(), flat @ weights))
