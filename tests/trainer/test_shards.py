"""Tokenised corpora on disk: what is written comes back, damage of any kind is named before it is learned."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from context_mgmt.chat import Chat
from gymsmith.errors import ConfigError, Conflict, CorruptData, NotFound
from trainer.data.documents import encode, read_documents, tokenise
from trainer.data.shards import Shards, ShardWriter


def write(folder: Path, vocab_size: int = 500, weighted: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, vocab_size, n) for n in rng.integers(1, 60, 50)]
    with ShardWriter(folder, vocab_size, "t.json", weighted, shard_tokens=300) as writer:
        for ids in documents:
            writer.add(ids, (ids % 5 / 5).astype(np.float32) if weighted else None)
    return documents


@pytest.mark.parametrize(("vocab_size", "weighted"), [(500, False), (1 << 16, True), ((1 << 16) + 1, True)])
def test_what_was_written_comes_back(tmp_path: Path, vocab_size: int, weighted: bool) -> None:
    documents = write(tmp_path / "c", vocab_size, weighted)
    shards = Shards(tmp_path / "c")
    assert len(shards.facts) > 3 and len(shards) == 50 and shards.tokens == sum(map(len, documents))
    assert shards.dtype.itemsize == (2 if vocab_size <= 1 << 16 else 4) and shards.tokenizer == "t.json"
    assert shards.lengths(np.arange(50)[::-1]).tolist() == [len(d) for d in documents[::-1]]
    for number, ids in enumerate(documents):
        got, weights = shards.read(number)
        assert got.tolist() == ids.tolist()
        if weighted:
            assert weights is not None and np.allclose(weights / 255, ids % 5 / 5, atol=1e-3)
    number = max(range(50), key=lambda i: len(documents[i]))
    assert shards.read(number, 3, 4)[0].tolist() == documents[number][3:7].tolist()
    assert shards.read(number, 3, 400)[0].tolist() == documents[number][3:].tolist(), "a piece ends with its document"
    shards.verify()


@pytest.mark.parametrize("file", ["00001.tokens", "00001.index", "00001.weights", "shards.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_named(tmp_path: Path, file: str, damage: str) -> None:
    documents = write(tmp_path, weighted=True)
    path = tmp_path / file
    body = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        body[len(body) // 2] ^= 1
        path.write_bytes(body if damage == "flip" else body[:-1])
    name = "00001.tokens: document" if damage == "flip" and file in ("00001.tokens", "00001.weights") else file
    with pytest.raises((CorruptData, NotFound), match=name):
        shards = Shards(tmp_path)
        assert [shards.read(i)[0].tolist() for i in range(len(documents))]


def test_a_piece_of_a_damaged_document_is_not_read(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "00000.tokens"
    body = bytearray(path.read_bytes())
    body[0] ^= 1
    path.write_bytes(body)
    shards = Shards(tmp_path)
    assert shards.read(1, 0, 1), "control: its neighbour is sound"
    with pytest.raises(CorruptData, match="document 0"):
        shards.read(0, 1, 1)
    with pytest.raises(CorruptData, match=r"00000\.tokens"):
        shards.verify()


def test_an_unfinished_writer_leaves_no_corpus_and_bad_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 to 9, got 3 to 10"):
        with ShardWriter(tmp_path, 10) as writer:
            writer.add([1, 2])
            writer.add([3, 10])
    with pytest.raises(NotFound, match="finish writing"):
        Shards(tmp_path)
    with pytest.raises(ConfigError, match="no document"), ShardWriter(tmp_path, 10):
        pass
    with pytest.raises(ConfigError, match="weights"), ShardWriter(tmp_path, 10, weighted=True) as writer:
        writer.add([1, 2])
    write(tmp_path)
    with pytest.raises(Conflict, match="holds a corpus"):
        ShardWriter(tmp_path, 10)


def test_a_corpus_becomes_shards_with_its_weights(tmp_path: Path) -> None:
    rows = [{"segments": [["task", f"do {i}", i % 2 == 0], ["act", "ls"]]} for i in range(20)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = tokenise(tmp_path / "c.jsonl", tmp_path / "shards", tmp_path / "words", vocab_size=300)
    shards = Shards(tmp_path / "shards")
    chat = Chat.load(tmp_path / "words" / made["tokenizer"])
    expected = encode(chat, read_documents(tmp_path / "c.jsonl"))
    assert (len(shards), shards.tokens, shards.tokenizer) == (20, made["tokens"], made["tokenizer"])
    for number, document in enumerate(expected):
        ids, weights = shards.read(number)
        assert (
            weights is not None
            and ids.tolist() == document.ids.tolist()
            and (weights / 255).tolist() == document.weights.tolist()
        )


def test_shards_of_another_release_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    manifest = next(p for p in tmp_path.iterdir() if p.suffix == ".json")
    body = json.dumps(json.loads(json.loads(manifest.read_text())["body"]) | {"format": 999})
    manifest.write_text(json.dumps({"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()}))
    with pytest.raises(CorruptData, match="got 999; write the corpus again"):
        Shards(tmp_path)
