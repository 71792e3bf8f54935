"""The processes, arranged along the axes dp, fsdp, ep, cp, tp, and how they talk.

`World` is one process's view. With one process it does nothing and needs no process group, so the loop has one path for both.
Along the last axis ranks are neighbours: tensor parallelism talks most and stays on one machine. Groups over several axes
(all ranks that see different data, say) are made on first use; every process makes the same ones in the same order.

Deliberately not here: what is split (`split`), and starting processes, which is torchrun's.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gymsmith.errors import ConfigError
from trainer.config import ParallelConfig

log = logging.getLogger(__name__)
AXES = ("dp", "fsdp", "ep", "cp", "tp")
DATA = ("dp", "fsdp", "ep", "cp")
"""Axes whose ranks see different tokens: losses, counts and gradients are summed over these."""


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class World:
    """This process's place among all of a run.

    Raises:
        ConfigError: another number of processes than the axes need.
    """

    def __init__(self, config: ParallelConfig | None = None, device: str = "cpu") -> None:
        self.config = config or ParallelConfig()
        self.mesh: DeviceMesh | None = None
        self.device = torch.device(device)
        self._groups: dict[tuple[str, ...], dist.ProcessGroup] = {}
        self.sizes = {axis: int(getattr(self.config, axis)) for axis in AXES}
        self.place = dict.fromkeys(AXES, 0)
        started = dist.get_world_size() if dist.is_initialized() else processes()
        if self.config.world != started:
            raise ConfigError(f"expected {self.config.world} processes as [parallel] says, got {started}; start that many")
        if started == 1:
            return
        if not dist.is_initialized():
            dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl")
        if device != "cpu":  # pragma: no cover - needs CUDA
            self.device = torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
            torch.accelerator.set_device_index(self.device.index)
        self.mesh = init_device_mesh(self.device.type, tuple(self.sizes.values()), mesh_dim_names=AXES)
        coordinate = self.mesh.get_coordinate()
        assert coordinate is not None, "every process is part of the mesh"
        self.place = dict(zip(AXES, coordinate, strict=True))
        log.info("joined rank=%d world=%d place=%s", dist.get_rank(), started, self.place)

    @property
    def main(self) -> bool:
        """Whether this process is the one that reports and saves."""
        return not any(self.place.values())

    def size(self, axes: Sequence[str]) -> int:
        """Processes along these axes together."""
        count = 1
        for axis in axes:
            count *= self.sizes[axis]
        return count

    def rank(self, axes: Sequence[str]) -> int:
        """This process's number along these axes together: the index of its place in `places`."""
        return self.places(axes).index({axis: self.place[axis] for axis in axes})

    def places(self, axes: Sequence[str]) -> list[dict[str, int]]:
        """All places along these axes, in the order of their ranks: axes as in AXES, the last one fastest."""
        order = [axis for axis in AXES if axis in axes]
        return [dict(zip(order, at, strict=True)) for at in itertools.product(*(range(self.sizes[a]) for a in order))]

    def group(self, axes: Sequence[str]) -> dist.ProcessGroup:
        """The processes that differ from this one along these axes only, in the order of `rank`."""
        key = tuple(axis for axis in AXES if axis in axes)
        if key not in self._groups:
            assert self.mesh is not None, "one process has no groups"
            order = [AXES.index(a) for a in AXES if a not in key] + [AXES.index(a) for a in key]
            rows = self.mesh.mesh.permute(order).reshape(-1, self.size(key)).tolist()
            group, _ = dist.new_subgroups_by_enumeration(rows)
            assert group is not None, "every process is in one of the rows"
            self._groups[key] = group
        return self._groups[key]

    def sum(self, tensor: Tensor, axes: Sequence[str] = DATA) -> Tensor:
        """Sum over the processes along these axes, in place."""
        if self.size(axes) > 1:
            dist.all_reduce(tensor, group=self.group(axes))
        return tensor

    def max(self, tensor: Tensor, axes: Sequence[str] = DATA) -> Tensor:
        """Elementwise largest over the processes along these axes, in place."""
        if self.size(axes) > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group(axes))
        return tensor

    def close(self) -> None:
        """Leave the process group."""
        if self.mesh is not None:
            dist.destroy_process_group()
