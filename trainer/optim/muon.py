"""Muon (Jordan et al., 2024): momentum, orthogonalised, for the hidden matrices of a network.

    M <- lerp(M, g, 1 - mu);  u = lerp(g, M, mu);  W <- W (1 - lr wd) - lr * scale * polar(u)

`keller` scales by max(1, rows / columns)^0.5. `rms` scales by 0.2 max(rows, columns)^0.5 (Moonlight: Liu et al., 2025, eq. 4),
which gives the update the root mean square of AdamW's. Matrices of one shape are orthogonalised as one stack; an expert
parameter (E, out, in) is a stack already.

What counts as one matrix is a choice for attention (`Blocks`). GLM-5's Muon Split orthogonalises each head of a projection on
its own, so that heads keep scales of their own. Megatron's `muon_split_qkv` splits by projection only: q, k and v of a joint
matrix, or keys and values of an up-projection, but all heads together. Both are here, under `heads` and `projections`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.optim.polar import orthogonalise


class Blocks(NamedTuple):
    """The rows of a matrix are `groups` times (parts[0], parts[1], ...): heads with the channels of each projection."""

    groups: int
    parts: tuple[int, ...]

    def views(self, matrix: Tensor) -> tuple[Tensor, ...]:
        """One view (groups, part, columns) for each part of a matrix (rows, columns)."""
        return matrix.unflatten(0, (self.groups, sum(self.parts))).split(self.parts, 1)


class Direction(NamedTuple):
    """Where a parameter goes: minus lr times scale times update."""

    update: Tensor
    scale: float


def size_of(rows: int, columns: int, kind: str) -> float:
    """Multiplier of an orthogonalised (rows, columns) update."""
    return math.sqrt(max(1.0, rows / columns)) if kind == "keller" else 0.2 * math.sqrt(max(rows, columns))


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum.

    Args:
        params: matrices, or stacks of them (E, rows, columns); no embeddings, no head.
        dtype: of the Newton-Schulz iteration. In float32 the result does not depend on the machine's bfloat16; `bfloat16` is what
            the original runs.
        scale, polynomial: see `size_of` and `polar.POLYNOMIALS`.
        split, blocks: "none", "projections" or "heads", and the rows of the parameters that it concerns.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
        scale: str = "keller",
        polynomial: str = "quintic",
        split: str = "none",
        blocks: Mapping[Tensor, Blocks] | None = None,
    ) -> None:
        params = list(params)
        wrong = [tuple(p.shape) for p in params if p.ndim not in (2, 3)]
        if wrong:
            raise ValueError(f"Muon takes matrices, got shapes {wrong}; put the others in AdamW")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype, self.scale, self.polynomial, self.split = dtype, scale, polynomial, split
        self.blocks = dict(blocks or {}) if split != "none" else {}
        for p, (groups, parts) in self.blocks.items():
            if groups * sum(parts) != p.size(0):
                expected = f"{groups} heads of {parts} rows"
                raise ValueError(f"expected {p.size(0)} rows to split, got {expected}; correct the layer's head_blocks")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            updates = []
            for p in params:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                updates.append(p.grad.lerp(buffer, group["momentum"]))
            for p, (update, scale) in zip(params, self.directions(params, updates), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)

    def directions(self, params: list[Tensor], updates: list[Tensor]) -> list[Direction]:
        """Orthogonalised updates, each of its parameter's shape. Overridden where a parameter's matrix lies on several ranks."""
        stacks: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        pieces = [self._matrices(p, u) for p, u in zip(params, updates, strict=True)]
        for piece in (piece for each in pieces for piece in each):
            stacks[piece.size(-2), piece.size(-1)].append(piece)
        solved: dict[tuple[int, int], list[Tensor]] = {}
        for shape, members in stacks.items():
            stack = members[0] if len(members) == 1 else torch.cat(members)
            done = orthogonalise(stack, self.dtype, self.polynomial)
            solved[shape] = list(done.split([len(m) for m in members]))[::-1]
        out = []
        for p, update, each in zip(params, updates, pieces, strict=True):
            sizes = [size_of(piece.size(-2), piece.size(-1), self.scale) for piece in each]
            done_parts = [solved[piece.size(-2), piece.size(-1)].pop() for piece in each]
            if len(each) > 1:
                groups, parts = self.blocks[p]
                ratios = [size / sizes[0] for size in sizes]
                joint = [d.reshape(groups, n, -1) * by for d, n, by in zip(done_parts, parts, ratios, strict=True)]
                done_parts = [torch.cat(joint, 1)]
            out.append(Direction(done_parts[0].reshape(update.shape), sizes[0]))
        return out

    def _matrices(self, p: Tensor, update: Tensor) -> list[Tensor]:
        """What of an update is orthogonalised as a matrix of its own: stacks (N, rows, columns)."""
        if p not in self.blocks:
            return [update.reshape(-1, *update.shape[-2:])]
        views = self.blocks[p].views(update)
        return [v if self.split == "heads" else v.reshape(1, -1, v.size(-1)) for v in views]
