"""Anneal branches: candidate mixes tried from one checkpoint on a pre-training run's plateau, and told apart.

A branch is the run itself with a nearer end (Haegele et al., 2024, arXiv 2405.18392): same weights, optimizer state and schedule
up to the branch, then the rate falls to nothing on the candidate's mix. Microanneals are compared by the loss on documents that
no run trains on, source by source (OLMo 2, 2024, arXiv 2501.00656, section 4). An integration run goes on: what a branch is
worth shows after SFT, in rollouts of environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymsmith.errors import ConfigError
from trainer.checkpoint import Checkpoint
from trainer.config import AnnealConfig, PhaseConfig, PretrainConfig, ScheduleConfig
from trainer.optim.schedule import scale


def branch(pretrain: PretrainConfig, anneal: AnnealConfig, found: Checkpoint, mix: Mapping[str, float]) -> PretrainConfig:
    """The stage that goes on from `found` on one candidate mix; its steps are those of the branch alone.

    Raises:
        ConfigError: the checkpoint is not of pre-training, or lies before the plateau or behind it.
    """
    stage = found.meta.get("run", {}).get("stage")
    if stage != "pretrain":
        raise ConfigError(f"anneal branches off pre-training, got a checkpoint of {stage or 'no stage'}; name one of pretrain")
    rate = scale(pretrain.schedule, found.step, max(pretrain.steps, found.step + 1))
    if pretrain.schedule.shape != "wsd" or rate < 1:
        got = f"step {found.step} of {pretrain.steps} on {pretrain.schedule.shape} at {rate:.3g} of the rate"
        raise ConfigError(
            f"anneal branches off the plateau of a wsd schedule, got {got}; "
            f"choose a checkpoint after the warm-up and before the decay (save.forever keeps some)"
        )
    batch = pretrain.batch.model_copy(update={"stages": ((0, pretrain.batch.stages[-1][1]),)})
    changes = {
        "steps": anneal.steps,
        "phases": (PhaseConfig(mix=dict(mix)),),
        "schedule": falling(pretrain.schedule, anneal),
        "batch": batch,
    }
    return pretrain.model_copy(update=changes)


def falling(schedule: ScheduleConfig, anneal: AnnealConfig) -> ScheduleConfig:
    """The run's schedule with its end right behind the branch."""
    return schedule.model_copy(update={"decay_steps": anneal.steps, "fall": anneal.fall, "final": 0.0})


def compared(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Candidates side by side, best first: by pass rate where rollouts were made, else by mean held-out loss over sources."""

    def mean(result: Mapping[str, Any]) -> float:
        return sum(result["held_out"].values()) / len(result["held_out"])

    order = sorted(results, key=lambda name: (-results[name].get("pass_rate", 0.0), mean(results[name])))
    best = order[0]
    table = {name: {**results[name], "mean_held_out": mean(results[name])} for name in order}
    for name in order:
        table[name]["over_best"] = mean(results[name]) - mean(results[best])
    return {"candidates": table, "best": best}
