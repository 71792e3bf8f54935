"""Which number format the matrix products of training run in.

Weights and optimizer state are float32 always; under `bfloat16` the products are rounded (autocast). A CPU with the instructions
for it multiplies several times faster that way, one without them several times slower, so `auto` asks the CPU. That answer is a
property of the machine: a run repeats bit for bit on the machine it ran on.
"""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def resolve(precision: Precision) -> torch.dtype:
    """The type to multiply in on this machine."""
    if precision == "auto":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
