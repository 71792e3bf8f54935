"""The toys of `toys.py` and `backcopy.py` as rows: every method beside its baseline, three seeds, and what must hold."""

from __future__ import annotations

from statistics import fmean

from gymsmith.bench import Row
from trainer.bench import backcopy
from trainer.bench import toys as play
from trainer.bench.toys import SEEDS

RATES = {"sign": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3), "smebu": (5e-4, 2e-3, 8e-3, 1.6e-2, 3.2e-2)}
"""Each rule is judged at the best of its own rates: a rate that suits one is too small or too large for the other."""
MUON_RATES = (0.01, 0.03, 0.1, 0.3)


def toys(quick: bool) -> list[Row]:
    """All toys; quick ones run one seed and fewer steps."""
    seeds = SEEDS[:1] if quick else SEEDS
    return [*balance(seeds, quick), split(seeds), *sparse(seeds), *gate(seeds, quick), decay(seeds, quick)]


def balance(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """Steps until MaxVio < 0.1 and the swing afterwards, SMEBU against the sign rule, each at its best rate."""
    steps, tokens = (250, 4096) if quick else (400, 8192)
    best: dict[str, list[play.Balance]] = {}
    for rule, rates in RATES.items():
        by_rate = {rate: [play.balance(rule, rate, seed, steps, tokens) for seed in seeds] for rate in rates}
        # The rate that gets there first, among those that stay there.
        best[rule] = min(by_rate.values(), key=lambda runs: (sum(r.steps for r in runs), sum(r.violation for r in runs)))
    ours, theirs = best["smebu"], best["sign"]
    sooner = all(a.steps < b.steps for a, b in zip(ours, theirs, strict=True))
    calmer = all(a.swing < b.swing for a, b in zip(ours, theirs, strict=True))
    count, moved = fmean(r.steps for r in ours), fmean(r.steps for r in theirs)
    swing, other = fmean(r.swing for r in ours), fmean(r.swing for r in theirs)
    return [
        Row(
            "SMEBU: steps to MaxVio < 0.1, 32 skewed experts",
            "steps",
            count,
            moved,
            "sign rule",
            count / moved,
            "< 1 each seed",
            sooner,
        ),
        Row("SMEBU: swing of the bias afterwards", "score", swing, other, "sign rule", swing / other, "< 1 each seed", calmer),
    ]


def split(seeds: tuple[int, ...]) -> Row:
    """Error over heads of unequal loudness, each arm at its best rate."""
    best = {
        mode: min(([play.split(mode, rate, seed) for seed in seeds] for rate in MUON_RATES), key=sum)
        for mode in ("heads", "none")
    }
    ok = all(a <= b for a, b in zip(best["heads"], best["none"], strict=True))
    ours, theirs = fmean(best["heads"]), fmean(best["none"])
    return Row(
        "Muon Split: error left, 8 unequal heads", "share", ours, theirs, "whole matrix", ours / theirs, "<= 1 each seed", ok
    )


def sparse(seeds: tuple[int, ...]) -> list[Row]:
    """Needle recall after both stages with 8 of 128 keys, against dense attention trained as long."""
    runs = [play.sparse(seed) for seed in seeds]
    # Recall is counted over a thousand questions or more; two answers are its resolution between equal models.
    ok = all(run["stage 2"] >= max(run["dense"], run["dense, trained on"]) - 0.002 for run in runs)
    ours, dense = fmean(run["stage 2"] for run in runs), fmean(run["dense, trained on"] for run in runs)
    before, one = fmean(run["untrained"] for run in runs), fmean(run["stage 1"] for run in runs)
    return [
        Row(
            "DSA: recall with 8 of 128 keys after both stages",
            "share",
            ours,
            dense,
            "dense attention",
            ours / dense,
            ">= dense - 0.002",
            ok,
        ),
        Row("DSA: recall after stage 1", "share", one, before, "untrained indexer", one / before, "> 2", one > 2 * before),
    ]


def gate(seeds: tuple[int, ...], quick: bool) -> list[Row]:
    """First-token mass off the triggers, each arm at the rate of its own lowest loss; spikes at all rates, ordinary and high."""
    steps = 200 if quick else 300
    rates, peaks = (backcopy.RATES[-1:], backcopy.PEAKS[-1:]) if quick else (backcopy.RATES, backcopy.PEAKS)
    best, spikes = {}, {}
    for on in (True, False):
        ordinary = [[backcopy.gate(on, seed, rate, steps=steps) for seed in seeds] for rate in rates]
        high = [[backcopy.gate(on, seed, rates[-1], peak, 250) for seed in seeds] for peak in peaks]
        best[on] = min(ordinary, key=lambda runs: sum(run.excess for run in runs))
        spikes[on] = sum(run.spikes for runs in ordinary + high for run in runs)
    # Without a sink to remove, a low mass would show nothing.
    sink = all(run.first_mass >= 3 * run.even for run in best[False])
    less = all(a.first_mass <= b.first_mass for a, b in zip(best[True], best[False], strict=True))
    mass, other = fmean(r.first_mass for r in best[True]), fmean(r.first_mass for r in best[False])
    loss, more = fmean(r.excess for r in best[True]), fmean(r.excess for r in best[False])
    bar = "<= no gate each seed, whose is >= 3x even"
    return [
        Row("gate: first-token mass of a dormant head", "share", mass, other, "no gate", mass / other, bar, less and sink),
        Row(
            "gate: loss spikes, rates up to 0.25",
            "count",
            spikes[True],
            spikes[False],
            "no gate",
            None,
            "<= no gate, if that has any",
            spikes[True] <= spikes[False] if spikes[False] else None,
        ),
        Row("gate: loss above the task's entropy", "nats", loss, more, "no gate", loss / more),
    ]


def decay(seeds: tuple[int, ...], quick: bool) -> Row:
    """Loss over pairs of a Zipf law, embeddings left alone against decayed."""
    steps = 150 if quick else 300
    kept, decayed = ([play.decay(on, seed, steps) for seed in seeds] for on in (False, True))
    ok = all(a <= b for a, b in zip(kept, decayed, strict=True))
    ours, theirs = fmean(kept), fmean(decayed)
    return Row(
        "undecayed embeddings: loss, rare tokens count", "nats", ours, theirs, "decayed", ours / theirs, "<= 1 each seed", ok
    )
