"""Import and export through the doors: unproven until the gates ran here, proved then, and the same on the way back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from env_factory import exchange, tasks
from env_factory.formats import harbor
from env_factory.source_kinds.tree import Tree, write_folder
from env_factory.synth import shell
from gymsmith import difference, taskdir
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, Conflict, NotFound, PolicyRefused, SourceError
from gymsmith.schema import Status
from gymsmith.store import Store
from gymsmith.taskdir import Task
from tests.env_factory.conftest import Doorway
from tests.env_factory.foreign_tasks import ROW, bench, needs_swebench, theirs


def sum_task(**change: str) -> Tree:
    """A Harbor task as others write it, that can be done here."""
    files = {
        "instruction.md": "Write 42 to sum.txt.\n",
        "environment/Dockerfile": "FROM gymsmith/host\nWORKDIR /srv/app\n",
        "tests/test.sh": "#!/bin/bash\necho 0 > /logs/verifier/reward.txt\n"
        '[ "$(cat sum.txt 2>/dev/null)" = 42 ] && echo 1 > /logs/verifier/reward.txt\nexit 7\n',
        "solution/solve.sh": "#!/bin/bash\necho 42 > sum.txt\n",
        "task.toml": 'schema_version = "1.4"\n[task]\nname = "acme/sum"\n[environment]\nmemory_mb = 256\n',
    } | change
    return Tree({path: text.encode() for path, text in files.items() if text})


def test_what_comes_in_is_unproven_and_one_bad_task_keeps_nobody_out(elsewhere: Doorway, tmp_path: Path) -> None:
    draft = shell.draft(shell.make("find", 1, 3, "train"))
    trees = {
        "ours": harbor.export(Task.of(draft)),
        "sum": theirs(),
        "gpu": sum_task(**{"task.toml": "[environment]\ngpus = 1\n"}),
    }
    trees["unsolved"] = sum_task(**{"solution/solve.sh": ""})
    write_folder(
        Tree({f"{name}/{path}": data for name, tree in trees.items() for path, data in tree.files.items()}), tmp_path / "set"
    )
    result = exchange.bring_in({"path": str(tmp_path / "set")}, elsewhere)
    assert sorted(result["imported"]) == ["ours", "sum", "unsolved"] and result["known"] == []
    assert result["imported"]["ours"] == draft.id
    assert list(result["refused"]) == ["gpu"] and result["refused"]["gpu"].startswith("bad-source: ")
    for name, env_id in result["imported"].items():
        environment = elsewhere.store.environment(env_id)
        assert (environment.status, environment.image_id) == (Status.UNPROVEN, "")
        assert environment.reason == ("no-oracle" if name == "unsolved" else "imported")
        assert elsewhere.store.evidence(env_id) is None
        assert taskdir.read(elsewhere.settings.home / environment.path).id == env_id
    # What was earned here since is not taken back by a second import of the same.
    earned = elsewhere.store.environment(draft.id).model_copy(update={"status": Status.VERIFIED, "reason": ""})
    elsewhere.store.put_environment(earned, None)
    again = exchange.bring_in({"path": str(tmp_path / "set")}, elsewhere)
    assert sorted(again["known"]) == sorted(result["imported"].values())
    assert elsewhere.store.environment(draft.id).status == Status.VERIFIED


def test_a_word_for_itself_is_believed_by_nobody(elsewhere: Doorway, tmp_path: Path) -> None:
    """A line that says it was verified, with evidence, comes in as unproven."""
    draft = shell.draft(shell.make("count", 1, 3, "train"))
    from env_factory.formats import json_lines

    row = json_lines.dump(Task.of(draft)) | {"status": "verified", "evidence": {"gates": [{"name": "oracle", "passed": True}]}}
    (tmp_path / "tasks.jsonl").write_text(json_lines.line(row))
    result = exchange.bring_in({"path": str(tmp_path / "tasks.jsonl")}, elsewhere)
    (env_id,) = result["imported"].values()
    assert elsewhere.store.environment(env_id).status == Status.UNPROVEN and elsewhere.store.evidence(env_id) is None


def test_nothing_is_written_when_nothing_can_be_read(elsewhere: Doorway, tmp_path: Path) -> None:
    write_folder(sum_task(**{"task.toml": "steps = [{}]\n"}), tmp_path / "bad")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("task.toml", b"\0" * (130 << 20))
    with zipfile.ZipFile(tmp_path / "climbs.zip", "w") as packed:
        packed.writestr("../../task.toml", b"")
    for path, error, said in (
        ("bad", SourceError, "several steps"),
        ("none", NotFound, "there is nothing"),
        ("bomb.zip", PolicyRefused, "unpacks to"),
        ("climbs.zip", PolicyRefused, "would leave"),
    ):
        with pytest.raises(error, match=said):
            exchange.bring_in({"path": str(tmp_path / path)}, elsewhere)
    with pytest.raises(ConfigError, match="format"):
        exchange.bring_in({"path": "x", "format": "zip"}, elsewhere)
    assert elsewhere.store.environment_ids(status=None) == [] and not elsewhere.settings.tasks_dir.exists()


def test_an_export_is_whole_or_absent_and_never_writes_over(elsewhere: Doorway, tmp_path: Path) -> None:
    drafts = [shell.draft(shell.make(family, 1, 5, "train")) for family in ("find", "chain")]
    for draft in drafts:
        exchange.keep(draft, elsewhere)
    ids = [draft.id for draft in drafts]
    for form, target in (("harbor", tmp_path / "folders"), ("jsonl", tmp_path / "tasks.jsonl")):
        order = {"environments": ids, "path": str(target), "format": form}
        assert exchange.send_out(order, elsewhere)["exported"] == ids
        with pytest.raises(Conflict, match="exists"):
            exchange.send_out(order, elsewhere)
        settings = Settings.load(home=tmp_path / f"other-{form}")
        with Store.open(settings) as store:
            back = exchange.bring_in({"path": str(target)}, Doorway(settings, store))
            assert sorted(back["imported"].values()) == sorted(ids)
            for draft in drafts:
                assert taskdir.read(taskdir.folder_of(settings.tasks_dir, draft.id)) == Task.of(draft)
    with pytest.raises(NotFound):
        exchange.send_out({"environments": ["f" * 32], "path": str(tmp_path / "x"), "format": "jsonl"}, elsewhere)
    assert not (tmp_path / "x").exists()


def test_a_difference_names_what_differs(elsewhere: Doorway) -> None:
    drafts = [shell.draft(shell.make("find", 1, seed, "train")) for seed in (5, 6)]
    for draft in drafts:
        exchange.keep(draft, elsewhere)
    a, b = (elsewhere.store.environment(draft.id) for draft in drafts)
    home = elsewhere.settings.home
    assert difference.of(home, a, a, None, None).same
    found = difference.of(home, a, b, None, None)
    assert found.settings["spec.labels.seed"] == ("5", "6") and "spec.kind" not in found.settings
    assert "instruction.md" in found.changed and "--- a/instruction.md" in found.text()
    assert json.loads(json.dumps(found.document()))["same"] is False
    known = difference.of(home, a, a.model_copy(update={"status": Status.VERIFIED}), None, None)
    assert known.verdict == {"status": ("unproven", "verified")}


# ---------------------------------------------------------------- with sandboxes


def verdicts(doorway: Any, ids: list[str]) -> dict[str, tuple[str, str]]:
    result = tasks.verify({"environments": ids, "gates": "controls"}, doorway)
    return {env_id: (result["statuses"][env_id], result["reasons"][env_id]) for env_id in ids}


def test_the_gates_move_an_imported_task_and_only_they(doorway: Any, tmp_path: Path) -> None:
    """Harbor and terminal-bench tasks as others write them: verified, rejected for what is wrong with them, or still unproven."""
    said = "=== short test summary info ===\\nPASSED t.py::a\\n{}=== 1 passed ===\\n"
    judge = "#!/bin/bash\nif [ \"$(cat sum.txt 2>/dev/null)\" = 42 ]; then printf '{}'; else echo FAILED; fi\n"
    trees = {
        "good": sum_task(),
        "always": sum_task(**{"tests/test.sh": "#!/bin/bash\necho 1 > /logs/verifier/reward.txt\n"}),
        "wrong": sum_task(**{"solution/solve.sh": "#!/bin/bash\necho 41 > sum.txt\n"}),
        "unsolved": sum_task(**{"solution/solve.sh": ""}),
        "unbuilt": sum_task(**{"environment/Dockerfile": "FROM nobody/has:this\n"}),
    }
    for name, tree in trees.items():
        write_folder(tree, tmp_path / "harbor" / name)
    for name, more in (("tb-good", ""), ("tb-skips", "SKIPPED [1] t.py:3: no\\n")):
        write_folder(bench(**{"run-tests.sh": judge.format(said.format(more))}), tmp_path / "tb" / name)
    ids = exchange.bring_in({"path": str(tmp_path / "harbor")}, doorway)["imported"]
    ids |= exchange.bring_in({"path": str(tmp_path / "tb"), "format": "terminal-bench"}, doorway)["imported"]
    found = verdicts(doorway, list(ids.values()))
    assert {name: found[env_id] for name, env_id in ids.items()} == {
        "good": ("verified", ""),
        "always": ("rejected", "noop-passes"),
        "wrong": ("rejected", "oracle-fails"),
        "unsolved": ("unproven", "no-oracle"),
        "unbuilt": ("unproven", "refused"),
        "tb-good": ("verified", ""),
        "tb-skips": ("rejected", "oracle-fails"),
    }
    evidence = doorway.store.evidence(ids["good"])
    assert evidence is not None and evidence.proved


def test_a_row_is_imported_proved_and_given_back(doorway: Any, tmp_path: Path) -> None:
    """A SWE-bench row whose image is here: its tests are told from its own log, the gold diff is the oracle."""
    told = ["PASSED t.py::a", "PASSED t.py::b"]
    script = (
        "#!/bin/bash\ncd /testbed\n: '>>>>> Start Test Output'\necho '>>>>> Start Test Output'\n"
        "echo '=== short test summary info ==='\n"
        f"if grep -q y f.py; then printf '{told[0]}\\n{told[1]}\\n'; else printf 'FAILED t.py::a - x\\n{told[1]}\\n'; fi\n"
        "echo '=== 2 passed ==='\n: '>>>>> End Test Output'\necho '>>>>> End Test Output'\n"
    )
    images = doorway.worker.run(doorway.worker.images())
    built = doorway.worker.run(images.build("FROM gymsmith/host\nWORKDIR /testbed\nCOPY f.py /testbed/f.py\n", {"f.py": b"x\n"}))
    images.tag(built, "ours/tiny:1")
    row = ROW | {"eval_script": script, "PASS_TO_PASS": '["t.py::b"]'}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    (env_id,) = exchange.bring_in({"path": str(tmp_path / "rows.json")}, doorway)["imported"].values()
    assert verdicts(doorway, [env_id]) == {env_id: ("verified", "")}
    order = {"environments": [env_id], "path": str(tmp_path / "back.jsonl"), "format": "swebench"}
    assert exchange.send_out(order, doorway)["exported"] == [env_id]
    assert json.loads((tmp_path / "back.jsonl").read_text()) == row


def test_an_exported_swe_environment_is_graded_by_swebench_itself(doorway: Any, tmp_path: Path) -> None:
    """As a task repository: swebench's own check, reader and grader; gold resolves, empty does not."""
    needs_swebench()
    from swebench.task import checks
    from swebench.task.repo import load_task

    from sandboxes import swebench_rows
    from tests.sandboxes.test_swebench import draft as faulty

    made = faulty()
    exchange.keep(made, doorway)
    order = {"environments": [made.id], "path": str(tmp_path / "repository"), "format": "task-repository"}
    assert exchange.send_out(order, doorway) == {
        "path": str(tmp_path / "repository"), "format": "task-repository", "exported": [made.id], "left_out": {}
    }  # fmt: skip
    assert checks.check_task_repo(tmp_path / "repository") == []
    (folder,) = (tmp_path / "repository/tasks").iterdir()
    row = load_task(folder)
    dockerfile = (folder / "Dockerfile").read_text()
    assert "\nFROM python:" in dockerfile and (folder / "work/src/numbers_of_ours/core.py").is_file()
    grader, worker = swebench_rows._swebench(), doorway.worker
    place = swebench_rows._place_of(worker.run(worker.ready(doorway.store, made.id)))
    resolved = {}
    for name, diff in (("gold", row["patch"]), ("empty", "")):
        log = worker.run(swebench_rows.run_row(worker, place, grader.script(row), diff))
        resolved[name] = grader.grade(row, diff, name, log, tmp_path / name)["resolved"]
    assert resolved == {"gold": True, "empty": False}
    # Rows alone do not hold the environment: a second installation is told so, and what to do.
    with pytest.raises(SourceError, match="export that one as jsonl or harbor"):
        exchange.bring_in({"path": str(tmp_path / "repository")}, doorway)


