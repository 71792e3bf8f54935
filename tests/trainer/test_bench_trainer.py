"""The benchmark's own logic at small size: toys show their effect, peers are alike, and a GPU's absence is said."""

from __future__ import annotations

import math

import pytest
import torch

from gymsmith.bench import BENCHES, Row
from gymsmith.config import Settings
from trainer.bench import backcopy, gpu, learning, peers, toys
from trainer.model.transformer import Transformer
from trainer.plan.flops import parameters


def test_smebu_balances_sooner_and_calmer_than_the_sign_rule() -> None:
    ours = toys.balance("smebu", 1.6e-2, 1, 130, 4096)
    theirs = toys.balance("sign", 4e-3, 1, 130, 4096)
    assert ours.steps < theirs.steps <= 130 and ours.swing < theirs.swing
    # The control: at a fixed router without any rule nothing gets better.
    assert toys.balance("none", 1e-3, 1, 20, 1024).violation > 1


def test_muon_split_serves_quiet_heads() -> None:
    assert toys.split("heads", 0.03, 1, 60) < 0.5 * toys.split("none", 0.03, 1, 60)


def test_needles_can_be_found_and_their_answers_stand_in_the_row() -> None:
    ids, targets = next(toys.needles(3, rows=4))
    for row, column in (targets != -100).nonzero().tolist():
        at = int((ids[row, :column] == ids[row, column]).nonzero()[0])
        assert ids[row, at + 1] == targets[row, column]


def test_after_a_trigger_comes_the_token_before_it_and_elsewhere_the_chain() -> None:
    ids = backcopy.walk(64, torch.Generator().manual_seed(3))
    said = backcopy.triggers(ids[:, :-1])
    assert not said[:, :2].any() and 0.1 < float(said.float().mean()) < 0.25
    rows, columns = said.nonzero(as_tuple=True)
    assert torch.equal(ids[rows, columns + 1], ids[rows, columns - 1])
    chain = backcopy.chain()
    assert (chain[ids[:, :-1], ids[:, 1:]][~said] > 0).all()
    # The control: what triggers make is not what the chain makes.
    assert (chain[ids[rows, columns - 1], ids[rows, columns + 1]] < 0.01).float().mean() > 0.5


def test_a_gated_head_goes_dormant_without_a_sink() -> None:
    plain, gated = (backcopy.gate(on, seed=2, rate=0.03, steps=150) for on in (False, True))
    assert plain.first_mass > 3 * plain.even and gated.first_mass < 0.7 * plain.first_mass
    assert abs(gated.excess - plain.excess) < 0.05
    # The control: before training both share their attention.
    fresh = backcopy.gate(True, seed=2, rate=0.03, steps=1)
    assert abs(fresh.first_mass - fresh.even) < 0.03 and fresh.excess > 1


def test_the_rate_climbs_when_the_task_is_learnt() -> None:
    rates = [backcopy.climbing(step, 5.0) for step in range(250)]
    assert rates == sorted(rates) and rates[10:120] == [1.0] * 110 and rates[145] == pytest.approx(5**0.5) and rates[-1] == 5.0


def test_what_is_watched_is_what_the_model_attends_to() -> None:
    model, (ids, _) = Transformer(backcopy.config(True), 5), next(backcopy.batches(5))
    model.masking = backcopy.Watched
    with torch.no_grad():
        seen = model.outputs(ids, inspect=True).statistics
    torch.testing.assert_close(seen["first"][0][:, 1:].mean(), seen["first_mass"][0].mean())


def test_spikes_are_counted() -> None:
    losses = [1 + 0.01 * (i % 3) for i in range(60)]
    assert backcopy.spikes(losses) == 0
    losses[40] = 3.0
    assert backcopy.spikes(losses) == 1


def test_both_sides_of_the_speed_rows_are_the_same_size() -> None:
    shape = peers.Shape()
    ours = learning.model_config(quick=False)
    bare = sum(p.numel() for p in peers.Bare(shape).parameters()) - shape.length * shape.dim
    assert abs(parameters(ours).total / bare - 1) < 0.01 and 10e6 < bare < 11e6
    small = peers.Shape(1, 2, 32, 16, 2)
    first = peers.ours(small, "float32")
    losses = [first() for _ in range(8)]
    assert losses[-1] < losses[0] and peers.bare(small, "float32")() > 0


def test_the_corpus_is_this_machines_library_and_nothing_held_out_is_trained_on() -> None:
    text, held = learning.corpus(300_000)
    assert 200_000 < len(text) + len(held) < 700_000 and len(held) > 1000
    assert bytes(held[:400].tolist()) not in bytes(text.tolist())


def test_without_a_gpu_nothing_is_claimed() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (row,) = gpu.measure(Settings.load(), quick=True)
    assert row.ok is None and math.isnan(row.ours) and "no CUDA device" in row.peer_name


def test_the_gpu_script_runs_through_on_a_cpu_at_tiny_size() -> None:
    rows = gpu.Bench(torch.device("cpu"), gpu.Sizes.tiny()).run()
    by_name: dict[str, Row] = {row.metric: row for row in rows}
    assert by_name["dense bf16: training"].ours > 0
    assert by_name["3 steps twice: equal losses"].ok is True
    assert by_name["FP8 linear, scaled_mm: dw"].ok is True
    assert abs(by_name["dense fp8, _scaled_mm: loss after 4 steps"].ratio - 1) < 0.005  # type: ignore[operator]
    # Nothing about speed is promised or missed on a machine that is no H100.
    assert not any(row.ok is False for row in rows) and by_name["dense bf16: training"].ok is None
    te = [row for row in rows if "TE" in row.metric]
    assert te and all(row.peer_name.startswith("not measured") or row.ours > 0 for row in te)


def test_it_is_known_to_the_bench_verb() -> None:
    assert {"trainer", "trainer-gpu"} <= BENCHES.keys()
