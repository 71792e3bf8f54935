"""Issues with their fixes: from exported JSON, from an API that answers like GitHub's, and from SWE-bench rows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from env_factory import sources
from env_factory.source_kinds import diff, github
from gymsmith.config import Settings
from gymsmith.errors import NoNetwork, NotFound, SourceError
from tests.env_factory.foreign_tasks import needs_swebench

BASE = "a" * 40
DIFF = """diff --git a/tiny.py b/tiny.py
index 1..2 100644
--- a/tiny.py
+++ b/tiny.py
@@ -1,2 +1,2 @@
 def half(n):
-    return n // 3
+    return n // 2
diff --git a/tests/test_tiny.py b/tests/test_tiny.py
new file mode 100644
--- /dev/null
+++ b/tests/test_tiny.py
@@ -0,0 +1 @@
+def test_half(): assert half(8) == 4
"""
ISSUE = {"number": 7, "title": "half is a third", "body": "half(9) gives 3", "created_at": "2024-03-01T10:00:00Z"}
PULL = {
    "number": 9, "title": "half: fixes #7", "body": "Rounds as it says.", "created_at": "2024-03-03T00:00:00Z",
    "merged_at": "2024-03-04T00:00:00Z", "merge_commit_sha": "b" * 40, "base": {"sha": BASE},
}  # fmt: skip
COMMENTS = [
    {"body": "Same here.", "created_at": "2024-03-02T00:00:00Z"},
    {"body": "Fixed by #9, divide by two.", "created_at": "2024-03-04T00:00:00Z"},
]
RECORD: dict[str, Any] = {
    "repository": "o/tiny", "issue": ISSUE, "comments": COMMENTS, "pull_request": PULL, "diff": DIFF, "licence": "MIT"
}  # fmt: skip


def test_an_exported_record_is_an_issue_with_its_fix(tmp_path: Path, wheelhouse: Settings) -> None:
    path = tmp_path / "issues.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"issue": ISSUE | {"number": 8}}) + "\n")
    assert sources.members(f"issue:{path}") == [f"issue:{path}#7", f"issue:{path}#8"]
    issue = sources.read(f"issue:{path}#7", wheelhouse)
    assert isinstance(issue, sources.Issue)
    assert (issue.repo, issue.number, issue.pull, issue.base_commit) == ("o/tiny", 7, 9, BASE)
    assert (issue.source.licence, issue.source.commit, issue.place) == ("MIT", BASE, "https://github.com/o/tiny")
    assert issue.statement == "half is a third\n\nhalf(9) gives 3"
    assert issue.hints == "Same here.", "what was said after the fix was proposed tells the fix"
    assert "tests/" not in issue.patch and "tiny.py" in issue.patch and issue.test_patch.count("diff --git") == 1
    assert len(issue.source.digest) == 64
    with pytest.raises(NotFound, match=r"got 2 \(7, 8\); name one"):
        sources.read(f"issue:{path}", wheelhouse)


def test_the_names_of_the_command_line_tool_are_understood(tmp_path: Path, wheelhouse: Settings) -> None:
    record = RECORD | {
        "issue": {"number": 7, "title": "t", "body": "b", "createdAt": "2024-03-01T10:00:00Z",
                  "comments": [{"body": "early", "createdAt": "2024-03-02T00:00:00Z"}]},
        "pull_request": {"number": 9, "baseRefOid": BASE, "createdAt": "2024-03-03T00:00:00Z"},
    }  # fmt: skip
    del record["comments"]
    (tmp_path / "one.json").write_text(json.dumps(record))
    issue = sources.read(f"issue:{tmp_path}/one.json", wheelhouse)
    assert isinstance(issue, sources.Issue) and (issue.base_commit, issue.hints) == (BASE, "early")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repository": "../etc"}, "OWNER/NAME"),
        ({"diff": ""}, "the pull request's diff"),
        ({"diff": "not a diff"}, "diff in git's form"),
        ({"issue": {}}, "title or a body"),
        ({"pull_request": {"base": {"sha": "main"}}}, "40 digits"),
    ],
)
def test_records_that_lack_something_say_what(change: dict[str, Any], said: str, tmp_path: Path, wheelhouse: Settings) -> None:
    (tmp_path / "one.json").write_text(json.dumps(RECORD | change))
    with pytest.raises(SourceError, match=said):
        sources.read(f"issue:{tmp_path}/one.json", wheelhouse)


def test_files_that_are_no_records_have_their_errors(tmp_path: Path, wheelhouse: Settings) -> None:
    (tmp_path / "torn.json").write_text('{"issue": ')
    (tmp_path / "text.md").write_text("x")
    for name, said in (("torn.json", "is not JSON"), ("text.md", "expected issue:PATH")):
        with pytest.raises(SourceError, match=said):
            sources.read(f"issue:{tmp_path}/{name}", wheelhouse)
    with pytest.raises(NotFound, match="expected a file"):
        sources.read(f"issue:{tmp_path}/none.json", wheelhouse)


class Api(BaseHTTPRequestHandler):
    """Answers like GitHub's API for one repository; what it was asked for is kept by the server."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        path, _, query = self.path.partition("?")
        pulls = {"cross-referenced": {"source": {"issue": PULL | {"pull_request": {"merged_at": PULL["merged_at"]}}}}}
        events = [{"event": "labeled"}, *({"event": event} | about for event, about in pulls.items())]
        answers: dict[str, Any] = {
            "/repos/o/tiny": {"license": {"spdx_id": "BSD-3-Clause"}},
            "/repos/o/tiny/issues/7": ISSUE,
            "/repos/o/tiny/issues/9": PULL | {"pull_request": {}},
            "/repos/o/tiny/issues/5": ISSUE | {"number": 5},
            "/repos/o/tiny/pulls/9": PULL,
            # The first page is full: a client that reads one page finds no pull request.
            "/repos/o/tiny/issues/7/timeline": [{"event": "labeled"}] * 100 if "page=1" in query.split("&") else events,
            "/repos/o/tiny/issues/5/timeline": events,
            "/repos/o/tiny/issues/7/comments": COMMENTS,
        }
        status = 200 if path in answers else 404
        if server.limited:
            status = 403
        body = json.dumps(answers.get(path, {"message": "Not Found"})).encode()
        if "diff" in self.headers.get("Accept", "") and path == "/repos/o/tiny/pulls/9":
            body = DIFF.encode()
        self.send_response(status)
        if server.limited:
            self.send_header("x-ratelimit-remaining", "0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[Settings, Any]]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.asked, server.limited = [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    yield Settings.load(home=tmp_path / "home", github_api=root, github_token="geheim"), server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("number", [7, 9])
def test_the_api_gives_the_pair_from_either_end(number: int, api: tuple[Settings, Any]) -> None:
    settings, server = api
    issue = sources.read(f"github:o/tiny#{number}", settings)
    assert isinstance(issue, sources.Issue)
    assert (issue.number, issue.pull, issue.source.licence, issue.hints) == (7, 9, "BSD-3-Clause", "Same here.")
    assert all(token == "Bearer geheim" for _, token in server.asked)
    # What was fetched is kept in the form that is read without a network.
    (kept,) = (settings.home / "issues").iterdir()
    again = sources.read(f"issue:{kept}", settings)
    assert isinstance(again, sources.Issue) and again.source.digest == issue.source.digest and again.patch == issue.patch
    assert "geheim" not in kept.read_text()


def test_what_the_api_refuses_has_its_error(api: tuple[Settings, Any]) -> None:
    settings, server = api
    with pytest.raises(NotFound, match="answered 404"):
        sources.read("github:o/tiny#1", settings)
    with pytest.raises(NotFound, match="merged pull request that says it closes"):
        sources.read("github:o/tiny#5", settings)
    server.limited = True
    with pytest.raises(NoNetwork, match="wait, then retry"):
        sources.read("github:o/tiny#7", settings)
    with pytest.raises(SourceError, match="set GITHUB_TOKEN"):
        sources.read("github:o/tiny#7", settings.model_copy(update={"github_token": ""}))
    with pytest.raises(SourceError, match="not sent in the open"):
        sources.read("github:o/tiny#7", settings.model_copy(update={"github_api": "http://example.org"}))
    with pytest.raises(SourceError, match="expected github:OWNER/REPO#NUMBER"):
        sources.read("github:o/tiny/../../x#7", settings)
    assert not (settings.home / "issues").exists()


def test_the_token_of_githubs_tools_is_heard_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "geheim")
    assert Settings.load().github_token == "geheim" and "geheim" not in repr(Settings.load())
    monkeypatch.setenv("GYMSMITH_GITHUB_TOKEN", "ours")
    assert Settings.load().github_token == "ours"


