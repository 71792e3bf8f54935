"""Muon (Jordan et al., 2024): momentum, orthogonalised by a few Newton-Schulz steps, for the hidden matrices of a network.

M <- lerp(M, g, 1 - mu);  u = lerp(g, M, mu);  X = NS5(u / |u|_F);  W <- W (1 - lr wd) - lr * max(1, rows / columns)^0.5 X

NS5 iterates X <- a X + (b A + c A^2) X with A = X X^T and (a, b, c) = (3.4445, -4.7750, 2.0315), which pushes all singular values
towards one without settling there. Matrices of one shape are stacked and iterated together. In float32 the result does not
depend on the machine's bfloat16; `bfloat16` is what the original runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


def orthogonalise(G: Tensor, dtype: torch.dtype = torch.float32, steps: int = STEPS) -> Tensor:
    """NS5 of a stack of matrices (..., rows, columns), each on its own."""
    X = G.reshape(-1, *G.shape[-2:]).to(dtype)
    tall = X.size(-2) > X.size(-1)
    if tall:
        X = X.mT
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), X, beta=A)
    return (X.mT if tall else X).reshape(G.shape).to(G.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and Keller Jordan's scaling.

    Args:
        params: parameters with two dimensions each; no embeddings, no head.
        lr: step size; the update has spectral norm about max(1, rows / columns) ** 0.5.
        dtype: of the Newton-Schulz iteration.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        params = list(params)
        wrong = [tuple(p.shape) for p in params if p.ndim != 2]
        if wrong:
            raise ValueError(f"Muon takes matrices, got shapes {wrong}; put the others in AdamW")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                stacks[p.shape].append((p, p.grad.lerp(buffer, group["momentum"])))
            for shape, members in stacks.items():
                updates = orthogonalise(torch.stack([u for _, u in members]), self.dtype)
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for (p, _), update in zip(members, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * scale)
