"""RL on riddles: it learns, the permuted control does not, and a kill changes nothing. SFT and the gain's shift."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from context_mgmt.chat import Chat
from gymsmith.config import Settings
from gymsmith.errors import ConfigError
from gymsmith.schema import Reward, Run, Segment, Trajectory
from gymsmith.store import Store
from trainer import checkpoint
from trainer.config import EngineConfig, OptimConfig, RLConfig, SaveConfig, ScheduleConfig
from trainer.data import tokenizer
from trainer.engine.scheduler import Engine
from trainer.loop import NotFinite, Piece, Trainer, Update
from trainer.model.config import InitConfig, LayerKind, ModelConfig, MoEConfig
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.optim.spike import LEAST
from trainer.rl.source import Riddles
from trainer.stages.rl import RolloutFeed
from trainer.stages.sft import from_file, from_run, shift_gain

MODEL = ModelConfig(
    vocab_size=12,
    dim=16,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    ffn_dim=16,
    max_positions=64,
    init=InitConfig(std=0.1, embedding_std=0.5),
    logit_gain=True,
)
ENVIRONMENTS = {f"riddle/{a}/{(a * 5) % 12}": "riddle" for a in range(1, 7)}


STEADY = ScheduleConfig(warmup_steps=0, decay=0.0)
Metrics = list[dict[str, float]]


def learn(
    folder: Path, steps: int = 30, permute: bool = False, gate: float = 0.5, tick: Callable[[], None] = lambda: None
) -> tuple[str, Metrics]:
    """RL from a fresh model: the digest of the weights, and the metrics of each step. `gate`: lower bound of IcePop's."""
    config = RLConfig(steps=steps, groups=6, attempts=16, icepop=(gate, 2.0))
    model = Transformer(MODEL, 1)
    engine = Engine(MODEL, EngineConfig(slots=32, context=64, chunk=8))
    feed = RolloutFeed(Riddles(engine, 3), model, ENVIRONMENTS, config, 3, permute)
    seen: Metrics = []
    optimizers = Optimizers(model, OptimConfig(lr=0.05, adam_lr=0.03))
    saving = SaveConfig(every_steps=1)

    def report(step: int, metrics: dict[str, float]) -> None:
        seen.append(metrics)
        tick()

    trainer = Trainer(model, optimizers, STEADY, steps, folder, saving, "{}", {"seed": 3}, report)
    trainer.resume(feed)
    trainer.run(feed)
    return checkpoint.weights_digest(model), seen


def test_rl_learns_and_its_control_does_not(tmp_path: Path) -> None:
    _, seen = learn(tmp_path / "true")
    _, control = learn(tmp_path / "permuted", permute=True)
    first, last = seen[0]["reward"], sum(m["reward"] for m in seen[-3:]) / 3
    assert first < 0.25 and last > 0.9, (first, last)
    assert sum(m["reward"] for m in control[-3:]) / 3 < 0.35
    assert max(m["logprob_difference_max"] for m in seen if "logprob_difference_max" in m) <= 1e-5
    assert all(m.get("gate_fraction", 0) == 0 for m in seen)


def test_the_gate_keeps_everything_out(tmp_path: Path) -> None:
    _, seen = learn(tmp_path, steps=6, gate=1.5)
    assert all(m["gate_fraction"] == 1 and m["loss"] == 0 for m in seen if "loss" in m)


def test_rl_resumes_bit_for_bit(tmp_path: Path, killed: Callable[..., bool]) -> None:
    whole, _ = learn(tmp_path / "whole", steps=12)
    assert learn(tmp_path / "again", steps=12)[0] == whole, "the same seed gives the same weights"
    rng = random.Random(1)
    for _ in range(3):
        assert killed(lambda tick: learn(tmp_path / "killed", 12, tick=tick), rng.randint(1, 3), rng.uniform(0, 0.05))
    assert learn(tmp_path / "killed", steps=12)[0] == whole


def test_gain_shift_divides_the_temperature() -> None:
    model = Transformer(MODEL, 1)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        before = model(ids)
        shift_gain(model, 0.25)
        assert torch.allclose(model(ids), before * torch.e**0.25, atol=1e-6)
    with pytest.raises(ConfigError, match="logit_gain"):
        shift_gain(Transformer(MODEL.model_copy(update={"logit_gain": False})), 0.25)


class Poison:
    """A feed whose second step has a loss that is not a number."""

    def updates(self, step: int) -> Iterator[Update]:
        yield Update(iter([Piece(lambda model: model(torch.arange(5)[None]).sum() * (float("nan") if step else 1.0), 5)]))

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, state: dict[str, int]) -> None:
        """Nothing to go back to."""


