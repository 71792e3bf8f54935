"""What the backward pass needs waits in host memory: copied out as blocks run, copied back when gradients reach them.

On a GPU copies go to pinned memory on a stream of their own, so that computing goes on. Parameters stay where they are. Values
are copied, never converted: gradients are bitwise those without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass(slots=True)
class Away:
    """A tensor in host memory."""

    host: Tensor
    """Without expanded dimensions."""
    size: torch.Size
    stride: tuple[int, ...]
    """The layout it had and gets again: matrix libraries choose their order of sums by it."""
    device: torch.device
    copied: torch.cuda.Event | None


class Offload(saved_tensors_hooks):
    """Context in which tensors of at least `floor_bytes` that autograd saves go to the host."""

    def __init__(self, model: nn.Module, floor_bytes: int = 1 << 20) -> None:
        self.stays = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.floor_bytes = floor_bytes
        self.stream: torch.cuda.Stream | None = None
        super().__init__(self.pack, self.unpack)

    def pack(self, x: Tensor) -> Tensor | Away:
        if x.nbytes < self.floor_bytes or x.untyped_storage().data_ptr() in self.stays or not x.is_floating_point():
            return x
        core = x[tuple(slice(1) if step == 0 else slice(None) for step in x.stride())]
        host = torch.empty(core.shape, dtype=x.dtype, pin_memory=x.is_cuda)
        copied = self._beside(core, host) if x.is_cuda else None
        if copied is None:
            host.copy_(core)
        return Away(host, x.size(), core.stride(), x.device, copied)

    def _beside(self, core: Tensor, host: Tensor) -> torch.cuda.Event:  # pragma: no cover - needs CUDA
        """Copy on the stream for copies; the event is when it is done."""
        self.stream = self.stream or torch.cuda.Stream(core.device)
        self.stream.wait_stream(torch.cuda.current_stream(core.device))
        with torch.cuda.stream(self.stream):
            host.copy_(core, non_blocking=True)
        core.record_stream(self.stream)
        return self.stream.record_event()

    def unpack(self, saved: Tensor | Away) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        if saved.copied is not None:  # pragma: no cover - needs CUDA
            torch.cuda.current_stream(saved.device).wait_event(saved.copied)
        back = torch.empty_strided(saved.host.size(), saved.stride, dtype=saved.host.dtype, device=saved.device)
        return back.copy_(saved.host, non_blocking=saved.copied is not None).expand(saved.size)
