"""Reads corpora and turns documents into token ids.

A document is {"segments": [[kind, text], ...]}, or [kind, text, learn], where learn false says that nothing before it could
predict the text, with kinds doc, task, act and obs, in the shape the agent will meet them in: `<|doc|>` TEXT  or
`<|doc|><|task|>` TEXT `<|end|><|act|>` TEXT `<|end|><|obs|>` TEXT `<|end|>`. Text never becomes a special token.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context_mgmt.chat import Chat
from gymsmith.errors import ConfigError, NotFound
from trainer.data import tokenizer
from trainer.data.shards import ShardWriter

Segments = Sequence[tuple[str, str, bool]]
"""(kind, text, learn) of one document."""
TOGETHER = 4096
"""Documents encoded in one parallel call."""
KINDS = ("doc", "task", "act", "obs")


@dataclass(slots=True)
class Document:
    """Token ids and the weight of the loss on each, both (T,). The first token is never predicted."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]


def read_lines(path: Path) -> Iterator[Any]:
    """Values of a JSONL file, gzip or plain.

    Raises:
        NotFound: no such file.
        ConfigError: a line that is not JSON; names file and line.
    """
    if not path.is_file():
        raise NotFound(f"expected a JSONL file, got {path} which is none; generate it or fix the path")
    with path.open("rb") as probe:
        packed = probe.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as e:
                raise ConfigError(f"{path}:{number} is not JSON ({e}); the file may be cut off, generate it again") from e


def read_documents(path: Path) -> list[Segments]:
    """All documents of a corpus.

    Raises:
        ConfigError: a line without segments, or with an unknown kind.
    """
    documents: list[Segments] = []
    for number, row in enumerate(read_lines(path), 1):
        try:
            segments = [(str(s[0]), str(s[1]), len(s) < 3 or bool(s[2])) for s in row["segments"]]
        except (KeyError, TypeError, IndexError) as e:
            shape = '{"segments": [[kind, text], ...]}'
            raise ConfigError(f"{path}: document {number} must be {shape}, got {str(row)[:80]!r}") from e
        unknown = {kind for kind, _, _ in segments} - set(KINDS)
        if unknown:
            raise ConfigError(f"{path}: document {number} has segments {sorted(unknown)}; known kinds are {', '.join(KINDS)}")
        documents.append(segments)
    if not documents:
        raise ConfigError(f"{path} holds no document; generate the corpus again")
    return documents


def encode(
    chat: Chat, documents: Sequence[Segments], observation_weight: float = 1.0, observation_tokens: int = 1 << 30
) -> list[Document]:
    """Token ids of every document, texts encoded in one parallel call; observations are cut as the agent's are."""
    special = {"task": chat.task, "act": chat.act, "obs": chat.obs}
    texts = [text for segments in documents for _, text, _ in segments]
    encoded = iter(chat.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    out = []
    for segments in documents:
        ids: list[int] = [chat.doc]
        weights: list[float] = [1.0]
        for kind, text, learn in segments:
            body = next(encoded).ids
            weight = float(learn) * (observation_weight if kind == "obs" else 1.0)
            if kind == "obs" and len(body) > observation_tokens:
                body = chat.cut(text, observation_tokens)
            if kind != "doc":
                body = [special[kind], *body, chat.end]
            ids += body
            weights += [weight] * len(body)
        out.append(Document(np.asarray(ids, np.int32), np.asarray(weights, np.float32)))
    return out


def tokenise(
    corpus: Path, folder: Path, tokenizers: Path, name: str = "", vocab_size: int = 2048, observation_weight: float = 1.0
) -> dict[str, Any]:
    """Write a corpus as shards, with the tokenizer of that name or one trained on it.

    Raises:
        ConfigError: a document in another shape. Conflict: the folder holds a corpus.
    """
    texts = read_documents(corpus)
    if not name:
        trained = tokenizer.train((text for segments in texts for _, text, _ in segments), vocab_size)
        name = tokenizer.store(trained, tokenizers)
    chat = Chat.load(tokenizers / name)
    weighted = observation_weight != 1 or not all(learn for segments in texts for _, _, learn in segments)
    tokens = 0
    with ShardWriter(folder, chat.vocab_size, name, weighted) as writer:
        for at in range(0, len(texts), TOGETHER):
            for document in encode(chat, texts[at : at + TOGETHER], observation_weight):
                writer.add(document.ids, document.weights if weighted else None)
                tokens += len(document.ids)
    return {"folder": str(folder), "tokenizer": name, "documents": len(texts), "tokens": tokens}
