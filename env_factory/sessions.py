"""Plays the pre-training sessions for real: each in a folder of its own, many to a sandbox, one shell for a batch.

The text of these sessions is ours and so are its commands, so a sandbox may serve a whole batch; nothing a model wrote ever runs
here. What is written is a corpus file: JSON lines of {"segments": [[role, text, learn], ...]}, gzip, named by its content.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from env_factory.synth import corpus
from gymsmith.errors import InfrastructureError
from gymsmith.schema import digest
from sandboxes.base import MIB, Provider, SandboxSpec

BATCH = 100
"""Sessions per script: a few seconds of work, so that a killed job loses little."""
OUTPUT_BYTES = 400
"""Longest output kept; longer ones teach a model of this size nothing more."""


async def play(
    sessions: Sequence[corpus.Session], provider: Provider, image: str, slots: asyncio.Semaphore, done: Callable[[int], None]
) -> list[list[str]]:
    """What each command of each session printed, in order; two sandboxes at a time, one per core of a small machine.

    Raises:
        InfrastructureError: a batch did not print what its script must.
    """
    lanes = asyncio.Semaphore(2)
    finished = 0

    async def batch(start: int) -> list[list[str]]:
        nonlocal finished
        part = sessions[start : start + BATCH]
        mark = digest(str(start).encode())[:16]
        async with lanes, slots:
            sandbox = await provider.create(SandboxSpec(image=image, disk_bytes=64 * MIB))
            try:
                said = await sandbox.exec("sh -s", stdin=script(part, mark).encode(), timeout_s=120, max_output_bytes=16 * MIB)
            finally:
                await sandbox.destroy()
        outputs = said.output.decode(errors="replace").split(f"\n{mark}\n")[:-1]
        expected = sum(len(s.steps) for s in part)
        if len(outputs) != expected:
            raise InfrastructureError(
                f"expected {expected} outputs of a session batch, got {len(outputs)}: {said.output[-200:]!r}"
            )
        finished += len(part)
        done(finished)
        texts = iter(outputs)
        return [[next(texts)[:OUTPUT_BYTES] for _ in s.steps] for s in part]

    played = await asyncio.gather(*(batch(start) for start in range(0, len(sessions), BATCH)))
    return [outputs for part in played for outputs in part]


def script(sessions: Sequence[corpus.Session], mark: str) -> str:
    """A shell script that plays sessions and prints `mark` on a line of its own after each command's output."""
    lines = ["end() { printf '\\n%s\\n' " + mark + "; }"]
    for number, session in enumerate(sessions):
        folder = f"/tmp/s{number}"
        lines.append(f"mkdir {folder}; cd {folder}")
        lines += [f"printf %s {shlex.quote(text)} > {shlex.quote(name)}" for name, text in session.files.items()]
        lines += [f"( eval {shlex.quote(step.command)} ) </dev/null 2>&1; end" for step in session.steps]
        lines.append(f"cd /; rm -rf {folder}")
    return "\n".join(lines) + "\n"


def write(
    sessions: Sequence[corpus.Session], outputs: Sequence[Sequence[str]], drills: float, rng: random.Random, folder: Path
) -> tuple[Path, int]:
    """Write sessions and `drills` characters of exercises per character of sessions, shuffled; the file and its documents."""
    documents = [corpus.document(session, said) for session, said in zip(sessions, outputs, strict=True)]
    wanted = drills * sum(size(d) for d in documents)
    made = 0
    while made < wanted:
        documents.append(corpus.drill(rng))
        made += size(documents[-1])
    rng.shuffle(documents)
    text = "".join(json.dumps({"segments": document}) + "\n" for document in documents).encode()
    path = folder / f"{digest(text)[:32]}.jsonl.gz"
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".part")
    with gzip.GzipFile(fresh, "wb", compresslevel=1, mtime=0) as file:
        file.write(text)
    fresh.replace(path)
    return path, len(documents)


def size(document: Sequence[corpus.Turn]) -> int:
    """Characters of a document."""
    return sum(len(turn.text) for turn in document)
