"""Tokenizer, documents, packing, loader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from context_mgmt.chat import Chat
from gymsmith.errors import ConfigError, NotFound
from trainer.data import documents as docs
from trainer.data import tokenizer as tok
from trainer.data.loader import Loader
from trainer.data.packing import IGNORE, Item, best_fit, cut, pack

TEXTS = ["cat notes.txt", "<|end|> is not special", "näh ✓ 日本", "grep -l 4711 a.conf", "x" * 40] * 3


def tokenizer() -> Tokenizer:
    return tok.train(TEXTS, 320)


def item(*ids: int) -> Item:
    return Item(np.array(ids, np.int32), np.ones(len(ids), np.float32))


def test_tokenizer_round_trips_and_keeps_specials_out_of_text(tmp_path: Path) -> None:
    t = tokenizer()
    t.encode_special_tokens = True
    for text in [*TEXTS, "\x00\xff\r\n\t 'unseen'"]:
        ids = t.encode(text).ids
        assert t.decode(ids, skip_special_tokens=False) == text
        assert min(ids) >= len(tok.SPECIALS)
    t.encode_special_tokens = False
    assert tok.SPECIALS.index("<|end|>") in t.encode(TEXTS[1]).ids, "control: without the switch the text is special"
    name = tok.store(t, tmp_path)
    assert tok.store(tokenizer(), tmp_path) == name, "the same corpus gives the same file"


def test_pieces_stop_at_digits() -> None:
    t = tokenizer()
    pieces = [t.id_to_token(i) for i in t.encode("a 4711").ids]
    assert pieces[-4:] == ["4", "7", "1", "1"]


def test_documents_take_the_agents_shape(tmp_path: Path) -> None:
    t = tokenizer()
    path = tmp_path / "c.jsonl"
    path.write_text(json.dumps({"segments": [["task", "do"], ["act", "ls"], ["obs", "a b"]]}) + "\n")
    (document,) = docs.encode(Chat(t), docs.read_documents(path), observation_weight=0.5)
    shown = "".join(t.decode([int(i)], skip_special_tokens=False) for i in document.ids)
    assert shown == "<|doc|><|task|>do<|end|><|act|>ls<|end|><|obs|>a b<|end|>"
    observed = document.weights < 1
    assert "".join(t.decode([int(i)], skip_special_tokens=False) for i in document.ids[observed]) == "<|obs|>a b<|end|>"
    path.write_text(json.dumps({"segments": [["obs", "abc " * 50]]}) + "\n")
    (document,) = docs.encode(Chat(t), docs.read_documents(path), observation_tokens=20)
    assert len(document.ids) == 1 + 1 + 20 + 1 and "..." in t.decode(document.ids.tolist())
    path.write_text(json.dumps({"segments": [["task", "do", False], ["act", "ls", True]]}) + "\n")
    (document,) = docs.encode(Chat(t), docs.read_documents(path))
    assert (
        "".join(t.decode([int(i)], skip_special_tokens=False) for i in document.ids[document.weights == 0]) == "<|task|>do<|end|>"
    )


def test_bad_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing"):
        docs.read_documents(tmp_path / "nothing.jsonl")
    for body, match in [
        ('{"segments": [["task", "x"]', "1 is not JSON"),
        ('{"x": 1}', "document 1 must be"),
        ('{"segments": [["cmd", "x"]]}', "cmd"),
        ("\n\n", "holds no document"),
    ]:
        (tmp_path / "c.jsonl").write_text(body)
        with pytest.raises(ConfigError, match=match):
            docs.read_documents(tmp_path / "c.jsonl")
    with pytest.raises(ConfigError, match="a document of two tokens or more, got none in 1"):
        Loader([docs.Document(np.zeros(1, np.int32), np.ones(1, np.float32))], 2, 8, 0)


def brute_force(lengths: list[int], capacity: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = [(capacity - sum(lengths[j] for j in row), r) for r, row in enumerate(rows)]
        fits = [f for f in fits if f[0] >= lengths[i]]
        rows[min(fits)[1]].append(i) if fits else rows.append([i])
    return rows


def test_best_fit_equals_brute_force_and_wastes_little() -> None:
    rng = np.random.default_rng(0)
    lengths = [int(x) for x in np.clip(rng.lognormal(3.0, 0.6, 200), 2, 128)]
    rows = best_fit(lengths, 128)
    assert rows == brute_force(lengths, 128)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert sum(lengths) / (128 * len(rows)) > 0.97
    with pytest.raises(ValueError, match="a row holds 4"):
        best_fit([5], 4)


def test_pack_by_hand() -> None:
    a = Item(np.array([5, 6, 7], np.int32), np.array([1, 0, 1], np.float32), {"logprob": np.array([0, -1, -2], np.float32)})
    batch = pack([[a, item(8, 9)]], 6)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 0]]
    assert batch.targets.tolist() == [[IGNORE, 7, IGNORE, 9, IGNORE, IGNORE]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, -1]]
    assert batch.extra["logprob"].tolist() == [[-1, -2, 0, 0, 0, 0]]
    assert (batch.tokens, batch.trained) == (5, 2)


def test_an_epoch_holds_every_token_once_and_resumes_anywhere() -> None:
    rng = np.random.default_rng(1)
    documents = [docs.Document(rng.integers(10, 99, n).astype(np.int32), np.ones(n, np.float32)) for n in rng.integers(2, 90, 60)]
    loader = Loader(documents, rows=4, length=32, seed=7)
    seen, states, batches = [], [], []
    for _ in range(200):
        states.append(loader.state())
        batch = loader.next()
        if loader.epoch:
            break
        batches.append(batch)
        seen += batch.ids[batch.documents >= 0].tolist()
    pieces = [p for d in documents for p in cut(Item(d.ids, d.weights), 32) if len(p.ids) > 1]
    assert sorted(seen) == sorted(int(i) for p in pieces for i in p.ids)
    again = Loader(documents, rows=4, length=32, seed=7)
    again.restore(states[3])
    assert all(bool((again.next().ids == b.ids).all()) for b in batches[3:])
    other = Loader(documents, rows=4, length=32, seed=8).next()
    assert other.ids.shape != batches[0].ids.shape or not bool((other.ids == batches[0].ids).all())
