"""Every split against one process in float64: two and four processes over gloo, each group forked once for all its checks."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gymsmith.errors import ConfigError
from trainer.checkpoint import weights_digest
from trainer.config import ParallelConfig
from trainer.data.packing import IGNORE, Batch
from trainer.dist import limits, seeds
from trainer.dist.mesh import World
from trainer.dist.muon import Exchange
from trainer.dist.parallel import Parallel, parallelise
from trainer.model.config import InitConfig, LayerKind, ModelConfig
from trainer.model.transformer import Transformer
from trainer.optim.polar import orthogonalise
from trainer.stages.pretrain import language_loss

DENSE = ModelConfig(
    vocab_size=60, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_positions=32, init=InitConfig(std=0.3)
)
MIXED = DENSE.model_copy(
    update={"pattern": (LayerKind(ffn="relu2"), LayerKind(position="none")), "tied_head": True, "logit_gain": True}
)
SPLITS = {
    2: [dict(dp=2), dict(fsdp=2), dict(tp=2)],
    4: [dict(tp=2, dp=2), dict(fsdp=2, tp=2), dict(dp=2, fsdp=2)],
}
MODELS = {"dense": DENSE, "mixed": MIXED}


def name_of(split: dict[str, int]) -> str:
    return "x".join(f"{axis}{n}" for axis, n in split.items())


CASES = [(n, model, name_of(split)) for n, splits in SPLITS.items() for split in splits for model in MODELS]


def texts(rows: int = 4, length: int = 16) -> Batch:
    """Rows of three documents that end at different places, the last row with padding."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 60, (rows, length), generator=generator)
    ends = torch.tensor([[5 + b % 3, 11 + b % 2] for b in range(rows)])
    at = torch.arange(length).expand(rows, length)
    documents = (at >= ends[:, :1]).long() + (at >= ends[:, 1:]) + 3 * torch.arange(rows)[:, None]
    starts = torch.cat((torch.zeros(rows, 1, dtype=torch.long), ends), 1).gather(1, documents % 3)
    documents[-1, -3:] = -1
    targets = ids.roll(-1, 1).where(documents == documents.roll(-1, 1), IGNORE)
    targets[:, -1] = IGNORE
    targets[-1, -4:] = IGNORE
    weights = torch.rand(rows, length, generator=generator) * (targets != IGNORE)
    return Batch(ids, targets, weights, at - starts, documents, {})


def exact(config: ModelConfig) -> Transformer:
    return Transformer(config, seed=1).double()


def loss_and_gradients(config: ModelConfig, parallel: Parallel, batch: Batch) -> dict[str, Any]:
    """Distance from one process: of the loss, the norm, and each whole gradient."""
    one = exact(config)
    denominator = float(batch.weights.sum())
    expected = language_loss(one, batch, denominator)
    expected.backward()
    norm = torch.nn.utils.clip_grad_norm_(one.parameters(), 0.5)
    loss = language_loss(parallel.model, parallel.share(batch), denominator)
    loss.backward()
    parallel.reduce_gradients()
    got = parallel.clip(parallel.model.parameters(), 0.5)
    total = parallel.world.sum(loss.detach().clone())
    gradients = parallel.collect({name: p.grad for name, p in parallel.model.named_parameters() if p.grad is not None})
    grad = {name: p.grad for name, p in one.named_parameters() if p.grad is not None}
    return {
        "loss": abs(float(total) - float(expected.detach())),
        "norm": abs(float(got) - float(norm)),
        "gradient": max((float((g - gradients[n]).abs().max()) for n, g in grad.items()), default=9.0) if gradients else 0.0,
        "names": sorted(gradients) == sorted(grad),
        "size": min(float(g.abs().max()) for g in grad.values()),
    }


def bits(config: ModelConfig, world: World) -> dict[str, bool]:
    """Float32: fresh weights gathered, Muon's updates, and weights loaded from whole tensors, each against one process."""
    one, model = Transformer(config, seed=3), Transformer(config, seed=3)
    parallel = parallelise(model, world)
    parallel.check()
    init = weights_digest(parallel.collect(dict(model.named_parameters())))

    def direct(parameters: Any, momenta: Any) -> list[Tensor]:
        return [orthogonalise(m) for m in momenta]

    named = [(n, p) for n, p in model.named_parameters() if p.ndim == 2 and n.startswith("blocks.")]
    whole = {
        n: torch.randn(one.get_parameter(n).shape, generator=torch.Generator().manual_seed(i)) for i, (n, _) in enumerate(named)
    }
    updates = Exchange(parallel, direct)([p for _, p in named], [parallel.part(n, whole[n]) for n, _ in named])
    update = parallel.collect({n: u for (n, _), u in zip(named, updates, strict=True)})
    other = {n: p.detach() for n, p in Transformer(config, seed=4).named_parameters()}
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(parallel.part(n, other[n]))
    loaded = parallel.collect(dict(model.named_parameters()))
    if not world.main:
        return {"quiet": not (update or loaded)}
    return {
        "init": init == weights_digest(one),
        "muon": all(torch.equal(update[n], orthogonalise(whole[n])) for n, _ in named),
        "load": weights_digest(loaded) == weights_digest(other) != weights_digest(one),
    }


