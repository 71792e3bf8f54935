"""Stages over tokenised sources: phases that change mix and context, branches compared, all of it resumed exactly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, CorruptData
from gymsmith.ids import ulid
from gymsmith.schema import Reward, Run, Segment, VersionSpan
from gymsmith.store import Store
from trainer import checkpoint
from trainer.config import parse_train
from trainer.data import tokenizer
from trainer.data.shards import Shards, ShardWriter
from trainer.learner import Learner
from trainer.stages.phases import stretches

MIX = [{"mix": {"web": 3, "code": 1}}, {"mix": {"web": 1, "code": 3}, "share": 0.5, "rows": 2}]
RECIPE: dict[str, Any] = {
    "name": "test",
    "tokenizer": {"vocab_size": 300},
    "model": {"dim": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 16, "max_positions": 64},
    "pretrain": {
        "steps": 30,
        "rows": 4,
        "length": 32,
        "window_rows": 16,
        "phases": MIX,
        "batch": {"stages": [[0, 1], [512, 2], [2048, 3]], "sqrt_rate": True},
        "schedule": {"warmup_steps": 2, "decay": 0.2},
        "save": {"every_steps": 3, "forever": 15},
    },
    "midtrain": {
        "steps": 9,
        "rows": 2,
        "length": 64,
        "held_out_rows": 3,
        "phases": [
            {"mix": {"web": 1, "code": 1}},
            {"mix": {"long": 2, "web": 1}, "length": 128, "rope_theta": 5e5},
            {
                "mix": {"long": 1},
                "length": 256,
                "rows": 1,
                "ropes": [{"name": "rope", "theta": 5e5, "yarn": {"factor": 2, "original_positions": 128}}],
            },
        ],
    },
    "anneal": {"steps": 4, "candidates": {"mostly code": {"code": 9, "web": 1}, "web": {"web": 1}}, "held_out_rows": 4},
    "sft": {"epochs": 1, "demonstrations": 4},
    "rollout": {"context": {"limit_tokens": 60}},
    "engine": {"slots": 8, "context": 64},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(Settings(home=tmp_path / "home")) as opened:
        yield opened


@pytest.fixture
def sources(store: Store, tmp_path: Path) -> dict[str, Any]:
    words = tokenizer.store(tokenizer.train(["some words to count 0123456789"] * 3, 300), store.settings.tokenizers_dir)
    rng = np.random.default_rng(0)
    for number, name in enumerate(("web", "code")):
        with ShardWriter(tmp_path / name, 270, words) as writer:
            for n in np.clip(rng.lognormal(3, 1, 400), 2, 400).astype(int):
                writer.add(10 + (np.arange(n) * (number + 1) + rng.integers(0, 9)) % 260)
    folders = {name: str(tmp_path / name) for name in ("web", "code")}
    return {**folders, "long": {"path": folders["web"], "min_tokens": 100}}


def learner(store: Store, stage: str, sources: dict[str, Any], recipe: dict[str, Any] = RECIPE, **config: Any) -> Learner:
    run = Run(id=ulid(), kind=stage, config={"recipe": recipe, "seed": 3, "sources": sources, **config})
    store.put_run(run)
    return Learner(store, run, parse_train(stage, run.config))


def again(store: Store, one: Learner) -> Learner:
    return Learner(store, one.run, parse_train(one.run.kind, one.run.config))


class Cut(Exception):
    """Somebody pulled the plug."""


def cut_off(one: Learner, step: int) -> None:
    """Run until `step` is reported, then stop in the middle of everything."""
    report = one.assembly.report

    def stop(at: int, metrics: dict[str, float]) -> None:
        report(at, metrics)
        if at == step:
            raise Cut

    one.assembly.report = stop  # type: ignore[method-assign]
    with pytest.raises(Cut):
        one.learn()


def curve(store: Store, one: Learner, *names: str) -> list[tuple[str, int, float]]:
    return sorted((m.name, m.step, m.value) for m in store.metrics(one.run.id, list(names)))


def test_a_mix_in_phases_resumes_exactly_and_counts_its_tokens(store: Store, sources: dict[str, Any]) -> None:
    whole = learner(store, "pretrain", sources)
    facts = whole.learn()
    assert facts["steps"] == 30 and facts["epochs"]["web"] > 0
    pieces = [int(value) for _, _, value in curve(store, whole, "pieces")]
    seen, expected = 0, []
    for step in range(30):
        expected.append(1 if seen < 512 else 2 if seen < 2048 else 3)
        seen += expected[-1] * (4 if step < 20 else 2) * 32
    assert pieces == expected
    rates = [value for _, _, value in curve(store, whole, "rate")]
    assert rates[2] == pytest.approx((1 / 3) ** 0.5) and rates[20] == 1.0
    broken = learner(store, "pretrain", sources)
    for step in (5, 19, 22):
        cut_off(again(store, broken), step)
    resumed = again(store, broken)
    assert resumed.learn()["weights_digest"] == facts["weights_digest"] and resumed.checkpoint is not None
    names = ("loss", "gradient_norm", "tokens", "rate")
    assert set(curve(store, broken, *names)) == set(curve(store, whole, *names))
    kept = sorted(int(p.name) for p in resumed.checkpoint.parent.iterdir())
    assert kept == [15, 27, 30]


def test_midtraining_extends_the_context_and_resumes_exactly(store: Store, sources: dict[str, Any]) -> None:
    first = learner(store, "pretrain", sources)
    first.learn()
    start = str(first.checkpoint)
    whole = learner(store, "midtrain", sources, start=start)
    facts = whole.learn()
    assert set(facts["held_out"]) == {"web", "code"}, "of the long ones none is held out"
    assert all(1 < loss < 7 for loss in facts["held_out"].values())
    assert whole.checkpoint is not None
    found = checkpoint.load(whole.checkpoint)
    assert found.model.max_positions == 256 and found.model.rope_theta == 5e5
    assert found.model.ropes[0].yarn is not None and found.build().config == found.model
    broken = learner(store, "midtrain", sources, start=start)
    for step in (2, 4, 8):
        cut_off(again(store, broken), step)
    assert again(store, broken).learn()["weights_digest"] == facts["weights_digest"]
    assert set(curve(store, broken, "loss")) == set(curve(store, whole, "loss"))


def test_branches_of_a_plateau_are_compared_and_carried_through_sft(
    store: Store, sources: dict[str, Any], tmp_path: Path
) -> None:
    first = learner(store, "pretrain", sources)
    first.learn()
    assert first.checkpoint is not None
    shown = tmp_path / "demonstrations.jsonl"
    rows = [{"instruction": f"{i}", "steps": [[f"cat {i}", "1"], ["exit", ""]]} for i in range(8)]
    shown.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plateau = str(first.checkpoint.parent / "00000015")
    one = learner(store, "anneal", sources, start=plateau, demonstrations=str(shown))
    table = one.learn()
    assert list(table["candidates"]) == sorted(table["candidates"], key=lambda n: table["candidates"][n]["mean_held_out"])
    mostly, web = table["candidates"]["mostly code"]["held_out"], table["candidates"]["web"]["held_out"]
    assert mostly["code"] < web["code"] and mostly["web"] > web["web"], "each is better at what it saw"
    best = checkpoint.load(store.settings.home / store.run(one.run.id).checkpoint)
    assert best.step == 19
    for result in table["candidates"].values():
        taught = checkpoint.load(store.settings.home / result["sft_checkpoint"])
        assert taught.weights["head.weight"].equal(
            checkpoint.load(store.settings.home / result["checkpoint"]).weights["head.weight"]
        )
    rates = [value for name, step, value in curve(store, one, "web/rate")]
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25])
    twin = learner(store, "anneal", sources, start=plateau, demonstrations=str(shown))
    cut_off(again(store, twin), 17)
    assert again(store, twin).learn()["candidates"]["web"]["held_out"] == web
    with pytest.raises(ConfigError, match="step 30 of 30 on wsd"):
        learner(store, "anneal", sources, start=str(first.checkpoint)).learn()


def test_a_branch_is_chosen_by_what_its_rollouts_earn(
    store: Store, sources: dict[str, Any], tmp_path: Path, hands: Callable[..., Any]
) -> None:
    first = learner(store, "pretrain", sources)
    first.learn()
    assert first.checkpoint is not None
    plateau, shown = str(first.checkpoint.parent / "00000015"), tmp_path / "demonstrations.jsonl"
    shown.write_text(json.dumps({"instruction": "1", "steps": [["cat 1", "1"], ["exit", ""]]}) + "\n")
    given = {"start": plateau, "demonstrations": str(shown)}
    by_loss = learner(store, "anneal", sources, **given).learn()["best"]
    other = next(name for name in RECIPE["anneal"]["candidates"] if name != by_loss)

    def play(item: dict[str, Any], again: int, version: str) -> dict[str, Any]:
        """The branch with the worse loss passes three times as often; one attempt gets no verdict."""
        passed = item["attempt"] < (3 if version == other else 1)
        spoken = Segment(ids=[1, 2], mask=[0, 1], logprobs=[0.0, -1.0], versions=[VersionSpan(version=version, start=1, end=2)])
        lost = version == by_loss and item["attempt"] == 3
        return {"segments": [spoken], "reward": None if lost else Reward(value=float(passed)), "error": "away" if lost else ""}

    with hands(store, play):
        table = learner(store, "anneal", sources, **given, environments=["x", "y"]).learn()
    earned = {name: (result["pass_rate"], result["episodes"]) for name, result in table["candidates"].items()}
    assert earned == {by_loss: (1 / 3, 6), other: (3 / 4, 8)} and table["best"] == other
    with pytest.raises(ConfigError, match="got a checkpoint of anneal; name one of pretrain"):
        taught = table["candidates"][other]["sft_checkpoint"]
        learner(store, "anneal", sources, start=taught).learn()


def test_a_stage_computes_in_the_format_it_names(store: Store, sources: dict[str, Any]) -> None:
    losses = []
    for change in ("pretrain.rows=4", 'pretrain.format={linear="fp8",backend="reference"}'):
        one = learner(store, "pretrain", sources, overrides=["pretrain.steps=3", change])
        one.learn()
        losses.append([value for _, _, value in curve(store, one, "loss")])
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=0.05)


def test_what_does_not_fit_is_said(store: Store, sources: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got none for long"):
        learner(store, "midtrain", {"web": sources["web"], "code": sources["code"]}, start="x")
    with pytest.raises(ConfigError, match="corpus or sources, got both"):
        learner(store, "pretrain", sources, corpus="c.jsonl")
    with pytest.raises(ConfigError, match="raise steps"):
        stage = parse_train("pretrain", {"recipe": RECIPE, "sources": sources, "overrides": ["pretrain.steps=1"]}).recipe
        stretches(stage.pretrain, stage.model, {})
    with ShardWriter(tmp_path / "other", 300, "other.json") as writer:
        writer.add([1, 2, 3])
    with pytest.raises(ConfigError, match=r"got code: .*, web: other\.json"):
        learner(store, "pretrain", {"web": str(tmp_path / "other"), "code": sources["code"]}).learn()
    with ShardWriter(tmp_path / "high", 5000, Shards(tmp_path / "web").tokenizer) as writer:
        writer.add([1, 2, 4999])
    with pytest.raises(ConfigError, match="source code: expected ids below 274, got 5000"):
        learner(store, "pretrain", {"web": sources["web"], "code": str(tmp_path / "high")}).learn()
    body = bytearray((tmp_path / "web" / "00000.tokens").read_bytes())
    for at in range(0, len(body), 40):
        body[at] ^= 1
    (tmp_path / "web" / "00000.tokens").write_bytes(body)
    with pytest.raises(CorruptData, match="document"):
        learner(store, "pretrain", sources).learn()
