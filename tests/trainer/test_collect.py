"""The collector: what is lost, or answered by other weights, is rolled out anew; what stays lost never trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import InfrastructureError
from gymsmith.schema import Reward, Run, Segment, Trajectory, VersionSpan
from gymsmith.store import Store
from trainer.config import Recipe, parse
from trainer.engine.scheduler import Engine
from trainer.rl.collect import RETRIES, Collector

RECIPE = {
    "name": "test",
    "tokenizer": {"vocab_size": 300},
    "model": {"dim": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 16, "max_positions": 320},
    "engine": {"slots": 8, "context": 320},
}

Fate = Callable[[int, int], tuple[str, str]]
"""(environment's number, try) -> (error, version) of its first attempt."""
Gather = Callable[[Fate], tuple[list[list[Trajectory]], dict[str, int]]]


def _span(version: str) -> VersionSpan:
    return VersionSpan(version=version, start=1, end=2)


@pytest.fixture
def collect(tmp_path: Path, hands: Callable[..., Any]) -> Iterator[Gather]:
    """Groups of two attempts at three environments, and how often each environment was tried again."""
    with Store.open(Settings(home=tmp_path / "home")) as store:
        recipe = parse(Recipe, RECIPE, "test")

        def gather(fate: Fate) -> tuple[list[list[Trajectory]], dict[str, int]]:
            store.put_run(Run(id="run", kind="rl"))
            engine = Engine(recipe.model, recipe.engine)
            engine.version = "7"

            def play(item: dict[str, Any], again: int, _: str) -> dict[str, Any]:
                error, version = fate(int(item["environment_id"]), again)
                return {
                    "segments": [Segment(ids=[1, 2], mask=[0, 1], logprobs=[0.0, -1.0], versions=[_span(version)])],
                    "reward": None if error and not item["attempt"] else Reward(value=1.0),
                    "error": "" if item["attempt"] else error,
                }

            with hands(store, play) as tries, Collector(store, "run", engine, recipe, "tokenizer", 1, lambda: None) as collector:
                return collector.collect("rl", 7, ["0", "1", "2"], 2), tries

        yield gather


def test_groups_with_a_lost_attempt_or_other_weights_are_rolled_out_anew(collect: Gather) -> None:
    ill = {(0, 0): ("EngineError: away", "7"), (2, 0): ("", "6")}
    groups, again = collect(lambda number, tried: ill.get((number, tried), ("", "7")))
    assert again == {"0": 1, "1": 0, "2": 1}
    assert [[(t.environment_id, t.attempt, t.error) for t in g] for g in groups] == [[(e, 0, ""), (e, 1, "")] for e in "012"]


def test_what_stays_lost_is_handed_out(collect: Gather) -> None:
    groups, again = collect(lambda number, tried: ("SandboxError: broken" if number == 1 else "", "7"))
    assert again == {"0": 0, "1": RETRIES - 1, "2": 0}
    assert groups[1][0].error and groups[1][0].reward is None and groups[1][1].reward is not None


def test_other_weights_are_never_taken(collect: Gather) -> None:
    with pytest.raises(InfrastructureError, match="does another engine answer"):
        collect(lambda number, tried: ("", "6"))
