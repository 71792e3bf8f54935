"""What somebody did to a project, turned round: a small history and an issue with its fix become environments."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.swe.notes import added, cleaned, is_note, useful
from gymsmith import taskdir

PROJECT = '[project]\nname = "shelf"\nversion = "1.0"\ndependencies = []\n[tool.pytest.ini_options]\naddopts = "-q"\n'
CODE = '''"""Shelves."""


def total(rows):
    """Add up what lies in all rows."""
    count = 0
    for row in rows[:-1]:
        count += len(row)
    return count


def first(rows):
    return rows[0][0] if rows and rows[0] else None
'''
TESTS = """import pytest
from shelf import first


@pytest.mark.parametrize("rows", [[[n]] for n in range(8)])
def test_first(rows):
    assert first(rows) == rows[0][0]
"""
TOTALS = "from shelf import total\n\n\ndef test_total():\n    assert total([[1], [2, 3]]) == 3\n    assert total([]) == 0\n"
WIDEST = '''

def widest(rows, least=1):
    """The widest row."""
    found = max(rows, key=sum, default=[])
    return found if sum(found) >= least else []
'''
WIDE_TESTS = """from shelf import widest


def test_widest():
    assert widest([[1], [2, 3]]) == [2, 3]
    assert widest([[1]], 2) == []
"""
NOTES = "Changes\n=======\n\n"
TOLD = (
    "1.1 (2025-05-01)\n----------------\n\n- ``total`` counts the last row as well, which it had left out "
    "since the beginning, by @somebody (#7).\n- See src/shelf.py.\n\n"
)
MORE = "- New function ``widest`` gives the row whose things are widest; rows narrower than ``least`` do not count (#9).\n"


class History:
    """A git repository made step by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *words: str) -> str:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "GIT_CONFIG_NOSYSTEM": "1"}
        env |= {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        env |= {f"GIT_{who}_DATE": "2025-06-01T12:00:00Z" for who in ("AUTHOR", "COMMITTER")}
        return subprocess.run(
            ["git", *words], cwd=self.folder, env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    def commit(self, message: str, **files: str) -> str:
        for name, text in files.items():
            path = self.folder / name.replace("__", "/").replace("_py", ".py").replace("_md", ".md").replace("_toml", ".toml")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    made = History(tmp_path_factory.mktemp("changes") / "shelf")
    fixed = CODE.replace("rows[:-1]", "rows")
    start = made.commit("Begin", pyproject_toml=PROJECT, shelf_py=CODE, tests__test_first_py=TESTS, CHANGES_md=NOTES)
    fix = made.commit("Count all (#7)", shelf_py=fixed, tests__test_total_py=TOTALS, CHANGES_md=NOTES + TOLD)
    made.commit("Add widest", shelf_py=fixed + WIDEST, tests__test_widest_py=WIDE_TESTS, CHANGES_md=NOTES + MORE + TOLD)
    made.commit("Nicer words", CHANGES_md=NOTES + MORE + TOLD + "Bye.\n")
    tidy = (fixed + WIDEST).replace("    count = 0\n", "    count = int()\n")
    made.commit("Tidy up", shelf_py=tidy, tests__test_total_py=TOTALS + "\n")
    broken = tidy.replace("rows and rows[0]", "rows")
    made.commit("Simplify", shelf_py=broken)
    made.commit("Fix it", shelf_py=tidy, tests__test_first_py=TESTS + "\n\ndef test_none():\n    assert first([[]]) is None\n")
    return {"folder": made.folder, "start": start, "fix": fix, "diff": made.git("diff", start, fix) + "\n"}


def task_of(doorway: Any, environment_id: str) -> taskdir.Task:
    return taskdir.read(doorway.settings.home / doorway.store.environment(environment_id).path)


@pytest.mark.network
@pytest.mark.usefixtures("index_reachable")
def test_a_history_gives_environments(doorway: Any, history: dict[str, Any]) -> None:
    made = tasks.generate({"source": f"git:{history['folder']}", "kind": "commit", "n": 9, "gates": "controls"}, doorway)
    assert made["reasons"] == {"thin": 1, "no-tests": 2, "survived": 1, "root": 1} and len(made["admitted"]) == 2, made
    widest, total = (task_of(doorway, each) for each in made["admitted"])
    assert "`shelf.widest(rows, least=1)`" in widest.instruction and "do not count" in widest.instruction
    assert "def widest" not in widest.files["environment/work/shelf.py"].decode() and "#9" not in widest.instruction
    assert total.spec.labels["commit"] == history["fix"] and "rows[:-1]" in total.files["environment/work/shelf.py"].decode()
    assert "counts the last row" in total.instruction and "`total([[1], [2, 3]])` gives `1`; expected `3`." in total.instruction
    assert not any(secret in total.instruction for secret in ("#7", "somebody", "shelf.py", "test_total", "2025"))
    assert not any("test" in name or ".git" in name for name in total.under("environment/work"))
    assert total.source.kind == "git" and total.source.meta["as_of"].startswith("2025-06-01")


@pytest.mark.network
@pytest.mark.usefixtures("index_reachable")
def test_an_issue_with_its_fix_gives_an_environment(doorway: Any, history: dict[str, Any], tmp_path: Path) -> None:
    text = "I put `[[1], [2, 3]]` into total and got 1, but three things lie in these rows. Is the last row left out?\n\nSee #3"
    record: dict[str, Any] = {
        "repository": "some/shelf",
        "clone_url": str(history["folder"]),
        "issue": {"number": 7, "title": "total is too small", "body": text},
        "pull_request": {"number": 8, "base": {"sha": history["start"]}, "created_at": "2025-05-30T00:00:00Z"},
        "diff": history["diff"],
    }
    path = tmp_path / "issues.json"
    other = record | {"issue": {"number": 9, "title": text}, "diff": history["diff"].replace("rows[:-1]", "x")}
    path.write_text(json.dumps([record, other]))
    payload = {"source": f"issue:{path}", "kind": "issue", "n": 2, "gates": "controls"}
    made = tasks.generate(payload, doorway)
    assert len(made["admitted"]) == 1 and made["reasons"] == {"patch-fails": 1}, made
    task = task_of(doorway, made["admitted"][0])
    assert "> total is too small" in task.instruction and "#3" not in task.instruction and "#7" not in task.instruction
    assert task.spec.labels["issue"] == "7" and task.source.kind == "issue"
    again = tasks.verify({"environments": made["admitted"], "gates": "controls"}, doorway)
    assert again["statuses"] == {made["admitted"][0]: "verified"}


def test_notes_are_told_and_references_are_not() -> None:
    assert is_note("CHANGES.rst") and is_note("docs/news/latest.md") and is_note("HISTORY") and not is_note("src/changes.py")
    said = added({"CHANGES.md": b"Old\n"}, {"CHANGES.md": b"New\nOld\n", "docs/use.rst": b"How to use it\n", "a.py": b"x = 1\n"})
    assert said == "New\nHow to use it"
    text = cleaned(
        "2.0 (2024-01-01)\n====\n- Keep `a` in order, by @me and more (:issue:`12`, #13).\n"
        "- See https://github.com/x/y/pull/4 for 0123abc4.\n"
        "- test_that runs in tests/test_x.py\nSigned-off-by: A <a@b.c>\nFixes #3\n"
    )
    assert "Keep `a` in order" in text
    assert not any(w in text for w in ("#", "@", "12", "0123abc4", "test_", "Signed", "pull", "2024", "====")), text
    assert useful("a-b 1!") == "ab1"
