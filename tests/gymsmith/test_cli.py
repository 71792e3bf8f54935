"""The command line as a stranger meets it: one line for each mistake, the exit code that stands for it, clean JSON."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gymsmith.attach import Workers, attached, failure
from gymsmith.config import Settings
from gymsmith.errors import BuildError, GymsmithError, InfrastructureError, Rejected, StoreError, UnknownPackage, named
from gymsmith.schema import Environment, Job, Run, Source, State, Status, TaskSpec
from gymsmith.store import Store
from gymsmith.supervisor import Supervisor, running
from gymsmith.verbs.environments import absolute

import job_doors  # isort: skip # noqa: F401  registers the kinds
from spoken import say  # isort: skip

ROOT = Path(__file__).parents[2]


def spawn(*words: str) -> subprocess.Popen[str]:
    """`gymsmith WORDS` in a process of its own, with Ctrl-C as a terminal gives it."""
    return subprocess.Popen(
        [sys.executable, "-m", "gymsmith.cli", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "platform")))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def environment(env_id: str) -> Environment:
    spec = TaskSpec(name=f"gymsmith/{env_id}", description="d", kind="shell")
    return Environment(
        id=env_id,
        status=Status.VERIFIED,
        spec=spec,
        source=Source(uri="shell:count", kind="parametric", digest="0"),
        instruction="count the lines",
        path=f"tasks/{env_id[:2]}/{env_id}",
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state folder with two environments and one run, but without their files."""
    folder = tmp_path / "home"
    with Store.open(Settings.load(home=folder)) as store:
        store.put_environment(environment("aaaa1111"))
        store.put_environment(environment("aaaa2222"))
        store.put_run(Run(id="r1", kind="pretrain", name="first", seed=1))
    return folder


WRONG = {
    "no such verb": (("frobnicate",), "No such command 'frobnicate'"),
    "no such option": (("env", "list", "--nope"), "No such option: --nope"),
    "negative number": (("generate", "shell:all", "--kind", "shell", "-n", "-3"), "greater than or equal to 1"),
    "no number": (("env", "list", "--limit", "many"), "Invalid value for '--limit': Input should be a valid integer"),
    "no kind": (("generate", "shell:all"), "Missing option '--kind'"),
    "unknown kind": (("generate", "shell:all", "--kind", "song"), "--kind to be one of mutation, reconstruction"),
    "unknown split": (("generate", "shell:all", "--kind", "shell", "--split", "x"), "train, held_out, got 'x'"),
    "budget without a model": (
        ("generate", "shell:all", "--kind", "shell", "--budget-usd", "1"),
        "expected --budget-usd with --review or a kind",
    ),
    "model without a review": (("env", "judge", "/nope", "--model", "m"), "expected --model with --review, got it alone"),
    "no issue": (("generate", "git:x", "--kind", "llm-issue"), "expected --issue FILE with --kind llm-issue"),
    "no such issue": (("generate", "git:x", "--kind", "llm-issue", "--issue", "/nope.md"), "there is no such file"),
    "unknown status": (("env", "list", "--status", "bogus"), "got 'bogus'"),
    "foreign cursor": (("env", "list", "--cursor", "%%%"), "start again without a cursor"),
    "unknown id": (("env", "show", "zzzz"), "no environment 'zzzz'; `gymsmith env list`"),
    "two ids begin so": (("env", "show", "aaaa"), "several ids begin with 'aaaa' (aaaa1111, aaaa2222"),
    "pattern, not id": (("env", "show", "a%1"), "no environment 'a%1'"),
    "files are gone": (("env", "show", "aaaa1"), "is gone; generate the environment again"),
    "import of nothing": (("env", "import", "/nope"), "there is nothing; check the path"),
    "unknown format": (("env", "import", "/tmp", "--format", "tar"), "got 'tar'"),
    "export of nothing": (("env", "export", "--to", "/nope/x"), "ids or --all, got neither"),
    "export over something": (("env", "export", "aaaa1", "--to", "/tmp"), "/tmp exists"),
    "difference to nothing": (("env", "diff", "aaaa1", "zzzz"), "no environment 'zzzz'"),
    "unknown run": (("run", "show", "nope"), "no run 'nope'; `gymsmith run list`"),
    "unknown start": (("rl", "--from", "nope"), "no run 'nope'"),
    "run without checkpoint": (("rl", "--from", "r1"), "run r1 has no checkpoint yet"),
    "another stage's run": (("train", "sft", "--run", "r1"), "run r1 is of stage pretrain, asked for was sft"),
    "unknown stage": (("train", "song"), "STAGE to be one of pretrain, midtrain, anneal, sft, dpo, got 'song'"),
    "no stage": (("train",), "STAGE to be one of pretrain, midtrain, anneal, sft, dpo, got ''"),
    "plan of nothing": (("train", "--plan", "nope"), "expected a recipe, got 'nope', which is none"),
    "no such source": (("train", "midtrain", "--source", "web=/nope"), "expected --source NAME=FOLDER"),
    "nothing to compare": (("ablate", "--vary", "pretrain.steps=3"), "needs two different values"),
    "no budgets": (("scaling", "r1"), "expected finished pre-trainings, run r1 is pretrain"),
    "no corpus": (("train", "pretrain", "--corpus", "/nope"), "leave --corpus out"),
    "no policy": (("rollout", "aaaa1"), "either --checkpoint or --solution, got neither"),
    "two policies": (("rollout", "aaaa1", "--solution", "--checkpoint", "r1"), "got both"),
    "checkpoint first": (("evaluate", "held-out", "--checkpoint", "nope", "-n", "600"), "no run 'nope'"),
    "no data set": (("evaluate", "swebench", "--dataset", "/nope.jsonl"), "no data set at /nope.jsonl; --export"),
    "nothing to export": (("evaluate", "swebench", "--dataset", "/tmp/x", "--export"), "no verified SWE environments"),
    "port out of range": (("up", "--port", "99999"), "less than or equal to 65535, got 99999"),
    "open to all": (("up", "--host", "0.0.0.0"), "a token is needed; set GYMSMITH_TOKEN"),
}


