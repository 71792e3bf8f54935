"""Answers that were paid for, kept on disk: one file per order, one JSON line per answer, on the disk before it is used.

A line holds the key of the question (digest of everything that was sent), the job that paid, and the answer with its cost. So one
write is both the receipt and the goods: a job that is killed goes on with the same answers and with the sum that it has spent.
An answer that was on its way when the process died is lost, and asked for again. Nothing secret is in a file: keys of endpoints
are in no question, and answers were searched for them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gymsmith.config import Settings
from gymsmith.llm import Answer
from gymsmith.schema import digest


class Journal:
    """The answers of one order. A torn last line is passed over; two processes may append."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, Answer] = {}
        self._paid: list[tuple[str, Answer]] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    answer = Answer.model_validate(row["answer"])
                except (ValueError, ValidationError, KeyError, TypeError):
                    continue
                self.answers[row["key"]] = answer
                self._paid.append((row.get("job", ""), answer))

    @classmethod
    def of(cls, settings: Settings, **key: Any) -> Journal:
        """The journal of an order; `key` is everything that its questions follow from."""
        name = digest(json.dumps(key, sort_keys=True).encode())[:24]
        return cls(settings.home / "factory" / "llm" / f"{name}.jsonl")

    def paid_by(self, job_id: str) -> list[Answer]:
        """The answers that a job has bought so far."""
        return [answer for job, answer in self._paid if job == job_id]

    def add(self, key: str, job_id: str, answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        line = json.dumps({"key": key, "job": job_id, "answer": answer.model_dump(mode="json")})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"\n{line}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self.answers[key] = answer
        self._paid.append((job_id, answer))
