"""The task folder: what is written is read back equal, under Harbor's keys, and nothing leaves the folder."""

from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from gymsmith import taskdir
from gymsmith.errors import NotFound, PolicyRefused, SourceError
from gymsmith.schema import Draft, Source, TaskSpec, ToolSpec


def make_draft(**changes: object) -> Draft:
    draft = Draft(
        source=Source(uri="shell:count", kind="parametric", licence="Apache-2.0", meta={"words": "train"}),
        spec=TaskSpec(
            name="gymsmith/count-1",
            kind="shell",
            description='quotes " and \\ and a\nnew line',
            keywords=("shell", "count"),
            labels={"family": "count", "level": "1"},
            tool=ToolSpec(name="simple_command", allow=("ls", "cat"), redirect=("echo",), timeout_s=2.5),
            agent_timeout_s=61.5,
            verifier_mode="shared",
            expected=("a", "b::[x]"),
            hidden=("417",),
            protected=("**/conftest.py",),
            cpus=0.5,
        ),
        instruction="Count the lines.\r\n\nÜmlaut; trailing space \n",
        files={
            "environment/Dockerfile": b"FROM gymsmith/host\nCOPY files /work\n",
            "environment/files/a/b.txt": bytes(range(256)),
            "environment/files/empty": b"",
            "tests/test.sh": b"#!/bin/sh\necho PASS a\n",
            "solution/solve.sh": b"echo 3 > answer\n",
        },
        alternatives=tuple(f"echo {n}\n" for n in range(12)),
        cheats=(("touch-all", "touch *\n"), ("answer-0", "echo 0\n")),
        executable=frozenset({"tests/test.sh"}),
    )
    return replace(draft, **changes)  # type: ignore[arg-type]


def test_round_trip_is_equal_and_keeps_the_id(tmp_path: Path) -> None:
    draft = make_draft()
    written = taskdir.write(draft, tmp_path / "one")
    got = taskdir.read(tmp_path / "one")
    assert got == written == taskdir.Task.of(draft)
    assert got.id == draft.id
    assert got.alternatives == draft.alternatives and dict(got.cheats) == dict(draft.cheats)
    assert os.access(tmp_path / "one/tests/test.sh", os.X_OK) and not os.access(tmp_path / "one/solution/solve.sh", os.X_OK)
    assert got.under("tests") == {"test.sh": b"#!/bin/sh\necho PASS a\n"}


def test_harbor_reads_its_own_keys(tmp_path: Path) -> None:
    taskdir.write(make_draft(), tmp_path / "one")
    document = tomllib.loads((tmp_path / "one/task.toml").read_text())
    assert document["schema_version"] == "1.4"
    assert document["task"]["name"] == "gymsmith/count-1"
    assert document["agent"]["timeout_sec"] == 61.5
    assert document["verifier"]["environment_mode"] == "shared"
    assert document["environment"]["network_mode"] == "no-network"
    assert document["artifacts"] == ["/work"]
    assert "name" not in document["metadata"]["gymsmith"]["spec"], "a field stands in one place only"


def test_a_changed_harbor_key_is_what_is_read(tmp_path: Path) -> None:
    taskdir.write(make_draft(), tmp_path / "one")
    toml = tmp_path / "one/task.toml"
    toml.write_text(toml.read_text().replace("timeout_sec = 61.5", "timeout_sec = 7"))
    assert taskdir.read(tmp_path / "one").spec.agent_timeout_s == 7


@pytest.mark.parametrize(
    "name",
    ["../x", "environment/../../x", "/etc/passwd", "environment//x", "other/x", "tests", "environment/a\\..\\b", "tests/."],
)
def test_a_member_that_escapes_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyRefused):
        taskdir.write(make_draft(files={**make_draft().files, name: b"x"}), tmp_path / "sub/one")
    assert not list(tmp_path.rglob("*.toml")) and not list(tmp_path.rglob("x"))


def test_links_in_a_folder_are_refused(tmp_path: Path) -> None:
    taskdir.write(make_draft(), tmp_path / "one")
    (tmp_path / "one/tests/secret").symlink_to("/etc/passwd")
    with pytest.raises(PolicyRefused, match="plain file"):
        taskdir.read(tmp_path / "one")
    (tmp_path / "one/tests/secret").unlink()
    (tmp_path / "one/solution").rename(tmp_path / "elsewhere")
    (tmp_path / "one/solution").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PolicyRefused, match="symbolic link"):
        taskdir.read(tmp_path / "one")


def test_rewriting_keeps_an_equal_folder_and_replaces_another(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    taskdir.write(make_draft(), folder)
    inode = folder.stat().st_ino
    taskdir.write(make_draft(), folder)
    assert folder.stat().st_ino == inode
    taskdir.write(make_draft(alternatives=()), folder)
    assert taskdir.read(folder).alternatives == ()
    (folder / "task.toml").unlink()
    taskdir.write(make_draft(), folder)
    assert taskdir.read(folder).id == make_draft().id
    assert [p.name for p in tmp_path.iterdir()] == ["one"], "no scratch folder is left behind"


def test_a_missing_or_foreign_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is missing"):
        taskdir.read(tmp_path / "none")
    taskdir.write(make_draft(), tmp_path / "one")
    toml = tmp_path / "one/task.toml"
    toml.write_text('schema_version = "1.4"\n[task]\nname = "a/b"\n')
    with pytest.raises(SourceError, match="metadata"):
        taskdir.read(tmp_path / "one")


def test_a_draft_without_tests_is_refused(tmp_path: Path) -> None:
    files = {k: v for k, v in make_draft().files.items() if k != "tests/test.sh"}
    with pytest.raises(SourceError, match="expected tests"):
        taskdir.write(make_draft(files=files), tmp_path / "one")
