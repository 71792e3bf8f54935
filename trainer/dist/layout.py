"""Where the values of one parameter lie, and the way from a slice to the whole and back.

A parameter is first cut along the tensor- or expert-parallel axis (plain tensors, our own slices) and then, under FSDP, along its
first dimension over the fsdp axis (a DTensor that `fully_shard` made). Momenta and gradients lie as their parameter does, so
checkpoints hold whole tensors whatever the number of processes was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.dist.mesh import DATA, World


def local(tensor: Tensor) -> Tensor:
    """This process's piece as a plain tensor that shares memory with it."""
    # A DTensor; importing its class takes half a second, which one process need not spend.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """One parameter's."""

    shape: tuple[int, ...]
    """Of the whole."""
    cuts: tuple[tuple[str, int], ...] = ()
    """(axis, dimension) of our own slices, outermost first; every cut comes out even."""
    sharded: bool = False
    """A DTensor over fsdp."""
    partial: bool = False
    """Under tensor parallelism each rank's gradient is a part of the sum."""

    @property
    def axes(self) -> tuple[str, ...]:
        """Axes whose ranks hold different values, as the norm over all values needs them."""
        return (*(axis for axis, _ in self.cuts), *(("fsdp",) if self.sharded else ()))

    @property
    def sums(self) -> tuple[str, ...]:
        """Axes that this parameter's gradient is still to be summed over; fully_shard does its own."""
        return tuple(a for a in DATA if a not in self.axes) + (("tp",) if self.partial else ())

    def whole(self, tensor: Tensor, world: World) -> Tensor:
        """The full tensor, on every process that shares it."""
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if full.ndim != len(self.shape):
            return full
        for axis, dim in reversed(self.cuts):
            pieces = [torch.empty_like(full, memory_format=torch.contiguous_format) for _ in range(world.size((axis,)))]
            dist.all_gather(pieces, full.contiguous(), group=world.group((axis,)))
            full = torch.cat(pieces, dim)
        return full

    def piece(self, full: Tensor, world: World, place: Mapping[str, int]) -> Tensor:
        """What of `full` the process at `place` holds."""
        for axis, dim in self.cuts:
            full = full.chunk(world.sizes[axis], dim)[place[axis]]
        if not self.sharded:
            return full
        # As `fully_shard` cuts: equal runs of rows, the last ones shorter or empty.
        rows, number = full.chunk(world.sizes["fsdp"]), place["fsdp"]
        return rows[number] if number < len(rows) else full[:0]

    def pieces(self, full: Tensor, world: World) -> list[Tensor]:
        """What each process along `axes` holds of `full`, in the order of their ranks."""
        return [self.piece(full, world, place) for place in world.places(self.axes)]

    def join(self, pieces: Sequence[Tensor], world: World) -> Tensor:
        """The inverse of `pieces`."""
        steps = [*self.cuts, ("fsdp", 0)] if self.sharded else [*self.cuts]
        places = world.places(self.axes)
        order = sorted(range(len(pieces)), key=lambda rank: [places[rank][axis] for axis, _ in steps])
        found = [pieces[rank] for rank in order]
        for axis, dim in reversed(steps):
            n = world.sizes[axis]
            found = [torch.cat(found[i : i + n], dim) for i in range(0, len(found), n)]
        return found[0]

    @torch.no_grad()
    def part(self, full: Tensor, like: Tensor, world: World) -> Tensor:
        """What this process holds of `full`, in the form of its parameter `like`; a state without dimensions stays whole."""
        if full.ndim != len(self.shape):
            return full.clone()
        out = torch.empty_like(like, dtype=full.dtype)
        local(out).copy_(self.piece(full, world, world.place))
        return out
