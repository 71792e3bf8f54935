"""The dashboard in a real Chromium: hostile text runs nothing, keys and live updates work, all is readable and labelled."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import household
import population
import pytest
from served import served

from gymsmith.config import Settings
from gymsmith.ids import ulid
from gymsmith.schema import EvalReport, Job, Metric, Reward, Run, Source, Step
from gymsmith.store import Event, Store

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>pwned('script')</script>",
    "<img src=x onerror=pwned('img')>",
    "\"><svg onload=pwned('svg')>",
    "' autofocus onfocus=pwned('focus') x='",
    "javascript:pwned('url')",
    "</pre></textarea></title></style><iframe srcdoc=\"<script>parent.pwned('frame')</script>\">",
    "{{ 7*'7' }}{% include '/etc/passwd' %}${pwned('template')}",
    "\x1b]8;;javascript:pwned('osc8')\x1b\\click\x1b]8;;\x1b\\ \x1b[31;\"onclick=pwned('sgr')mred",
    "\u202epwned\u202c \u2066rtl\u2069 \x00\x07\x9b31m",
    "--><!--<math><mtext><style><img src=x onerror=pwned('mxss')>",
    "&lt;script&gt;pwned('double')&lt;/script&gt;",
)
ALL = " ".join(HOSTILE)


@dataclass
class Site:
    """A served store and what the browser did there."""

    address: str
    store: Store
    ids: dict[str, str]
    browser: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, path: str, *, width: int = 1280, dark: bool = False) -> Any:
        """A page in a context of its own, watched."""
        context = self.browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("pageerror", lambda e: self.complaints.append(f"{page.url}: {e}"))
        page.on("console", lambda m: self.complaints.append(f"{page.url}: {m.text}") if m.type == "error" else None)
        page.on("dialog", lambda d: (self.complaints.append(f"{page.url}: dialog {d.message}"), d.dismiss()))
        page.expose_function("pwned", lambda how: self.complaints.append(f"{page.url}: script ran by {how}"))
        page.goto(self.address + path)
        return page

    def tour(self, paths: list[str], **look: Any) -> Iterator[tuple[str, Any]]:
        """One page that visits these addresses, one after the other."""
        page = self.open(paths[0], **look)
        for path in paths:
            page.goto(self.address + path)
            page.wait_for_timeout(120)
            yield path, page


@pytest.fixture
def site(chromium: Any, tmp_path: Path) -> Iterator[Site]:
    """A filled house behind a server; whatever a test does, no page may complain or ask another host."""
    settings = Settings(home=tmp_path / "home", port=0)
    with Store.open(settings) as store:
        ids = household.fill(store, settings)
        with served(store) as address:
            s = Site(address, store, ids, chromium)
            yield s
            for context in chromium.contexts:
                context.close()
    assert s.complaints == []
    assert {urlsplit(u).netloc for u in s.requests} <= {urlsplit(address).netloc}


def paths(ids: dict[str, str]) -> list[str]:
    """One of each page."""
    e, x = f"/environments/{ids['environment']}", f"/trajectories/{ids['trajectory']}"
    jobs = [f"/jobs/{ids[k]}" for k in ("job", "done_job", "failed_job", "train_job")]
    return [
        "/",
        "/environments",
        e,
        f"{e}/files",
        f"{e}/trajectories",
        "/trajectories",
        x,
        f"{x}/tokens",
        "/runs",
        "/runs/rl-7",
        "/evaluations",
        f"/evaluations/{ids['report']}",
        "/jobs",
        *jobs,
    ]


def test_hostile_text_in_every_field_runs_nothing(site: Site) -> None:
    store, bad = site.store, ALL
    e = population.environment(7001)
    spec = e.spec.model_copy(
        update={
            "name": bad,
            "description": bad,
            "labels": {bad: bad, "family": bad},
            "kind": bad,
            "expected": (bad,),
            "keywords": (bad,),
        }
    )
    e = e.model_copy(
        update={
            "spec": spec,
            "instruction": bad,
            "reason": bad,
            "image_id": bad,
            "source": Source(uri=bad, kind="man", licence=bad),
        }
    )
    proof = population.evidence(e)
    gates = tuple(g.model_copy(update={"name": g.name + bad, "detail": bad}) for g in proof.gates)
    store.put_environment(e, proof.model_copy(update={"gates": gates, "provider": bad}))
    population.write_folder(store.settings.home, e)
    evil_name = HOSTILE[1].replace("/", "_")
    (store.settings.home / e.path / "tests" / evil_name).write_text(bad)
    run = Run(
        id="evil", kind=bad, name=bad, config={bad: bad}, summary={bad: [bad]}, error=bad, policy_version=bad, config_hash=bad
    )
    store.put_run(run)
    store.put_metrics([Metric(run_id="evil", step=s, name=n, value=s) for s in range(3) for n in (HOSTILE[0], HOSTILE[1])])
    x = population.trajectory(5, e, "evil", bad, 0, bad, passed=False)
    steps = [Step(action=h, observation=h, refused=h if i % 2 else "", exit_code=1) for i, h in enumerate((*HOSTILE, bad))]
    x = x.model_copy(
        update={"steps": steps, "error": bad, "reward": Reward(value=0, tests={bad: bad}, detail=bad), "seconds": {bad: 1.0}}
    )
    store.put_trajectories([x, x.model_copy(update={"id": ulid(), "attempt": 1})])
    r = population.report(bad, "evil", bad, {bad: 0.5, "b": 0.4}, age_s=0)
    store.put_report(EvalReport.model_validate(r.model_dump() | {"config": {bad: bad}}))
    job = store.put_job(Job(id=ulid(), kind=bad, queue=bad, payload={bad: bad}, key=bad, run_id="evil"))[0]
    store.claim(job.id, bad)
    store.set_progress(job.id, 1, {"done": 1, "total": 2, "unit": bad, "reasons": {bad: 3}, bad: bad})
    store.fail(job.id, 1, bad)
    store.add_events(
        [Event(kind=bad, job_id=job.id, data={bad: bad}), Event(kind="job.progress", job_id=job.id, data={"x": bad})]
    )

    for path, page in site.tour(
        [
            "/",
            "/environments",
            f"/environments/{e.id}",
            f"/environments/{e.id}/files",
            f"/environments/{e.id}/trajectories",
            "/trajectories",
            f"/trajectories/{x.id}",
            f"/trajectories/{x.id}/tokens",
            "/runs",
            "/runs/evil",
            "/evaluations",
            f"/evaluations/{r.id}",
            "/jobs",
            f"/jobs/{job.id}",
            "/environments?text=%3Cscript%3Epwned(1)%3C/script%3E",
            "/login?next=javascript:pwned(1)",
        ]
    ):
        body = page.inner_text("body")
        assert "\x1b" not in body and "\u202e" not in body, path
        assert page.locator("iframe, math, [onerror], [onload], [onfocus], a[href^='javascript']").count() == 0, path
        if path == f"/trajectories/{x.id}":
            assert "pwned('script')" in body, "hostile text is shown, as text"
            for key in "jjkjjj":
                page.keyboard.press(key)
    files = site.open(f"/environments/{e.id}/files")
    files.locator(".files a", has_text="onerror").click()
    files.wait_for_timeout(150)
    assert "7*'7'" in files.inner_text("main")


def test_the_browser_refuses_an_inline_script(site: Site) -> None:
    """Control arm: what the test above looks for would be seen, and the policy would stop it."""
    page = site.open("/")
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); }"
    )
    assert page.evaluate("window.ran") is None
    assert site.complaints and "Content Security Policy" in site.complaints.pop()
    page.evaluate("pwned('control')")
    assert site.complaints.pop().endswith("control")
    site.complaints.clear()


def test_keys_walk_and_links_open_a_step(site: Site) -> None:
    page = site.open(f"/trajectories/{site.ids['trajectory']}#step-3")
    current = page.locator(".step.current")
    assert current.get_attribute("id") == "step-3"
    page.keyboard.press("j")
    assert current.get_attribute("id") == "step-4" and page.url.endswith("#step-4")
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert current.get_attribute("id") == "step-2" and page.locator("#position").inner_text() == "2 of 6"
    for _ in range(9):
        page.keyboard.press("j")
    assert current.get_attribute("id") == "verdict"

    e = population.environment(2)
    x = population.trajectory(1, e, "r", "", 0, "v", passed=True).model_copy(
        update={"id": "long", "steps": [Step(action=f"echo {i}", observation=str(i)) for i in range(1, 201)]}
    )
    site.store.put_trajectories([x])
    page = site.open("/trajectories/long#step-120")
    page.wait_for_selector("#step-120.current")
    assert page.locator("#step-120 .obs").inner_text() == "120"
    page.keyboard.press("j")
    page.wait_for_selector("#step-121.current")
    assert page.locator("#step-120").count() == 0


def test_search_as_you_type_and_without_script(site: Site) -> None:
    page = site.open("/environments")
    page.keyboard.press("/")
    page.keyboard.type("inflection")
    page.wait_for_function("() => document.querySelector('#results').innerText.includes('10 of 10')")
    assert "text=inflection" in page.url
    page.get_by_role("link", name=re.compile("^rejected")).click()
    page.wait_for_url("**status=rejected**")
    shown = page.locator("#results tbody tr")
    assert shown.count() == site.store.environment_total(text="inflection", status="rejected").n > 0

    context = site.browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(site.address + "/environments")
    plain.get_by_role("searchbox", name="Search in names, texts and labels").fill("tar end")
    plain.keyboard.press("Enter")
    plain.get_by_role("link", name="gymsmith/tar-0007").click()
    assert plain.get_by_role("heading", name="Evidence, gate by gate").is_visible()


def test_points_are_drawn_as_they_are_logged(site: Site) -> None:
    page = site.open("/runs/rl-7")
    latest = page.locator("figure[data-metric=reward] output")
    page.wait_for_function("() => document.querySelectorAll('figure').length === 17")
    page.wait_for_timeout(300)
    assert page.locator("figure[data-metric=reward] canvas").evaluate("c => c.width / c.clientWidth") == pytest.approx(
        page.evaluate("devicePixelRatio"), rel=0.01
    )
    drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3)).size"
    assert page.locator("figure[data-metric=reward] canvas").evaluate(drawn) > 8, "something is painted"
    delays = []
    for step, value in ((84, 0.4321), (85, 0.8765), (86, 0.2468)):
        site.store.put_metrics([Metric(run_id="rl-7", step=step, name="reward", value=value)])
        start = time.monotonic()
        page.wait_for_function(
            "v => document.querySelector('figure[data-metric=reward] output').textContent === v", arg=str(value)
        )
        delays.append(time.monotonic() - start)
    assert statistics.median(delays) < 2.0 and latest.inner_text() == "0.2468"
    site.store.put_metrics([Metric(run_id="rl-7", step=86, name="brand_new", value=5.0)])
    page.wait_for_selector("figure[data-metric=brand_new]", state="attached")
    levels = page.locator("figure[data-metric='pass_rate/chain'] output span")
    assert levels.count() == 2, "one chart holds all levels of a family"
    canvas = page.locator("figure[data-metric=reward] canvas")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('figure[data-metric=reward] output').textContent.endsWith(' at 0')")
    assert "step 86" in (canvas.get_attribute("aria-label") or "")


def test_jobs_move_while_one_looks(site: Site) -> None:
    job = site.ids["job"]
    page, one = site.open("/jobs"), site.open(f"/jobs/{job}")
    row = page.locator(f"tr[data-job='{job}']")
    assert row.locator("progress").get_attribute("value") == "14"
    page.wait_for_timeout(400)
    site.store.set_progress(job, 1, {"done": 20})
    site.store.emit("job.progress", job_id=job, done=20)
    page.wait_for_function("j => document.querySelector(`tr[data-job='${j}'] progress`).value === 20", arg=job)
    one.wait_for_function("() => document.querySelector('progress').value === 20")
    site.store.finish(job, 1, {"admitted": [], "reasons": {"flaky": 4}})
    site.store.emit("job.state", job_id=job, state="succeeded")
    page.wait_for_function("j => document.querySelector(`tr[data-job='${j}']`).dataset.state === 'succeeded'", arg=job)
    one.wait_for_selector(".head .pill.pass")
    assert one.get_by_role("button", name="Cancel this job").count() == 0

    waiting = site.store.put_job(Job(id=ulid(), kind="generate", queue="factory"))[0]
    page = site.open(f"/jobs/{waiting.id}")
    page.get_by_role("button", name="Cancel this job").click()
    page.wait_for_selector(".head .pill.warn")
    assert site.store.job(waiting.id).state.value == "cancelled"


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (css) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data;
    return [d[0], d[1], d[2], d[3] / 255];
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reduceRight((below, top) => over(top, below), [255, 255, 255]);
  };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    const left_out = e.closest(".sr, .skip, [aria-hidden=true], [disabled], script");
    if (!walk.currentNode.data.trim() || !e.checkVisibility() || left_out) continue;
    const back = ground(e), front = over(rgba(getComputedStyle(e).color), back);
    const [a, b] = [luminance(front), luminance(back)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${walk.currentNode.data.trim()}`);
  }
  return [...new Set(bad)];
}"""
UNLABELLED = """() => [...document.querySelectorAll(
  "a, button, input:not([type=hidden]), select, canvas, svg[role=img], progress, [tabindex='0']"
)].filter((e) => {
  const name = e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent || e.title;
  return !name?.trim();
}).map((e) => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_is_readable_and_labelled(site: Site, dark: bool) -> None:
    for path, page in site.tour(paths(site.ids), dark=dark):
        assert page.evaluate(CONTRAST) == [], path
        assert page.evaluate(UNLABELLED) == [], path
        assert page.locator("h1").count() == 1 and page.title().endswith("· Gymsmith"), path


def test_the_contrast_check_bites(site: Site) -> None:
    """Control arm."""
    page = site.open("/")
    page.evaluate("document.querySelector('h1').className = ''; document.documentElement.style.setProperty('--ink', '#b0a99f')")
    assert page.evaluate(CONTRAST)
    page.evaluate("document.querySelector('nav a').replaceChildren()")
    assert page.evaluate(UNLABELLED)


def test_no_page_is_wider_than_a_phone(site: Site) -> None:
    for path, page in site.tour(paths(site.ids), width=390):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path


def test_the_list_is_there_at_once(site: Site) -> None:
    for i in range(200, 800):
        site.store.put_environment(population.environment(i))
    site.open("/environments").context.close()
    times = []
    for _ in range(5):
        site.requests.clear()
        start = time.monotonic()
        page = site.open("/environments")
        page.wait_for_selector("#results tbody tr:nth-child(10)")
        times.append(time.monotonic() - start)
        page.context.close()
    assert len(site.requests) <= 8, site.requests
    assert statistics.median(times) < 3.0, f"seconds to ten rows: {times}"


def test_keyboard_alone_goes_from_the_list_to_a_step(site: Site) -> None:
    page = site.open("/environments?text=lookup-00000")

    def tab_to(name: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if name in page.evaluate("document.activeElement.textContent"):
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", (
                    f"the focus on {name} cannot be seen"
                )
                return
        pytest.fail(f"{name} cannot be reached with the Tab key")

    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    tab_to("gymsmith/lookup-00000")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Evidence, gate by gate")
    tab_to("Trajectories 8")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=attempt 0")
    tab_to("attempt 0")
    page.keyboard.press("Enter")
    page.wait_for_selector("#steps")
    page.wait_for_load_state()
    page.keyboard.press("j")
    assert page.locator(".step.current").get_attribute("id") == "step-1"
