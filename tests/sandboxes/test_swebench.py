"""SWE-bench rows: ours becomes one, gold resolves, empty does not, by swebench's own grader; diffs apply anywhere."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, NotFound
from gymsmith.schema import Draft, Environment, EvalReport, Job, Source, Status, TaskSpec
from gymsmith.store import Store
from gymsmith.worker import Context
from sandboxes import patching, swebench_rows, tasks
from sandboxes.worker import process_worker

pytest.importorskip("swebench", reason="the extra `swe` is not installed")

FAULTY = "def half(n):\n    return n // 3\n\n\ndef double(n):\n    return n * 2\n"
HEALTHY = FAULTY.replace("// 3", "// 2")
TESTS = """import pytest
from numbers_of_ours import core

@pytest.mark.parametrize("n", [2, 8])
def test_half(n):
    assert core.half(n) * 2 == n

def test_double():
    assert core.double(4) == 8
"""


def site() -> dict[str, bytes]:
    """pytest and what it needs, from the interpreter that runs these tests."""
    root = Path(pytest.__file__).parent.parent
    packages = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments")
    modules = [root / "py.py", *root.glob("pluggy-*.dist-info/METADATA")]
    modules += [p for name in packages for p in sorted((root / name).rglob("*.py"))]
    return {str(p.relative_to(root)): p.read_bytes() for p in modules}


def draft() -> Draft:
    """A package with one fault, in the form that the factory gives its SWE environments."""
    expected = ("tests/test_core.py::test_half[2]", "tests/test_core.py::test_half[8]", "tests/test_core.py::test_double")
    fix = f"#!/bin/sh\ncat > /work/src/numbers_of_ours/core.py <<'END'\n{HEALTHY}END\n"
    files = {
        "environment/Dockerfile": (
            b"FROM gymsmith/host\nCOPY site/ /opt/site/\nCOPY --chown=agent:agent work/ /work/\nUSER agent\n"
        ),
        "environment/work/src/numbers_of_ours/__init__.py": b"",
        "environment/work/src/numbers_of_ours/core.py": FAULTY.encode(),
        "environment/work/README": b"no newline at the end",
        "tests/suite/tests/test_core.py": TESTS.encode(),
        "tests/select.txt": "\n".join(expected).encode() + b"\n",
        "tests/run.py": resources.files("sandboxes.verifier").joinpath("pytest_runner.py").read_bytes(),
        "tests/test.sh": (
            b"#!/bin/sh\nexec python3 -I -S /tests/run.py --path /work/src --site /opt/site --root /tests/suite "
            b"--select /tests/select.txt -- --assert=plain '/tests/suite/tests/test_core.py'\n"
        ),
        "solution/solve.sh": fix.encode(),
    }
    files |= {f"environment/site/{name}": data for name, data in site().items()}
    labels = {"package": "numbers-of-ours", "version": "1.0", "f2p": "2", "family": "numbers-of-ours"}
    spec = TaskSpec(name="gymsmith/numbers-1", kind="mutation", labels=labels, expected=expected)
    return Draft(Source(uri="pypi:numbers-of-ours==1.0", kind="pypi"), spec, "half(8) gives 2", files)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, namespaces: None) -> Iterator[Store]:
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    with Store.open(settings) as store:
        made = draft()
        folder = taskdir.folder_of(settings.tasks_dir, made.id)
        taskdir.write(made, folder)
        store.put_environment(
            Environment(
                id=made.id,
                source=made.source,
                spec=made.spec,
                instruction=made.instruction,
                status=Status.VERIFIED,
                path=str(folder.relative_to(settings.home)),
            )
        )
        yield store


def run(store: Store, payload: dict[str, Any], number: int) -> EvalReport:
    store.put_job(Job(id=f"job{number}", kind="evaluate_swebench", queue="evals", payload=payload))
    job = store.claim(f"job{number}", "test")
    assert job is not None
    return store.report(tasks.evaluate_swebench(payload, Context(job, store))["report_id"])


def test_gold_resolves_and_empty_does_not(store: Store, tmp_path: Path) -> None:
    (environment,) = store.environment_ids()
    dataset = tmp_path / "rows.jsonl"
    gold = run(store, {"dataset": str(dataset), "predictions": "gold", "environments": [environment]}, 1)
    (row,) = swebench_rows.read_rows(dataset)
    name = row["instance_id"]
    assert (gold.overall.passed, gold.overall.n, gold.errors) == (1, 1, 0), gold.config
    assert gold.config["instances"][name]["tests"] == {
        "FAIL_TO_PASS": {"success": 2, "failure": 0},
        "PASS_TO_PASS": {"success": 1, "failure": 0},
    }
    assert "-    return n // 3\n+    return n // 2\n" in row["patch"] and row["patch"].count("diff --git") == 1
    assert set(json.loads(row["FAIL_TO_PASS"])) == {"tests/test_core.py::test_half[2]", "tests/test_core.py::test_half[8]"}

    empty = run(store, {"dataset": str(dataset), "predictions": "empty"}, 2)
    assert (empty.overall.passed, empty.overall.n, empty.mode) == (0, 1, "empty")
    counts = empty.config["instances"][name]["tests"]
    assert counts == {"FAIL_TO_PASS": {"success": 0, "failure": 2}, "PASS_TO_PASS": {"success": 1, "failure": 0}}

    predictions = tmp_path / "predictions.json"
    wrong = {"instance_id": name, "model_name_or_path": "m", "model_patch": row["patch"].replace("n // 2", "n // 4")}
    predictions.write_text(json.dumps([wrong]))
    assert run(store, {"dataset": str(dataset), "predictions": str(predictions)}, 3).overall.passed == 0
    predictions.write_text(json.dumps([wrong | {"model_patch": row["patch"].replace("n // 3", "n // 9")}]))
    unfit = run(store, {"dataset": str(dataset), "predictions": str(predictions)}, 4)
    assert unfit.config["instances"][name] | {"log": ""} == {
        "patch_is_None": False,
        "patch_exists": True,
        "patch_successfully_applied": False,
        "resolved": False,
        "infra_failure": False,
        "tests": {},
        "log": "",
    }


def test_a_row_whose_image_is_not_here_is_an_error_and_no_verdict(store: Store, tmp_path: Path) -> None:
    row = dict.fromkeys(swebench_rows.COLUMNS, "") | {"instance_id": "a__b-1", "image": "nobody/has:this", "patch": ""}
    row |= {"eval_script": "#!/bin/bash\n", "FAIL_TO_PASS": "[]", "PASS_TO_PASS": "[]"}
    dataset = tmp_path / "rows.json"
    dataset.write_text(json.dumps([row]))
    report = run(store, {"dataset": str(dataset), "predictions": "gold"}, 5)
    assert (report.overall.n, report.errors) == (0, 1)
    assert "ImageMissing" in report.config["instances"]["a__b-1"]["error"]


def test_the_host_applies_what_the_image_cannot(store: Store) -> None:
    (environment,) = store.environment_ids()
    worker = process_worker(store.settings)
    before = {"src/a.py": b"one\ntwo\nthree", "gone.txt": b"x\n"}
    after = {"src/a.py": b"one\n2\nthree", "new/b.txt": "ü\n".encode()}

    async def work() -> tuple[str, str, bytes, bytes, bool]:
        ready = await worker.ready(store, environment)
        box = await (await worker.provider()).create(swebench_rows._place_of(ready).spec)
        try:
            await box.put_files({f"/work/{name}": data for name, data in before.items()}, owner="agent")
            diff = patching.unified(before, after)
            first = await swebench_rows.apply_on_host(box, diff, "/work")
            second = await swebench_rows.apply_on_host(box, diff, "/work")
            gone = (await box.exec(["test", "-e", "/work/gone.txt"])).exit_code == 1
            return first, second, await box.get("/work/src/a.py"), await box.get("/work/new/b.txt"), gone
        finally:
            await box.destroy()

    first, second, changed, created, gone = worker.run(work())
    assert (first == "" and "does not exist" in second) or "does not match" in second
    assert (changed, created, gone) == (after["src/a.py"], after["new/b.txt"], True)


def test_datasets_and_predictions_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no data set"):
        swebench_rows.read_rows(tmp_path / "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{")
    with pytest.raises(ConfigError, match="JSON lines"):
        swebench_rows.read_rows(bad)
    bad.write_text('{"instance_id": "a"}\n')
    with pytest.raises(ConfigError, match="row a must have the columns"):
        swebench_rows.read_rows(bad)
    with pytest.raises(NotFound, match="gold, empty or a file"):
        swebench_rows.read_predictions([], "golden")
    bad.write_text('{"instance_id": "a"}\n')
    with pytest.raises(ConfigError, match="model_patch"):
        swebench_rows.read_predictions([], str(bad))


def test_random_edits_survive_diff_and_apply() -> None:
    rng = random.Random(2)
    for _ in range(300):
        lines = [rng.choice(["a", "b", "é", "x = 1", "\x0c", "\r", ""]) + "\n" for _ in range(rng.randrange(1, 25))]
        old = "".join(lines)
        for _ in range(rng.randrange(1, 4)):
            lines[rng.randrange(len(lines))] = rng.choice(["", "new\n", "a\n"])
        new = "".join(lines)
        old, new = (text[:-1] if rng.random() < 0.3 else text for text in (old, new))
        if not old or not new:
            continue
        diff = patching.unified({"d/f": old.encode()}, {"d/f": new.encode()})
        assert patching.apply(diff, {"d/f": old.encode()}) == ({} if old == new else {"d/f": new.encode()})
        moved = ("moved\n" * 7 + old).encode()
        if old != new:
            assert patching.apply(diff, {"d/f": moved})["d/f"].startswith(b"moved\n" * 5)


@pytest.mark.parametrize(
    "diff",
    [
        "hello",
        "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-other\n+new\n",
        "--- a/../x\n+++ b/../x\n@@ -1 +1 @@\n-a\n+b\n",
        "--- a//etc/x\n+++ b//etc/x\n@@ -1 +1 @@\n-a\n+b\n",
        "--- a/y\n+++ b/y\n@@ -1 +1 @@\n-a\n+b\n",
        "--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+b\n",
        "--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-a\n",
    ],
)
def test_a_diff_that_does_not_fit_is_refused(diff: str) -> None:
    with pytest.raises(patching.PatchFailed):
        patching.apply(diff, {"x": b"a\n"})
