"""The second reader: what it says counts where a run bears it out, and where it quotes what is there."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.build import build
from env_factory.formats import harbor
from env_factory.gates.reasons import REASONS, reason
from env_factory.gates.trial import Trial
from env_factory.llm.account import Account, BudgetSpent
from env_factory.llm.conversation import Desk
from env_factory.llm.journal import Journal
from env_factory.llm.review import SOLVES, Reviewer
from gymsmith.errors import ConfigError
from gymsmith.llm import Endpoint, LlmClient
from gymsmith.schema import Gate, Status
from tests.env_factory import blind, readings
from tests.env_factory.endpoint import KEY, serving
from tests.env_factory.llm_session import Session, objection

TEXT = """Write the program /work/peaks.py: it reads whole numbers from standard input and prints how many of them are peaks.

A peak is a number that is larger than each of its neighbours. The first and the last number have one neighbour only, and are
peaks if they are larger than it. There are at least two numbers.
"""
RIGHT = """#!/bin/bash
cat > peaks.py <<'END'
import sys

v = [int(word) for word in sys.stdin.read().split()]
print(sum((i == 0 or v[i - 1] < v[i]) and (i == len(v) - 1 or v[i] > v[i + 1]) for i in range(len(v))))
END
"""
INNER = RIGHT.replace(
    "(i == 0 or v[i - 1] < v[i]) and (i == len(v) - 1 or v[i] > v[i + 1])", "v[i - 1] < v[i] > v[i + 1]"
).replace("range(len(v))", "range(1, len(v) - 1)")
CASES = {"3 1 2 1": "2", "1 2 2 3": "1", "4 4": "0", "9 8 9 8 9": "3", "-5 -9 0": "2"}
INNER_CASES = {"3 1 2 1": "1", "5 1 1 1 7": "0", "1 2 2 3": "0", "9 8 9 8 9": "1", "1 5 2 6 2": "2"}
BLIND_CASES = {"1 2 1": "1", "0 4 4 0": "0", "1 5 2 6 2": "2"}
"""Tests that never look at the ends."""
FLAT_CASES = {"3 1 2 1": "2", "9 8 9 8 9": "3", "-5 -9 0": "2"}
"""Tests in which no neighbours are equal."""
CHECK = """import os
import subprocess

CASES = {
%s
}
for given, wanted in CASES.items():
    said = subprocess.run(["python3", "/work/peaks.py"], input=given, capture_output=True, text=True)
    assert said.stdout.split() == [wanted], (given, said)
%s
"""


def task(folder: Path, cases: dict[str, str], solution: str = RIGHT, more: str = "", files: dict[str, str] | None = None) -> Path:
    """A task folder."""
    rows = "\n".join(f'    "{given}": "{wanted}",' for given, wanted in cases.items())
    dockerfile = "FROM gymsmith/host\nCOPY --chown=agent:agent work /work\nWORKDIR /work\n"
    test = (
        "#!/bin/bash\nmkdir -p /logs/verifier\n"
        "if python3 /tests/check.py; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n"
    )
    members = {
        "instruction.md": TEXT,
        "task.toml": 'version = "1.0"\n[verifier]\ntimeout_sec = 10.0\n[agent]\ntimeout_sec = 10.0\n',
        "environment/Dockerfile": dockerfile,
        "environment/work/example.txt": "3 1 2 1\n",
        "solution/solve.sh": solution,
        "tests/test.sh": test,
        "tests/check.py": CHECK % (rows, more),
        **{f"environment/work/{name}": text for name, text in (files or {}).items()},
    }
    for name, text in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
    return folder


def review(doorway: Any, folder: Path, script: list[str], budget_tokens: int = 0) -> tuple[list[Gate], list[str]]:
    """The gates of a reading, and what the endpoint was asked last in each question."""

    async def read(url: str) -> list[Gate]:
        draft = harbor.read(folder)
        images = await doorway.worker.images()
        trial = Trial(draft, await build(draft, images), await doorway.worker.provider())
        trial.nothing = await trial.control(None)
        endpoint = Endpoint(url, "recorded-1", KEY)
        async with LlmClient(endpoint) as client:
            account = Account(endpoint, budget_tokens=budget_tokens, budget_usd=0.0)
            return await Reviewer(Desk(client, account, Journal(folder / "journal.jsonl"), "job"))(trial)

    with serving(script) as served:
        gates = doorway.worker.run(read(served.url))
    assert len(served.asked) == len(script)
    return gates, [asked["messages"][1]["content"] + objection(asked) for asked in served.asked]


def word(gates: list[Gate]) -> str:
    return reason(next((gate for gate in gates if not gate.passed), None))[0]


def test_a_sound_task_stands_and_no_question_shows_what_is_hidden(doorway: Any, tmp_path: Path) -> None:
    gates, asked = review(doorway, task(tmp_path, CASES), ["review-work"])
    assert [(gate.name, gate.passed) for gate in gates] == [
        ("review:solve", True),
        ("review:wrong", True),
        ("review:given", True),
    ]
    assert gates[0].rewards == (1.0, 1.0) and gates[1].rewards == (0.0, 0.0, 0.0, 0.0)
    assert "example.txt" in asked[0] and "3 1 2 1" in asked[0] and "check.py" not in asked[0] and "9 8 9 8 9" not in asked[0]


@pytest.mark.parametrize("misquoted", [False, True])
def test_what_text_and_tests_see_differently_is_contested(doorway: Any, tmp_path: Path, misquoted: bool) -> None:
    """The solution shares the tests' reading, so nothing that is run without a reader shows it."""
    script = ["review-work", *["review-misquotes"] * misquoted, "review-contradiction"]
    gates, asked = review(doorway, task(tmp_path, INNER_CASES, INNER), script)
    assert word(gates) == "contested" and gates[0].rewards == (0.0, 0.0)
    assert "one neighbour only, and are peaks" in gates[0].detail and '"5 1 1 1 7": "0"' in gates[0].detail
    assert "check.py" in asked[1] and "range(1, len(v) - 1)" in asked[1]
    assert not misquoted or "llm-quote" in asked[2]


