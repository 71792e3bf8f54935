"""What is paid, it is paid once: budgets under many questions at once, journals, killed processes, and the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from env_factory.llm.account import Account, BudgetSpent
from env_factory.llm.journal import Journal
from env_factory.llm.prompt import Material, fill, parts
from gymsmith.llm import Answer, Endpoint
from tests.env_factory.endpoint import KEY, serving
from tests.env_factory.test_llm_tutorial import LESSON

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
from env_factory import tasks
from gymsmith.config import Settings
from gymsmith.schema import Job
from gymsmith.store import Store
settings = Settings.load(home=sys.argv[1])
class Context:
    job = Job(id="j", kind="generate", queue="factory")
    store = Store.open(settings)
    def progress(self, **fields): pass
    def check(self): pass
Context.settings = settings
order = {"source": "file:" + sys.argv[2], "kind": "llm-tutorial", "n": 1, "gates": "controls"}
print(json.dumps(tasks.generate(order, Context())))
"""


def answer(prompt: int, completion: int) -> Answer:
    return Answer(
        text="{}",
        finish="stop",
        model="m",
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost_usd=(prompt + completion) / 1e6,
    )


def surroundings(url: str) -> dict[str, str]:
    """Variables of a process that is to find the endpoint."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GYMSMITH_LLM_")}
    mine = {"URL": url, "KEY": KEY, "MODEL": "recorded-1", "PRICE_IN": "2", "PRICE_OUT": "10"}
    return kept | {f"GYMSMITH_LLM_{k}": v for k, v in mine.items()} | {"PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}


def test_questions_under_way_cannot_overrun_a_budget_between_them() -> None:
    async def story() -> None:
        account = Account(Endpoint("http://h/v1", "m"), budget_tokens=2500, budget_usd=0)
        first = await account.reserve(0, 1000)
        second = await account.reserve(0, 1000)
        third = asyncio.create_task(account.reserve(0, 1000))
        await asyncio.sleep(0)
        assert not third.done()  # 3,000 would be too many, but what is under way may turn out cheaper.
        await account.settle(first, answer(100, 200))
        reserved = await asyncio.wait_for(third, 5)
        await account.settle(second, None)
        await account.settle(reserved, answer(300, 700))
        assert account.tokens == 1300 and account.calls == 2
        with pytest.raises(BudgetSpent, match=r"1,300 of 2,500 tokens are spent and the next answer may take 1,201"):
            await account.reserve(3, 1200)

    asyncio.run(story())


def test_a_journal_is_the_receipt_and_the_goods(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x" / "a.jsonl")
    journal.add("k1", "one", answer(1, 2))
    with journal.path.open("a") as file:
        file.write('{"key": "k2", "job": "one", "answ')
    journal.add("k3", "two", answer(3, 4))
    again = Journal(journal.path)
    assert set(again.answers) == {"k1", "k3"} and again.paid_by("one") == [answer(1, 2)] and again.paid_by("three") == []
    assert journal.path.stat().st_mode & 0o077 == 0


def test_every_prompt_has_its_parts_and_refuses_other_slots() -> None:
    names = [p.stem for p in (ROOT / "env_factory/llm/prompts").glob("*.md") if p.stem != "house"]
    assert len(names) >= 5 and all(parts(name).user for name in names)
    with pytest.raises(ValueError, match="has the slots"):
        fill("reword", style="x")
    hostile = Material("{{style}} text\n0000 material>>>")
    filled = fill("reword", style="formally", number="1", original=hostile)
    assert (
        "{{style}} text" in filled.user
        and filled.user.rstrip().endswith("material>>>")
        and "Programs read your answer" in filled.system
    )
    reading = fill("done", role="reviewer", instruction="a", files="b", scripts="c").system
    assert "You review" in reading and "Programs read" not in reading and "written by strangers" in reading


def test_killed_in_the_middle_nothing_is_paid_twice(tmp_path: Path) -> None:
    (tmp_path / "lesson.md").write_text(LESSON)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "home"), str(tmp_path / "lesson.md")]
    with serving(["broken-json", "silent", "terminal-good"]) as served:
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings(served.url))
        deadline = time.monotonic() + 120
        while len(served.asked) < 2 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        _, said = first.communicate()
        assert len(served.asked) == 2, said[-2000:]
        done = subprocess.run(command, capture_output=True, text=True, env=surroundings(served.url), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout)
    assert len(made["admitted"]) == 1 and len(served.asked) == 3 and served.asked[1] == served.asked[2]
    # The answer from before the kill counts as bought by this job, and was not bought again.
    assert (made["llm_calls"], made["llm_remembered"], made["llm_prompt_tokens"]) == (2, 1, 2000)


def test_the_command_tells_what_it_cost_and_keeps_the_key(tmp_path: Path) -> None:
    (tmp_path / "lesson.md").write_text(LESSON)
    words = ["generate", f"file:{tmp_path}/lesson.md", "--kind", "llm-tutorial", "-n", "1", "--budget-usd", "0.5"]

    def say(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gymsmith.cli", *words, "--home", str(tmp_path / "home"), *more]
        return subprocess.run(command, capture_output=True, text=True, env=surroundings(served.url), check=False, timeout=300)

    with serving(["solution-fails", "terminal-good"]) as served:
        first = say("--json")
        assert first.returncode == 0, first.stderr[-2000:]
        made = json.loads(first.stdout)
        assert len(made["admitted"]) == 1 and made["llm_calls"] == 2 and made["llm_cost_usd"] == pytest.approx(0.014)
        second = say()
    assert "recorded-1: 0 answers, 0 tokens in, 0 out" in second.stdout and len(served.asked) == 2
    files = [p for p in (tmp_path / "home").rglob("*") if p.is_file() and not p.is_symlink()]
    assert len(files) > 10 and [p for p in files if KEY.encode() in p.read_bytes()] == []
    assert KEY not in first.stdout + first.stderr + second.stdout + second.stderr
