"""How well the gates judge: a folder of tasks whose defects are known, each brought before every gate.

    FOLDER/labels.toml       NAME = "sound", or the defect in the author's words
    FOLDER/NAME/             a task folder in Harbor's format, ours or anybody's (`formats/harbor.py`)

A task that does not reach "verified" counts as found to be defective, whatever the reason. Precision: of those that were turned
down, how many are defective. Recall: of the defective ones, how many were turned down. Intervals are Wilson's at 95%.
"""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from env_factory.build import build
from env_factory.formats import harbor
from env_factory.gates.mutants import Rules
from env_factory.gates.stages import prove
from env_factory.gates.trial import Around
from gymsmith.errors import BuildError, NotFound, PolicyRefused, SourceError
from gymsmith.schema import Score
from sandboxes.base import Provider
from sandboxes.evaluate import wilson
from sandboxes.image.images import ImageStore

SOUND = "sound"
AT_ONCE = 4
"""Tasks that are tried at the same time."""
READ_AT_ONCE = 32
"""The same where a model reads them: most of these wait for an answer. Sandboxes are bounded elsewhere."""


class Judged(NamedTuple):
    """One task: what its author says of it, and why the gates turned it down ("" when they did not)."""

    name: str
    label: str
    reason: str
    detail: str

    @property
    def right(self) -> bool:
        return (self.label == SOUND) == (self.reason == "")


class Quality(NamedTuple):
    """Precision and recall of turning down."""

    precision: Score
    recall: Score


def labels(folder: Path) -> dict[str, str]:
    """Name of a task -> its label.

    Raises: NotFound: labels.toml is missing. SourceError: it is no table of words, or names what is no folder.
    """
    try:
        table = tomllib.loads((folder / "labels.toml").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f'expected {folder}/labels.toml with lines NAME = "sound" or NAME = "what is wrong"; write it') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{folder}/labels.toml must be TOML: {error}") from error
    for name, label in table.items():
        if not isinstance(label, str) or not label or not (folder / name).is_dir():
            raise SourceError(f"{folder}/labels.toml: expected the name of a folder and a word, got {name} = {label!r}")
    return {str(name): str(label) for name, label in table.items()}


async def judge(
    folder: Path,
    provider: Provider,
    images: ImageStore,
    slots: asyncio.Semaphore,
    *,
    rules: Rules = Rules(),
    around: Around = Around(),
    report: Callable[[int], None] = lambda _: None,
) -> list[Judged]:
    """Bring every task of a labelled folder before the gates of the level "admission", and of a reviewer `around` them.

    Raises: NotFound, SourceError: the folder is not labelled. InfrastructureError: sandboxes failed; nothing was judged then.
    """
    labelled = sorted((await asyncio.to_thread(labels, folder)).items())
    turns = asyncio.Semaphore(READ_AT_ONCE if around.reviewed else AT_ONCE)
    done = 0

    async def verdict(name: str) -> tuple[str, str]:
        try:
            draft = await asyncio.to_thread(harbor.read, folder / name)
            image = await build(draft, images)
        except (SourceError, PolicyRefused, BuildError) as error:
            return "build-failed" if isinstance(error, BuildError) else "refused", str(error)[:500]
        proof = await prove(draft, image, provider, level="admission", slots=slots, rules=rules, around=around)
        return proof.reason, proof.detail

    async def one(name: str, label: str) -> Judged:
        nonlocal done
        async with turns:
            reason, detail = await verdict(name)
        done += 1
        report(done)
        return Judged(name, label, reason, detail)

    running = [asyncio.create_task(one(name, label)) for name, label in labelled]
    try:
        return list(await asyncio.gather(*running))
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def quality(judged: Sequence[Judged]) -> Quality:
    """Raises: SourceError: nothing defective, or nothing sound, is among them, so one of the two says nothing."""
    defective = [each for each in judged if each.label != SOUND]
    turned_down = [each for each in judged if each.reason]
    if not defective or len(defective) == len(judged):
        raise SourceError(f"expected sound and defective tasks, got {len(defective)} defective of {len(judged)}; add the others")
    hits = sum(bool(each.reason) for each in defective)
    return Quality(precision=wilson(hits, len(turned_down)), recall=wilson(hits, len(defective)))


def table(judged: Sequence[Judged]) -> list[Mapping[str, str]]:
    """Rows for people and for JSON."""
    return [
        {
            "name": j.name,
            "label": j.label,
            "verdict": j.reason or "verified",
            "right": "yes" if j.right else "NO",
            "detail": j.detail,
        }
        for j in judged
    ]
