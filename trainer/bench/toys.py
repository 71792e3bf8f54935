"""Toys that isolate one effect each: the smallest task on which a method should show, with the method and without.

Every toy trains the product's own model and optimizers, both arms on the same data from the same seeds, and returns numbers per
seed. What a toy shows holds for the toy; that a method helps a large model is its paper's claim, not this file's.

| toy | claim | source |
|---|---|---|
| `balance` | SMEBU balances a skewed router sooner and swings less than the sign rule | Arcee Trinity, 2026, arXiv 2602.17004 |
| `split` | Muon on each head apart serves heads whose gradients differ in size | GLM-5 report, 2026, section 2 |
| `sparse` | after both stages top-k attention recalls what dense attention does | DeepSeek-V3.2-Exp, 2025, section 2.1 |
| `backcopy.py` | a gate on what attention returns takes the mass off the first token | Qiu et al., 2025, arXiv 2505.06708 |
| `decay` | embeddings that are not decayed keep rare tokens | OLMo 2, 2025, arXiv 2501.00656, section 3 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import OptimConfig, ScheduleConfig
from trainer.model.config import DSAConfig, InitConfig, LayerKind, MLAConfig, ModelConfig, MoEConfig
from trainer.model.moe import MoE, choose
from trainer.model.transformer import Transformer
from trainer.optim.groups import Optimizers
from trainer.optim.muon import Blocks, Muon
from trainer.optim.schedule import scale

SEEDS = (1, 2, 3)
Batches = Iterator[tuple[Tensor, Tensor]]
"""(ids (B, T), targets (B, T) with -100 where nothing is asked)."""


def fit(
    model: Transformer,
    optim: OptimConfig,
    batches: Batches,
    steps: int,
    warmup: int = 10,
    rate: Callable[[int], float] | None = None,
) -> list[float]:
    """Train; the losses. `rate` gives the multiplier of the rates by step, instead of warm-up, plateau and decay."""
    optimizers, losses = Optimizers(model, optim), []
    schedule = ScheduleConfig(warmup_steps=warmup, decay=0.3)
    for step in range(steps):
        ids, targets = next(batches)
        out = model.outputs(ids)
        live = targets != -100
        loss = F.cross_entropy(model.logits(out.hidden[live]), targets[live])
        (loss + sum(out.losses.values())).backward()  # type: ignore[no-untyped-call]
        optimizers.step(scale(schedule, step, steps) if rate is None else rate(step))
        model.after_step()
        losses.append(float(loss.detach()))
    return losses


@torch.no_grad()
def recall(model: Transformer, batches: Batches, count: int = 8) -> float:
    """Share of asked positions that are answered right."""
    right = asked = 0
    for _ in range(count):
        ids, targets = next(batches)
        live = targets != -100
        right += int((model(ids)[live].argmax(-1) == targets[live]).sum())
        asked += int(live.sum())
    return right / asked


# -------------------------------------------------------- balance


@dataclass(frozen=True, slots=True)
class Balance:
    """One rule at one rate."""

    steps: int
    """Until MaxVio stays below 0.1 over ten steps on average; the number tried when it never does."""
    swing: float
    """Standard deviation over the last steps of an expert's bias, averaged over experts, in units of the scores."""
    violation: float
    """Mean MaxVio over the last steps."""


def balance(rule: str, rate: float, seed: int, steps: int = 400, tokens: int = 8192, experts: int = 32) -> Balance:
    """A fixed router that prefers some of 32 experts strongly: only the selection bias can even the load."""
    config = ModelConfig(vocab_size=8, dim=8, moe=MoEConfig(experts=experts, top_k=4, dim=8, balance=rule, rate=rate))  # type: ignore[arg-type]
    moe, draws = MoE(config), torch.Generator().manual_seed(seed)
    skew = torch.randn(experts, generator=draws)
    violations, biases = [], []
    for _ in range(steps):
        scores = torch.sigmoid(skew + torch.randn(tokens, experts, generator=draws))
        counts = torch.bincount(choose(scores + moe.bias, config.moe).flatten(), minlength=experts).float()
        violations.append(float(counts.max() / counts.mean() - 1))
        biases.append(moe.bias.clone())
        moe.move(counts)
    means = [fmean(violations[i : i + 10]) for i in range(steps - 10)]
    reached = next((i for i, mean in enumerate(means) if mean < 0.1), steps)
    tail = torch.stack(biases[-100:])
    return Balance(reached, float(tail.std(0).mean()), fmean(violations[-100:]))


