"""What watches a run writes every step once, whatever was killed, and hears what the monitor says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.config import load_recipe
from trainer.monitor.alerts import Alert, Facts
from trainer.monitor.run import Lines, callbacks


def watch(folder: Path, first: int, last: int, told: list[Alert], loss: float = 2.0) -> None:
    """Steps of a run that was started, or started again, at `first`."""
    for_each = callbacks(folder, "run", load_recipe("tiny"), 256, torch.device("cpu"), tell=told.append)
    for step in range(first, last + 1):
        odd = loss if step == last else 0.0
        metrics = {
            "loss": 2.0 + odd + 0.01 * (step % 5),
            "gradient_norm": 1.0,
            "rate": 1.0,
            "seconds": 0.5,
            "tokens": 4096.0 * step,
        }
        for callback in for_each:
            callback(step, metrics, Facts([f"document {step}"]))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_that_resumes_leaves_each_step_once(tmp_path: Path) -> None:
    told: list[Alert] = []
    watch(tmp_path, 1, 10, told)
    with (tmp_path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 11, "loss"')
    watch(tmp_path, 7, 40, told)
    found = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(1, 41))
    # The first step after a start has no speed: how many tokens it trained on is not known.
    assert "tokens_per_second" not in found[6] and found[7]["tokens_per_second"] == 8192


def test_alerts_are_written_and_told(tmp_path: Path) -> None:
    told: list[Alert] = []
    watch(tmp_path, 1, 60, told, loss=50.0)
    (row,) = rows(tmp_path / "alerts.jsonl")
    assert (row["step"], row["suspect"]) == (60, "batch") and "document 60" in row["text"]
    assert [alert.step for alert in told] == [60]


def test_lines_begin_anew_where_a_run_does(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        Lines(tmp_path / "sub" / "a.jsonl").write(1, {"value": value})
    assert rows(tmp_path / "sub" / "a.jsonl") == [{"step": 1, "value": 2.0}]


BOARD = """
class SummaryWriter:
    def __init__(self, folder):
        self.folder = folder
    def add_scalar(self, key, value, step):
        open(f"{self.folder}.txt", "a").write(f"{key} {value} {step}\\n")
"""
WANDB = """
import json, os
class Run:
    def __init__(self, **said):
        self.dir = said["dir"]
        self.log({"said": said})
    def log(self, metrics, step=0):
        open(os.path.join(self.dir, "wandb.jsonl"), "a").write(json.dumps([step, metrics]) + "\\n")
def init(**said):
    return Run(**said)
"""


def test_numbers_go_to_what_is_installed_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the calls of TensorBoard and W&B that we make."""
    watch(tmp_path / "bare", 1, 3, [])
    assert sorted(p.name for p in (tmp_path / "bare").iterdir()) == ["metrics.jsonl"]
    site = tmp_path / "site"
    (site / "tensorboard").mkdir(parents=True)
    (site / "tensorboard" / "__init__.py").write_text("")
    (site / "wandb.py").write_text(WANDB)
    (site / "board.py").write_text(BOARD)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", __import__("board"))
    watch(tmp_path / "both", 1, 3, [])
    board = [line.split() for line in (tmp_path / "both" / "tensorboard.txt").read_text().splitlines()]
    assert [(key, step) for key, _, step in board if key == "loss"] == [("loss", "1"), ("loss", "2"), ("loss", "3")]
    told = rows(tmp_path / "both" / "wandb.jsonl")
    said = told[0][1]["said"]
    assert (said["mode"], said["name"], said["config"]["name"]) == ("offline", "run", "tiny"), "nothing leaves the machine"
    assert [(step, metrics["loss"]) for step, metrics in told[1:]] == [(1, 2.01), (2, 2.02), (3, 4.03)]
    monkeypatch.delitem(sys.modules, "wandb")