@pytest.mark.parametrize("words, message", WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_line_and_exit_code_2(
    home: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    at = () if words == ("frobnicate",) else ("--home", str(home))
    code, out, err = say(capsys, *words, *at)
    assert (code, out) == (2, "")
    assert err.startswith("gymsmith: ") and err.count("\n") == 1 and message in err
    assert not running(Settings.load(home=home))
    assert not (home / "broker").exists(), "nothing was ordered"


def test_lists_and_shows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = say(capsys, "env", "list", "--home", str(home), "--json", "--limit", "1")
    page = json.loads(out)
    assert (code, err, len(page["items"])) == (0, "", 1)
    code, out, _ = say(capsys, "env", "list", "--home", str(home), "--json", "--cursor", page["cursor"])
    assert json.loads(out)["cursor"] == "" and json.loads(out)["items"][0]["id"] != page["items"][0]["id"]
    code, out, err = say(capsys, "env", "show", "aaaa1", "--home", str(home), "--json")
    assert (code, err, json.loads(out)["environment"]["id"]) == (0, "", "aaaa1111")
    code, out, _ = say(capsys, "run", "list", "--home", str(home), "--json")
    assert json.loads(out)["items"][0]["id"] == "r1"
    code, out, _ = say(capsys, "env", "list", "--home", str(home / "new"))
    assert (code, out) == (0, "0 environments\n")


def test_exit_codes_of_commands_that_found_something_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    code, out, _ = say(capsys, "doctor", "--home", str(blocked / "below"), "--json")
    checks = {check["name"]: check["state"] for check in json.loads(out)}
    assert (code, checks["state folder"]) == (1, "broken")
    assert say(capsys, "env", "list", "--home", str(blocked))[0] == 3


def test_a_corrupted_store_is_told_and_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / "gymsmith.db"
    broken = os.urandom(512) + file.read_bytes()[512:]
    file.write_bytes(broken)
    code, out, err = say(capsys, "env", "list", "--home", str(home), "--json")
    assert (code, out) == (3, "") and "the file is corrupted" in err and str(file) in err
    assert file.read_bytes() == broken


def test_a_failed_job_keeps_the_kind_of_its_error(settings: Settings) -> None:
    def ended(**fields: object) -> Job:
        return Job(id="j", kind="generate", queue="factory", state=State.FAILED, error="why", **fields)  # type: ignore[arg-type]

    error = failure("pypi:x==1", ended(attempt=1, result={"code": "unknown-package"}))
    assert (type(error), str(error), error.exit_code) == (UnknownPackage, "pypi:x==1: why", 2)
    assert type(failure("x", ended(attempt=1))) is GymsmithError
    assert failure("x", ended(attempt=5)).exit_code == 3
    assert (named("build-failed", GymsmithError), named("?", InfrastructureError)) == (BuildError, InfrastructureError)
    assert named(Rejected.code, GymsmithError) is GymsmithError, "its constructor takes more than a message"


def test_a_full_disk_ends_the_wait(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(settings.home.parent)
    monkeypatch.setattr("gymsmith.attach.LEAST_FREE_BYTES", 2 * free.f_bavail * free.f_frsize)
    with attached(settings) as house:
        job = house.submit("test-noop", {})
        with pytest.raises(StoreError, match=r"is full: \d+ bytes are free and at least"):
            house.watch({"sum": job}, quiet=True)
        assert house.store.job(job.id).state is State.CANCELLED
        assert house.store.jobs().items and not running(settings)


def test_whoever_waits_gets_workers_when_those_of_another_command_end(settings: Settings) -> None:
    other = Supervisor(settings, workers=0, api=False, learner=False).start()
    crew = Workers(settings, 0)
    try:
        crew.ensure()
        assert crew.own is None
        other.stop()
        crew.ensure()
        assert crew.own is not None and running(settings)
    finally:
        crew.stop()
    assert not running(settings)


def test_a_taken_port_is_told_by_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        up = spawn("up", "--port", port, "--home", str(tmp_path / "home"))
        out, err = up.communicate(timeout=60)
    assert (up.returncode, out) == (2, "")
    assert err.startswith(f"gymsmith: cannot listen on 127.0.0.1:{port}: Address already in use; choose another port")


@pytest.mark.parametrize("number, code, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")])
def test_interrupted_it_says_so_cancels_and_leaves_nothing(
    settings: Settings, number: signal.Signals, code: int, word: str
) -> None:
    command = spawn("generate", "shell:all", "--kind", "shell", "-n", "500", "--home", str(settings.home), "--json")
    with Store.open(settings) as store:
        deadline = time.monotonic() + 60
        while not store.jobs(state=State.RUNNING).items and time.monotonic() < deadline:
            time.sleep(0.1)
        command.send_signal(number)
        out, err = command.communicate(timeout=60)
        assert (command.returncode, out) == (code, "")
        assert err == f"gymsmith: {word}; what was finished is kept, the same command goes on from there\n"
        (job,) = store.jobs().items
        assert job.cancel
    assert not running(settings)


def test_output_that_nobody_reads_is_no_traceback(home: Path) -> None:
    command = spawn("env", "list", "--home", str(home), "--json")
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert command.wait(timeout=60) == 1
    assert command.stderr.read() == ""


def test_a_demo_outside_a_checkout_says_so_before_it_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = say(capsys, "demo", "--quick", "--no-serve", "--home", str(tmp_path / "home"))
    assert code == 2 and not out and "run the demo in a checkout of the repository" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("git:.#v1", "git:{here}#v1"),
        ("archive:a.zip", "archive:{here}/a.zip"),
        ("issue:/x.json#3", "issue:/x.json#3"),
        ("git:https://host/repo#v1", "git:https://host/repo#v1"),
        ("git:file:///repo", "git:file:///repo"),
        ("pypi:six==1.17.0", "pypi:six==1.17.0"),
        ("https://host/page", "https://host/page"),
    ],
)
def test_a_relative_source_is_written_out(given: str, wanted: str) -> None:
    assert absolute(given) == wanted.format(here=Path.cwd())
