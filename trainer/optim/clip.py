"""QK-clip (Kimi K2, 2025, section 2.1, algorithm 1): after an update, heads whose logits grew too large are scaled down.

S_h is the largest scaled logit of head h in the update's batches, gamma_h = tau / S_h where S_h > tau and 1 elsewhere. The layer
(`clip_heads`) multiplies the head's logits by gamma_h through its query and key weights. Multi-head attention takes gamma^0.5 on
each. Where heads share a key (GQA), the key takes the square root of the least gamma of its group and each query the rest of its
own, so that every head ends at gamma_h and no head pays for its neighbour. In latent attention the rotary key belongs to all
heads: it stays, and the rotary query takes gamma whole. Heads of groups without an outlier keep their bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def qk_clip(
    model: nn.Module, max_logit: Mapping[int, Tensor], tau: float, reduce: Callable[[Tensor], Tensor] = lambda most: most
) -> dict[str, float]:
    """Clip in place; call it after an optimizer step that was not skipped.

    Args:
        max_logit: layer -> S (H,), the largest over the update's micro-batches (`Outputs.statistics["max_logit"]`).
        reduce: the largest over data-parallel ranks, so that all ranks clip alike.
    Returns:
        `max_logit` over all heads before clipping, and the number of `clipped_heads`.
    """
    layers: dict[int, Any] = {int(m.index): m for m in model.modules() if hasattr(m, "clip_heads")}  # type: ignore[arg-type]
    most, clipped = float("-inf"), 0
    for index, S_H in max_logit.items():
        S_H = reduce(S_H.float())
        over = S_H.gt(tau)
        most = max(most, float(S_H.max()))
        if over.any():
            # All depths of a shared prediction module run the same layer, the last.
            layers[min(index, max(layers))].clip_heads(torch.where(over, tau / S_H, torch.ones_like(S_H)))
            clipped += int(over.sum())
    return {"max_logit": most, "clipped_heads": float(clipped)}
