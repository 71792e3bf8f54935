"""What a draft is held against outside of itself: tasks before it, benchmarks, a second build of its image."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from env_factory.candidates import Ledger, Proposal
from env_factory.gates.contamination import Benchmarks
from env_factory.gates.dedup import LIKENESS, Near, likeness, profile, shingles, signature
from env_factory.gates.effects import Effect
from env_factory.gates.rebuild import SALT, Rebuilds, recipe
from env_factory.intake import Intake
from gymsmith.errors import SourceError
from gymsmith.schema import Draft, Source
from tests.env_factory.test_gates import DOCKERFILE, FILES, GOOD

LONG = " ".join(f"word{n} of the longer report about what was seen" for n in range(12))


def report(more: str) -> Draft:
    return replace(GOOD, instruction=f"{LONG} {more}")


def change(line: str) -> tuple[Effect, ...]:
    return (Effect("/work/a.py", "changed", "a\nb\nc\n", f"a\n{line}\nc\n"),)


@pytest.mark.parametrize("shared", [0, 50, 80, 100])
def test_likeness_is_an_estimate_of_jaccards_index(shared: int) -> None:
    """Against the exact index over the same shingles; the standard error at 128 permutations is below 0.045."""
    one = [f"w{n}" for n in range(200)]
    other = one[: 2 * shared] + [f"v{n}" for n in range(200 - 2 * shared)]
    a, b = shingles(one), shingles(other)
    exact = len(a & b) / len(a | b)
    assert abs(likeness(signature(a), signature(b)) - exact) < 0.14
    assert likeness(signature(a), signature(set(a))) == 1.0


def test_a_near_duplicate_is_like_in_text_and_in_change(tmp_path: Path) -> None:
    near = Near(tmp_path / "near.jsonl")

    def passes(draft: Draft, line: str, place: int, order: str = "o") -> bool:
        return near.gate(profile(draft, change(line), order, place)).passed

    assert passes(report("it fails"), "x = 1", 0)
    assert not passes(report("it failed"), "x = 1", 1)
    assert passes(report("it fails again"), "y = 2", 2), "another change under a text from the same template"
    assert passes(replace(GOOD, instruction="Something else is asked for altogether in these few words."), "x = 1", 3)
    assert passes(report("it fails"), "x = 1", 0), "a task is no duplicate of itself"
    again = Near(tmp_path / "near.jsonl").gate(profile(report("it fails!"), change("x = 1"), "another order", 0))
    assert not again.passed and min(again.rewards) >= LIKENESS, "the index outlives its process"
    earlier = Near(tmp_path / "near.jsonl").gate(profile(report("it fails now"), change("z = 3"), "o", 9))
    assert earlier.passed
    assert Near(tmp_path / "near.jsonl").gate(profile(report("it fails nows"), change("z = 3"), "o", 8)).passed, (
        "not against later"
    )


def test_duplicates_do_not_depend_on_who_is_faster(doorway: Any, tmp_path: Path) -> None:
    """Of two like candidates under way together the first one stays, though the second comes to the gate long before it."""
    slow = replace(
        GOOD, files=FILES | {"tests/test.sh": b"#!/bin/sh\nsleep 0.5\n" + FILES["tests/test.sh"]}, cheats=(), alternatives=()
    )
    twins = [slow, replace(GOOD, cheats=(), alternatives=(), spec=GOOD.spec.model_copy(update={"labels": {"seed": "2"}}))]

    async def proposals() -> AsyncGenerator[Proposal, None]:
        for index, draft in enumerate(twins):
            yield Proposal(index, draft)

    async def work() -> list[str]:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        slots = asyncio.Semaphore(8)
        intake = Intake(doorway.settings, doorway.store, provider, images, slots, level="admission")
        ledger = Ledger(tmp_path / "order.jsonl")
        await intake.take(proposals(), ledger, 3, at_once=2)
        return [ledger.lines[index].reason for index in (0, 1)]

    assert doorway.worker.run(work()) == ["", "duplicate"]


def test_benchmarks_are_recognised_by_name_commit_and_words(tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    (folder / "terminal" / "fix-the-clock").mkdir(parents=True)
    words = "The clock on the wall is seven minutes late and nobody in the house knows why that is so"
    (folder / "terminal" / "fix-the-clock" / "task.yaml").write_text(f"instruction: {words}\n")
    row = {"instance_id": "psf__requests-1", "repo": "psf/requests", "base_commit": "ab" * 20, "problem_statement": "Too short."}
    (folder / "swe.jsonl").write_text(json.dumps(row) + "\n")
    known = Benchmarks.of(tmp_path)

    def said(draft: Draft) -> str:
        gate = known.gate(draft)
        return "" if gate.passed else gate.detail

    named = replace(GOOD, spec=GOOD.spec.model_copy(update={"name": "imported/psf__requests-1"}))
    assert "is a task of swe.jsonl" in said(named)
    at = replace(GOOD, source=Source(uri="git:https://github.com/psf/requests.git", kind="git", commit="ab" * 20))
    assert "is that of psf__requests-1" in said(at)
    elsewhere = replace(at, source=at.source.model_copy(update={"commit": "cd" * 20}))
    assert said(elsewhere) == "" and "one of SWE-bench's" in known.gate(elsewhere).detail
    assert "fix-the-clock" in said(replace(GOOD, instruction=words.upper().replace(" ", "\n")))
    assert said(replace(GOOD, instruction=" ".join(words.split()[:12]))) == "" == said(GOOD)
    (folder / "broken.json").write_text("{")
    with pytest.raises(SourceError, match="must hold JSON"):
        Benchmarks.of(tmp_path)


def test_a_recipe_ends_at_its_last_step_and_repeats_every_one() -> None:
    text = "FROM a AS b\nRUN one \\\n  more\nCOPY x /x\nFROM a\nRUN <<E\ntwo\nE\nCOPY --from=b /x /x\n"
    parts = recipe(text)
    assert parts is not None
    assert parts[0] == text.removesuffix("COPY --from=b /x /x\n") and parts[1].count(SALT) == 2
    assert parts[1].splitlines()[1:3] == [SALT, "RUN one \\"]
    assert recipe("FROM a\nCOPY x /x\n") is None


@pytest.mark.parametrize(
    ("step", "passed", "words"),
    [
        ("", True, "no step is executed"),
        ("RUN mkdir /opt/a-1.0.dist-info && date +%s%N > /opt/when", True, "1 packages equal; 1 files differ: /opt/when"),
        ("RUN mkdir /opt/b-$(date +%s%N).dist-info", False, "packages differ"),
    ],
)
def test_an_image_is_built_again_from_nothing(doorway: Any, step: str, passed: bool, words: str) -> None:
    draft = replace(GOOD, files=FILES | {"environment/Dockerfile": f"FROM gymsmith/host\n{step}\n{DOCKERFILE[19:]}".encode()})

    async def work() -> tuple[Any, Any]:
        images = await doorway.worker.images()
        rebuilds = Rebuilds(images)
        other = replace(draft, files={**draft.files, "environment/work/a.txt": b"1\n"})
        return await rebuilds.gate(draft), await rebuilds.gate(other)

    gate, other = doorway.worker.run(work())
    assert gate.passed is passed and words in gate.detail, gate
    assert other == gate, "once per image, not per task"