def test_what_nobody_could_know_is_contested(doorway: Any, tmp_path: Path) -> None:
    mode = "assert os.stat('/work/peaks.py').st_mode & 0o777 == 0o755"
    folder = task(tmp_path, CASES, f"{RIGHT}chmod 755 peaks.py\n", mode)
    gates, _ = review(doorway, folder, ["review-work", "review-untold"])
    assert word(gates) == "contested" and "nothing says it, and the tests want" in gates[0].detail and "0o755" in gates[0].detail


def test_an_attempt_that_overlooked_something_is_told_so_in_the_texts_words(doorway: Any, tmp_path: Path) -> None:
    gates, asked = review(doorway, task(tmp_path, CASES), ["review-careless", "review-blames-the-attempt", "review-work"])
    assert word(gates) == "" and "answer 2" in gates[0].detail
    assert "The first and the last number have" in asked[2] and "9 8 9 8 9" not in asked[2] and "assert" not in asked[2]


def test_a_task_that_nobody_solved_stands_and_the_evidence_says_so(doorway: Any, tmp_path: Path) -> None:
    # The same attempt again is no new question to whoever judges it; one that does not even run is asked about in the end.
    blamed = "review-blames-the-attempt"
    script = ["review-careless", blamed, *["review-careless"] * (SOLVES - 1), blamed]
    gates, _ = review(doorway, task(tmp_path, CASES), script)
    assert word(gates) == "" and "no honest attempt passed" in gates[0].detail


@pytest.mark.parametrize(
    ("cases", "verdict", "found"),
    [
        (BLIND_CASES, ["review-wrong-passed"], "cheat-passes"),
        (BLIND_CASES, ["review-two-verdicts", "review-wrong-passed"], "cheat-passes"),
        (BLIND_CASES, ["review-aside"], ""),
        (FLAT_CASES, ["review-wrong-passed"], ""),  # One of four, and a misreading.
        (BLIND_CASES | FLAT_CASES, [], ""),
    ],
)
def test_wrong_work_that_passes_is_judged_by_who_sees_no_tests(
    doorway: Any, tmp_path: Path, cases: dict[str, str], verdict: list[str], found: str
) -> None:
    gates, asked = review(doorway, task(tmp_path, cases), ["review-work", *verdict])
    assert word(gates) == found and sum(gates[1].rewards) == bool(verdict) and len(gates[1].rewards) == 4
    if verdict:
        assert "Script 1:" in asked[1] and "Script 2:" not in asked[1] and "assert" not in asked[1] and "violates" not in asked[1]


def test_what_hands_the_work_over_is_a_leak(doorway: Any, tmp_path: Path) -> None:
    files = {
        "notes.txt": "a program that does it lies in /work/old/peaks.py\n",
        "old/peaks.py": RIGHT.partition("END'\n")[2][:-4],
    }
    gates, _ = review(doorway, task(tmp_path, CASES, files=files), ["review-given", "review-copied"])
    assert word(gates) == "leak" and gates[1].passed


def test_answers_of_no_use_conclude_nothing_and_a_budget_ends_it(doorway: Any, tmp_path: Path) -> None:
    gates, _ = review(doorway, task(tmp_path / "a", CASES), ["broken-json"] * 4)
    assert word(gates) == "" and "not concluded" in gates[0].detail and "llm-json" in gates[0].detail
    with pytest.raises(BudgetSpent):
        review(doorway, task(tmp_path / "b", CASES), [], budget_tokens=100)
    assert {"contested"} <= set(REASONS)


