"""Mixes and streams: shares of tokens, phases, every token once, and the same batches however and whenever they are read."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gymsmith.errors import ConfigError, CorruptData
from trainer.data.deck import HELD_OUT, Deck, permuted
from trainer.data.mix import Mix, Phase, Place, cut_to
from trainer.data.packing import Batch
from trainer.data.shards import Shards, ShardWriter
from trainer.data.stream import Stream

SOURCES = {"web": 900, "code": 500}
PHASES = [Phase(300, 2, 64, {"web": 3, "code": 1}), Phase(240, 2, 128, {"web": 1, "code": 4})]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    """Two sources whose ids tell source, document and place, so that what came out can be traced."""
    out = {}
    for kind, (name, count) in enumerate(SOURCES.items()):
        folder = tmp_path_factory.mktemp(name)
        rng = np.random.default_rng(kind)
        with ShardWriter(folder, 1 << 30, shard_tokens=9000) as writer:
            for document, n in enumerate(np.clip(rng.lognormal(3, 1, count), 2, 400).astype(int)):
                writer.add((kind << 28) + (document << 12) + np.arange(n))
        out[name] = Shards(folder)
    return out


def mix(corpora: dict[str, Shards], seed: int = 1, rows: int = 64) -> Mix:
    return Mix({name: Deck(name, shards, seed) for name, shards in corpora.items()}, PHASES, seed, rows)


def digest(batch: Batch) -> str:
    h = hashlib.sha256(repr(batch.names).encode())
    for tensor in (batch.ids, batch.targets, batch.weights, batch.positions, batch.documents):
        h.update(tensor.numpy().tobytes())
    return h.hexdigest()


def test_a_permutation_is_one_and_differs_by_key() -> None:
    for size in (1, 2, 3, 100, 4097):
        assert sorted(permuted(np.arange(size), size, b"a").tolist()) == list(range(size))
    a, b = (permuted(np.arange(4097), 4097, key) for key in (b"a", b"b"))
    assert (a == b).mean() < 0.01 and abs(np.corrcoef(a, np.arange(4097))[0, 1]) < 0.05


def test_the_same_batches_for_any_workers_depth_and_resume(corpora: dict[str, Shards]) -> None:
    total = sum(p.batches for p in PHASES)
    stream = Stream(mix(corpora))
    states, whole = [], []
    for _ in range(total):
        states.append(json.dumps(stream.state()))
        whole.append(digest(stream.next()))
    assert len(set(whole)) == total, "control: no two batches are alike"
    with pytest.raises(ConfigError, match="all 2 phases"):
        stream.next()
    for workers, ahead, at in ((1, 1, 0), (2, 7, 137), (4, 64, 299), (4, 3, 300), (2, 1, 531)):
        other = Stream(mix(corpora), workers=workers, ahead=ahead)
        other.restore(json.loads(states[at]))
        assert [digest(other.next()) for _ in range(min(200, total - at))] == whole[at : at + 200]
        other.close()
    assert digest(Stream(mix(corpora, seed=2)).next()) != whole[0]


def test_tokens_come_once_whole_and_in_their_shares(corpora: dict[str, Shards]) -> None:
    stream, share, seen = Stream(mix(corpora)), [Counter[str](), Counter[str]()], Counter[int]()
    filled = capacity = 0
    for number in range(sum(p.batches for p in PHASES)):
        batch = stream.next()
        filled, capacity = filled + batch.tokens, capacity + batch.ids.numel()
        ids = batch.ids[batch.documents >= 0].numpy()
        seen.update(ids.tolist())
        share[number >= PHASES[0].batches].update({"web": int((ids >> 28 == 0).sum()), "code": int((ids >> 28 == 1).sum())})
        follows = batch.targets >= 0
        assert bool((batch.targets[follows] == batch.ids[follows] + 1).all()), "a target is the next token of its document"
        assert not {int(i) for i in (ids >> 12 & 0xFFFF) if i % HELD_OUT == HELD_OUT - 1}, "held-out documents stay out"
    assert abs(share[0]["web"] / share[0].total() - 0.75) < 0.02 and abs(share[1]["web"] / share[1].total() - 0.2) < 0.02
    assert 1 - filled / capacity < 0.005
    epochs = stream.epochs
    for kind, name in enumerate(SOURCES):
        counts = [c for i, c in seen.items() if i >> 28 == kind]
        assert max(counts) <= int(epochs[name]) + 1, "nothing is dealt twice in an epoch"


def test_long_documents_and_leftovers_lose_nothing(corpora: dict[str, Shards]) -> None:
    pieces = cut_to(np.array([[0, 5, 0, 130], [0, 6, 0, 65], [1, 7, 0, 64]]), 64)
    assert pieces.tolist() == [[0, 5, 0, 64], [0, 5, 64, 64], [0, 5, 128, 2], [0, 6, 0, 64], [1, 7, 0, 64]]
    decks = {name: Deck(name, shards, 1) for name, shards in corpora.items()}
    one = Mix(decks, [Phase(60, 2, 64, {"web": 3, "code": 1})], 1, window_rows=32)
    place, got = Place(), []
    while place.phase == 0:
        window = one.plan(place)
        got += window.pieces.tolist()
        place = window.after
    got += place.over
    assert len(got) == len({tuple(p) for p in got}), "no piece comes twice"
    for number, document in {(p[0], p[1]) for p in got}:
        mine = sorted(p for p in got if p[:2] == [number, document])
        n = int(one.decks[number].shards.lengths(np.array([document]))[0])
        assert sum(p[3] for p in mine) in (n, n - 1), "every piece of a document is dealt"


def test_limits_mixes_and_damage_are_named(corpora: dict[str, Shards], tmp_path: Path) -> None:
    long = Deck("long", corpora["web"], 1, min_tokens=100)
    _, lengths, _ = long.deal(0, 3000)
    assert lengths.min() >= 100
    with pytest.raises(ConfigError, match="source none: expected documents of 5000"):
        Deck("none", corpora["web"], 1, min_tokens=5000).deal(0, 1)
    with pytest.raises(ConfigError, match="'books'"):
        Mix({"long": long}, [Phase(1, 1, 64, {"books": 1.0})], 0)
    with ShardWriter(tmp_path, 10) as writer:
        for _ in range(50):
            writer.add([1, 2, 3])
    body = bytearray((tmp_path / "00000.tokens").read_bytes())
    body[6 * 11] ^= 1
    (tmp_path / "00000.tokens").write_bytes(body)
    stream = Stream(Mix({"bad": Deck("bad", Shards(tmp_path), 1)}, [Phase(100, 1, 12, {"bad": 1})], 1))
    with pytest.raises(CorruptData, match="document 11"):
        for _ in range(100):
            stream.next()