def test_what_is_no_suite_is_left_out_with_the_reason(doorway: Any, tmp_path: Path) -> None:
    draft = shell.draft(shell.make("find", 1, 9, "train"))
    exchange.keep(draft, doorway)
    with pytest.raises(SourceError, match="not a pytest suite"):
        exchange.send_out({"environments": [draft.id], "path": str(tmp_path / "rows.jsonl"), "format": "swebench"}, doorway)
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_data_set_may_be_larger_than_what_is_read_at_once(
    elsewhere: Doorway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits are for one task: a folder of many tasks, and a file of many lines, are read one task at a time."""
    drafts = [shell.draft(shell.make("find", 1, seed, "train")) for seed in range(12)]
    for draft in drafts:
        exchange.keep(draft, elsewhere)
    monkeypatch.setattr("env_factory.source_kinds.tree.MAX_FILES", 3 * len(drafts[0].files))
    for form, target in (("harbor", tmp_path / "folders"), ("jsonl", tmp_path / "tasks.jsonl")):
        exchange.send_out({"environments": [d.id for d in drafts], "path": str(target), "format": form}, elsewhere)
        settings = Settings.load(home=tmp_path / f"other-{form}")
        with Store.open(settings) as store:
            result = exchange.bring_in({"path": str(target)}, Doorway(settings, store))
        assert sorted(result["imported"].values()) == sorted(d.id for d in drafts) and not result["refused"]
    (tmp_path / "tasks.jsonl").write_text("torn\n" + (tmp_path / "tasks.jsonl").read_text())
    with Store.open(Settings.load(home=tmp_path / "torn")) as store:
        order = {"path": str(tmp_path / "tasks.jsonl"), "format": "jsonl"}
        result = exchange.bring_in(order, Doorway(store.settings, store))
    assert len(result["imported"]) == 12 and list(result["refused"]) == ["task (1)"]