def test_closing_words_are_read_as_github_reads_them() -> None:
    text = (
        "Fixes #3, resolved: https://github.com/o/tiny/issues/4, closes o/tiny#5; see #6, fix 7, closes other/repo#8, prefixes #9"
    )
    assert github.closed_by(text, "o/tiny") == [3, 4, 5]


def test_a_row_of_swe_bench_is_an_issue(tmp_path: Path, wheelhouse: Settings) -> None:
    patch, test_patch = diff.split(DIFF)
    row = {
        "instance_id": "o__tiny-9", "repo": "o/tiny", "base_commit": BASE, "patch": patch, "test_patch": test_patch,
        "problem_statement": "half(9) gives 3", "hints_text": "", "created_at": "2024-03-01T10:00:00Z", "version": "1.0",
        "FAIL_TO_PASS": '["tests/test_tiny.py::test_half"]', "PASS_TO_PASS": [],
    }  # fmt: skip
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    assert sources.members(f"swebench:{path}") == [f"swebench:{path}#o__tiny-9"]
    issue = sources.read(f"swebench:{path}#o__tiny-9", wheelhouse)
    assert isinstance(issue, sources.Issue)
    assert (issue.fail_to_pass, issue.pass_to_pass, issue.pull) == (("tests/test_tiny.py::test_half",), (), 9)
    for change, said in (
        ({"patch": None}, "lacks patch"),
        ({"base_commit": "HEAD"}, "40 digits"),
        ({"FAIL_TO_PASS": "x"}, "list of"),
    ):
        path.write_text(json.dumps([row | change]))
        with pytest.raises(SourceError, match=said):
            sources.read(f"swebench:{path}#o__tiny-9", wheelhouse)
    path.write_text(json.dumps([3]))
    with pytest.raises(SourceError, match="row 1 to be an object"):
        sources.members(f"swebench:{path}")
    with pytest.raises(SourceError, match=r"\.parquet"):
        (tmp_path / "rows.parquet").write_bytes(b"PAR1 torn")
        sources.members(f"swebench:{tmp_path}/rows.parquet")


def test_rows_are_read_from_parquet(tmp_path: Path) -> None:
    needs_swebench()
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"instance_id": ["a", "b"]}), tmp_path / "rows.parquet")
    assert sources.members(f"swebench:{tmp_path}/rows.parquet") == [f"swebench:{tmp_path}/rows.parquet#{n}" for n in "ab"]


def test_a_diff_falls_apart_by_file_and_quoted_names_are_read() -> None:
    odd = 'diff --git "a/tests/caf\\303\\251.py" "b/tests/caf\\303\\251.py"\nold mode 100644\nnew mode 100755\n'
    moved = "diff --git a/x.py b/y.py\nsimilarity index 100%\nrename from x.py\nrename to y.py\n"
    whole = DIFF + odd + moved
    assert [f.path for f in diff.by_file(whole)] == ["tiny.py", "tests/test_tiny.py", "tests/café.py", "y.py"]
    assert "".join(f.text for f in diff.by_file(whole)) == whole
    assert diff.split(whole)[1] == "".join(f.text for f in diff.by_file(whole)[1:3])
    names = {"src/x/test_a.py": True, "lib/a.spec.ts": True, "FooTest.java": True, "latest.py": False, "src/contest.py": False}
    assert {name: diff.is_test(name) for name in names} == names
