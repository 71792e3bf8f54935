"""Fresh weights. A tensor's random stream depends on the seed and its name alone, so depth, order of creation and the layout over
processes change nothing: a shard is a slice of the same global tensor."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from trainer.model.config import ModelConfig


def drawn(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor | None:
    """The whole float32 tensor that parameter `name` starts as; None where the module's own start (ones, zeros) stays."""
    init, parts = config.init, name.split(".")
    if name == "gain":
        return torch.full(shape, init.logit_gain)
    if parts[-1].endswith("bias"):
        return torch.zeros(shape)
    if len(shape) < 2:
        return None
    # The layer's own name: `...attention.o.weight`, `...ffn.experts.down`.
    layer = parts[-2] if parts[-1] == "weight" else parts[-1]
    output = layer in ("o", "down")
    if name == "embedding.token.weight":
        std = init.embedding_std
    elif name.startswith("embedding.smear"):
        std = init.smear_std
    elif init.scheme == "normal":
        std = init.std / math.sqrt(2 * config.n_layers) if output and init.depth_scaled else init.std
    elif output or name == "head.weight":
        std = 0.0
    else:
        std = init.gain / math.sqrt(shape[-1])
    stream = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(stream, "big") >> 1)
    if init.scheme == "normal" and init.cut is not None and not name.startswith("embedding"):
        return nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -init.cut * std, init.cut * std, generator)
    return torch.randn(shape, generator=generator) * std


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Draw all parameters of a whole model."""
    for name, parameter in model.named_parameters():
        start = drawn(name, parameter.shape, config, seed)
        if start is not None:
            parameter.copy_(start)
