"""Tokenised corpora on disk: documents end to end in memory-mapped shards, complete or absent, checked whenever they are read.

    FOLDER/00000.tokens    ids, uint16 or uint32, little-endian
    FOLDER/00000.weights   optional: the weight of the loss on each id, in 255ths
    FOLDER/00000.index     where documents begin (uint64, one more than there are), then the CRC-32 of each (uint32)
    FOLDER/shards.json     tokenizer, vocabulary, sizes and SHA-256 of all of these

The manifest is written last, so a writer that was cut off leaves no corpus. Opening checks sizes and indices; reading checks the
document that is read, so damage is found before it is learned and named by document, at the cost of the bytes that are read
anyway. `verify` hashes everything.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gymsmith.errors import ConfigError, Conflict, CorruptData, NotFound

FORMAT = 1
MANIFEST = "shards.json"
CHECKED = 1 << 14
"""Documents that were read in part and whose check is remembered."""


class ShardWriter:
    """Writes a corpus. Use as a context manager; an exception inside leaves no manifest, hence no corpus.

    Args:
        folder: made here; must not hold a corpus yet.
        vocab_size: ids are below it; up to 65,536 two bytes are enough.
        tokenizer: name of the tokenizer that made the ids, checked when a model is trained on them.
        weighted: whether documents come with weights.
        shard_tokens: a shard ends with the document that reaches it.
    """

    def __init__(
        self, folder: Path, vocab_size: int, tokenizer: str = "", weighted: bool = False, shard_tokens: int = 1 << 28
    ) -> None:
        if (folder / MANIFEST).exists():
            raise Conflict(f"expected a new folder, got {folder} which holds a corpus; name another or remove it")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.vocab_size, self.tokenizer = folder, vocab_size, tokenizer
        self.weighted, self.shard_tokens = weighted, shard_tokens
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.shards: list[dict[str, Any]] = []
        self._begin()

    def add(self, ids: ArrayLike, weights: NDArray[np.float32] | None = None) -> None:
        """Append one document: ids (T,) and, in a weighted corpus, a weight in [0, 1] for each.

        Raises:
            ConfigError: an id outside the vocabulary, an empty document, weights missing or of another length.
        """
        given = np.asarray(ids)
        if not given.size or given.min() < 0 or given.max() >= self.vocab_size:
            seen = f"{given.min()} to {given.max()}" if given.size else "none"
            raise ConfigError(f"expected ids from 0 to {self.vocab_size - 1}, got {seen}; encode with this corpus's tokenizer")
        if (weights is not None) != self.weighted or (weights is not None and len(weights) != given.size):
            got = "none" if weights is None else str(len(weights))
            raise ConfigError(f"expected {given.size if self.weighted else 'no'} weights, got {got}; open the writer to match")
        body = given.astype(self.dtype).tobytes()
        self._tokens.write(body)
        check = zlib.crc32(body)
        if weights is not None:
            fine = np.rint(np.clip(weights, 0, 1) * 255).astype(np.uint8).tobytes()
            self._weights.write(fine)
            check = zlib.crc32(fine, check)
        self._offsets.append(self._offsets[-1] + given.size)
        self._checks.append(check)
        if self._offsets[-1] >= self.shard_tokens:
            self._end()
            self._begin()

    def close(self) -> None:
        """Finish the corpus. Raises: ConfigError: it holds no document."""
        self._end()
        if not self.shards:
            raise ConfigError(f"{self.folder} would hold no document; check what it is made of")
        body = {
            "format": FORMAT,
            "dtype": self.dtype.str,
            "vocab_size": self.vocab_size,
            "tokenizer": self.tokenizer,
            "weighted": self.weighted,
            "shards": self.shards,
        }
        text = json.dumps(body, indent=1)
        outer = {"body": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        draft = self.folder / f".{MANIFEST}"
        draft.write_text(json.dumps(outer), encoding="utf-8")
        draft.rename(self.folder / MANIFEST)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._tokens.close()
            self._weights.close()

    def _begin(self) -> None:
        self._name = f"{len(self.shards):05d}"
        self._tokens = (self.folder / f"{self._name}.tokens").open("wb")
        self._weights = (self.folder / f"{self._name}.weights").open("wb") if self.weighted else self._tokens
        self._offsets, self._checks = [0], list[int]()

    def _end(self) -> None:
        self._tokens.close()
        self._weights.close()
        files = [f"{self._name}.tokens", *([f"{self._name}.weights"] if self.weighted else [])]
        if not self._checks:
            for name in files:
                (self.folder / name).unlink()
            return
        index = np.asarray(self._offsets, "<u8").tobytes() + np.asarray(self._checks, "<u4").tobytes()
        (self.folder / f"{self._name}.index").write_bytes(index)
        facts = {"name": self._name, "tokens": self._offsets[-1], "documents": len(self._checks)}
        digests = {name: _sha256(self.folder / name) for name in [*files, f"{self._name}.index"]}
        self.shards.append({**facts, "sha256": digests})


class Mapped(NamedTuple):
    """The arrays of one shard."""

    starts: NDArray[np.uint64]
    checks: NDArray[np.uint32]
    tokens: NDArray[Any]
    weights: NDArray[np.uint8] | None


class Shards:
    """A corpus for reading. Documents are numbered through all shards, in the order in which they were written.

    Raises:
        NotFound: the folder holds no finished corpus.
        CorruptData: a file is missing, too short, or an index was altered; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise NotFound(f"expected a corpus of shards in {folder}, got no {MANIFEST}; write one, or finish writing it")
        try:
            outer = json.loads(manifest.read_text(encoding="utf-8"))
            if hashlib.sha256(outer["body"].encode()).hexdigest() != outer["sha256"]:
                raise CorruptData(f"{manifest} was altered: its hash does not match; write the corpus again")
            body = json.loads(outer["body"])
            if body["format"] != FORMAT:
                raise CorruptData(f"{manifest}: expected format {FORMAT}, got {body['format']}; write the corpus again")
        except (ValueError, KeyError, TypeError) as e:
            raise CorruptData(f"{manifest} cannot be read ({e}); write the corpus again") from e
        self.folder, self.dtype = folder, np.dtype(body["dtype"])
        self.vocab_size, self.tokenizer, self.weighted = int(body["vocab_size"]), str(body["tokenizer"]), bool(body["weighted"])
        self.facts: list[dict[str, Any]] = body["shards"]
        self.tokens = sum(shard["tokens"] for shard in self.facts)
        self._files = [self._open(shard) for shard in self.facts]
        self._firsts = np.cumsum([0, *(shard["documents"] for shard in self.facts)])
        self._checked: set[int] = set()

    def __len__(self) -> int:
        """Documents."""
        return int(self._firsts[-1])

    def lengths(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each of these documents."""
        shard_of = np.searchsorted(self._firsts, documents, side="right") - 1
        out = np.empty(len(documents), np.int64)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            local = documents[here] - self._firsts[shard]
            starts = self._files[shard].starts
            out[here] = (starts[local + 1] - starts[local]).astype(np.int64)
        return out

    def read(self, document: int, start: int = 0, count: int | None = None) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Ids of (a piece of) a document, and their weights in 255ths if the corpus has any; views, not copies.

        Raises:
            CorruptData: its bytes are not those that were written.
        """
        shard = int(np.searchsorted(self._firsts, document, side="right")) - 1
        starts, checks, tokens, weights = self._files[shard]
        local = document - int(self._firsts[shard])
        a, b = int(starts[local]), int(starts[local + 1])
        if count is None or count == b - a or document not in self._checked:
            found = zlib.crc32(tokens[a:b].data)
            if weights is not None:
                found = zlib.crc32(weights[a:b].data, found)
            if found != int(checks[local]):
                raise CorruptData(
                    f"{self.folder / self.facts[shard]['name']}.tokens: document {document}: expected CRC-32 "
                    f"{int(checks[local]):08x}, got {found:08x}; write the corpus again or restore the file"
                )
            if count is not None and count < b - a:
                if len(self._checked) >= CHECKED:
                    self._checked.clear()
                self._checked.add(document)
        here = slice(a + start, b if count is None else min(b, a + start + count))
        return tokens[here], None if weights is None else weights[here]

    def verify(self) -> None:
        """Hash every file. Raises: CorruptData: names the first that differs."""
        for shard in self.facts:
            for name, expected in shard["sha256"].items():
                got = _sha256(self.folder / name)
                if got != expected:
                    raise CorruptData(f"{self.folder / name}: expected SHA-256 {expected[:16]}, got {got[:16]}; restore the file")

    def _open(self, shard: dict[str, Any]) -> Mapped:
        """One shard, mapped."""
        name, documents, tokens = shard["name"], shard["documents"], shard["tokens"]
        sizes = {f"{name}.tokens": tokens * self.dtype.itemsize, f"{name}.index": documents * 12 + 8}
        if self.weighted:
            sizes[f"{name}.weights"] = tokens
        for file, expected in sizes.items():
            path = self.folder / file
            got = path.stat().st_size if path.is_file() else 0
            if got != expected:
                raise CorruptData(f"{path}: expected {expected} bytes, got {got}; the copy was cut off, fetch it again")
        index = self.folder / f"{name}.index"
        if _sha256(index) != shard["sha256"][index.name]:
            raise CorruptData(f"{index} was altered: its hash does not match; write the corpus again or restore the file")
        # Plain arrays over the maps: slicing a memmap itself costs several times more.
        return Mapped(
            np.asarray(np.memmap(index, "<u8", "r", 0, (documents + 1,))),
            np.asarray(np.memmap(index, "<u4", "r", (documents + 1) * 8, (documents,))),
            np.asarray(np.memmap(self.folder / f"{name}.tokens", self.dtype, "r")),
            np.asarray(np.memmap(self.folder / f"{name}.weights", np.uint8, "r")) if self.weighted else None,
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
