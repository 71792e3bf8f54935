"""Task formats: what goes out comes back the same, what is malformed or cannot be had here is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from env_factory.formats import detected, harbor, json_lines, portable, swe_rows, task_repository, terminal_bench
from env_factory.source_kinds.tree import Tree, read_folder, write_folder
from env_factory.synth import shell
from env_factory.templates.shell.families import FAMILIES
from gymsmith.errors import Conflict, PolicyRefused, SourceError
from gymsmith.schema import Draft, Source, TaskSpec
from gymsmith.taskdir import Task
from tests.env_factory.foreign_tasks import ROW, bench, needs_swebench, theirs

BASE = "python@sha256:" + "a" * 64


def ours() -> Draft:
    """A task with everything that a draft can have: odd bytes, modes, other solutions, cheats, wheels in its Dockerfile."""
    files = {
        "environment/Dockerfile": b"FROM gymsmith/host\nCOPY site /opt/site\n"
        b"RUN python3 /wheelhouse/pip-26.3-py3-none-any.whl/pip install --quiet "
        b"--no-index --find-links /wheelhouse --no-cache-dir --root-user-action ignore "
        b"--upgrade --target /opt/site pytest==9.2.0\n"
        b"RUN echo '# no block' && true\n",
        "environment/site/blob": bytes(range(256)),
        "environment/site/caf\u00e9 \u2028": b"\r\nno newline",
        "tests/test.sh": b"#!/bin/sh\necho PASS a\n",
        "solution/solve.sh": b"#!/bin/sh\ntrue\n",
    }
    spec = TaskSpec(name="gymsmith/odd-1", kind="mutation", expected=("a",), labels={"f2p": "1"}, cpus=0.5)
    source = Source(uri="git:/x#" + "1" * 40, kind="git", digest="d", licence="MIT", commit="1" * 40, meta={"name": "x"})
    return Draft(
        source,
        spec,
        "Do \u2028 it.\n",
        files,
        ("#!/bin/sh\n:\n",),
        (("b", "x"), ("a", "y")),
        frozenset({"environment/site/blob"}),
    )


def drafts() -> list[Draft]:
    return [ours(), *(shell.draft(shell.make(family, 1, 7, "train")) for family in sorted(FAMILIES))]


@pytest.mark.parametrize("draft", drafts(), ids=lambda draft: draft.spec.name)
def test_what_is_exported_comes_back_the_same(draft: Draft, tmp_path: Path) -> None:
    task = Task.of(draft)
    write_folder(harbor.export(task, BASE), tmp_path / "task")
    row = json_lines.line(json_lines.dump(task))
    assert row.count("\n") == 1
    (tmp_path / "tasks.jsonl").write_text(row)
    for place, form in ((tmp_path / "task", "harbor"), (tmp_path / "tasks.jsonl", "jsonl")):
        found_form, found = detected.find(str(place))
        (back,) = [each.read() for each in found]
        assert found_form == form and Task.of(back) == task and back.id == draft.id


def test_an_exported_dockerfile_is_anybodys_and_still_tells_what_it_was() -> None:
    out = portable.portable(ours().files["environment/Dockerfile"].decode(), BASE)
    plain = "\n".join(line for line in out.splitlines() if not line.startswith("#"))
    assert plain.startswith(f"FROM {BASE}\n") and "/wheelhouse" not in plain and "gymsmith" not in plain
    assert "pip install --quiet --no-cache-dir --root-user-action=ignore --target /opt/site pytest==9.2.0" in plain
    assert portable.restored(out).encode() == ours().files["environment/Dockerfile"]
    with pytest.raises(SourceError, match="pip install alone"):
        portable.portable("FROM gymsmith/host\nCOPY --from=x /wheelhouse /w\n")
    with pytest.raises(SourceError, match="name of an image"):
        portable.portable("FROM gymsmith/host\n", "x\nRUN evil")


def test_exported_folders_keep_harbors_rules() -> None:
    """The rules of `harbor lint` (0.25) that are about what we write; the test below runs the linter itself where it is."""
    for draft in drafts():
        tree = harbor.export(Task.of(draft), BASE)
        document = tomllib.loads(tree.files["task.toml"].decode())
        known = {"schema_version", "task", "metadata", "agent", "verifier", "environment", "artifacts"}
        assert set(document) == known, "unknown-config-field"
        assert document["schema_version"] == "1.4" and document["task"]["name"].count("/") == 1
        assert document["agent"]["user"] not in ("root", 0), "root-agent"
        assert document["verifier"]["environment_mode"] == "separate", "shared-verifier"
        assert not any(place.startswith("/logs") or place == "/" for place in document["artifacts"]), "artifact-log-overlap"
        assert len(set(document["artifacts"])) == len(document["artifacts"]), "overlapping-artifacts"
        dockerfile = tree.files["environment/Dockerfile"].decode()
        froms = [line.split()[1] for line in dockerfile.splitlines() if line.startswith("FROM ")]
        assert all("@sha256:" in image for image in froms), "unpinned-image"
        copied = [line for line in dockerfile.splitlines() if line.startswith(("COPY", "ADD"))]
        assert not any("tests/" in line or "solution/" in line for line in copied), "agent-image-test-leak"
        assert not set(tree.folders()) - {"environment", "tests", "solution"} and not tree.links, "invalid-task-files"


def test_harbors_own_linter_finds_nothing(tmp_path: Path) -> None:
    python = os.environ.get("GYMSMITH_HARBOR_PYTHON", sys.executable)
    has = subprocess.run([python, "-c", "import harbor.lint.task"], capture_output=True)
    if has.returncode:
        pytest.skip("harbor needs Python 3.12 and an environment of its own; name its python in GYMSMITH_HARBOR_PYTHON")
    folders = []
    for number, draft in enumerate(drafts()):
        folders.append(tmp_path / str(number))
        write_folder(harbor.export(Task.of(draft), BASE), folders[-1])
    program = (
        "import sys; from pathlib import Path; from harbor.lint.task import lint_task\n"
        "found = [f'{f.rule} {f.path}: {f.message}' for p in sys.argv[1:] for f in lint_task(Path(p))]\n"
        "print('\\n'.join(found)); sys.exit(bool(found))"
    )
    done = subprocess.run([python, "-c", program, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (folders[0] / "environment/Dockerfile").write_text("FROM debian\nRUN pip install six\n")
    bites = subprocess.run([python, "-c", program, str(folders[0])], capture_output=True, text=True)
    assert "unpinned-python-dependency" in bites.stdout and "unpinned-image" in bites.stdout, "control arm"


# ---------------------------------------------------------------- harbor, as others write it


def test_a_foreign_harbor_task_becomes_a_draft() -> None:
    draft = harbor.of_tree(theirs(), "/data/sum", "sum")
    spec = draft.spec
    assert draft.instruction == "Write 42 to sum.txt.\n", "marks against training are not for the agent"
    assert (spec.name, spec.kind, spec.difficulty, spec.keywords) == ("acme/sum", "harbor", "easy", ("k", "t"))
    assert (spec.agent_timeout_s, spec.verifier_timeout_s, spec.memory_mb, spec.cpus) == (120.0, 30.0, 1024, 2.0)
    assert (spec.workdir, spec.artifacts, spec.verifier_mode, spec.report) == ("/srv/app", ("/srv/app",), "shared", "reward")
    assert spec.network == "no-network" and spec.labels["wanted_network"] == "public"
    assert (draft.source.kind, draft.source.licence, draft.source.meta["authors"]) == ("harbor", "Unlicense", "A. Person")
    assert 'ENV GREETING="say \\"hi\\""' in draft.files["environment/Dockerfile"].decode()
    assert draft.files["tests/test.sh"].startswith(b"#!/bin/bash\nexport MODE='strict '\"'\"'one'\"'\"''\n")
    assert draft.files["solution/solve.sh"] == b"#!/bin/bash\nexport ANSWER=42\necho $ANSWER > sum.txt\n"
    assert "README.md" not in draft.files and "tests/test.sh" in draft.executable


def at(path: str, value: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """Sets document[a][b] = value."""

    def change(document: dict[str, Any], files: dict[str, bytes]) -> None:
        *tables, key = path.split(".")
        for name in tables:
            document = document.setdefault(name, {})
        document[key] = value

    return change


def put(path: str, data: bytes | None) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(document: dict[str, Any], files: dict[str, bytes]) -> None:
        files.pop(path, None)
        if data is not None:
            files[path] = data

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at("steps", [{"name": "one"}]), "several steps"),
        (at("environment.gpus", 1), "accelerators"),
        (at("environment.mcp_servers", [{"name": "x"}]), "tool servers"),
        (at("environment.os", "windows"), "os linux, got 'windows'"),
        (at("environment.memory", "lots"), "such as 2G, got 'lots'"),
        (at("environment.env", {"KEY": "${OPENAI_API_KEY}"}), "KEY"),
        (at("environment", {"network_mode": "allowlist", "allowed_hosts": ["10.0.0.0/8"]}), "10.0.0.0/8"),
        (at("environment.docker_image", "x\nRUN evil"), "name an image"),
        (at("verifier.environment", {"cpus": 1}), "image of its own"),
        (at("verifier.timeout_sec", -1), "got -1"),
        (at("artifacts", ["../x"]), "absolute path, got '../x'"),
        (at("artifacts", [{"source": "/db", "service": "db"}]), "service 'db'"),
        (put("environment/docker-compose.yaml", b"services: {}"), "several services"),
        (put("tests/Dockerfile", b"FROM x"), "image of its own"),
        (put("tests/test.sh", None), "expected tests/test.sh"),
        (put("environment/Dockerfile", None), "expected environment/Dockerfile"),
        (put("instruction.md", b"<!-- canary -->\n"), "got 0"),
        (put("instruction.md", b"\xff\xfe"), "UTF-8"),
        (put("task.toml", b"x = "), "not TOML"),
        (put("task.toml", b"[metadata.gymsmith]\nspec = 1\n"), "lacks|expected a task"),
    ],
)
def test_what_harbor_may_ask_for_and_is_not_to_be_had_is_named(
    change: Callable[[dict[str, Any], dict[str, bytes]], None], said: str
) -> None:
    tree = theirs(change)
    with pytest.raises(SourceError, match=said) as caught:
        harbor.of_tree(tree, "/data/sum", "sum")
    assert str(caught.value).startswith("/data/sum")


def test_links_special_files_and_taken_places_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    write_folder(theirs(), folder)
    with pytest.raises(Conflict, match="exists"):
        write_folder(theirs(), folder)
    (folder / "tests/link").symlink_to("/etc/passwd")
    with pytest.raises(PolicyRefused, match="symbolic link to '/etc/passwd'"):
        harbor.of_tree(read_folder(folder), "x", "x")
    (folder / "tests/link").unlink()
    os.mkfifo(folder / "tests/pipe")
    with pytest.raises(PolicyRefused, match="special file"):
        read_folder(folder)
    with pytest.raises(PolicyRefused, match="plain relative paths"):
        write_folder(Tree({"../out": b""}), tmp_path / "other")
    assert not (tmp_path / "out").exists() and not (tmp_path / "other").exists()


# ---------------------------------------------------------------- terminal-bench


def test_a_terminal_bench_task_becomes_a_draft() -> None:
    draft = terminal_bench.of_tree(bench(), "/tb/sum", "sum")
    assert (draft.spec.name, draft.spec.kind, draft.spec.difficulty) == ("imported/sum", "terminal-bench", "medium")
    assert (draft.spec.agent_timeout_s, draft.spec.verifier_timeout_s, draft.spec.workdir) == (100.0, 60.0, "/app")
    dockerfile = draft.files["environment/Dockerfile"].decode()
    assert 'ENV COLOR="blue"' in dockerfile and "T_BENCH" not in dockerfile
    assert draft.files["environment/data/in.txt"] == b"x"
    shown = [name for name in draft.files if name.startswith("environment/")]
    assert not any("tests" in name or "solution" in name for name in shown), "the agent's image must not hold what is hidden"
    keys = "- command: |-\n    echo 42 > sum.txt\n  min_timeout_sec: 1\n"
    solved = terminal_bench.of_tree(bench(**{"solution.sh": None, "solution.yaml": keys}), "x", "x")  # type: ignore[arg-type]
    assert solved.files["solution/solve.sh"] == b"#!/bin/bash\necho 42 > sum.txt\n"
    pressed = keys + "- command: q\n  append_enter: false\n"
    unsolved = terminal_bench.of_tree(bench(**{"solution.sh": None, "solution.yaml": pressed}), "x", "x")  # type: ignore[arg-type]
    assert "solution/solve.sh" not in unsolved.files


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("=== short test summary info ===\nPASSED t.py::a\nPASSED t.py::b\n=== 2 passed in 0.1s ===\n", "1"),
        ("=== short test summary info ===\nPASSED t.py::a\nFAILED t.py::b - x\n=== 1 failed, 1 passed ===\n", "0"),
        ("=== short test summary info ===\nPASSED t.py::a\nSKIPPED [1] t.py:3: no\n=== 1 passed, 1 skipped ===\n", "0"),
        ("=== short test summary info ===\nPASSED t.py::a\nXFAIL t.py::b\n=== 1 passed, 1 xfailed ===\n", "0"),
        ("=== short test summary info ===\nPASSED t.py::a\nXPASS t.py::b\n=== 1 passed, 1 xpassed ===\n", "0"),
        ("=== short test summary info ===\nSKIPPED [2] t.py:3: no\n=== 2 skipped ===\n", "0"),
        ("=== short test summary info ===\nPASSED a\n=== x ===\n=== short test summary info ===\nERROR t.py\n=== x ===\n", "0"),
        ("PASSED t.py::a\n", "0"),
        ("", "0"),
    ],
)  # fmt: skip
def test_skipped_and_expected_failures_are_no_passes(said: str, reward: str, tmp_path: Path) -> None:
    """terminal-bench's own parser gives 1 for the third, fourth and sixth of these."""
    script = terminal_bench.JUDGE.replace("/tests/run-tests.sh", str(tmp_path / "run")).replace("/logs", str(tmp_path / "logs"))
    (tmp_path / "run").write_text(f"cat {tmp_path}/said; exit 3")
    (tmp_path / "said").write_text(said)
    subprocess.run(["bash", "-c", script], check=True, capture_output=True)
    assert (tmp_path / "logs/verifier/reward.txt").read_text().strip() == reward


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"docker-compose.yaml": "services: {client: {build: .}, db: {image: x}}"}, "one service, got client, db"),
        ({"docker-compose.yaml": "services: {client: {build: ., privileged: true}}"}, "privileged"),
        ({"docker-compose.yaml": "services: {client: {build: ., volumes: ['/:/host']}}"}, "volumes of the logs"),
        ({"docker-compose.yaml": "services: {client: {build: ../..}}"}, "context below the task"),
        ({"docker-compose.yaml": "services: {client: {build: {context: ., args: {A: b}}}}"}, "args"),
        ({"docker-compose.yaml": "a: &a [x, x]\nb: [*a, *a]"}, "without aliases"),
        ({"task.yaml": "instruction: x\nparser_name: swebench"}, "parser_name pytest, got 'swebench'"),
        ({"task.yaml": "instruction: x\nrun_tests_in_same_shell: true"}, "own shell"),
        ({"task.yaml": "difficulty: easy"}, "expected an instruction"),
        ({"task.yaml": "!!python/object/apply:os.system ['true']"}, "not YAML"),
        ({"task.yaml": "[1]"}, "expected a table"),
        ({"run-tests.sh": None}, "expected run-tests.sh"),
        ({"solution.sh": None, "solution.yaml": "- 3"}, "list of commands"),
    ],
)
def test_what_terminal_bench_may_ask_for_and_is_not_to_be_had_is_named(files: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        terminal_bench.of_tree(bench(**files), "/tb/sum", "sum")


# ---------------------------------------------------------------- SWE-bench


def test_rows_become_a_task_repository_and_rows_again(tmp_path: Path) -> None:
    other = ROW | {"instance_id": "o__tiny-10", "hints_text": "try", "difficulty": "<15 min", "FAIL_TO_PASS": '["no", "1.0"]'}
    build = Tree({"Dockerfile": b"FROM x\nCOPY in /in\n", "in": b"\x00"}, frozenset({"in"}))
    tree = task_repository.export([ROW, other], {"o__tiny-10": build})
    write_folder(tree, tmp_path / "repository")
    again = read_folder(tmp_path / "repository")
    assert again == tree
    back = task_repository.read(again, "x")
    assert back == [other, ROW], "in the order of their names, every column as it was"
    assert tree.files["tasks/o__tiny-9/Dockerfile"] == b"FROM ours/tiny:1\n" and tree.files["tasks/o__tiny-10/in"] == b"\x00"
    for suffix in (".json", ".jsonl"):
        swe_rows.write(back, tmp_path / f"rows{suffix}")
        _, found = detected.find(str(tmp_path / f"rows{suffix}"))
        assert [each.name for each in found] == ["o__tiny-10", "o__tiny-9"]


def test_swebenchs_own_check_finds_nothing(tmp_path: Path) -> None:
    needs_swebench()
    from swebench.task import checks
    from swebench.task.repo import load_task

    write_folder(task_repository.export([ROW], {}), tmp_path / "repository")
    assert checks.check_task_repo(tmp_path / "repository") == []
    loaded = load_task(tmp_path / "repository/tasks/o__tiny-9")
    assert (loaded["patch"], loaded["problem_statement"]) == (ROW["patch"], ROW["problem_statement"])
    (tmp_path / "repository/tasks/o__tiny-9/gold.patch").write_text("x")
    assert checks.check_task_repo(tmp_path / "repository"), "control arm"


def test_a_row_that_can_be_run_becomes_a_draft() -> None:
    draft = swe_rows.read(ROW, "rows.json#o__tiny-9")
    assert (draft.spec.kind, draft.spec.expected, draft.spec.workdir) == ("swebench", ("t.py::a", "t.py::b[1"), "/testbed")
    assert draft.source.commit == "a" * 40 and swe_rows.row_of(Task.of(draft)) == ROW
    for change, said in (
        ({"image": ""}, "has no image"),
        ({"log_parser": "parse_log_django"}, "parse_log_django"),
        ({"FAIL_TO_PASS": []}, "at least one id"),
        ({"eval_script": "pytest"}, "Start Test Output"),
        ({"image": "x\nRUN evil"}, "name an image"),
        ({"patch": None}, "lacks patch"),
    ):
        with pytest.raises(SourceError, match=said):
            swe_rows.read(ROW | change, "x")


def test_malformed_repositories_and_lines_say_where(tmp_path: Path) -> None:
    good = task_repository.export([ROW], {})
    top = "tasks/o__tiny-9"
    for path, data, said in (
        ("sweb.yaml", b"x: 1", "name its datasets"),
        (f"{top}/task.yaml", b"instance_id: other", "say instance_id 'o__tiny-9'"),
        (f"{top}/tests.json", b"[", "not JSON"),
        (f"{top}/tests.json", b'{"FAIL_TO_PASS": 3}', "list of test ids"),
        (f"{top}/eval.sh", None, "expected eval.sh"),
    ):
        files = {name: content for name, content in good.files.items() if name != path} | ({path: data} if data else {})
        with pytest.raises(SourceError, match=said):
            task_repository.read(Tree(files), "r")
    with pytest.raises(SourceError, match="plain names"):
        task_repository.export([ROW | {"instance_id": "../x"}], {})
    row = json_lines.dump(Task.of(ours()))
    for change, said in (
        ({"format": "gymsmith.task/9"}, "expected an object of format"),
        ({"id": "0" * 32}, "expected id"),
        ({"files": {"tests/test.sh": {"base64": "*"}}}, "expected base64"),
        ({"files": {"tests/test.sh": 3}}, "expected {"),
        ({"spec": {"name": "x"}}, "kind"),
        ({"instruction": 3}, "expected text"),
    ):
        with pytest.raises(SourceError, match=said):
            json_lines.load(row | change, "line 1")
    with pytest.raises(PolicyRefused, match=r"\.\./x"):
        json_lines.load(row | {"files": {"tests/../x": {"text": ""}}, "id": None}, "line 1")
    for name, text, said in (("a.jsonl", "{", "not JSON"), ("a.txt", "", "expected a folder"), ("a.json", "[{}]", "instance_id")):
        (tmp_path / name).write_text(text)
        with pytest.raises(SourceError, match=said):
            list(detected.find(str(tmp_path / name))[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"task\.toml, task\.yaml or sweb\.yaml"):
        detected.find(str(tmp_path / "empty"))


def test_a_data_set_is_its_outermost_tasks(tmp_path: Path) -> None:
    inner = theirs(put("environment/nested/task.toml", b"not a task of its own"))
    files = {f"set/{name}/{path}": data for name in ("a", "b") for path, data in inner.files.items()}
    write_folder(Tree(files), tmp_path / "data")
    form, found = detected.find(str(tmp_path / "data"))
    assert (form, [each.name for each in found]) == ("harbor", ["set/a", "set/b"])
