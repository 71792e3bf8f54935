"""The learner and its doors: a run row in, checkpoints and curves out; errors that say what to do."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gymsmith.config import Settings
from gymsmith.errors import ConfigError, Fenced, InfrastructureError, NotFound, StoreError, UserError
from gymsmith.ids import ulid
from gymsmith.schema import Environment, Job, Reward, Run, Segment, Source, State, Status, TaskSpec, VersionSpan
from gymsmith.store import Store
from gymsmith.worker import Context
from trainer import checkpoint, tasks
from trainer.config import load_recipe, parse_train
from trainer.data import tokenizer
from trainer.learner import Learner, main

RECIPE: dict[str, Any] = {
    "name": "test",
    "tokenizer": {"vocab_size": 300},
    "model": {"dim": 16, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_dim": 16, "max_positions": 384, "logit_gain": True},
    "pretrain": {"steps": 8, "rows": 4, "length": 64, "save": {"every_steps": 3}},
    "sft": {"epochs": 2, "demonstrations": 4, "gain_shift": 0.25},
    "engine": {"slots": 8, "context": 384},
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(Settings(home=tmp_path / "home")) as opened:
        yield opened


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [
        {"segments": [["task", f"show note{i}"], ["act", f"cat note{i}"], ["obs", "x" * i], ["act", "exit"]]} for i in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_of(store: Store, stage: str, **config: Any) -> Run:
    run = Run(id=ulid(), kind=stage, config={"recipe": RECIPE, "seed": 3, **config})
    store.put_run(run)
    return run


def learn(store: Store, run: Run) -> dict[str, Any]:
    return Learner(store, run, parse_train(run.kind, run.config)).learn()


def test_pretrain_then_sft(store: Store, corpus: Path, tmp_path: Path) -> None:
    first = run_of(store, "pretrain", corpus=str(corpus))
    summary = learn(store, first)
    done = store.run(first.id)
    assert done.state is State.SUCCEEDED and done.summary == summary and done.finished_at is not None
    assert (store.settings.tokenizers_dir / summary["tokenizer"]).is_file()
    found = checkpoint.load(store.settings.home / done.checkpoint)
    assert checkpoint.weights_digest(found.weights) == summary["weights_digest"] and found.step == 8
    assert [m.step for m in store.metrics(first.id, ["loss"])] == list(range(1, 9))
    again = learn(store, first)
    assert again["resumed"] and again["weights_digest"] == summary["weights_digest"], "a finished run is not trained again"
    twin = run_of(store, "pretrain", corpus=str(corpus))
    assert learn(store, twin)["weights_digest"] == summary["weights_digest"], "the same seed gives the same weights"

    named = run_of(store, "pretrain", corpus=str(corpus), tokenizer=summary["tokenizer"])
    assert learn(store, named)["weights_digest"] == summary["weights_digest"], "nor does it matter who names the tokenizer"

    shown = tmp_path / "demonstrations.jsonl"
    rows = [{"instruction": f"show note{i}", "steps": [[f"cat note{i}", "hello"], ["exit", ""]]} for i in range(10)]
    shown.write_text("".join(json.dumps(row) + "\n" for row in rows))
    second = run_of(store, "sft", start=done.checkpoint, demonstrations=str(shown))
    taught = learn(store, second)
    assert taught["steps"] == 2 * 3 and taught["tokenizer"] == summary["tokenizer"]
    after = checkpoint.load(store.settings.home / store.run(second.id).checkpoint)
    for frozen in ("embedding.token.weight", "head.weight"):
        assert after.weights[frozen].equal(found.weights[frozen])
    assert not after.weights["blocks.0.ffn.up.weight"].equal(found.weights["blocks.0.ffn.up.weight"])
    assert learn(store, second)["weights_digest"] == taught["weights_digest"], "the gain is shifted once"
    words = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi psi"
    large = tokenizer.store(tokenizer.train([words] * 3, 400), store.settings.tokenizers_dir)
    with pytest.raises(ConfigError, match=r"of at most \d+ entries, got \d+; use the checkpoint's"):
        learn(store, run_of(store, "sft", start=done.checkpoint, demonstrations=str(shown), tokenizer=large))


@pytest.fixture
def environments(store: Store) -> list[str]:
    """Two verified ones to train in, and one that is kept for evaluation."""
    for n, split in (("a", "train"), ("b", "train"), ("c", "heldout")):
        spec = TaskSpec(name=f"test/{n}", kind="shell", labels={"family": "find", "level": n, "split": split})
        source = Source(uri="shell:find", kind="parametric")
        made = Environment(id=n, source=source, spec=spec, instruction="do", status=Status.VERIFIED, path=n)
        store.put_environment(made)
    return ["a", "b"]


def first_passes(item: dict[str, Any], again: int, version: str) -> dict[str, Any]:
    """Of a group the first attempt earns the reward; each says something of its own."""
    ids = [1, 2, 3, 20 + item["attempt"], 30, 2]
    spoken = Segment(ids=ids, mask=[0, 0, 0, 1, 1, 1], logprobs=[0.0] * 3 + [-5.7] * 3, versions=[_span(version)])
    return {"segments": [spoken], "reward": Reward(value=float(item["attempt"] == 0))}


def _span(version: str) -> VersionSpan:
    return VersionSpan(version=version, start=3, end=6)


def test_rl_and_dpo_learn_from_what_rollouts_earn(
    store: Store, corpus: Path, environments: list[str], hands: Callable[..., Any]
) -> None:
    started = learn(store, run_of(store, "pretrain", corpus=str(corpus)))
    start = store.runs(kind="pretrain").items[0].checkpoint
    rl = {"steps": 2, "groups": 2, "attempts": 2, "schedule": {"warmup_steps": 0, "decay": 0.0}}
    preferred = {"attempts": 2, "min_pairs": 2, "pairs": 1}
    with hands(store, first_passes) as tries:
        one = run_of(store, "rl", start=start, recipe=RECIPE | {"rl": rl})
        facts = learn(store, one)
        assert facts["environments"] == 2 and set(tries) == set(environments), "what is held out is never drawn"
        assert facts["steps"] == 2 and facts["weights_digest"] != started["weights_digest"]
        assert [m.value for m in store.metrics(one.id, ["reward"])] == [0.5, 0.5]
        assert learn(store, one)["weights_digest"] == facts["weights_digest"], "it is not trained again"

        for least, moved in ((2, True), (3, False)):
            recipe = RECIPE | {"dpo": preferred | {"min_pairs": least}}
            two = learn(store, run_of(store, "dpo", start=start, recipe=recipe))
            assert (two["pairs"], two["skipped"], two["steps"]) == (2, not moved, 2 if moved else 0)
            assert (two["weights_digest"] != started["weights_digest"]) == moved


def test_without_environments_there_is_nothing_to_earn(store: Store, corpus: Path) -> None:
    learn(store, run_of(store, "pretrain", corpus=str(corpus)))
    start = store.runs(kind="pretrain").items[0].checkpoint
    with pytest.raises(ConfigError, match="got none that are verified"):
        learn(store, run_of(store, "rl", start=start))
    with pytest.raises(ConfigError, match="rl runs in one process, got 2"):
        learn(store, run_of(store, "rl", start=start, recipe=RECIPE | {"parallel": {"dp": 2}}))


def test_a_damaged_checkpoint_costs_steps_not_the_run(store: Store, corpus: Path) -> None:
    run = run_of(store, "pretrain", corpus=str(corpus))
    digest = learn(store, run)["weights_digest"]
    folder = store.settings.runs_dir / run.id / "checkpoints" / "00000008"
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert learn(store, run)["weights_digest"] == digest


def test_curves_reach_the_store_before_the_checkpoint_that_leaves_them_behind(store: Store, corpus: Path) -> None:
    run = run_of(store, "pretrain", corpus=str(corpus))
    in_the_way = store.settings.runs_dir / run.id / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("no checkpoint can be written here")
    with pytest.raises((OSError, StoreError)):
        learn(store, run)
    assert [m.step for m in store.metrics(run.id, ["loss"])] == [1, 2, 3]


def test_what_is_missing_is_said(store: Store, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a corpus"):
        parse_train("pretrain", {"recipe": RECIPE})
    with pytest.raises(ConfigError, match="needs a checkpoint"):
        parse_train("rl", {"recipe": RECIPE})
    with pytest.raises(ConfigError, match=r"\[dpo\] table"):
        parse_train("dpo", {"recipe": RECIPE, "start": "somewhere"})
    with pytest.raises(ConfigError, match=r"rl\.stepz"):
        load_recipe("demo", ["rl.stepz=4"])
    with pytest.raises(ConfigError, match="key=value"):
        load_recipe("demo", ["rl.steps"])
    with pytest.raises(NotFound, match="nowhere"):
        learn(store, run_of(store, "pretrain", corpus=str(tmp_path / "nowhere")))
    with pytest.raises(NotFound, match="no-such"):
        learn(store, run_of(store, "sft", start="no-such", demonstrations=str(corpus)))


def test_every_recipe_of_ours_is_sound() -> None:
    for name in ("demo", "demo_quick", "standard"):
        recipe = load_recipe(name, ["rl.steps=7", 'rollout.context={"keep_recent_k" = 2}'])
        assert recipe.rl.steps == 7 and recipe.rollout.context.keep_recent_k == 2
        assert recipe.model.vocab_size == recipe.tokenizer.vocab_size
        assert recipe.model.stock == (name == "standard")


def context(store: Store, kind: str, run: Run) -> Context:
    """A claimed job's context, as a worker makes it."""
    job, _ = store.put_job(Job(id=ulid(), kind=kind, queue="train", run_id=run.id))
    claimed = store.claim(job.id, "test")
    assert claimed is not None
    return Context(claimed, store)


