"""Tasks whose defects are known: each kind is turned down with a word of its own, sound ones beside them are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.formats import harbor
from env_factory.gates import labelled
from env_factory.gates.labelled import Judged
from env_factory.gates.reasons import REASONS
from gymsmith.errors import NotFound, SourceError
from tests.env_factory import blind, defects

QUICK = {
    "adds-two-numbers": {""}, "recovers-from-history": {""}, "always-passes": {"noop-passes"},
    "reads-the-solution": {"reads-solution"}, "throws-dice": {"flaky"}, "no-solution": {"no-oracle"},
    "lacks-a-module": {"lacks-dependency"}, "needs-the-network": {"needs-network"}, "does-not-build": {"build-failed"},
    "wrong-solution": {"oracle-fails"}, "other-file": {"contradiction"}, "other-number": {"contradiction"},
    "secret-password": {"contradiction"},
}  # fmt: skip
"""Those of the set that this suite has time for -> the reasons that may be given. `gymsmith env judge` takes all."""


def test_the_set_is_large_enough() -> None:
    sound = [name for name, (label, _) in defects.SET.items() if label == labelled.SOUND]
    assert len(sound) >= 12 and len(defects.SET) - len(sound) >= 20


def test_each_defect_is_found_and_sound_tasks_pass(doorway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "SET", {name: defects.SET[name] for name in QUICK})
    result = tasks.judge({"folder": str(defects.write(tmp_path))}, doorway)
    for row in result["tasks"]:
        wanted = QUICK[row["name"]]
        assert (row["verdict"].replace("verified", "")) in wanted, row
        assert wanted == {""} or wanted <= set(REASONS)
    assert result["precision"]["rate"] == result["recall"]["rate"] == 1.0
    assert doorway.reported["done"] == doorway.reported["total"] == len(QUICK)


def test_precision_and_recall_are_of_turning_down() -> None:
    rows = [
        Judged("a", "sound", "", ""),
        Judged("b", "sound", "leak", ""),
        Judged("c", "bad", "leak", ""),
        Judged("d", "bad", "", ""),
    ]
    measured = labelled.quality([*rows, Judged("e", "bad", "slow", "")])
    assert (measured.precision.passed, measured.precision.n, measured.recall.passed, measured.recall.n) == (2, 3, 2, 3)
    with pytest.raises(SourceError, match="0 defective of 2"):
        labelled.quality(rows[:2])


def test_a_folder_of_somebody_else_is_read_or_refused_in_words(tmp_path: Path) -> None:
    folder = defects.write(tmp_path) / "adds-two-numbers"
    draft = harbor.read(folder)
    assert (draft.spec.workdir, draft.spec.report, draft.spec.verifier_mode) == ("/app", "reward", "shared")
    assert draft.files["environment/Dockerfile"].rstrip().endswith(b"chown -R 1000:1000 /app")
    (folder / "task.toml").write_text('[environment]\nmemory = "2G"\ncpus = 2\n[verifier]\nenvironment_mode = "separate"\n')
    spec = harbor.read(folder).spec
    assert (spec.memory_mb, spec.cpus, spec.verifier_mode) == (2048, 2.0, "separate")
    for text, words in (("[", "TOML"), ("[environment]\ncpus = 'many'\n", "cpus"), ("[[steps]]\nname = 'a'\n", "several steps")):
        (folder / "task.toml").write_text(text)
        with pytest.raises(SourceError, match=words):
            harbor.read(folder)
    with pytest.raises(NotFound, match="is missing"):
        harbor.read(tmp_path)
    (tmp_path / "labels.toml").write_text("nothing-there = 'sound'\n")
    with pytest.raises(SourceError, match="name of a folder"):
        labelled.labels(tmp_path)


def test_the_blind_half_is_whole(tmp_path: Path) -> None:
    told = labelled.labels(blind.write(tmp_path))
    sound = [name for name, label in told.items() if label == labelled.SOUND]
    assert (len(sound), len(told) - len(sound)) == (33, 37) and len({label for label in told.values()}) >= 20
    assert all(harbor.read(tmp_path / name).files["solution/solve.sh"] for name in told)


@pytest.mark.parametrize(
    ("tasks", "sound", "defective"),
    [(blind.THIRD, 18, 18), (blind.FOURTH, 20, 20), (blind.FIFTH, 20, 24), (blind.SIXTH, 20, 20)],
)
def test_the_later_sets_are_whole(tmp_path: Path, tasks: list[dict[str, Any]], sound: int, defective: int) -> None:
    told = labelled.labels(blind.write(tmp_path, tasks=tasks))
    assert sorted(told) == sorted(task["name"] for task in tasks)
    assert sum(label == labelled.SOUND for label in told.values()) == sound == len(told) - defective
    assert all(harbor.read(tmp_path / name).files["solution/solve.sh"] for name in told)