def seeding(world: World) -> dict[str, str]:
    """What the check says of weights drawn wrongly on purpose."""
    said = {}
    for bug in ("none", "slices alike", "copies apart"):
        parallel = parallelise(Transformer(DENSE, seed=1), world)
        generator = torch.Generator().manual_seed(5 if bug == "slices alike" else 5 + world.rank(("tp",)))
        with torch.no_grad():
            for name, p in parallel.model.named_parameters():
                cut = bool(parallel.layouts[name].cuts)
                if p.ndim == 2 and ((bug == "slices alike" and cut) or (bug == "copies apart")):
                    p.normal_(generator=generator)
                elif bug == "copies apart":
                    p.add_(torch.rand(p.shape, generator=generator))
        try:
            parallel.check()
            said[bug] = "fine"
        except seeds.SplitError as e:
            said[bug] = str(e)
    return said


def checks(processes: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for split in SPLITS[processes]:
        world = World(ParallelConfig(**split))
        for model, config in MODELS.items():
            parallel = parallelise(exact(config), world)
            found[f"{model} {name_of(split)}"] = loss_and_gradients(config, parallel, texts())
            found[f"{model} {name_of(split)} bits"] = bits(config, world)
        if split == {"tp": 2}:
            found["seeding"] = seeding(world)
    return found


def child(rank: int, processes: int, store: Path, answer: Connection) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
        answer.send(checks(processes))
        dist.destroy_process_group()
    except BaseException:
        answer.send(traceback.format_exc())


def together(processes: int, folder: Path) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = [
        context.Process(target=child, args=(rank, processes, folder / f"store{processes}", pipe[1]), daemon=True)
        for rank, pipe in enumerate(pipes)
    ]
    for process in started:
        process.start()
    try:
        answers = [reading.recv() if reading.poll(300) else f"rank {rank}: no answer" for rank, (reading, _) in enumerate(pipes)]
    finally:
        for process in started:
            process.kill()
    broken = [answer for answer in answers if isinstance(answer, str)]
    assert not broken, "\n".join(broken)
    return answers


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("dist")
    yield {n: together(n, folder) for n in SPLITS}


@pytest.mark.parametrize(("processes", "model", "split"), CASES)
def test_a_split_trains_as_one_process(found: dict[int, Any], processes: int, model: str, split: str) -> None:
    got = found[processes][0][f"{model} {split}"]
    assert got["names"] and got["size"] > 1e-6, f"control: every gradient must be there and matter: {got}"
    assert got["loss"] <= 1e-10 and got["norm"] <= 1e-10 and got["gradient"] <= 1e-10, got


@pytest.mark.parametrize(("processes", "model", "split"), CASES)
def test_a_split_keeps_every_bit(found: dict[int, Any], processes: int, model: str, split: str) -> None:
    first, *others = (answer[f"{model} {split} bits"] for answer in found[processes])
    assert first == {"init": True, "muon": True, "load": True}
    assert all(other == {"quiet": True} for other in others), "only the main process gathers"


def test_wrong_seeds_are_caught(found: dict[int, Any]) -> None:
    for answer in found[2]:
        assert answer["seeding"]["none"] == "fine"
        assert "the same one twice" in answer["seeding"]["slices alike"]
        assert "on all tp ranks, got different" in answer["seeding"]["copies apart"]


REFUSED = [
    (dict(tp=3), 3, "tp must divide model.n_heads, got 3 and 4"),
    (dict(tp=4), 4, "tp must divide model.n_kv_heads, got 4 and 2"),
    (dict(dp=3), 3, "must divide the rows of a batch, got 3 and 4"),
    (dict(cp=3), 3, "2 x cp must divide the tokens of a row, got 6 and 16"),
    (dict(ep=2), 2, "the model has none, got ep = 2"),
    (dict(dp=2, tp=2), 2, "expected 4 processes .* got 2"),
]


@pytest.mark.parametrize(("split", "processes", "message"), REFUSED)
def test_what_does_not_divide_is_refused_before_it_starts(split: dict[str, int], processes: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        limits.check(ParallelConfig(**split), DENSE, 4, 16, processes)
    limits.check(ParallelConfig(dp=2, tp=2), DENSE, 4, 16, 4)


def test_one_process_is_plain_torch() -> None:
    world = World()
    parallel = parallelise(exact(DENSE), world)
    batch = texts()
    assert parallel.share(batch) is batch and world.main
    got = loss_and_gradients(DENSE, parallel, batch)
    assert got["loss"] == got["gradient"] == got["norm"] == 0.0
    with pytest.raises(ConfigError, match="expected 2 processes"):
        World(ParallelConfig(dp=2))