# -------------------------------------------------------- split


HEADS, HEAD_DIM, LATENT = 8, 16, 32


def split(mode: str, rate: float, seed: int, steps: int = 150) -> float:
    """An up-projection of eight heads from one latent, each head with a linear map of its own to learn.

    The loss weighs heads from 1 down to 1/1000, as heads of a real layer get gradients of very different size. Orthogonalising
    the whole matrix gives every direction of the latent one unit of update, and the loudest heads take it.

    Returns:
        Mean squared error averaged over heads, each counting the same, relative to the error at the start.
    """
    draws = torch.Generator().manual_seed(seed)
    target = torch.randn(HEADS, HEAD_DIM, LATENT, generator=draws) / LATENT**0.5
    weight = torch.nn.Parameter(torch.zeros(HEADS * HEAD_DIM, LATENT))
    loudness = torch.logspace(0, -3, HEADS)
    muon = Muon([weight], rate, split=mode, blocks={weight: Blocks(HEADS, (HEAD_DIM,))})
    schedule = ScheduleConfig(warmup_steps=0, decay=1.0)
    for step in range(steps):
        x = torch.randn(256, LATENT, generator=draws)
        error = torch.einsum("hdl,bl->hbd", weight.view(HEADS, HEAD_DIM, LATENT) - target, x)
        loss = (loudness * error.square().mean((1, 2))).sum()
        muon.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in muon.param_groups:
            group["lr"] = rate * scale(schedule, step, steps)
        muon.step()
    left = (weight.detach().view_as(target) - target).square().sum((1, 2)) / target.square().sum((1, 2))
    return float(left.mean())


# -------------------------------------------------------- sparse

KEYS, VALUES, NOISE = 32, 8, 24
VOCABULARY = KEYS + VALUES + NOISE
SPARSE = ModelConfig(
    vocab_size=VOCABULARY,
    dim=64,
    n_layers=1,
    n_heads=4,
    n_kv_heads=4,
    head_dim=16,
    ffn_dim=96,
    max_positions=128,
    pattern=(LayerKind(attention="dsa"),),
    mla=MLAConfig(q_latent=48, kv_latent=48, nope_dim=24, rope_dim=8, v_dim=32),
    dsa=DSAConfig(heads=4, dim=32, top_k=8, stage="warmup"),
    smear=1,
    init=InitConfig(std=0.1, embedding_std=0.5, smear_std=0.5),
)