def test_orders_proofs_and_labelled_sets_may_be_read(doorway: Any, tmp_path: Path) -> None:
    for name, cases, solution in (("sound", CASES, RIGHT), ("inner", INNER_CASES, INNER)):
        task(tmp_path / "set" / name, cases, solution)
    (tmp_path / "set/labels.toml").write_text('sound = "sound"\ninner = "the ends are never counted"\n')

    def answer(body: dict[str, Any]) -> str:
        return "review-contradiction" if "whose fault" in body["messages"][0]["content"] else "review-work"

    with serving(answer) as served:
        door = type(doorway)(doorway.settings.model_copy(update=served.settings()), doorway.store)
        asked = {"folder": str(tmp_path / "set")}
        unread = tasks.judge(asked, door)
        assert [row["verdict"] for row in unread["tasks"]] == ["verified", "verified"] and not served.asked
        read = tasks.judge(asked | {"review": True}, door)
        assert [row["verdict"] for row in read["tasks"]] == ["contested", "verified"] and read["llm_calls"] == 3
        again = tasks.judge(asked | {"review": True}, door)
        assert again["llm_remembered"] == 3 and len(served.asked) == 3

    order = {"source": "shell:count", "kind": "shell", "n": 1, "gates": "admission", "review": True}
    with serving(["broken-json"] * 4) as served:
        session = Session(doorway, served, order)
        made = session.order()
        assert len(made["admitted"]) == 1 and made["llm_calls"] == 4
        gates = {gate.name: gate for gate in doorway.store.evidence(made["admitted"][0]).gates}
        assert "not concluded" in gates["review"].detail
        assert doorway.store.environment(made["admitted"][0]).status is Status.VERIFIED
        short = session.order(source="shell:count", seed=7, budget_tokens=100)
        assert short["admitted"] == [] and short["stopped"] == "budget"
        with pytest.raises(ConfigError, match="review comes last"):
            session.order(gates="full")
    with serving(["broken-json"] * 4) as served:
        door = type(doorway)(doorway.settings.model_copy(update=served.settings()), doorway.store)
        proved = tasks.verify({"environments": made["admitted"], "gates": "admission", "review": True}, door)
        assert set(proved["statuses"].values()) == {"verified"} and proved["llm_calls"] == len(served.asked) == 4
    with pytest.raises(ConfigError, match="review comes last"):
        tasks.verify({"environments": made["admitted"], "gates": "controls", "review": True}, doorway)


def test_a_reader_weighs_what_a_gate_cannot_be_sure_of(doorway: Any, tmp_path: Path) -> None:
    """A change of which one half is only tidier: no test can see it, and the gate of halves takes it for a gap in the tests."""
    broken = RIGHT.partition("END'\n")[2][:-4].replace("i == 0 or ", "").replace("import sys\n", "import sys\nimport os\n")
    folder = task(tmp_path / "set/tidier", CASES, files={"peaks.py": broken})
    text = (
        (folder / "instruction.md").read_text().replace("Write the program /work/peaks.py:", "Repair the program /work/peaks.py:")
    )
    (folder / "instruction.md").write_text(text)
    task(tmp_path / "set/defective", BLIND_CASES, "#!/bin/bash\n")
    (tmp_path / "set/labels.toml").write_text('tidier = "sound"\ndefective = "its solution does nothing"\n')

    def verdict(done: str) -> str:
        def answer(body: dict[str, Any]) -> str:
            return f"review-{done}" if "by the letter of the text" in body["messages"][0]["content"] else "review-work"

        with serving(answer) as served:
            door = type(doorway)(doorway.settings.model_copy(update=served.settings()), doorway.store)
            # Answers are remembered for a folder.
            folder = shutil.copytree(tmp_path / "set", tmp_path / f"set-{done}")
            asked = {"folder": str(folder), "review": bool(done)}
            return str({row["name"]: row["verdict"] for row in tasks.judge(asked, door)["tasks"]}["tidier"])

    assert [verdict(""), verdict("aside"), verdict("wrong-passed")] == ["half-passes", "verified", "half-passes"]


def test_what_readers_of_an_unseen_set_answered_gives_the_verdicts_again(doorway: Any, tmp_path: Path) -> None:
    """Three of the sixth set: the whole of it is run again as `readings.py` says."""
    wanted = {"task-12": "verified", "task-14": "contested", "task-22": "cheat-passes"}
    folder = blind.write(tmp_path, wanted, blind.SIXTH)
    endpoint = readings.server()
    thread = threading.Thread(target=endpoint.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{endpoint.server_address[1]}/v1"
        there = {"llm_url": url, "llm_key": "", "llm_model": "readers"}
        door = type(doorway)(doorway.settings.model_copy(update=there), doorway.store)
        result = tasks.judge({"folder": str(folder), "review": True}, door)
    finally:
        endpoint.shutdown()
        endpoint.server_close()
        thread.join()
    assert {row["name"]: row["verdict"] for row in result["tasks"]} == wanted
    assert result["precision"]["rate"] == result["recall"]["rate"] == 1.0 and result["llm_calls"] >= 5