def test_a_loss_that_is_no_number_stops_before_damage(tmp_path: Path) -> None:
    model = Transformer(MODEL, 1)
    optimizers, saving = Optimizers(model, OptimConfig()), SaveConfig(every_steps=1)
    trainer = Trainer(model, optimizers, STEADY, 5, tmp_path, saving, "{}", {}, lambda _, m: None)
    with pytest.raises(NotFinite, match="step 1"):
        trainer.run(Poison())
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    assert checkpoint.weights_digest(found.weights) == checkpoint.weights_digest(model)


class Spikes:
    """Two micro-batches an update, whose loss is a thousand times too large at one step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def updates(self, step: int) -> Iterator[Update]:
        ids = torch.randint(0, 12, (2, 8), generator=torch.Generator().manual_seed(step))
        size = 1e3 if step == self.at else 1.0

        def loss(model: Transformer) -> torch.Tensor:
            return model.logits(model.outputs(ids).hidden).logsumexp(-1).mean() * size / 2

        yield Update(iter([Piece(loss, ids.numel())] * 2))

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The step says it all."""


@pytest.mark.parametrize("sigma", [6.0, None])
def test_a_skipped_update_moves_no_router(tmp_path: Path, sigma: float | None) -> None:
    moe = MoEConfig(experts=4, top_k=2, dim=8, balance="sign", rate=0.01)
    model = Transformer(MODEL.model_copy(update={"pattern": (LayerKind(ffn="moe"),), "moe": moe}), 1)
    router, biases, skipped = model.blocks[0].ffn, [torch.zeros(4)], list[float]()

    def report(step: int, metrics: dict[str, float]) -> None:
        biases.append(router.bias.clone())
        skipped.append(metrics.get("skipped", 0.0))
        assert not router.counts.any(), "no load is left to count for the next update"

    optimizers = Optimizers(model, OptimConfig(lr=1e-4, adam_lr=1e-4, spike_sigma=sigma))
    Trainer(model, optimizers, STEADY, LEAST + 6, tmp_path, SaveConfig(), "{}", {}, report).run(Spikes(LEAST + 3))
    moved = [not torch.equal(a, b) for a, b in pairwise(biases)]
    assert [i for i, s in enumerate(skipped) if s] == ([LEAST + 3] if sigma else [])
    assert moved[LEAST + 3] == (sigma is None) and moved[LEAST + 4] and sum(moved) > LEAST, "control: others move it"


def test_demonstrations_come_from_files(tmp_path: Path) -> None:
    chat, path = Chat(tokenizer.train(["show the file note1 cat"] * 3, 300)), tmp_path / "d.jsonl"
    good = {"instruction": "show", "steps": [["cat note1", "hello"], ["exit", ""]]}
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good) + "\n")
    shown = from_file(path, chat, 20)
    assert len(shown) == 2 and shown[0][0].weights.sum() > 0 and shown[0][0].weights[0] == 0, "commands alone are learned"
    for bad in ({"instruction": "show"}, {"instruction": "show", "steps": [["cat"]]}, ["show"]):
        path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
        with pytest.raises(ConfigError, match="line 2 must be"):
            from_file(path, chat, 20)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no demonstration"):
        from_file(path, chat, 20)


def test_demonstrations_are_the_passed_attempts_of_a_run_in_their_own_order(tmp_path: Path) -> None:
    with Store.open(Settings(home=tmp_path)) as store:
        for run_id in ("good", "bad"):
            store.put_run(Run(id=run_id, kind="rollout"))

        def put(run_id: str, environment: str, attempt: int, reward: float | None, error: str = "") -> None:
            segment = Segment(ids=[1, 2, 3, ord(environment), attempt], mask=[0, 0, 0, 1, 1], logprobs=[0.0] * 5)
            verdict = None if reward is None else Reward(value=reward)
            made = Trajectory(
                id=f"{run_id}{environment}{attempt}",
                environment_id=environment,
                run_id=run_id,
                group="g",
                attempt=attempt,
                segments=[segment],
                reward=verdict,
                error=error,
            )
            store.put_trajectories([made])

        for environment, attempt, reward in (("b", 0, 1.0), ("a", 2, 1.0), ("a", 0, 0.5), ("a", 1, 1.0), ("c", 0, None)):
            put("good", environment, attempt, reward, "" if reward is not None else "SandboxError: away")
        shown = [tuple(items[0].ids[-2:]) for items in from_run(store, "good")]
        assert shown == [(ord("a"), 1), (ord("a"), 2), (ord("b"), 0)]
        put("bad", "a", 0, 0.0)
        with pytest.raises(ConfigError, match="no passed trajectory to learn from, got 1 in all"):
            from_run(store, "bad")
