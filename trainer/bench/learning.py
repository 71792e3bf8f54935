"""Learning rows: bits per byte on the standard library's own source, and Muon beside AdamW at equal steps.

The corpus is what every Python brings: the source of its standard library in path order, every twentieth file held out. It is
not stored, so absolute numbers hold for one Python version; the peers run on the same bytes in the same run.
"""

from __future__ import annotations

import math
import sysconfig
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gymsmith.bench import Row
from trainer.bench.peers import Bare, Shape
from trainer.config import OptimConfig, PrecisionConfig, ScheduleConfig
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.optim.schedule import scale
from trainer.precision.convert import convert
from trainer.precision.formats import resolve

BYTES = 10_000_000
BUDGET_CPU_S = 600.0
BITS = 1.6
"""Bits per byte that the full size has to reach within the budget: a first good run reached 1.47 on two busy cores."""
TICKS = 1000
"""Steps of the schedule, which follows the share of the steps or of the budget that is used up, whichever is more."""


def corpus(limit: int = BYTES) -> tuple[Tensor, Tensor]:
    """(training bytes, held-out bytes) of the standard library's source; every twentieth file is held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    kept, held, taken = bytearray(), bytearray(), 0
    paths = sorted(p for p in root.rglob("*.py") if "site-packages" not in p.parts and "test" not in p.parts)
    for number, path in enumerate(paths):
        body = path.read_bytes()
        (held if number % 20 == 7 else kept).extend(body)
        taken += len(body)
        if taken >= limit:
            break
    return torch.frombuffer(kept, dtype=torch.uint8).long(), torch.frombuffer(held, dtype=torch.uint8).long()


def rows_of(text: Tensor, rows: int, length: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random windows (rows, length) and the bytes that follow."""
    starts = torch.randint(0, len(text) - length - 1, (rows, 1), generator=draws)
    window = text[starts + torch.arange(length + 1)]
    return window[:, :-1], window[:, 1:]


def bits(model: torch.nn.Module, text: Tensor, length: int, rows: int = 16) -> float:
    """Bits per byte on fixed windows spread over the text."""
    starts = torch.linspace(0, len(text) - length - 2, rows).long()[:, None]
    window = text[starts + torch.arange(length + 1)]
    with torch.no_grad():
        logits = model(window[:, :-1]).float()
    return float(F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())) / math.log(2)


def model_config(quick: bool) -> ModelConfig:
    """Ten million parameters over bytes; a third of a million when quick."""
    size: dict[str, Any] = {"dim": 96, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "head_dim": 32, "ffn_dim": 256}
    full: dict[str, Any] = {"dim": 384, "n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "head_dim": 64, "ffn_dim": 1024}
    return ModelConfig(vocab_size=256, max_positions=256, tied_head=True, **(size if quick else full))


def pretrain(
    config: ModelConfig, optim: OptimConfig, text: Tensor, seed: int, steps: int, budget: float = math.inf
) -> tuple[Transformer, list[float], float]:
    """Train on windows of bytes until the steps or the CPU-seconds are over. (model, losses, CPU-seconds).

    The rate falls to nothing as either runs out.
    """
    model = Transformer(config, seed)
    if resolve("auto") == torch.bfloat16:
        convert(model, PrecisionConfig())
    optimizers, draws, losses = Optimizers(model, optim), torch.Generator().manual_seed(seed), list[float]()
    schedule, started, spent = ScheduleConfig(warmup_steps=TICKS // 20, decay=0.4), time.thread_time(), 0.0
    while len(losses) < steps and spent < budget:
        ids, targets = rows_of(text, 8, config.max_positions, draws)
        loss = F.cross_entropy(model(ids).float().flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        done = max(len(losses) / steps, spent / budget)
        optimizers.step(scale(schedule, int(TICKS * done), TICKS))
        losses.append(float(loss.detach()))
        spent = time.thread_time() - started
    return model, losses, spent


def bare_bits(text: Tensor, held: Tensor, steps: int, shape: Shape, rate: float = 1e-3) -> float:
    """The afternoon's loop on as many windows: AdamW, the same schedule, the best rate that is usual for this size."""
    torch.manual_seed(1)
    model, draws = Bare(shape), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = ScheduleConfig(warmup_steps=max(2, steps // 20), decay=0.4)
    for step in range(steps):
        ids, targets = rows_of(text, 8, shape.length, draws)
        with torch.autocast("cpu", torch.bfloat16, enabled=resolve("auto") == torch.bfloat16):
            logits = model(ids)
        F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate * scale(schedule, step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return bits(model, held, shape.length)


def learning(quick: bool) -> list[Row]:
    """Bits per byte within the CPU budget, and Muon against AdamW over seeds."""
    text, held = corpus(1_000_000 if quick else BYTES)
    config, length = model_config(quick), 256
    budget = 12.0 if quick else BUDGET_CPU_S
    muon = OptimConfig(lr=0.02, adam_lr=3e-3, weight_decay=0.01, muon_precision="auto", adam_kernel="fused")
    model, losses, spent = pretrain(config, muon, text, 1, 100_000 if quick else 1_000_000, budget)
    reached = bits(model, held, length)
    shape = Shape(layers=config.n_layers, heads=config.n_heads, dim=config.dim, length=length)
    peer = bare_bits(text, held, len(losses), shape)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    name = f"{size:.1f}M model, {spent:.0f} CPU-s, {len(losses) * 8 * length / 1e6:.2f} MB seen"
    rows = [
        Row(
            f"{name}: held out",
            "bits/byte",
            reached,
            peer,
            "bare loop, AdamW, as many bytes",
            reached / peer,
            f"<= the bare loop's, and {BITS} at full size",
            reached <= peer and (quick or reached <= BITS),
        )
    ]
    return [*rows, versus(config, text, quick)]


def versus(config: ModelConfig, text: Tensor, quick: bool) -> Row:
    """Mean loss of the last tenth of the steps, Muon against AdamW at the better of its rates, equal steps and batches."""
    steps, seeds = (60, (1,)) if quick else (150, (1, 2, 3))

    def last(optim: OptimConfig, seed: int) -> float:
        losses = pretrain(config, optim, text, seed, steps)[1]
        return fmean(losses[-max(1, steps // 10) :])

    muon = [last(OptimConfig(lr=0.02, adam_lr=3e-3, muon_precision="auto"), seed) for seed in seeds]
    adam = {rate: [last(OptimConfig(hidden="adamw", lr=rate, adam_lr=rate), seed) for seed in seeds] for rate in (1e-3, 3e-3)}
    best = min(adam.values(), key=sum)
    ok = all(a < b for a, b in zip(muon, best, strict=True))
    ours, theirs = fmean(muon), fmean(best)
    name = f"Muon: loss after {steps} equal steps, {len(seeds)} seeds"
    return Row(name, "nats", ours, theirs, "AdamW, better of 2 rates", ours / theirs, "< 1 each seed", ok)
