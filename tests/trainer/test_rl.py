"""Advantages, the loss, batches, the curriculum: by hand, and by what must never happen."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from gymsmith.schema import Reward, Segment, Trajectory
from trainer.config import DPOConfig, RLConfig
from trainer.data.packing import IGNORE
from trainer.model.config import ModelConfig
from trainer.model.transformer import Transformer
from trainer.rl.advantages import advantages, permuted
from trainer.rl.batches import Scored, items, micro_batches, split, valid
from trainer.rl.curriculum import Curriculum, attempt_seed
from trainer.rl.loss import policy_loss, target_logprobs
from trainer.stages.dpo import Pair, PairFeed, pairs


def trajectory(segments: list[Segment], reward: float | None = 1.0, error: str = "", attempt: int = 0) -> Trajectory:
    return Trajectory(
        id=f"t{attempt}",
        environment_id="e",
        run_id="r",
        attempt=attempt,
        segments=segments,
        reward=None if reward is None else Reward(value=reward),
        error=error,
    )


def segment(ids: list[int], mask: list[int], logprobs: list[float] | None = None) -> Segment:
    return Segment(ids=ids, mask=mask, logprobs=logprobs or [-1.0 * m for m in mask])


def test_advantages_by_hand() -> None:
    assert advantages([1, 0, 0, 1], "centered") == [0.5, -0.5, -0.5, 0.5]
    std = math.sqrt(1 / 3)
    assert advantages([1, 0, 0, 1], eps=0) == pytest.approx([0.5 / std, -0.5 / std, -0.5 / std, 0.5 / std])
    assert advantages([1, 1, 1]) == advantages([0, 0, 0]) == [0, 0, 0]
    assert advantages([0.3]) == [0] and advantages([]) == []
    assert advantages([0.1 + 0.2, 0.3]) != [0, 0], "control: unequal rewards do differ"


def test_permutation_keeps_rewards_and_breaks_their_places() -> None:
    groups = [[1.0] * 8, [0.0] * 8, [1.0] * 8, [0.0] * 8]
    dealt = permuted(groups, 3, 5)
    assert sorted(r for g in dealt for r in g) == sorted(r for g in groups for r in g)
    assert [len(g) for g in dealt] == [8] * 4
    assert any(0 < sum(g) < 8 for g in dealt), "groups without differences get some"
    assert dealt == permuted(groups, 3, 5) != permuted(groups, 3, 6)


def test_loss_by_hand() -> None:
    config = RLConfig(clip_low=0.2, clip_high=0.3, icepop=(0.5, 2.0))
    ratios = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.9])
    rho = torch.tensor([1.0, 1.0, 1.0, 2.5, 0.5], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, -1.0, 1.0, -2.0], dtype=torch.float64)
    old = torch.full((5,), -1.0, dtype=torch.float64)
    logprobs = (old + ratios.double().log()).requires_grad_()
    loss, clipped, gated = policy_loss(logprobs, old, old - rho.log(), advantage, config, 10.0)
    # kept; clipped above; clipped below; gated away; at the gate's edge, weight one half
    assert float(loss.detach()) == pytest.approx(-(1.0 + 1.3 - 0.8 + 0.0 + 0.5 * -1.8) / 10)
    assert clipped.tolist() == [False, True, True, False, False]
    assert gated.tolist() == [False, False, False, True, False]
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.1, 0.0, 0.0, 0.0, 0.09])
    assert logprobs.grad[1:4].abs().max() == 0, "exactly"


def test_tokens_that_were_not_sampled_get_no_gradient(stock: ModelConfig) -> None:
    model = Transformer(stock, 1)
    (batch,) = micro_batches(items(Scored(trajectory([segment([5, 6, 7, 8, 9], [0, 0, 1, 0, 1])]), 1.0)))
    hidden = model.hidden(batch.ids, batch.positions, batch.documents)
    logits = model.logits(hidden).detach().requires_grad_()
    live = batch.targets != IGNORE
    logprobs = torch.log_softmax(logits[live], -1).gather(1, batch.targets[live][:, None])[:, 0]
    assert batch.targets[live].tolist() == [7, 9]
    loss, _, _ = policy_loss(logprobs, logprobs.detach(), logprobs.detach(), batch.extra["advantage"][live], RLConfig(), 2.0)
    loss.backward()
    assert logits.grad is not None
    touched = logits.grad[0].abs().amax(-1) > 0
    assert touched.nonzero().flatten().tolist() == [1, 3]
    assert logits.grad[0][~touched].abs().max() == 0


def test_each_sampled_token_trains_once_over_all_segments() -> None:
    # A folded episode: the second segment repeats an old action as context, masked.
    folded = trajectory(
        [segment([1, 4, 20, 21, 5, 7, 22], [0, 0, 1, 1, 0, 0, 1]), segment([1, 4, 22, 5, 9, 23], [0, 0, 0, 0, 0, 1])]
    )
    work = items(Scored(folded, 2.0))
    trained: Counter[int] = Counter()
    for batch in micro_batches(work):
        live = batch.targets != IGNORE
        trained.update(batch.targets[live].tolist())
        assert set(batch.extra["advantage"][live].tolist()) == {2.0}
        assert set(batch.extra["engine"][live].tolist()) == {-1.0}
    assert trained == Counter([20, 21, 22, 23])


def test_what_never_trains() -> None:
    fine = segment([1, 2, 3], [0, 0, 1])
    assert valid(trajectory([fine]))
    assert not valid(trajectory([fine], reward=None))
    assert not valid(trajectory([fine], reward=0.0, error="sandbox died"))
    assert not valid(trajectory([]))
    broken = segment([1, 2, 3, 4], [0, 1, 1, 0], [0.0, float("nan"), -1.0, 0.0])
    (item,) = items(Scored(trajectory([broken]), 1.0))
    assert item.weights.tolist() == [0, 0, 1, 0]
    assert np.isfinite(item.extra["engine"]).all()


def test_micro_batches_hold_every_item_once_and_score_as_alone(config: ModelConfig) -> None:
    model = Transformer(config, 1)
    rng = np.random.default_rng(0)
    work = []
    for i in range(20):
        n = int(rng.integers(3, 40))
        ids = [int(x) for x in rng.integers(1, 61, n)]
        mask = [0, *[int(x) for x in rng.integers(0, 2, n - 2)], 1]
        work += items(Scored(trajectory([segment(ids, mask)], attempt=i), float(i)))
    got: dict[float, list[float]] = {}
    for batch in micro_batches(work):
        logprobs, _ = target_logprobs(model, batch, 0.7)
        live = batch.targets != IGNORE
        for value, owner in zip(logprobs.tolist(), batch.extra["advantage"][live].tolist(), strict=True):
            got.setdefault(owner, []).append(value)
    for i, item in enumerate(work):
        logits = model(torch.from_numpy(item.ids.astype(np.int64))[None])[0] / 0.7
        alone = torch.log_softmax(logits, -1)[:-1].gather(1, torch.from_numpy(item.ids[1:].astype(np.int64))[:, None])[:, 0]
        wanted = alone[torch.from_numpy(item.weights[1:] > 0)]
        assert torch.allclose(torch.tensor(got[float(i)]), wanted, atol=1e-5)


def test_split_deals_all_and_repeats() -> None:
    scored = [Scored(trajectory([], attempt=i), 1.0) for i in range(9)]
    parts = split(scored, 2, 1, 4)
    assert sorted(s.trajectory.attempt for part in parts for s in part) == list(range(9))
    assert [len(p) for p in parts] == [5, 4]
    again = split(scored, 2, 1, 4)
    assert [[s.trajectory.id for s in p] for p in parts] == [[s.trajectory.id for s in p] for p in again]
    assert split(scored[:1], 4, 1, 1) == [[scored[0]]]


def test_curriculum_prefers_what_differs_and_repeats_itself() -> None:
    families = {f"{family}{i}": family for family in ("easy", "mixed", "hard") for i in range(10)}
    one, two = (Curriculum(families, RLConfig(), 5) for _ in range(2))
    for _ in range(40):
        one.observe("easy", [1.0] * 8)
        one.observe("hard", [0.0] * 8)
        one.observe("mixed", [1.0, 0.0] * 4)
    two.restore(one.state())
    drawn = [e for step in range(30) for e in one.draw(step, 16)]
    share = {family: sum(families[e] == family for e in drawn) / len(drawn) for family in ("easy", "mixed", "hard")}
    assert 0.68 < share["mixed"] < 0.82, "weights 1.2 against 0.2 and 0.2"
    assert share["easy"] > 0.05 and share["hard"] > 0.05, "the floor"
    assert drawn == [e for step in range(30) for e in two.draw(step, 16)]
    patient = Curriculum(families, RLConfig(cell_hard=0.6), 5)
    patient.restore(one.state())
    tried = [families[e] for step in range(60) for e in patient.draw(step, 16)]
    assert 0.28 < tried.count("hard") / len(tried) < 0.38, "weights 0.8 against 1.5 and 0.2"
    hard = [e for e in drawn if families[e] == "hard"][:10]
    assert sorted(hard) == sorted(e for e in families if families[e] == "hard"), "each once before any twice"


def test_seeds_are_counters() -> None:
    seeds = {attempt_seed(s, t, g, a) for s in range(3) for t in range(5) for g in range(6) for a in range(8)}
    assert len(seeds) == 3 * 5 * 6 * 8 and max(seeds) < 2**53
    assert attempt_seed(1, 2, 3, 4) == attempt_seed(1, 2, 3, 4)


@pytest.mark.parametrize("normalised", [False, True])
def test_dpo_by_hand(stock: ModelConfig, normalised: bool) -> None:
    groups = [
        [
            trajectory([segment([5, 6, 7, 8], [0, 1, 1, 1])], 1.0, attempt=0),
            trajectory([segment([5, 9, 10], [0, 0, 1]), segment([5, 11, 12], [0, 0, 1])], 0.0, attempt=1),
            trajectory([segment([5, 6], [0, 1])], None, error="lost", attempt=2),
        ],
        [trajectory([segment([5, 6], [0, 1])], 1.0, attempt=3)],
    ]
    found = pairs(groups, 2)
    assert len(found) == 1 and len(found[0].loser) == 2
    reference, model = Transformer(stock, 1), Transformer(stock, 2)
    config = DPOConfig(beta=0.5, length_normalised=normalised)
    feed = PairFeed(found, reference, config, 0)
    (update,) = feed.updates(0)
    (piece,) = update.pieces
    loss = piece.loss(model)

    def total(m: Transformer, ids: list[int], places: list[int]) -> torch.Tensor:
        logprobs = torch.log_softmax(m(torch.tensor(ids)[None])[0], -1)
        return sum((logprobs[p - 1, ids[p]] for p in places), torch.zeros(()))

    def gain(ids_places: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        value = sum((total(model, i, p) - total(reference, i, p) for i, p in ids_places), torch.zeros(()))
        return value / sum(len(p) for _, p in ids_places) if normalised else value

    margin = gain([([5, 6, 7, 8], [1, 2, 3])]) - gain([([5, 9, 10], [2]), ([5, 11, 12], [2])])
    assert float(loss.detach()) == pytest.approx(-float(torch.nn.functional.logsigmoid(0.5 * margin).detach()), abs=1e-6)
    assert update.metrics["margin"] == pytest.approx(float(margin.detach()), abs=1e-5)
    assert float(PairFeed(found, model, config, 0)._loss(model, [0], {}).detach()) == pytest.approx(math.log(2), abs=1e-6)
    assert isinstance(found[0], Pair)
