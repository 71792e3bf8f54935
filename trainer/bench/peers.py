"""The peers of the speed rows: the same transformer as a bare torch loop, litgpt's, and nanochat's where a checkout is given.

A `Side` does one whole training step of one implementation: forward, backward, clipping, optimizer, gradients dropped. The bare
loop is what one would write in an afternoon with nothing around it, and so the price of everything that a framework adds.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import OptimConfig, PrecisionConfig
from trainer.data.packing import Batch
from trainer.model.config import LayerKind, ModelConfig
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.precision.convert import convert
from trainer.stages.pretrain import language_loss

Side = Callable[[], float]
"""One training step; its loss."""


class Shape:
    """Of the comparison: 10.7 million parameters over bytes."""

    def __init__(self, layers: int = 6, heads: int = 6, dim: int = 384, length: int = 256, rows: int = 8) -> None:
        self.layers, self.heads, self.dim, self.length, self.rows = layers, heads, dim, length, rows
        self.vocab = 256

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def batch(shape: Shape, seed: int = 0, documents: int = 1) -> Batch:
    """Random bytes in rows; each row holds so many documents of equal length."""
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, shape.vocab, (shape.rows, shape.length + 1), generator=draws)
    part = shape.length // documents
    positions = torch.arange(shape.length) % part
    number = torch.arange(shape.rows)[:, None] * documents + (torch.arange(shape.length) // part)[None]
    return Batch(
        ids[:, :-1].contiguous(),
        ids[:, 1:].contiguous(),
        torch.ones(shape.rows, shape.length),
        positions.expand(shape.rows, -1).contiguous(),
        number,
        {},
    )


def ours(shape: Shape, precision: str, hidden: str = "adamw", documents: int = 1, **changes: Any) -> Side:
    """The product's model, loss and optimizers, with packed rows; bfloat16 computes over float32 masters."""
    options: dict[str, Any] = {"qk_norm": False, "pattern": (LayerKind(ffn="relu2"),)} | changes
    config = ModelConfig(
        vocab_size=shape.vocab,
        dim=shape.dim,
        n_layers=shape.layers,
        n_heads=shape.heads,
        n_kv_heads=shape.heads,
        head_dim=shape.dim // shape.heads,
        ffn_dim=4 * shape.dim,
        max_positions=shape.length,
        tied_head=True,
        **options,
    )
    model = Transformer(config)
    if precision == "bfloat16":
        convert(model, PrecisionConfig())
    # Random bytes need no decay; everything that costs time is on.
    optim = OptimConfig(hidden=hidden, lr=1e-3, adam_lr=1e-3, weight_decay=0.1, adam_kernel="fused", muon_precision="auto")  # type: ignore[arg-type]
    optimizers, data = Optimizers(model, optim), batch(shape, documents=documents)

    def step() -> float:
        loss = language_loss(model, data, float(data.weights.sum()))
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        optimizers.step(1.0, value)
        model.after_step()
        return value

    return step


class _Block(nn.Module):
    def __init__(self, shape: Shape, alike: bool) -> None:
        super().__init__()
        D = shape.dim
        self.heads, self.alike = shape.heads, alike
        norm = nn.RMSNorm if alike else partial(nn.LayerNorm, bias=False)
        self.before_attention, self.before_ffn = norm(D), norm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.alike:
            q, k = turned(q, cos, sin), turned(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        up = self.up(self.before_ffn(x))
        return x + self.down(F.relu(up).square() if self.alike else F.gelu(up))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions as one writes them down."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Bare(nn.Module):
    """A GPT of torch modules alone, head tied: learned positions, LayerNorm and GELU, or `alike`, with our own architecture."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, alike: bool = False) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(shape.vocab, shape.dim), nn.Embedding(shape.length, shape.dim)
        self.blocks = nn.ModuleList(_Block(shape, alike) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim) if alike else nn.LayerNorm(shape.dim, bias=False)
        self.alike, half = alike, shape.dim // shape.heads // 2
        angle = torch.arange(shape.length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        if alike:
            del self.position
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) if self.alike else self.token(ids) + self.position.weight
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.token.weight)


def plain(model: nn.Module, shape: Shape, precision: str) -> Side:
    """The afternoon's loop around any model of ids -> logits; `bfloat16` is pure: weights and optimizer state too."""
    if precision == "bfloat16":
        model = model.bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    data = batch(shape)

    def step() -> float:
        logits = model(data.ids)
        loss = F.cross_entropy(logits.float().flatten(0, 1), data.targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def bare(shape: Shape, precision: str, alike: bool = False) -> Side:
    """Torch with nothing around it."""
    torch.manual_seed(0)
    return plain(Bare(shape, alike), shape, precision)


def litgpt(shape: Shape, precision: str) -> Side:
    """litgpt's GPT with the same widths, in the same loop. Raises: ImportError: it is not installed."""
    config, model = importlib.import_module("litgpt.config"), importlib.import_module("litgpt.model")
    made = model.GPT(
        config.Config(
            n_layer=shape.layers,
            n_head=shape.heads,
            n_embd=shape.dim,
            vocab_size=shape.vocab,
            padded_vocab_size=shape.vocab,
            block_size=shape.length,
            bias=False,
            lm_head_bias=False,
            parallel_residual=False,
            shared_attention_norm=False,
            mlp_class_name="GptNeoxMLP",
            intermediate_size=4 * shape.dim,
            norm_class_name="RMSNorm",
            rotary_percentage=1.0,
        )
    )
    made.lm_head.weight = made.transformer.wte.weight
    return plain(made, shape, precision)


def nanochat(checkout: Path, shape: Shape) -> Side:
    """nanochat's GPT with its own Muon and AdamW, float32, from a checkout. Raises: ImportError, OSError: it is no checkout."""
    if not (checkout / "nanochat" / "gpt.py").is_file():
        raise OSError(f"expected a checkout of nanochat at {checkout}, found no nanochat/gpt.py there")
    sys.path.insert(0, str(checkout))
    try:
        gpt = importlib.import_module("nanochat.gpt")
    finally:
        sys.path.remove(str(checkout))
    sizes = {"sequence_len": shape.length, "vocab_size": shape.vocab, "n_layer": shape.layers, "n_head": shape.heads}
    known = set(gpt.GPTConfig.__dataclass_fields__)
    model = gpt.GPT(
        gpt.GPTConfig(**{k: v for k, v in (sizes | {"n_kv_head": shape.heads, "n_embd": shape.dim}).items() if k in known})
    )
    model.init_weights()
    made = model.setup_optimizer() if hasattr(model, "setup_optimizer") else model.setup_optimizers()
    optimizers = made if isinstance(made, list | tuple) else [made]
    data = batch(shape)

    def step() -> float:
        loss = model(data.ids, data.targets)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
