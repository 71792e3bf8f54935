"""Checkpoints: damage is named, the last good one loads, a kill at any moment changes nothing."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gymsmith.errors import CorruptCheckpoint, NotFound, StoreError
from trainer import checkpoint
from trainer.config import OptimConfig, SaveConfig, ScheduleConfig
from trainer.data.documents import Document
from trainer.data.loader import Loader
from trainer.loop import NotFinite, Piece, Trainer, Update
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.stages.pretrain import TextFeed

CONFIG = ModelConfig(vocab_size=32, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=16)


def write(root: Path, step: int, seed: int = 0) -> Path:
    return checkpoint.save(root, step, Transformer(CONFIG, seed), tokenizer="{}", meta={"n": step}, keep=3)


def test_round_trip_and_keep(tmp_path: Path) -> None:
    for step in range(5):
        write(tmp_path, step, seed=step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000003", "00000004"]
    found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 4 and found.meta == {"n": 4}
    assert checkpoint.weights_digest(found.build()) == checkpoint.weights_digest(Transformer(CONFIG, 4))
    assert checkpoint.weights_digest(found.build()) != checkpoint.weights_digest(Transformer(CONFIG, 3))


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    write(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(StoreError, match="free some space"):
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["00000001"]
    assert checkpoint.load(tmp_path / "00000001").step == 1


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    tied = Transformer(CONFIG.model_copy(update={"tied_head": True}), 1)
    found = checkpoint.load(checkpoint.save(tmp_path, 1, tied, tokenizer="{}", meta={}))
    assert "head.weight" not in found.weights
    again = found.build()
    assert again.head.weight is again.embedding.token.weight
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids), tied(ids))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "meta.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_named_and_passed_over(tmp_path: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    body = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        body[len(body) // 2] ^= 1
        file.write_bytes(body if damage == "flip" else body[:-1])
    with pytest.raises(CorruptCheckpoint, match=name):
        checkpoint.load(file.parent)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found.step == 1
    assert "00000002" in caplog.text


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "no") is None
    (write(tmp_path, 1) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CorruptCheckpoint, match="all 1 checkpoints"):
        checkpoint.newest(tmp_path)
    with pytest.raises(NotFound):
        checkpoint.load(tmp_path / "00000009")


def train(folder: Path, every: int = 1, tick: Callable[[], None] = lambda: None) -> str:
    """Sixty updates of a small model, with a tick after each; says what came out."""
    rng = np.random.default_rng(0)
    documents = [Document(rng.integers(6, 32, n).astype(np.int32), np.ones(n, np.float32)) for n in rng.integers(3, 20, 50)]
    model = Transformer(CONFIG.model_copy(update={"n_layers": 2, "logit_gain": True}), 1)
    optimizers = Optimizers(model, OptimConfig())
    saving = SaveConfig(every_steps=every, keep=2)
    schedule = ScheduleConfig(warmup_steps=3)
    trainer = Trainer(model, optimizers, schedule, 60, folder, saving, "{}", {"seed": 1}, lambda step, metrics: tick())
    feed = TextFeed(Loader(documents, 2, 24, 5))
    trainer.resume(feed)
    trainer.run(feed)
    return f"{checkpoint.weights_digest(model)} {trainer.tokens}"


def test_kill_and_resume_is_bitwise(tmp_path: Path, killed: Callable[..., bool]) -> None:
    whole = train(tmp_path / "whole", every=1000)
    rng = random.Random(4)
    hits = sum(
        killed(lambda tick: train(tmp_path / "killed", tick=tick), rng.randint(2, 9), rng.uniform(0, 0.01)) for _ in range(5)
    )
    found = checkpoint.newest(tmp_path / "killed")
    assert hits == 5 and found is not None and 5 <= found.step < 60
    assert train(tmp_path / "killed") == whole


def test_the_background_writes_what_was_there(tmp_path: Path) -> None:
    model = Transformer(CONFIG, 1)
    before = checkpoint.weights_digest(model)
    with checkpoint.Writer(tmp_path, keep=1, forever=2) as writer:
        assert writer.wait() is None
        for step in range(1, 6):
            writer.save(checkpoint.Draft(step, CONFIG, checkpoint.own_weights(model), {}, "{}", {"n": step}))
            model.head.weight.data.add_(1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000004", "00000005"]
    digests = [checkpoint.weights_digest(checkpoint.load(tmp_path / f"0000000{n}").weights) for n in (2, 4, 5)]
    assert len({before, *digests, checkpoint.weights_digest(model)}) == 5, "each as it was when it was ordered"


def test_a_disk_that_fills_ends_the_run_and_the_last_good_one_goes_on(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", every=1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ticks = iter(range(100))

    def fill() -> None:
        if next(ticks) == 20:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))

    try:
        with pytest.raises(StoreError, match="free some space"):
            train(tmp_path / "full", tick=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 20 <= next(ticks) <= 22, "said before the second step after it"
    found = checkpoint.newest(tmp_path / "full")
    assert found is not None and found.step == 20
    assert not list((tmp_path / "full").glob(".tmp-*"))
    assert train(tmp_path / "full") == whole


def test_a_loss_that_is_not_finite_names_its_documents(tmp_path: Path) -> None:
    model = Transformer(CONFIG, 1)
    before = checkpoint.weights_digest(model)

    class Bad:
        def updates(self, step: int) -> Iterator[Update]:
            pieces = [Piece(lambda m, x=x: m.head.weight.sum() * x, 3, [f"web:{x}"]) for x in (1.0, float("nan"))]
            yield Update(iter(pieces))

        def state(self) -> dict[str, Any]:
            return {}

        def restore(self, state: dict[str, Any]) -> None: ...

    trainer = Trainer(
        model, Optimizers(model, OptimConfig()), ScheduleConfig(), 2, tmp_path, SaveConfig(), "{}", {}, lambda step, metrics: None
    )
    with pytest.raises(NotFinite, match="step 0, got nan; its batch holds web:nan"):
        trainer.run(Bad())
    assert checkpoint.weights_digest(model) == before and not list(tmp_path.iterdir())


def test_optimizer_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    train(tmp_path, every=1000)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    model = found.build()
    optimizers = Optimizers(model, OptimConfig(freeze=("embedding",)))
    trainer = Trainer(model, optimizers, ScheduleConfig(), 1, tmp_path, SaveConfig(), "{}", {}, lambda step, metrics: None)
    with pytest.raises(CorruptCheckpoint, match=r"embedding\.token\.weight.* use its own recipe"):
        trainer.take(found)


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(CorruptCheckpoint, match="another run"):
        train(tmp_path)


def test_weights_of_another_model_are_refused_whole() -> None:
    model, wider = Transformer(CONFIG, 1), Transformer(CONFIG.model_copy(update={"ffn_dim": 2 * CONFIG.ffn_dim}), 1)
    before, weights = checkpoint.weights_digest(model), checkpoint.own_weights(wider)
    with pytest.raises(CorruptCheckpoint, match=r"blocks\.0\.ffn\..*: expected shape .* of another model config"):
        checkpoint.load_weights(model, weights)
    with pytest.raises(CorruptCheckpoint, match=r"expected \d+ tensors, got \d+; only on one side: extra, head\.weight"):
        checkpoint.load_weights(model, {n: t for n, t in weights.items() if n != "head.weight"} | {"extra": torch.zeros(1)})
    assert checkpoint.weights_digest(model) == before, "nothing is taken over before everything fits"


def test_what_was_altered_or_is_of_another_release_is_named(tmp_path: Path) -> None:
    meta = write(tmp_path, 1) / "meta.json"
    outer = json.loads(meta.read_text())
    meta.write_text(json.dumps(outer | {"body": outer["body"].replace('"n": 1', '"n": 2')}))
    with pytest.raises(CorruptCheckpoint, match="was altered"):
        checkpoint.load(meta.parent)
    body = json.dumps(json.loads(outer["body"]) | {"format": 999})
    meta.write_text(json.dumps({"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()}))
    with pytest.raises(CorruptCheckpoint, match="got 999; it is from another release"):
        checkpoint.load(meta.parent)


def test_in_the_foreground_a_checkpoint_is_whole_before_the_next_step(tmp_path: Path) -> None:
    model, seen = Transformer(CONFIG, 1), list[int]()

    def report(step: int, metrics: dict[str, float]) -> None:
        found = checkpoint.newest(tmp_path)
        seen.append(0 if found is None else found.step)

    saving = SaveConfig(every_steps=1, keep=1, background=False)
    documents = [Document(np.arange(6, 26, dtype=np.int32), np.ones(20, np.float32))]
    optimizers, schedule = Optimizers(model, OptimConfig()), ScheduleConfig(warmup_steps=0)
    trainer = Trainer(model, optimizers, schedule, 5, tmp_path, saving, "{}", {}, report)
    trainer.run(TextFeed(Loader(documents, 1, 24, 0)))
    assert seen == [0, 1, 2, 3, 4]