def test_the_doors_train_serve_and_refuse(store: Store, corpus: Path) -> None:
    run = run_of(store, "pretrain")
    ctx = context(store, "train", run)
    with pytest.raises(ConfigError, match="needs a corpus"):
        tasks.train({"stage": "pretrain", "run_id": run.id, "config": {"recipe": RECIPE}}, ctx)
    with pytest.raises(ConfigError, match="run_id"):
        tasks.train({"stage": "pretrain"}, ctx)
    summary = tasks.train({"stage": "pretrain", "run_id": run.id, "config": {"recipe": RECIPE, "corpus": str(corpus)}}, ctx)
    assert summary["steps"] == 8 and store.job(ctx.job.id).progress["total"] == 8

    served = run_of(store, "serve")
    ctx = context(store, "serve", served)
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            tasks.serve({"checkpoint": store.run(run.id).checkpoint, "run_id": served.id}, ctx)
        except Fenced as e:
            ended.append(e)

    thread = threading.Thread(target=serve)
    thread.start()
    deadline = time.monotonic() + 60
    while not store.run(served.id).engine_url and time.monotonic() < deadline:
        time.sleep(0.02)
    row = store.run(served.id)
    assert row.summary["tokenizer"] == summary["tokenizer"] and row.policy_version == "8"
    body = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 3}, "return_logprob": True}
    request = urllib.request.Request(
        row.engine_url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["meta_info"]["weight_version"] == "8"
    ctx.stop_reason = "cancelled"
    thread.join(20)
    assert ended and store.run(served.id).engine_url == ""


def test_a_checkpoint_leaves_as_a_hugging_face_folder_once(store: Store, corpus: Path, tmp_path: Path) -> None:
    run = run_of(store, "pretrain")
    ctx = context(store, "train", run)
    tasks.train({"stage": "pretrain", "run_id": run.id, "config": {"recipe": RECIPE, "corpus": str(corpus)}}, ctx)
    order = {"checkpoint": store.run(run.id).checkpoint, "folder": str(tmp_path / "model")}
    assert tasks.export(order, ctx) == {"folder": order["folder"]}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "model").iterdir()}
    with pytest.raises(UserError, match="not to exist"):
        tasks.export(order, ctx)
    with pytest.raises(UserError, match="none such"):
        tasks.export(order | {"checkpoint": "none such", "folder": str(tmp_path / "other")}, ctx)
    assert not (tmp_path / "other").exists()


