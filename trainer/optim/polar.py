"""The polar factor of a matrix, roughly, by matrix products alone: what Muon steps along.

    X <- G / |G|_F;   X <- a X + (b A + c A^2) X  with  A = X X^T        a few times

Each round applies the odd polynomial a s + b s^3 + c s^5 to every singular value s. `quintic` (Jordan et al., 2024) repeats one
polynomial that pushes small values up fast and never settles: a Gaussian 384 x 1536 ends within 0.75 to 1.14. `polar_express`
(Amsel et al., 2025, arXiv 2505.16932, section 3) takes the best next polynomial in each round: 0.86 to 1.15.
Values below about 1e-3 of the norm, which square matrices have, stay small in either.

A stack of small matrices is iterated together, which saves calls; large ones one by one, which stays in the cache and keeps the
faster kernel for single products.
"""

from __future__ import annotations

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]
POLYNOMIALS: dict[str, Coefficients] = {
    "quintic": ((3.4445, -4.7750, 2.0315),) * 5,
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
HEADROOM = {"quintic": 1.0, "polar_express": 1.01}
"""Divides the start beside its norm: Polar Express diverges above one, where rounding can lead."""
LARGE = 256 * 256
"""Elements from which matrices are iterated one by one."""


def orthogonalise(G: Tensor, dtype: torch.dtype = torch.float32, polynomial: str = "quintic") -> Tensor:
    """Five rounds on a stack of matrices (..., rows, columns), each on its own, computed in `dtype`."""
    stack = G.reshape(-1, *G.shape[-2:])
    if stack.size(-2) * stack.size(-1) < LARGE or not G.is_cpu:
        return _together(stack, dtype, polynomial).reshape(G.shape)
    out = torch.empty_like(stack)
    for one, into in zip(stack, out, strict=True):
        into.copy_(_together(one, dtype, polynomial))
    return out.reshape(G.shape)


def _together(G: Tensor, dtype: torch.dtype, polynomial: str) -> Tensor:
    """All of a stack (N, rows, columns), or one matrix, at once."""
    add_product = torch.baddbmm if G.ndim == 3 else torch.addmm
    tall = G.size(-2) > G.size(-1)
    X = G.to(dtype)
    if tall:
        X = X.mT
    X = X / (X.norm(dim=(-2, -1), keepdim=True) * HEADROOM[polynomial]).clamp(min=1e-7)
    for a, b, c in POLYNOMIALS[polynomial]:
        A = X @ X.mT
        X = add_product(X, add_product(A, A, A, beta=b, alpha=c), X, beta=a)
    return (X.mT if tall else X).to(G.dtype)
