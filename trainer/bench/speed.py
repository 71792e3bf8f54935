"""`gymsmith bench trainer`: speed, memory, exactness and toys of the trainer, each beside its peer in the same run.

Times are CPU-seconds of one thread, sides interleaved step by step, medians: on a shared machine wall time measures the
neighbours. Absolute numbers belong to this machine; what is promised are ratios. A peer that is missing is a row that says so:
litgpt where it is not installed, nanochat without a checkout in STATE/peers/nanochat (with `--keep STATE`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gymsmith.bench import Row
from gymsmith.config import Settings
from trainer.bench import peers
from trainer.bench.learning import learning
from trainer.bench.machinery import machinery
from trainer.bench.peers import Shape, Side
from trainer.bench.toy_rows import toys
from trainer.optim.muon import Muon
from trainer.precision.formats import resolve

WARM = 2


def measure(settings: Settings, quick: bool) -> list[Row]:
    """All rows of the trainer's table that a CPU can fill."""
    torch.set_num_threads(1)
    shape = Shape(layers=2, rows=4) if quick else Shape()
    rows = speed(shape, 5 if quick else 9, settings.home / "peers" / "nanochat")
    rows += machinery(settings.home, quick)
    rows += toys(quick)
    rows += learning(quick)
    return rows


def interleaved(sides: Mapping[str, Side], rounds: int) -> dict[str, float]:
    """Median CPU-seconds of a step of each side, taken in turns after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + WARM):
        for name, step in sides.items():
            started = time.thread_time()
            step()
            if i >= WARM:
                seconds[name].append(time.thread_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def missing(metric: str, unit: str, value: float, peer: str, why: BaseException) -> Row:
    """A row whose peer could not run, and why."""
    return Row(metric, unit, value, None, f"{peer} missing: {type(why).__name__}: {str(why).splitlines()[0][:90]}")


def speed(shape: Shape, rounds: int, checkout: Path) -> list[Row]:
    """Tokens per CPU-second of a whole training step."""
    rows = []
    for precision, bar in (("float32", 0.97), ("bfloat16", 1.0)):
        sides: dict[str, Side] = {"ours": peers.ours(shape, precision), "bare": peers.bare(shape, precision)}
        sides["alike"] = peers.bare(shape, precision, alike=True)
        absent: BaseException | None = None
        try:
            sides["litgpt"] = peers.litgpt(shape, precision)
        except (ImportError, AttributeError, TypeError) as error:
            absent = error
        seconds = interleaved(sides, rounds)
        tokens = {name: shape.tokens / value for name, value in seconds.items()}
        ratio = tokens["ours"] / tokens["bare"]
        metric = f"training step, {precision}"
        rows.append(
            Row(metric, "tok/CPU-s", tokens["ours"], tokens["bare"], "bare torch loop (GPT-2)", ratio, f">= {bar}", ratio >= bar)
        )
        like = tokens["ours"] / tokens["alike"]
        name = "bare torch loop, our architecture"
        rows.append(Row(metric, "tok/CPU-s", tokens["ours"], tokens["alike"], name, like, f">= {bar}", like >= bar))
        if absent is None:
            versus = tokens["ours"] / tokens["litgpt"]
            rows.append(Row(metric, "tok/CPU-s", tokens["ours"], tokens["litgpt"], "litgpt", versus))
        else:
            rows.append(missing(metric, "tok/CPU-s", tokens["ours"], "litgpt", absent))
    rows += [_muon(shape, rounds), *_packed(shape, rounds), *_everything(shape, rounds)]
    mine = peers.ours(shape, "float32", hidden="muon")
    try:
        seconds = interleaved({"ours": mine, "nanochat": peers.nanochat(checkout, shape)}, rounds)
        tokens = {name: shape.tokens / value for name, value in seconds.items()}
        ratio = tokens["ours"] / tokens["nanochat"]
        rows.append(
            Row("training step, Muon", "tok/CPU-s", tokens["ours"], tokens["nanochat"], "nanochat", ratio, ">= 1.1", ratio >= 1.1)
        )
    except (ImportError, OSError, AttributeError, TypeError) as error:
        alone = interleaved({"ours": mine}, rounds)["ours"]
        rows.append(missing("training step, Muon", "tok/CPU-s", shape.tokens / alone, "nanochat", error))
    return rows


def _packed(shape: Shape, rounds: int) -> list[Row]:
    """Rows of eight documents each against rows of one: what the document mask costs at equal tokens."""
    sides = {"packed": peers.ours(shape, "float32", documents=8), "whole": peers.ours(shape, "float32")}
    seconds = interleaved(sides, rounds)
    tokens = {name: shape.tokens / value for name, value in seconds.items()}
    ratio = tokens["packed"] / tokens["whole"]
    return [
        Row("rows of 8 documents", "tok/CPU-s", tokens["packed"], tokens["whole"], "rows of 1", ratio, ">= 0.9", ratio >= 0.9)
    ]


def _everything(shape: Shape, rounds: int) -> list[Row]:
    """What the architecture's extras cost together, for information."""
    extras: dict[str, Any] = {"qk_norm": True, "attention_gate": True, "z_loss": 1e-5, "norm_place": "sandwich"}
    sides = {"all": peers.ours(shape, "float32", **extras), "plain": peers.ours(shape, "float32")}
    seconds = interleaved(sides, rounds)
    tokens = {name: shape.tokens / value for name, value in seconds.items()}
    name = "QK-norm, gate, sandwich norms, z-loss"
    return [Row(name, "tok/CPU-s", tokens["all"], tokens["plain"], "without them", tokens["all"] / tokens["plain"])]


def _muon(shape: Shape, rounds: int) -> Row:
    """A Muon step against its FLOPs at the matrix speed of this machine in this run."""
    D, draws = shape.dim, torch.Generator().manual_seed(0)
    sizes = [(D, D)] * 4 * shape.layers + [(4 * D, D), (D, 4 * D)] * shape.layers
    params = [torch.nn.Parameter(torch.randn(size, generator=draws)) for size in sizes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=draws)
    dtype = resolve("auto")
    muon = Muon(params, 0.02, dtype=dtype)
    flops = sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in sizes)
    a = torch.randn(4 * D, D, generator=draws).to(dtype)

    def product() -> float:
        # The shape that Newton-Schulz multiplies: many matrices at once.
        for _ in range(8):
            torch.baddbmm(x, x @ x.mT, x)
        return 0.0

    x = a.view(4, D, D).contiguous()
    seconds = interleaved({"step": lambda: muon.step() or 0.0, "product": product}, rounds)  # type: ignore[func-returns-value]
    speed = 8 * 4 * 4 * D**3 / seconds["product"]
    model = flops / speed
    ratio = seconds["step"] / model
    return Row(
        "Muon step", "CPU-ms", 1e3 * seconds["step"], 1e3 * model, "its FLOPs at matmul speed", ratio, "<= 1.2", ratio <= 1.2
    )