def needles(seed: int, rows: int = 16, length: int = 128, pairs: int = 8, asked: int = 16) -> Batches:
    """Rows of noise with `pairs` key-value pairs strewn in; at the end keys are named again and their values asked for."""
    draws = torch.Generator().manual_seed(seed)
    hay = length - asked
    while True:
        ids = torch.randint(KEYS + VALUES, VOCABULARY, (rows, length), generator=draws)
        targets = torch.full((rows, length), -100)
        for row in range(rows):
            keys = torch.randperm(KEYS, generator=draws)[:pairs]
            values = torch.randint(KEYS, KEYS + VALUES, (pairs,), generator=draws)
            places = torch.randperm(hay // 2 - 1, generator=draws)[:pairs] * 2
            ids[row, places], ids[row, places + 1] = keys, values
            order = torch.randint(pairs, (asked,), generator=draws)
            ids[row, hay:], targets[row, hay:] = keys[order], values[order]
        yield ids, targets


def stage(model: Transformer, which: str) -> Transformer:
    """The same weights in another stage of the indexer's training, or with dense attention (`mla`)."""
    config = model.config
    if which == "mla":
        config = config.model_copy(update={"pattern": (LayerKind(attention="mla"),)})
    else:
        config = config.model_copy(update={"dsa": config.dsa.model_copy(update={"stage": which})})
    other = Transformer(config)
    weights = {name: p for name, p in model.state_dict().items() if which != "mla" or "indexer" not in name}
    other.load_state_dict(weights)
    return other


def sparse(seed: int, dense_steps: int = 150, warmup_steps: int = 100, sparse_steps: int = 60) -> dict[str, float]:
    """Dense training, then stage one (the indexer alone), then stage two (everything, attention over k = 8 of 128 keys)."""
    adam = OptimConfig(lr=0.02, adam_lr=1e-2)
    model = stage(Transformer(SPARSE, seed), "mla")
    fit(model, adam, needles(seed), dense_steps)
    grown = Transformer(SPARSE, seed)
    grown.load_state_dict({**grown.state_dict(), **model.state_dict()})
    found = {"dense": recall(model, needles(seed + 1000)), "untrained": recall(stage(grown, "sparse"), needles(seed + 1000))}
    fit(grown, OptimConfig(hidden="adamw", lr=3e-3, adam_lr=3e-3, freeze=(r"(?!.*indexer)",)), needles(seed + 1), warmup_steps)
    chosen = stage(grown, "sparse")
    found["stage 1"] = recall(chosen, needles(seed + 1000))
    fit(chosen, OptimConfig(hidden="adamw", lr=3e-4, adam_lr=3e-4), needles(seed + 2), sparse_steps)
    found["stage 2"] = recall(chosen, needles(seed + 1000))
    # The control for "everything trains longer": dense attention with as many more steps.
    fit(model, OptimConfig(hidden="adamw", lr=3e-4, adam_lr=3e-4), needles(seed + 2), sparse_steps)
    return found | {"dense, trained on": recall(model, needles(seed + 1000))}


# -------------------------------------------------------- decay


def zipf(seed: int, rows: int = 16, length: int = 64) -> Batches:
    """Each token's successor is fixed; what is asked for is drawn by Zipf's law, so rare tokens are seen once in many steps."""
    rule = successors()
    draws = torch.Generator().manual_seed(seed)
    weights = 1.0 / torch.arange(1, len(rule) + 1, dtype=torch.float64)
    while True:
        first = torch.multinomial(weights, rows * length // 2, True, generator=draws).view(rows, -1)
        ids = torch.stack((first, rule[first]), -1).flatten(1)
        targets = torch.full_like(ids, -100)
        targets[:, 0:-1:2] = ids[:, 1::2]
        yield ids, targets


def successors(vocab: int = 1024) -> Tensor:
    """The rule to learn."""
    return torch.randperm(vocab, generator=torch.Generator().manual_seed(99))


def decay(on: bool, seed: int, steps: int = 300) -> float:
    """Embeddings decayed or not, everything else the same: loss over all pairs, each counting the same.

    Rate times decay times steps is 6: as many time constants of decay as long runs go through, in few steps.
    """
    rule = successors()
    config = ModelConfig(
        vocab_size=len(rule), dim=48, n_layers=1, n_heads=4, n_kv_heads=4, head_dim=12, ffn_dim=96, max_positions=64
    )
    model = Transformer(config, seed)
    optim = OptimConfig(hidden="adamw", lr=5e-3, adam_lr=5e-3, weight_decay=0.1, adam_weight_decay=4.0, decay_embeddings=on)
    fit(model, optim, zipf(seed), steps)
    with torch.no_grad():
        return float(F.cross_entropy(model(torch.arange(len(rule))[:, None])[:, 0], rule))
