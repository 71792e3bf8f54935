"""Muon over many processes: orthogonalising needs whole matrices, so each rank gets whole matrices of its own.

Every matrix has one owner, chosen by cost so that all ranks finish together. Where matrices lie in slices, slices travel to the
owner and slices of the update travel back: two all-to-alls for all matrices together. Where every rank holds everything, owners
share their updates in one all-gather. So the costly iteration runs once per matrix and copy of the model, on the same bits as in
one process (as in nanochat's DistMuon and in Liu et al., 2025, arXiv 2502.16982, section 2.3, without their redundancy).

Expert tensors cut by experts hold whole matrices already.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from trainer.dist.layout import Layout, local
from trainer.dist.mesh import DATA
from trainer.dist.parallel import Parallel
from trainer.optim.muon import Blocks, Direction, Muon, size_of

Direct = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
"""(parameters, whole momenta) -> whole updates; the parameters say which is which and are not read."""


def muon(parallel: Parallel) -> type[Muon]:
    """The optimizer's class for a split model, as `Optimizers` takes it."""
    if parallel.world.mesh is None:
        return Muon

    class Spread(Muon):
        """Muon that orthogonalises whole matrices wherever they lie."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.exchange = Exchange(parallel)
            # Layers count the heads that they hold; a whole matrix has all of them.
            for p, (heads, parts) in self.blocks.items():
                self.blocks[p] = Blocks(heads * self.exchange.layouts[p].shape[0] // p.size(0), parts)

        def directions(self, params: list[Tensor], updates: list[Tensor]) -> list[Direction]:
            whole = super().directions
            found = self.exchange(params, updates, lambda some, given: [d.update for d in whole(some, given)])
            return [Direction(update, self._scale(p)) for p, update in zip(params, found, strict=True)]

        def _scale(self, p: Tensor) -> float:
            first = self._matrices(p, torch.empty(self.exchange.layouts[p].shape, device="meta"))[0]
            return size_of(first.size(-2), first.size(-1), self.scale)

    return Spread


class Exchange:
    """Calls a `Direct` that needs whole matrices with this process's share of them."""

    def __init__(self, parallel: Parallel) -> None:
        self.world = parallel.world
        self.layouts: dict[Tensor, Layout] = {p: parallel.layouts[name] for name, p in parallel.model.named_parameters()}

    @torch.no_grad()
    def __call__(self, parameters: list[Tensor], momenta: list[Tensor], direct: Direct) -> list[Tensor]:
        """Updates in the form of the parameters, from momenta in that form. Every process must call it alike."""
        groups: dict[tuple[tuple[str, ...], bool], list[int]] = defaultdict(list)
        for i, p in enumerate(parameters):
            layout = self.layouts[p]
            through = _through(layout)
            axes = layout.axes if through else tuple(a for a in (*DATA, "tp") if a not in layout.axes)
            groups[axes, through].append(i)
        out = [torch.empty_like(p) for p in parameters]
        for (axes, through), members in groups.items():
            some = [parameters[i] for i in members]
            given = [local(momenta[i]) for i in members]
            if self.world.size(axes) == 1:
                found = direct(some, given)
            else:
                found = (self._travel if through else self._share)(axes, some, given, direct)
            for i, update in zip(members, found, strict=True):
                local(out[i]).copy_(update)
        return out

    def _travel(self, axes: tuple[str, ...], parameters: list[Tensor], slices: list[Tensor], direct: Direct) -> list[Tensor]:
        """Slices to owners, updates back."""
        layouts = [self.layouts[p] for p in parameters]
        owners = _owners([layout.shape for layout in layouts], self.world.size(axes))
        me, order = self.world.rank(axes), range(self.world.size(axes))
        mine = [i for i, owner in enumerate(owners) if owner == me]
        there = [[i for i, owner in enumerate(owners) if owner == rank] for rank in order]
        shapes = [[x.shape for x in v.pieces(torch.empty(v.shape, device="meta"), self.world)] for v in layouts]
        came = self._swap(
            [[slices[i] for i in indices] for indices in there],
            [[shapes[i][rank] for i in mine] for rank in order],
            axes,
            slices[0],
        )
        whole = [layouts[i].join([came[rank][k] for rank in order], self.world) for k, i in enumerate(mine)]
        updates = direct([parameters[i] for i in mine], whole)
        pieces = [layouts[i].pieces(update, self.world) for i, update in zip(mine, updates, strict=True)]
        back = self._swap(
            [[piece[rank] for piece in pieces] for rank in order],
            [[shapes[i][me] for i in indices] for indices in there],
            axes,
            slices[0],
        )
        found = {i: update for indices, row in zip(there, back, strict=True) for i, update in zip(indices, row, strict=True)}
        return [found[i] for i in range(len(parameters))]

    def _share(self, axes: tuple[str, ...], parameters: list[Tensor], momenta: list[Tensor], direct: Direct) -> list[Tensor]:
        """Each rank does its own and tells the others."""
        owners = _owners([tuple(m.shape) for m in momenta], self.world.size(axes))
        there = [[i for i, owner in enumerate(owners) if owner == rank] for rank in range(self.world.size(axes))]
        mine = there[self.world.rank(axes)]
        updates = direct([parameters[i] for i in mine], [momenta[i] for i in mine])
        longest = max(sum(momenta[i].numel() for i in indices) for indices in there)
        flat = torch.cat([momenta[0].new_zeros(0), *(u.reshape(-1) for u in updates)])
        everyone = flat.new_empty(len(there) * longest)
        dist.all_gather_into_tensor(everyone, F.pad(flat, (0, longest - len(flat))), group=self.world.group(axes))
        found: dict[int, Tensor] = {}
        for indices, row in zip(there, everyone.split(longest), strict=True):
            found |= zip(indices, _cut(row, [momenta[i].shape for i in indices]), strict=True)
        return [found[i] for i in range(len(parameters))]

    def _swap(
        self, give: list[list[Tensor]], shapes: list[list[torch.Size]], axes: tuple[str, ...], like: Tensor
    ) -> list[list[Tensor]]:
        """give[r] to rank r; what came, row per rank, of the shapes announced. All of `like`'s type."""
        sizes = [sum(t.numel() for t in row) for row in give]
        expected = [sum(shape.numel() for shape in row) for row in shapes]
        sent = torch.cat([like.new_zeros(0), *(t.reshape(-1) for row in give for t in row)])
        came = sent.new_empty(sum(expected))
        dist.all_to_all_single(came, sent, expected, sizes, group=self.world.group(axes))
        return [_cut(row, wanted) for row, wanted in zip(came.split(expected), shapes, strict=True)]


def _through(layout: Layout) -> bool:
    """Whether a cut goes through the matrices themselves, their last two dimensions."""
    first = len(layout.shape) - 2
    return any(dim >= first for _, dim in layout.cuts) or (layout.sharded and first == 0)


def _owners(shapes: Sequence[tuple[int, ...]], ranks: int) -> list[int]:
    """Rank of each matrix: dearest first, to whoever has least to do. One iteration costs about m^2 n for m <= n."""
    load = [0.0] * ranks
    owners = [0] * len(shapes)
    cost = [torch.Size(s).numel() * min(s[-2:]) for s in shapes]
    for i in sorted(range(len(shapes)), key=lambda i: (-cost[i], i)):
        owners[i] = min(range(ranks), key=lambda rank: (load[rank], rank))
        load[owners[i]] += cost[i]
    return owners


def _cut(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Tensors of these shapes, one after the other in `flat`."""
    out, at = [], 0
    for shape in shapes:
        out.append(flat[at : at + shape.numel()].view(shape))
        at += shape.numel()
    return out
