"""Every split against one process in float64: two and four processes over gloo, each group forked once for all its checks."""

from __future__ import annotations

import multiprocessing
import shutil
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gymsmith.errors import ConfigError
from trainer.checkpoint import load_weights, own_weights, weights_digest
from trainer.config import OptimConfig, ParallelConfig, SaveConfig, ScheduleConfig, parse_train
from trainer.data.packing import IGNORE, Batch
from trainer.dist import seeds
from trainer.dist.mesh import World
from trainer.dist.muon import muon
from trainer.dist.parallel import parallelise
from trainer.loop import Piece, Statistics, Trainer, Update
from trainer.model.config import InitConfig, MemoryConfig, MLAConfig, ModelConfig, MoEConfig, MTPConfig
from trainer.model.transformer import Transformer
from trainer.optim.clip import qk_clip
from trainer.optim.groups import Optimizers
from trainer.optim.muon import Muon
from trainer.stages.pretrain import language_loss

DENSE = ModelConfig(
    vocab_size=60, dim=32, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_positions=32, init=InitConfig(std=0.3)
)
EXPERTS = MoEConfig(experts=8, top_k=2, dim=16, shared_dim=16, balance="sign", sequence_loss=0.1, z_loss=0.01)


def like(**changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({**DENSE.model_dump(), **changes})


MODELS = {
    "dense": DENSE,
    "mixed": like(pattern=({"ffn": "relu2"}, {"position": "none"}), tied_head=True, logit_gain=True),
    "wide": like(
        pattern=({"window": 6}, {"ffn": "geglu"}),
        qk_norm_width="full",
        norm_place="sandwich",
        attention_gate=True,
        attention_sinks=True,
        attention_bias=True,
        output_bias=True,
        ffn_bias=True,
        logit_softcap=6.0,
        z_loss=1e-3,
    ),
    "latent": like(pattern=({"attention": "mla"},), mla=MLAConfig(q_latent=24, kv_latent=16, nope_dim=8, rope_dim=4, v_dim=8)),
    "experts": like(first_layers=({},), pattern=({"ffn": "moe"},), moe=EXPERTS, mtp=MTPConfig(depth=2)),
}
CASES = [
    (2, dict(dp=2), "dense experts"),
    (2, dict(fsdp=2), "mixed latent experts"),
    (2, dict(tp=2), "mixed wide latent experts"),
    (2, dict(cp=2), "wide latent"),
    (2, dict(ep=2), "experts"),
    (4, dict(dp=2, tp=2), "mixed"),
    (4, dict(fsdp=2, tp=2), "wide"),
    (4, dict(dp=2, cp=2), "wide"),
    (4, dict(dp=2, ep=2), "experts"),
    (4, dict(fsdp=2, ep=2), "experts"),
    (4, dict(cp=2, tp=2), "latent"),
]


def name_of(split: dict[str, int]) -> str:
    return "x".join(f"{axis}{n}" for axis, n in split.items())


NAMES = [(n, f"{model} {name_of(split)}") for n, split, models in CASES for model in models.split()]


def texts(rows: int = 4, length: int = 16, padded: bool = True, seed: int = 7) -> Batch:
    """Rows of three documents that end at different places."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 60, (rows, length), generator=generator)
    ends = torch.tensor([[5 + b % 3, 11 + b % 2] for b in range(rows)])
    at = torch.arange(length).expand(rows, length)
    documents = (at >= ends[:, :1]).long() + (at >= ends[:, 1:]) + 3 * torch.arange(rows)[:, None]
    starts = torch.cat((torch.zeros(rows, 1, dtype=torch.long), ends), 1).gather(1, documents % 3)
    if padded:
        documents[-1, -3:] = -1
    targets = ids.roll(-1, 1).where(documents == documents.roll(-1, 1), IGNORE)
    targets[:, -1] = IGNORE
    targets[documents < 0] = IGNORE
    weights = torch.rand(rows, length, generator=generator) * (targets != IGNORE)
    return Batch(ids, targets, weights, at - starts, documents, {})


def exact(config: ModelConfig) -> Transformer:
    model = Transformer(config, seed=1).double()
    # Models with a capped head also compute it in pieces.
    model.memory = MemoryConfig(head_chunk=5 if config.logit_softcap else 0, attention_chunk=7, recompute="block")
    return model


def even(config: ModelConfig) -> Batch:
    """Four rows; with experts all alike, since auxiliary losses are means and a rank's proportion is that of its weights."""
    routed = any(kind.ffn == "moe" for kind in config.layers)
    batch = texts(padded=not routed)
    if routed:
        batch.weights.fill_(1.0)
    return batch


def loss_and_gradients(config: ModelConfig, world: World) -> dict[str, Any]:
    """Distance from one process: of the loss, the norm, each whole gradient, and of weights and router biases after a step."""
    one, parallel = exact(config), parallelise(exact(config), world)
    routed = any(kind.ffn == "moe" for kind in config.layers)
    # Three rows do not divide: the last rank gets padding.
    batch = even(config) if routed or world.config.dp == 1 else texts(3)
    denominator, options = float(batch.weights.sum()), OptimConfig(lr=0.1, clip=0.5, muon_split="heads")
    logits, seen = Statistics(), Statistics()
    expected = language_loss(one, batch, denominator, logits, inspect=True)
    expected.backward()
    loss = language_loss(parallel.model, parallel.share(batch), denominator, seen, inspect=True)
    loss.backward()
    parallel.reduce_gradients()
    total = world.sum(loss.detach().clone())
    found = parallel.collect({name: p.grad for name, p in parallel.model.named_parameters() if p.grad is not None})
    gradients = {name: g.clone() for name, g in found.items()}
    grad = {name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None}
    norm = Optimizers(one, options).step(1.0)
    got = Optimizers(parallel.model, options, parallel.norm, muon(parallel)).step(1.0)
    one.after_step()
    parallel.model.after_step(world.sum)
    if config.layers[-1].attention == "mla":
        tau = 0.7 * max(float(top.max()) for top in logits["max_logit"].values())
        clipped = qk_clip(one, logits["max_logit"], tau)
        assert parallel.clip_heads(seen["max_logit"], tau)["clipped_heads"] <= clipped["clipped_heads"] > 0
    told = parallel.statistics(seen)
    counted = ("expert_counts", "max_logit")
    apart = [(told[n][layer] - value).abs().max() for n in counted for layer, value in logits.get(n, {}).items()]
    after = parallel.collect({**dict(parallel.model.named_parameters()), **buffers(parallel.model)})
    wanted = {**dict(one.named_parameters()), **buffers(one)}
    if not world.main:
        return {}
    return {
        "loss": abs(float(total) - float(expected.detach())),
        "norm": abs(got - norm),
        "gradient": max(float((g - gradients[n]).abs().max()) for n, g in grad.items()),
        "step": max(float((w - after[n]).detach().abs().max()) for n, w in wanted.items()),
        "told": max(map(float, apart)),
        "names": sorted(gradients) == sorted(grad) and sorted(after) == sorted(wanted),
        "least": min(float(g.abs().max()) for g in grad.values()),
        "moved": all(float(b.abs().max()) > 0 for b in buffers(one).values()),
    }


def buffers(model: Transformer) -> dict[str, Tensor]:
    return {name: b for name, b in model.named_buffers() if name.endswith("ffn.bias")}


def bits(config: ModelConfig, world: World) -> dict[str, bool]:
    """Float32: gradients nearly; to the bit fresh weights, Muon's updates and loaded weights; each against one process."""
    one, model = Transformer(config, seed=3), Transformer(config, seed=3)
    parallel = parallelise(model, world)
    parallel.check()
    init = weights_digest(parallel.collect(own_weights(model)))
    batch = even(config)
    language_loss(one, batch, float(batch.weights.sum())).backward()
    language_loss(model, parallel.share(batch), float(batch.weights.sum())).backward()
    parallel.reduce_gradients()
    gradients = parallel.collect({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    close = [float((g - one.get_parameter(name).grad).norm() / g.norm()) < 0.02 for name, g in gradients.items()]

    named = [(n, p) for n, p in model.named_parameters() if p.ndim >= 2 and n.startswith("blocks.")]
    generator = torch.Generator().manual_seed(2)
    whole = {n: torch.randn(one.get_parameter(n).shape, generator=generator) for n, _ in named}
    ours, theirs = (muon(parallel)([p for _, p in named]), Muon([one.get_parameter(n) for n, _ in named]))
    updates = ours.directions([p for _, p in named], [parallel.part(n, whole[n]) for n, _ in named])
    update = parallel.collect({n: u.update for (n, _), u in zip(named, updates, strict=True)})
    expected = theirs.directions([one.get_parameter(n) for n, _ in named], [whole[n] for n, _ in named])
    other = own_weights(Transformer(config, seed=4))
    load_weights(model, {n: parallel.part(n, full) for n, full in other.items()})
    loaded = parallel.collect(own_weights(model))
    if not world.main:
        return {"quiet": not (update or loaded)}
    return {
        "close": all(close) and len(close) == len(list(one.parameters())),
        "init": init == weights_digest(one),
        "muon": all(torch.equal(update[n], e.update) for (n, _), e in zip(named, expected, strict=True))
        and [u.scale for u in updates] == [e.scale for e in expected],
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


def missing(world: World) -> dict[str, Any]:
    """Gradients where only one process has one, and where none has."""
    parallel = parallelise(exact(DENSE), world)
    (_, some), *others = parallel.model.named_parameters()
    if world.main:
        some.grad = torch.ones_like(some)
    parallel.reduce_gradients()
    return {"some": None if some.grad is None else float(some.grad.mean()), "none": all(p.grad is None for _, p in others)}


class Rows:
    """A feed of three micro-batches a step, of which each process takes its share."""

    def __init__(self, share: Callable[[Batch], Batch]) -> None:
        self.share, self.number = share, 0

    def updates(self, step: int) -> Iterator[Update]:
        batches = [texts(seed=10 * self.number + i) for i in range(3)]
        self.number += 1
        total = float(sum(b.weights.sum() for b in batches))
        yield Update(Piece(lambda model, b=b: language_loss(model, self.share(b), total), b.tokens) for b in batches)

    def state(self) -> dict[str, Any]:
        return {"number": self.number}

    def restore(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


def trained(folder: Path, world: World, until: int) -> tuple[Trainer, dict[int, float]]:
    """Train to a step of six, from the newest checkpoint in the folder; losses by step."""
    model, losses = exact(MODELS["mixed"]), dict[int, float]()
    parallel = parallelise(model, world)
    optimizers = Optimizers(model, OptimConfig(), parallel.norm, muon(parallel))
    trainer = Trainer(
        model,
        optimizers,
        ScheduleConfig(warmup_steps=2),
        6,
        folder,
        SaveConfig(every_steps=2, keep=9),
        "{}",
        {},
        lambda step, metrics: losses.update({step: metrics["loss"]}),
        parallel=parallel,
        until=until,
    )
    feed = Rows(parallel.share)
    trainer.resume(feed)
    trainer.run(feed)
    return trainer, losses


def relay(folder: Path) -> dict[int, float]:
    """Two steps with sharded data, two with tensor parallelism, from one checkpoint to the next."""
    first = trained(folder, World(ParallelConfig(fsdp=2)), 2)[1]
    return first | trained(folder, World(ParallelConfig(tp=2)), 4)[1]


def checks(processes: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _, split, models in (case for case in CASES if case[0] == processes):
        world = World(ParallelConfig(**split))
        for model in models.split():
            found[f"{model} {name_of(split)}"] = loss_and_gradients(MODELS[model], world)
            found[f"{model} {name_of(split)} bits"] = bits(MODELS[model], world)
        if split == {"tp": 2}:
            found["seeding"] = seeding(world)
        if split == {"dp": 2}:
            found["missing"] = missing(world)
    if processes == 2:
        found["relay"] = relay(folder / "relay")
    return found


def child(rank: int, processes: int, folder: Path, answer: Connection) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store{processes}", rank=rank, world_size=processes)
        answer.send(checks(processes, folder))
        dist.destroy_process_group()
    except BaseException:
        answer.send(traceback.format_exc())


def together(processes: int, folder: Path) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    started = [
        context.Process(target=child, args=(rank, processes, folder, pipe[1]), daemon=True) for rank, pipe in enumerate(pipes)
    ]
    for process in started:
        process.start()
    try:
        answers = [reading.recv() if reading.poll(300) else f"rank {rank}: no answer" for rank, (reading, _) in enumerate(pipes)]
        for process in started:
            # Whoever has answered is about to end, and says then which lines it ran (`make coverage`).
            process.join(10)
    finally:
        for process in started:
            process.kill()
    broken = [answer for answer in answers if isinstance(answer, str)]
    assert not broken, "\n".join(broken)
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dist")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[int, list[dict[str, Any]]]:
    return {n: together(n, folder) for n in (2, 4)}


@pytest.mark.parametrize(("processes", "case"), NAMES)
def test_a_split_trains_as_one_process(found: dict[int, Any], processes: int, case: str) -> None:
    got = found[processes][0][case]
    assert got["names"] and got["moved"] and got["least"] > 1e-7, f"control: every gradient must be there and matter: {got}"
    assert max(got["loss"], got["norm"], got["gradient"], got["step"], got["told"]) <= 1e-10, got


@pytest.mark.parametrize(("processes", "case"), NAMES)
def test_a_split_keeps_every_bit(found: dict[int, Any], processes: int, case: str) -> None:
    first, *others = (answer[f"{case} bits"] for answer in found[processes])
    assert first == {"close": True, "init": True, "muon": True, "load": True}
    assert all(other == {"quiet": True} for other in others), "only the main process gathers"


def test_any_number_of_processes_takes_up_a_checkpoint(found: dict[int, Any], folder: Path, tmp_path: Path) -> None:
    whole, expected = trained(tmp_path / "whole", World(), 6)
    shutil.copytree(folder / "relay", tmp_path / "relay")
    last, losses = trained(tmp_path / "relay", World(), 6)
    assert sorted(losses) == [5, 6], "one process did the rest alone"
    assert found[2][0]["relay"] == found[2][1]["relay"], "every process reports the whole loss"
    losses |= found[2][0]["relay"]
    assert max(abs(losses[step] - loss) for step, loss in expected.items()) <= 1e-10, (losses, expected)
    apart = [float((p - q).detach().abs().max()) for p, q in zip(last.model.parameters(), whole.model.parameters(), strict=True)]
    assert max(apart) <= 1e-9 and last.tokens == whole.tokens, apart


def test_wrong_seeds_are_caught(found: dict[int, Any]) -> None:
    for answer in found[2]:
        assert answer["seeding"]["none"] == "fine"
        assert "the same one twice" in answer["seeding"]["slices alike"]
        assert "on all tp ranks, got different" in answer["seeding"]["copies apart"]


def test_a_gradient_that_one_process_has_reaches_all_and_one_that_nobody_has_none(found: dict[int, Any]) -> None:
    assert [answer["missing"] for answer in found[2]] == [{"some": 1.0, "none": True}] * 2


REFUSED = [
    (dict(tp=3), {}, "tp must divide model.n_heads, got 3 and 4"),
    (dict(tp=4), {}, "tp must divide model.n_kv_heads, got 4 and 2"),
    (dict(dp=3), {}, "must divide the rows of a batch, got 3 and 4"),
    (dict(cp=3), {}, "2 x cp must divide the tokens of a row, got 6 and 16"),
    (dict(ep=2), {}, "the model has none, got ep = 2"),
    (dict(ep=3), dict(pattern=[{"ffn": "moe"}]), "ep must divide model.moe.experts, got 3 and 8"),
    (dict(cp=2), dict(smear=1), "smear = 1 needs them whole"),
    (dict(cp=2), dict(mtp={}), "mtp needs them whole"),
    (dict(tp=2), dict(pattern=[{"attention": "dsa"}], mla={"q_latent": 8}), "tp does not fit dsa, got tp = 2"),
    (dict(cp=2), dict(pattern=[{"attention": "dsa"}], mla={"q_latent": 8}), "dsa layers needs them whole"),
]


@pytest.mark.parametrize(("split", "model", "message"), REFUSED)
def test_what_does_not_divide_is_refused_before_it_starts(split: dict[str, int], model: dict[str, Any], message: str) -> None:
    tables = {"model": {**DENSE.model_dump(), **model}, "pretrain": {"rows": 4, "length": 16}, "engine": {"context": 64}}
    tables["rollout"] = {"context": {"limit_tokens": 64}}
    tables["model"] |= {"max_positions": 64, "n_layers": 2}
    recipe = {"name": "x", "tokenizer": {"vocab_size": 300}, **tables}
    parse_train("pretrain", {"recipe": recipe, "corpus": "x"})
    with pytest.raises(ConfigError, match=message):
        parse_train("pretrain", {"recipe": {**recipe, "parallel": split}, "corpus": "x"})


def test_one_process_is_plain_torch() -> None:
    world, batch = World(), texts()
    parallel = parallelise(exact(DENSE), world)
    assert parallel.share(batch) is batch and world.main and muon(parallel) is Muon
    got = loss_and_gradients(DENSE, world)
    assert got["loss"] == got["gradient"] == got["norm"] == got["step"] == 0.0
    with pytest.raises(ConfigError, match="expected 2 processes"):
        World(ParallelConfig(dp=2))
