"""What a model makes of packages: faults, issues, a set-up repository; and other words for what is there."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from env_factory import tasks
from env_factory.llm.conversation import Unfit
from env_factory.llm.rewording import compare, facts
from env_factory.llm.suite_lines import outcomes
from gymsmith import taskdir
from gymsmith.errors import ConfigError, NotFound, SourceError
from gymsmith.schema import Status
from tests.env_factory.endpoint import serving
from tests.env_factory.llm_session import Session, objection

SLUGS = '''"""Turns titles into slugs."""


def words(title):
    """The words of a title in lower case; every mark separates."""
    found = []
    current = ""
    for c in title:
        if c.isalnum():
            current += c.lower()
        elif current:
            found.append(current)
            current = ""
    if current:
        found.append(current)
    return found


def slug(title, limit=0):
    """The words of a title joined by hyphens, cut between words to `limit` characters (0: not at all)."""
    made = ""
    for word in words(title):
        longer = f"{made}-{word}" if made else word
        if limit and len(longer) > limit:
            break
        made = longer
    return made
'''
TESTS = """import pytest

from slugs import slug, words


@pytest.mark.parametrize("title, wanted", [
    ("Hello World", ["hello", "world"]), ("  a  b ", ["a", "b"]), ("a.b", ["a", "b"]), ("", []), ("x9", ["x9"]),
    ("either/or", ["either", "or"]),
])
def test_words(title, wanted):
    assert words(title) == wanted


@pytest.mark.parametrize("title, wanted", [("Hello World", "hello-world"), ("one", "one"), ("", ""), ("A  B C", "a-b-c")])
def test_slug(title, wanted):
    assert slug(title) == wanted


def test_limit_that_fits_exactly():
    assert slug("ab cd", limit=5) == "ab-cd"


def test_limit_that_fits_another():
    assert slug("one two three", limit=7) == "one-two"


def test_limit_that_cuts():
    assert slug("ab cd", limit=4) == "ab"
"""
ISSUE = 'Apostrophes tear words apart\n\nslug("It\'s all here") should be its-all-here, not it-s-all-here.'


pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository in an archive."""
    path = tmp_path_factory.mktemp("archive") / "slugs-1.0.tar.gz"
    files = {"pyproject.toml": '[project]\nname = "slugs"\nversion = "1.0"\n', "slugs.py": SLUGS, "tests/test_slugs.py": TESTS}
    with tarfile.open(path, "w:gz") as file:
        for name, text in files.items():
            member = tarfile.TarInfo(f"slugs-1.0/{name}")
            member.size = len(text.encode())
            file.addfile(member, io.BytesIO(text.encode()))
    return f"archive:{path}"


@pytest.fixture
def session(doorway: Any, archived: str, index_reachable: None) -> Callable[..., Any]:
    """Opens an endpoint with a script. `seed` tells orders apart, which otherwise share what they settled."""

    @contextmanager
    def opened(script: Any, kind: str, **says: Any) -> Iterator[Session]:
        with serving(script) as served:
            yield Session(doorway, served, {"source": archived, "kind": kind, **says})

    return opened


def turned_down(served: Any) -> list[str]:
    """The reasons that the model was told, one for each question after the first."""
    return [objection(asked).partition("turned down (")[2].partition(")")[0] for asked in served.asked[1:]]


def only_slug(body: dict[str, Any]) -> bool:
    return "enter the function slug " in body["messages"][1]["content"]


def test_a_fault_becomes_an_environment_that_tells_what_users_see(session: Any, doorway: Any) -> None:
    bad = ["bug-survives", "bug-breaks-all", "bug-good"]
    seen: list[str] = []

    def script(body: dict[str, Any]) -> str:
        # Two functions take turns; what is asked about the other one gets an answer that is never of use.
        if not only_slug(body):
            return "declined"
        seen.append(bad[min(len(seen), 2)])
        return seen[-1]

    with session(script, "llm-bug", seed=1) as s:
        made = s.order(gates="full")
    assert len(made["admitted"]) == 1 and set(made["reasons"]) <= {"llm-declined"}
    told = [objection(asked) for asked in s.served.asked if only_slug(asked) and objection(asked)]
    assert "(survived): no test of the package fails" in told[0] and "(breaks-half)" in told[1]
    environment = doorway.store.environment(made["admitted"][0])
    assert environment.spec.kind == "llm-bug" and environment.spec.labels["provenance"] == "llm:recorded-1"
    assert "slug('ab cd', limit=5)" in environment.instruction and "fits exactly" not in environment.instruction
    assert int(environment.spec.labels["f2p"]) >= 1 and int(environment.spec.labels["p2p"]) >= 5
    gates = doorway.store.evidence(environment.id).gates
    assert all(gate.passed for gate in gates) and "cheat:py-equal-to-all" in {gate.name for gate in gates}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("bug-other-parameters", "llm-edit"), ("bug-no-python", "llm-edit"), ("bug-unchanged", "llm-same"), ("bug-hangs", "hang"),
        ("broken-json", "llm-json"),
    ],
)  # fmt: skip
def test_a_fault_that_is_none_goes_back(session: Any, bad: str, reason: str) -> None:
    script = lambda body: "declined" if not only_slug(body) else bad if not objection(body) else "bug-good"
    with session(script, "llm-bug", seed=sum(map(ord, bad))) as s:
        made = s.order()
    assert len(made["admitted"]) == 1
    assert f"turned down ({reason})" in next(objection(a) for a in s.served.asked if only_slug(a) and objection(a))


