"""The doors: an order is carried out once, goes on where it was killed, and says what it cannot do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.candidates import Ledger, Settled
from env_factory.templates.shell.families import TRAINED
from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, NotFound, SourceError
from gymsmith.schema import Status
from gymsmith.store import Store

ORDER = {"source": "shell:all", "kind": "shell", "n": 5, "seed": 77, "gates": "controls"}
PROGRAM = """
import sys
from env_factory import tasks
from gymsmith.config import Settings
from gymsmith.schema import Job
from gymsmith.store import Store
settings = Settings.load(home=sys.argv[1])
class Context:
    job = Job(id="j", kind="generate", queue="factory")
    store = Store.open(settings)
    def progress(self, **fields): print(fields.get("done"), flush=True)
    def check(self): pass
Context.settings = settings
print(*tasks.generate({order!r}, Context())["admitted"])
"""


def test_an_order_is_carried_out_once_and_a_larger_one_goes_on(doorway: Any) -> None:
    five = tasks.generate(ORDER, doorway)
    assert len(five["admitted"]) == 5 and five["candidates"] == 5 and five["reasons"] == {}
    assert doorway.reported["done"] == doorway.reported["total"] == 5 and doorway.reported["unit"] == "environments"
    again = tasks.generate(ORDER, doorway)
    assert again["admitted"] == five["admitted"] and again["cpu_seconds"] < 0.5 * five["cpu_seconds"]
    seven = tasks.generate(ORDER | {"n": 7}, doorway)
    assert seven["admitted"][:5] == five["admitted"] and len(set(seven["admitted"])) == 7
    for environment_id in seven["admitted"]:
        environment = doorway.store.environment(environment_id)
        assert environment.status is Status.VERIFIED and environment.id == environment_id
        assert taskdir.read(doorway.settings.home / environment.path).id == environment_id


def test_held_out_words_levels_and_families(doorway: Any) -> None:
    long = tasks.generate(ORDER | {"source": "shell:chain", "levels": [8], "split": "held_out", "n": 1}, doorway)
    labels = doorway.store.environment(long["admitted"][0]).spec.labels
    assert (labels["family"], labels["level"], labels["split"]) == ("chain", "8", "held_out")
    unseen = tasks.generate(ORDER | {"source": "shell:unseen", "n": 1}, doorway)
    assert doorway.store.environment(unseen["admitted"][0]).spec.labels["family"] not in TRAINED


def test_killed_in_the_middle_nothing_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    home, whole = tmp_path / "killed", tmp_path / "whole"
    order = ORDER | {"n": 30}
    command = [sys.executable, "-c", PROGRAM.replace("{order!r}", repr(order))]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'platform'}"}
    first = subprocess.Popen([*command, str(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert first.stdout is not None and first.stderr is not None
    for line in first.stdout:
        if line.strip().isdigit() and int(line) >= 8:
            break
    else:
        pytest.fail(first.stderr.read()[-2000:])
    first.send_signal(signal.SIGKILL)
    first.wait()
    settled = sum(len(p.read_text().split("\n{")) - 1 for p in (home / "factory").glob("*.jsonl"))
    assert 8 <= settled < 30
    ended = subprocess.run([*command, str(home)], capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    counts = [int(line) for line in ended.stdout.splitlines() if line.isdigit()]
    assert counts[0] <= 1 and max(counts) == 30
    other = subprocess.run([*command, str(whole)], capture_output=True, text=True, env=environment, check=True)
    admitted = ended.stdout.splitlines()[-1].split()
    assert admitted == other.stdout.splitlines()[-1].split() and len(set(admitted)) == 30
    with Store.open(Settings.load(home=home)) as store:
        assert sorted(store.environment_ids(kind="shell", status="verified")) == sorted(admitted)
    folders = [p.name for p in (home / "tasks").glob("*/*") if not p.name.startswith(".")]
    assert sorted(folders) == sorted(admitted)


def test_a_torn_ledger_line_is_passed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "x" / "a.jsonl")
    ledger.add(Settled(3, "abc", ""))
    with ledger.path.open("a") as file:
        file.write('{"index": 4, "id": "d')
    ledger.add(Settled(5, "", "survived", {"k": "v"}))
    assert Ledger(ledger.path).lines == {3: Settled(3, "abc", ""), 5: Settled(5, "", "survived", {"k": "v"})}


def test_a_stored_environment_is_proved_again(doorway: Any) -> None:
    (environment_id,) = tasks.generate(ORDER | {"n": 1, "seed": 78}, doorway)["admitted"]
    before = doorway.store.evidence(environment_id)
    assert tasks.verify({"environments": [environment_id]}, doorway)["statuses"] == {environment_id: "verified"}
    after = doorway.store.evidence(environment_id)
    assert after.created_at > before.created_at and any(g.name.startswith("cheat:") for g in after.gates)
    with pytest.raises(NotFound):
        tasks.verify({"environments": ["0" * 32]}, doorway)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"n": 0}, ConfigError, "greater than or equal to 1"),
        ({"kind": "painting"}, ConfigError, "painting"),
        ({"unknown": 1}, ConfigError, "unknown"),
        ({"source": "shell:nothing"}, ConfigError, "expected shell:all"),
        ({"kind": "mutation"}, ConfigError, "expected kind shell"),
        ({"kind": "mutation", "source": "file:README.md"}, SourceError, "needs a package"),
    ],
)
def test_an_order_that_cannot_be_is_refused_in_words(
    doorway: Any, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=words):
        tasks.generate(ORDER | change, doorway)
    assert time.monotonic() - started < 30


def test_processor_time_of_what_runs_below_a_child_counts() -> None:
    """A child that only waits, and a grandchild that works: while both live, nothing of it stands in the child's own times."""
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(1, flush=True)\ntime.sleep(60)"
    wait = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    before = tasks.cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout is not None and child.stdout.readline() == b"1\n"
        spent = tasks.cpu_seconds() - before
        os.killpg(child.pid, signal.SIGKILL)
    assert spent >= 0.45
