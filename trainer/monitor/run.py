"""What watches a pre-training run: speed, stability, and where the numbers go. A list of callbacks for the loop.

Metrics go to `metrics.jsonl` and alerts to `alerts.jsonl` in the run's folder, always; to TensorBoard and to Weights & Biases
where those packages are installed. W&B writes its files offline, below the same folder: nothing leaves the machine until somebody
runs `wandb sync`. A run that resumes drops the lines of the steps that it repeats.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainer.config import Recipe
from trainer.loop import Callback
from trainer.monitor.alerts import Alert, Facts, Monitor
from trainer.monitor.speed import Meter, Watchdog, datasheet, matmul_ceiling
from trainer.plan.flops import flops

log = logging.getLogger(__name__)
Sink = Callable[[int, Mapping[str, float]], None]


def callbacks(
    folder: Path,
    name: str,
    recipe: Recipe,
    length: int,
    device: torch.device,
    processes: int = 1,
    tell: Callable[[Alert], None] = lambda a: None,
) -> list[Callback]:
    """Meter, monitor, watchdog and exporters of one run, in the order in which the loop is to call them.

    Args:
        length: tokens of a row, which attention's FLOPs depend on.
        tell: hears every alert, beside the log and the file.
    """
    sheet = measured = float("nan")
    if device.type == "cuda":  # pragma: no cover - needs CUDA
        sheet, measured = datasheet(torch.cuda.get_device_name(device)), matmul_ceiling(device, torch.bfloat16)
    palm, causal = (flops(recipe.model, length, count).total for count in ("palm", "causal"))  # type: ignore[arg-type]
    alerts = Lines(folder / "alerts.jsonl")

    def heard(alert: Alert) -> None:
        alerts.write(alert.step, asdict(alert))
        tell(alert)

    meter, watchdog = Meter(palm, causal, sheet * processes, measured * processes), Watchdog()
    sinks: list[Sink] = [Lines(folder / "metrics.jsonl").metrics, *installed(folder, name, recipe)]

    def speed(step: int, metrics: dict[str, float], facts: Facts) -> None:
        metrics |= meter(step, metrics)

    def slow(step: int, metrics: dict[str, float], facts: Facts) -> None:
        alert = watchdog(step, metrics)
        if alert:
            log.warning("step=%d suspect=%s %s", step, alert.suspect, alert.text)
            heard(alert)

    def export(step: int, metrics: dict[str, float], facts: Facts) -> None:
        for sink in sinks:
            sink(step, metrics)

    return [speed, Monitor(tell=heard), slow, export]


class Lines:
    """A JSONL file of steps. Opening it again at step s drops what it holds from s on, and a line that was cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step, dict(metrics))

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        if not self.begun:
            self._trim(step)
            self.begun = True
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step, **row}) + "\n")

    def _trim(self, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_file():
            return
        whole = [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] < step]
        fresh = self.path.with_suffix(".new")
        fresh.write_text("".join(kept), encoding="utf-8")
        fresh.replace(self.path)


def installed(folder: Path, name: str, recipe: Recipe) -> list[Sink]:
    """Sinks of the packages that are there."""
    sinks: list[Sink] = []
    if importlib.util.find_spec("tensorboard"):
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))

        def board(step: int, metrics: Mapping[str, float]) -> None:
            for key, value in metrics.items():
                writer.add_scalar(key, value, step)

        sinks.append(board)
    if importlib.util.find_spec("wandb"):
        wandb = importlib.import_module("wandb")
        # It writes elsewhere, with a warning, when there is no such folder.
        folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(project="gymsmith", name=name, dir=str(folder), mode="offline", config=recipe.model_dump(mode="json"))
        sinks.append(lambda step, metrics: run.log(dict(metrics), step=step))
    return sinks