def test_an_issue_becomes_an_environment(session: Any, doorway: Any) -> None:
    bad = ["issue-edit-misses", "issue-tests-see-nothing", "issue-solution-fails", "issue-good"]
    with session(bad, "llm-issue", issue=ISSUE) as s:
        made = s.order(gates="full")
    assert len(made["admitted"]) == 1 and made["reasons"] == {}
    assert turned_down(s.served) == ["llm-edit", "few-f2p", "oracle-fails"]
    assert "test_slug_of_a_contraction" in objection(s.served.asked[3])
    environment = doorway.store.environment(made["admitted"][0])
    task = taskdir.read(doorway.settings.home / environment.path)
    assert environment.spec.kind == "llm-issue" and b"It's all here" in task.files["tests/suite/tests/test_reported_issue.py"]
    assert task.files["environment/work/slugs.py"].decode() == SLUGS
    assert not any("test_reported" in name for name in task.files if name.startswith("environment/"))


def test_an_issue_whose_answers_break_things_goes_back(session: Any) -> None:
    bad = ["issue-solution-breaks", "issue-names-the-file", "issue-edits-a-test", "issue-good"]
    with session(bad, "llm-issue", issue=ISSUE, seed=3) as s:
        made = s.order()
    assert len(made["admitted"]) == 1 and turned_down(s.served) == ["oracle-fails", "leak", "llm-edit"]
    assert "breaks tests of the package" in objection(s.served.asked[1])


def test_an_issue_may_be_the_source(session: Any, doorway: Any, tmp_path: Path) -> None:
    folder = tmp_path / "slugs"
    (folder / "tests").mkdir(parents=True)
    (folder / "slugs.py").write_text(SLUGS)
    (folder / "tests/test_slugs.py").write_text(TESTS)

    def git(*words: str) -> str:
        who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", **who}
        return subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "start")
    diff = "diff --git a/slugs.py b/slugs.py\n--- a/slugs.py\n+++ b/slugs.py\n@@ -1 +1 @@\n-x\n+THE KNOWN FIX\n"
    record = {
        "repository": "some/slugs", "clone_url": str(folder), "issue": {"number": 7, "title": "Torn words", "body": ISSUE},
        "pull_request": {"number": 8, "base": {"sha": git("rev-parse", "HEAD")}, "created_at": "2025-05-30T00:00:00Z"},
        "diff": diff,
    }  # fmt: skip
    (tmp_path / "issue.json").write_text(json.dumps(record))
    with session(["issue-good"], "llm-issue", source=f"issue:{tmp_path}/issue.json") as s:
        made = s.order()
    asked = s.served.asked[0]["messages"][1]["content"]
    assert len(made["admitted"]) == 1 and "Torn words" in asked and "THE KNOWN FIX" not in asked
    assert doorway.store.environment(made["admitted"][0]).source.kind == "git"


def test_a_repository_is_set_up_and_remembered(session: Any) -> None:
    script = ["setup-from-an-address", "setup-does-not-build", "setup-tests-fail", "setup-runs-nothing", "setup-good"]
    with session(script, "llm-setup") as s:
        made = s.order()
        assert turned_down(s.served) == ["llm-requirement", "build-failed", "tests-fail", "tests-fail"]
        assert "tomli-of-yesteryear" in objection(s.served.asked[2]) and "ModuleNotFoundError" in objection(s.served.asked[3])
        setup = made["setup"]
        assert (setup["passing"], setup["failing"], setup["answers"]) == (13, 0, 5)
        again = s.order(job="another", seed=9)
    assert again["setup"] == setup and again["llm_calls"] == 0 and len(s.served.asked) == 5


