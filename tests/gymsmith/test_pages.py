"""The dashboard's pages as HTML: all there, all escaped, small whatever they show. What a browser makes of them: tests/web."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import household
import population
import pytest
from starlette.testclient import TestClient

from gymsmith import render
from gymsmith.api import create_app
from gymsmith.config import Settings
from gymsmith.schema import Job, Segment, Step, VersionSpan
from gymsmith.store import Store

HERE = "http://127.0.0.1:8642"
LISTS = ("/", "/environments", "/trajectories", "/runs", "/evaluations", "/jobs")


@pytest.fixture
def local(settings: Settings) -> Iterator[Store]:
    """A store on SQLite alone: pages do not know the engine."""
    with Store.open(settings) as s:
        yield s


@pytest.fixture
def client(local: Store) -> Iterator[TestClient]:
    """A client of the application over `local`."""
    with TestClient(create_app(local.settings, local), base_url=HERE) as c:
        yield c


class Page(HTMLParser):
    """Collects what a content policy would forbid, and the links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forbidden: list[str] = []
        self.links: set[str] = set()
        self.elements = 0
        self._script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Inline handlers, styles and addresses elsewhere are forbidden."""
        self.elements += 1
        self._script = tag == "script"
        for name, value in attrs:
            value = value or ""
            if name.startswith("on") or name == "style" or tag in ("style", "iframe", "object", "embed", "base"):
                self.forbidden.append(f"<{tag} {name}={value}>")
            if name in ("href", "src", "action") and (re.match(r"[a-z]+:|//", value, re.I)):
                self.forbidden.append(f"<{tag} {name}={value}>")
            if tag == "a" and name == "href":
                self.links.add(value)

    def handle_data(self, data: str) -> None:
        """A script element may only name a file."""
        if self._script and data.strip():
            self.forbidden.append(f"inline script {data[:60]}")

    def handle_endtag(self, tag: str) -> None:
        """Scripts end."""
        self._script = False


def test_every_page_of_an_empty_house_says_what_to_do_next(client: TestClient) -> None:
    for path in LISTS:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert "yet" in answer.text or "Nothing is running" in answer.text
        assert not Page(answer.text).forbidden


def test_every_link_of_a_filled_house_leads_somewhere(client: TestClient, local: Store) -> None:
    household.fill(local, local.settings, environments=40)
    seen, waiting = set(), list(LISTS)
    while waiting:
        path = waiting.pop()
        answer = client.get(path)
        assert answer.status_code == 200, path
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        page = Page(answer.text)
        assert not page.forbidden, (path, page.forbidden)
        for link in page.links:
            if link.startswith("?"):
                link = path.split("?")[0] + link
            link = link.split("#")[0]
            # One of each kind of list and filter is enough.
            shape = re.sub(r"=[^&]*", "=", re.sub(r"[0-9a-z]{26,32}", "ID", link))
            if link.startswith("/") and shape not in seen:
                seen.add(shape)
                waiting.append(link)
    assert len(seen) > 40 and any("/tokens" in s for s in seen) and any("/files" in s for s in seen)


def test_what_a_page_shows(client: TestClient, local: Store) -> None:
    ids = household.fill(local, local.settings)
    detail = client.get(f"/environments/{ids['environment']}").text
    for gate in ("noop", "oracle", "alternative:1", "cheat:forge-report"):
        assert gate in detail
    rejected = client.get(f"/environments/{ids['rejected']}").text
    assert local.environment(ids["rejected"]).reason in rejected and "broken" in rejected
    attempt = client.get(f"/trajectories/{ids['trajectory']}").text
    assert 'id="step-3"' in attempt and "refused" in attempt and "exit 1" in attempt and "folded later" in attempt
    assert "\x1b" not in attempt and 'class="a-b a-fg4"' in attempt
    assert "Lost to an error of the house" in client.get(f"/trajectories/{ids['lost']}").text
    compared = client.get(f"/evaluations/{ids['report']}").text
    assert "sft, held out" in compared and "+36.5" in compared and "95% intervals are disjoint" in compared
    alone = client.get(f"/evaluations/{ids['report']}?against=").text
    assert "nothing to compare with" in alone
    lineage = client.get("/runs/rl-7").text.split("Lineage")[1].split("Checkpoints")[0]
    assert [lineage.index(f"/runs/{r}") for r in ("demo-", "pretrain-7", "sft-7")] == sorted(
        lineage.index(f"/runs/{r}") for r in ("demo-", "pretrain-7", "sft-7")
    )
    demo = client.get("/runs/demo-20260801").text
    assert "Promises" in demo and "1 of 2 kept" in demo and "2 min 38 s" in demo
    assert "away" in client.get(f"/jobs/{ids['failed_job']}").text
    assert "n of" not in detail and "50 of 90 environments" in client.get("/environments").text


def test_a_job_says_what_a_language_model_was_paid(client: TestClient, local: Store) -> None:
    sums = {
        "llm_model": "<b>m</b>",
        "llm_calls": 3,
        "llm_remembered": 1,
        "llm_prompt_tokens": 12_345,
        "llm_completion_tokens": 678,
    }
    local.put_jobs([Job(id="j", kind="generate", queue="factory")])
    assert local.claim("j", "me") is not None
    local.finish("j", 1, {"admitted": [], "reasons": {"llm-json": 2}, "stopped": "budget", "llm_cost_usd": 0.0315, **sums})
    page = client.get("/jobs/j").text
    for shown in ("Language model", "&lt;b&gt;m&lt;/b&gt;", "12,345", "678", "0.0315 USD", "its budget; a larger one goes on"):
        assert shown in page
    local.put_jobs([Job(id="k", kind="generate", queue="factory")])
    assert "Language model" not in client.get("/jobs/k").text
    assert "llm-tutorial" not in client.get("/environments").text
    endpoint = {"llm_url": "http://127.0.0.1:1/v1", "llm_model": "<i>m"}
    with (
        Store.open(local.settings.model_copy(update=endpoint)) as other,
        TestClient(create_app(other.settings, other), base_url=HERE) as c,
    ):
        assert '<optgroup label="by &lt;i&gt;m"><option value="llm-tutorial">' in c.get("/environments").text


def test_the_form_orders_and_the_button_cancels(client: TestClient, local: Store) -> None:
    form = {"source": "shell:all", "kind": "shell", "n": "5", "seed": "1", "split": "train"}
    ordered = client.post("/environments", data=form, headers={"origin": HERE}, follow_redirects=False)
    assert ordered.status_code == 303
    job = local.jobs().items[0]
    assert ordered.headers["location"] == f"/jobs/{job.id}" and job.payload["n"] == 5
    client.post(f"/jobs/{job.id}/cancel", headers={"origin": HERE})
    assert local.job(job.id).state.value == "cancelled"
    wrong = client.post("/environments", data=form | {"n": "many"}, headers={"origin": HERE})
    assert wrong.status_code == 400 and "many" in wrong.text
    assert client.post("/environments", data=form, headers={"origin": "http://evil.example"}).status_code == 403


def test_a_huge_trajectory_is_shown_in_parts(client: TestClient, local: Store) -> None:
    e = population.environment(1)
    local.put_environment(e)
    x = population.trajectory(1, e, "r", "r/1/0", 0, "v", passed=True)
    steps = [Step(action=f"echo {i}", observation=f"line {i}\n" * 400, exit_code=0) for i in range(3000)]
    n = 60_000
    segment = Segment(
        ids=list(range(n)),
        mask=[i % 50 < 10 for i in range(n)],
        logprobs=[-0.3] * n,
        versions=[VersionSpan(version="v", start=0, end=n)],
    )
    local.put_trajectories([x.model_copy(update={"steps": steps, "segments": [segment]})])
    whole = sum(len(s.observation) for s in steps)
    first = client.get(f"/trajectories/{x.id}")
    assert len(first.content) < whole * 0.02 and Page(first.text).elements < 5000
    assert 'id="step-1"' in first.text and 'id="step-41"' not in first.text
    assert 'id="step-2999"' in client.get(f"/trajectories/{x.id}?from=2999").text
    tokens = client.get(f"/trajectories/{x.id}/tokens?offset=1200")
    assert 'data-at="1200"' in tokens.text and 'data-at="1800"' not in tokens.text
    assert Page(tokens.text).elements < 5000 and len(tokens.content) < 400_000


def test_static_files_are_kept_by_digest(client: TestClient) -> None:
    address = render.static_url("app.css")
    answer = client.get(address)
    assert (
        answer.status_code == 200
        and "immutable" in answer.headers["cache-control"]
        and answer.headers["content-type"].startswith("text/css")
    )
    assert client.get("/static/old/app.css").headers["cache-control"] == "no-cache"
    assert client.get(render.static_url("chart.js")).headers["content-type"].startswith("text/javascript")
    assert client.get("/static/x/..%2f..%2fpyproject.toml").status_code == 404
    total = sum(len(p.read_bytes()) for p in (render.web_folder() / "static").iterdir())
    assert total < 150_000, "style and script together stay small"


def test_templates_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render.web_folder.cache_clear()
    repository = Path(__file__).parents[2] / "web"
    assert render.web_folder() == repository
    packaged = tmp_path / "site-packages" / "gymsmith"
    (packaged / "_web" / "templates").mkdir(parents=True)
    (packaged / "_web" / "templates" / "base.html").touch()
    monkeypatch.setattr(render, "__file__", str(packaged / "render.py"))
    render.web_folder.cache_clear()
    assert render.web_folder() == packaged / "_web"
    render.web_folder.cache_clear()