def test_the_learners_own_error_comes_through(store: Store, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"segments": [["task", "x"')
    run = run_of(store, "pretrain")
    config = {"recipe": RECIPE, "corpus": str(broken)}
    with pytest.raises(UserError, match="is not JSON") as error:
        tasks.train({"stage": "pretrain", "run_id": run.id, "config": config}, context(store, "train", run))
    assert not isinstance(error.value, InfrastructureError)
    assert store.run(run.id).state is State.FAILED


def test_the_program_tells_refusals_from_defects(store: Store, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYMSMITH_HOME", str(store.settings.home))
    done, refused, broken = (run_of(store, "pretrain", corpus=str(c)) for c in (corpus, corpus.parent / "none", corpus))
    in_the_way = store.settings.runs_dir / broken.id
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("a file where a folder belongs")
    codes = [main([run.id, "--stage", "pretrain"]) for run in (done, refused, broken)]
    assert codes == [0, 2, 1]
    errors = [store.run(run.id).error for run in (done, refused, broken)]
    assert errors[0] == "" and errors[1].startswith("NotFound: expected a file") and "FileExistsError" in errors[2]


def test_a_cancelled_order_ends_its_process(store: Store, corpus: Path) -> None:
    run = run_of(store, "pretrain")
    ctx = context(store, "train", run)
    store.cancel(ctx.job.id)
    ctx.stop_reason = "cancelled"
    with pytest.raises(Fenced):
        tasks.train({"stage": "pretrain", "run_id": run.id, "config": {"recipe": RECIPE, "corpus": str(corpus)}}, ctx)
    assert store.run(run.id).state is State.CANCELLED