def test_a_repository_that_cannot_be_set_up_ends_with_its_reason(session: Any, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("empty/README.md"))
    with session(lambda _: "setup-option", "llm-setup", source=f"archive:{tmp_path}/empty.tar.gz") as s:
        made = s.order()
    assert (
        made["admitted"] == [] and made["reasons"] == {"llm-requirement": 1} and "setup" not in made and len(s.served.asked) == 6
    )


def test_other_words_for_an_environment(session: Any, doorway: Any) -> None:
    (known,) = tasks.generate({"source": "shell:all", "kind": "shell", "n": 1, "seed": 901, "gates": "controls"}, doorway)[
        "admitted"
    ]
    original = doorway.store.environment(known)
    script = ["reword-same", "reword-loses", "reword-adds", "reword-good"]
    with session(script, "llm-reword", source=f"env:{known}") as s:
        s.served.fill["original"] = original.instruction.strip()
        made = s.order()
    assert turned_down(s.served) == ["llm-same", "llm-facts", "llm-facts"]
    environment = doorway.store.environment(made["admitted"][0])
    assert environment.status is Status.VERIFIED and environment.id != known and environment.spec.kind == "shell"
    assert environment.spec.labels["reworded_from"] == known and environment.spec.labels["provenance"] == "llm:recorded-1"
    assert environment.image_id == original.image_id and environment.instruction.startswith("Hello, could you")


def test_facts_of_an_instruction() -> None:
    text = 'Copy `a b` to /srv/x.txt and out/y.csv, 17 lines, "so"; use max_size and camelCase.\n\n```\nx = 1\n```\n    run me\n'
    assert set(facts(text)) >= {"a b", "/srv/x.txt", "out/y.csv", "17", "so", "max_size", "camelCase", "x = 1", "run me"}
    assert facts("Please do it well.") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Would you count the lines of house and write the number to yak, please?", ""),
        ("Count the lines of house and write the number to the file.", "are lost: 'yak'"),
        ("Count the lines of house and write the number, 17, to yak.", "not in the original: '17'"),
        ("Count the lines of house and write the number to yak. Mind the ledger.", "tell more than the original: ledger"),
        ("count the lines of house and  write the number to yak", "this is the original"),
        ("house yak", "characters"),
    ],
)  # fmt: skip
def test_what_a_rewording_may_not_do(text: str, says: str) -> None:
    original, hidden = "count the lines of house and write the number to yak", "wc -l < ledger > yak"
    if not says:
        compare(original, text, hidden, f"{hidden} work/house")
        return
    with pytest.raises(Unfit, match=says):
        compare(original, text, hidden, f"{hidden} work/house")


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("PASSED t.py::a[x y]\nFAILED t.py::b - assert 1", {"t.py::a[x y]": "passed", "t.py::b": "failed"}),
        ("test_a (m.T.test_a) ... ok\nb (m.T.b) ... FAIL", {"test_a (m.T.test_a)": "passed", "b (m.T.b)": "failed"}),
        ("ok 1 - one\nnot ok 2 - two", {"one": "passed", "two": "failed"}),
        ("=== RUN   TestA\n--- PASS: TestA (0.00s)\n    --- FAIL: TestA/b (0.00s)", {"TestA": "passed", "TestA/b": "failed"}),
        ("test a::b ... ok\ntest c ... FAILED", {"a::b": "passed", "c": "failed"}),
        ("1/2 Test  #1: one ...  Passed  0.01 sec\n2/2 Test  #2: two ...***Failed  0.1 sec", {"one": "passed", "two": "failed"}),
        ("PASSED t::a\nFAILED t::a", {"t::a": "failed"}),
        ("all tests passed", {}),
    ],
)  # fmt: skip
def test_what_test_commands_print_is_understood(output: str, found: dict[str, str]) -> None:
    assert outcomes(output) == found


def test_orders_that_cannot_be(session: Any) -> None:
    with session([], "llm-bug") as s:
        for says, error, words in (
            ({"source": "shell:all"}, SourceError, "expected"),
            ({"source": "file:/etc/hostname"}, SourceError, "hostname"),
            ({"issue": "It hurts."}, ConfigError, "an issue goes with kind llm-issue"),
            ({"kind": "llm-issue"}, ConfigError, "an issue goes with kind llm-issue"),
            ({"kind": "llm-reword", "source": "env:painting"}, NotFound, "no verified environment"),
            ({"kind": "llm-reword", "source": "pypi:a==1"}, SourceError, "env:ID"),
        ):
            with pytest.raises(error, match=words):
                s.order(**says)
