"""The benchmark of the factory: what its journal comes to, what it does not order again, and which environments are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from env_factory.bench import costs
from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.schema import Draft, Environment, Source, Status, TaskSpec

LINE = {
    "package": "a==1", "kind": "mutation", "n": 10, "admitted": 10, "candidates": 16, "reasons": {"survived": 6},
    "seconds": 600.0, "cpu_seconds": 100.0, "tests_run": 400, "suite": 50, "new": [16, 10],
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(home=tmp_path)


def environment(settings: Settings, name: str, text: str, function: str = "f") -> Environment:
    labels = {"package": "a", "path": "a.py", "function": function, "operator": name}
    files = {"environment/Dockerfile": b"FROM gymsmith/host\n", "tests/test.sh": b"true\n", "solution/solve.sh": text.encode()}
    spec = TaskSpec(name=f"gymsmith/{name}", kind="mutation", labels=labels)
    source = Source(uri="pypi:a==1", kind="pypi")
    draft = Draft(source, spec, text, files)
    folder = taskdir.folder_of(settings.tasks_dir, draft.id)
    taskdir.write(draft, folder)
    path = folder.relative_to(settings.home).as_posix()
    return Environment(id=draft.id, source=source, spec=spec, instruction=text, status=Status.VERIFIED, path=path)


def test_costs_follow_from_the_journal(settings: Settings) -> None:
    words = "one two three four five six seven eight nine ten"
    made = [
        environment(settings, "x", words, "f + g"),
        environment(settings, "y", words.upper(), "g"),
        environment(settings, "z", f"{words} ", "h"),
    ]
    assert costs._duplicates(settings, made) == [made[2].id], "the third says what the first says"
    costs._write(settings, LINE)
    costs._write(settings, LINE | {"n": 20, "admitted": 13, "candidates": 22, "new": [6, 3], "reasons": {"survived": 9}})
    kinds = {row.metric: row.ours for row in costs._kinds(settings, made)}
    assert (
        kinds["mutation: candidates"] == 22 and kinds["mutation: turned down, survived"] == 9 and kinds["mutation: admitted"] == 3
    )
    assert kinds["mutation: seconds per admitted, in one process"] == round(1200 / 13, 2)
    rows = {row.metric: row for row in costs._whole(settings, made)}
    assert (
        rows["of one function, most"].ours == 2 and rows["of one function, most"].ok and rows["operators of mutations"].ours == 3
    )
    rate = rows["admitted per hour, all gates, one process on this machine"]
    assert rate.ours == round(3600 * 13 / 1200, 1) and rate.ok is False
    hours = rows["10000 distinct ones: hours, one process"].ours
    assert hours == round(15000 * 1200 / 13 / 3600, 1), "a third of them is thrown away"


def test_what_the_journal_knows_is_not_ordered_again(settings: Settings) -> None:
    ordered: list[dict[str, Any]] = []

    def generate(order: dict[str, Any], ctx: object) -> dict[str, Any]:
        ordered.append(order)
        return {"admitted": ["x"] * 12, "candidates": 30, "reasons": {}, "new": [14, 2]}

    costs._write(settings, LINE)
    costs._order(settings, None, "a==1", "mutation", 10, generate)  # type: ignore[arg-type]
    assert not ordered
    costs._order(settings, None, "a==1", "mutation", 20, generate)  # type: ignore[arg-type]
    assert [o["n"] for o in ordered] == [20] and ordered[0]["per_function"] == 1
    costs._order(settings, None, "a==1", "mutation", 30, generate)  # type: ignore[arg-type]
    assert len(ordered) == 1, "there were 12 where 20 were asked for: there are no more"
