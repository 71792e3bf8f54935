"""What a page looks like: metrics that cannot be argued with, pictures that repeat, tabs that keep to their domain."""

# ruff: noqa: E501 - a page is easier to read in one line

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gymsmith import doctor, jobs
from gymsmith.config import Settings
from gymsmith.errors import Capacity, ConfigError, PolicyRefused
from gymsmith.schema import Job
from gymsmith.store import Store
from gymsmith.worker import Context
from sandboxes.browser import door as browser_door
from sandboxes.browser import metrics as browser_metrics
from sandboxes.browser import service as browser
from sandboxes.browser.chromium import find
from sandboxes.browser.result import Document, Rect
from sandboxes.worker import process_worker

if TYPE_CHECKING:
    from tests.sandboxes.conftest import Painter

pytestmark = pytest.mark.browser
HEAD = "<!doctype html><style>*{margin:0;font:20px sans-serif}div{position:absolute}</style>"

TRICKS = {
    "opacity": '<p style="opacity:0">WORD</p>',
    "opacity of a parent": '<section style="opacity:.2"><p style="opacity:.2">WORD</p></section>',
    "visibility": '<p style="visibility:hidden">WORD</p>',
    "display": '<p style="display:none">WORD</p>',
    "off the left": '<div style="left:-3000px;top:0">WORD</div>',
    "below the page": '<div style="left:0;top:5000px">WORD</div>',
    "indent": '<p style="text-indent:-9999px">WORD</p>',
    "same colour": '<p style="color:#fff">WORD</p>',
    "almost the same colour": '<p style="color:#f4f4f4">WORD</p>',
    "transparent": '<p style="color:transparent">WORD</p>',
    "fill": '<p style="-webkit-text-fill-color:transparent">WORD</p>',
    "same as an image behind": '<p style="color:#00f;background:linear-gradient(#00f,#00f)">WORD</p>',
    "covered": '<p style="position:relative">WORD<span style="position:absolute;inset:0;background:#fff"></span></p>',
    "clipped away": '<p style="clip-path:inset(100%)">WORD</p>',
    "cut to nothing": '<p style="height:0;overflow:hidden">WORD</p>',
    "cut short": '<p style="width:30px;overflow:hidden;white-space:nowrap">WORD and a very long line that is mostly cut away here</p>',
    "tiny": '<p style="font-size:2px">WORD</p>',
    "scaled down": '<p style="transform:scale(.05)">WORD</p>',
    "squeezed": '<p style="letter-spacing:-1em">WORD</p>',
    "blurred": '<p style="filter:blur(8px)">WORD</p>',
    "dots for letters": '<p style="-webkit-text-security:disc">WORD</p>',
    "a shrunken local font": '<style>@font-face{font-family:x;src:local("DejaVu Sans");size-adjust:2%}</style><p style="font-family:x">WORD</p>',
    "a blend that erases": '<p style="color:#fff;mix-blend-mode:lighten">WORD</p>',
    "a filter": '<p style="filter:opacity(0)">WORD</p>',
    "behind its parent": '<section style="position:relative;z-index:0;background:#fff"><p style="position:relative;z-index:-1">WORD</p></section><section style="position:relative;top:-24px;background:#fff;height:24px"></section>',
    "a closed fold": "<details><summary>honest fold</summary><p>WORD</p></details>",
    "lines on one another": '<p style="line-height:0">WORD<br>second<br>third</p>',
    "a transition": '<p style="color:#fff;transition:all 99s">WORD</p>',
}


@pytest.fixture(scope="module")
def tricked(painter: Painter) -> Any:
    """All tricks on one page, each with a word of its own between two honest lines."""
    body = "".join(f"<section>{html.replace('WORD', f'word{n}')}</section>" for n, html in enumerate(TRICKS.values()))
    return painter.paint(f"{HEAD}<p>honest first</p>{body}<p>honest last</p>").metrics


@pytest.mark.parametrize("trick", TRICKS)
def test_text_that_nobody_sees_does_not_count(tricked: Any, trick: str) -> None:
    number = list(TRICKS).index(trick)
    hidden = {text.text.split()[0]: text.hidden for text in tricked.texts if not text.visible}
    assert f"word{number}" in hidden or trick == "display"
    assert f"word{number}" not in tricked.visible_text.split()


def test_text_that_everybody_sees_counts(painter: Painter, tricked: Any) -> None:
    assert tricked.visible_text == "honest first honest fold honest last"
    shown = painter.paint(
        HEAD + '<p style="background:linear-gradient(#c00,#00c);background-clip:text;color:transparent">gradient</p>'
        '<section style="background:#024"><p style="color:#fff">inverse</p></section><p style="opacity:.7">pale</p>'
        '<svg width=200 height=40><text y=30 fill="#060">drawn</text></svg><p style="transform:rotate(3deg)">tilted</p>'
    ).metrics
    assert shown.visible_text == "gradient inverse pale drawn tilted"
    assert shown.hidden_characters == 0


def test_hidden_text_cannot_borrow_the_ink_of_other_text(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    html = HEAD + '<div style="clip-path:inset(100%)">secret words</div><div>public words</div>'
    assert painter.paint(html).metrics.visible_text == "public words"
    monkeypatch.setattr(browser_metrics, "layers", lambda rows: [list(range(len(rows)))])
    assert painter.paint(html).metrics.visible_text == "secret words public words", (
        "the control arm: ink counts for whoever is there"
    )


def test_contrast_is_what_the_eye_gets(painter: Painter) -> None:
    page = painter.paint(
        HEAD + '<p style="color:#767676">just enough</p><p style="color:#777">just too little</p>'
        '<p style="color:#777;font-size:24px">large may be paler</p>'
        '<p style="color:#fff;background:url(data:image/svg+xml,%3Csvg%20xmlns=%22http://www.w3.org/2000/svg%22%3E'
        '%3Crect%20width=%22999%22%20height=%2299%22%20fill=%22%23888%22/%3E%3C/svg%3E)">on a picture</p>'
    ).metrics
    found = {text.text: (text.contrast, text.readable) for text in page.texts}
    assert found["just enough"] == (pytest.approx(4.54, abs=0.01), True)
    assert found["just too little"] == (pytest.approx(4.48, abs=0.01), False)
    assert found["large may be paler"] == (pytest.approx(4.48, abs=0.01), True)
    assert found["on a picture"] == (pytest.approx(3.54, abs=0.02), False)


LAYOUT = (
    HEAD + '<div id=page style="width:1280px;height:720px;overflow:hidden;background:#fff">'
    '<div id=a style="left:100px;top:100px;width:200px;height:100px;background:#acf">A<div id=in style="left:10px;top:30px">in</div></div>'
    '<div id=b style="left:250px;top:150px;width:200px;height:100px;background:#fca">B</div>'
    '<div id=c style="left:1200px;top:600px;width:200px;height:50px;background:#cfc">C</div>'
    '<div id=d style="left:100px;top:400px;width:80px;height:30px;white-space:nowrap;background:#eee">far too long for its box</div>'
    '<div id=e style="left:400px;top:400px;width:60px;height:30px;overflow:hidden;background:#eee"><b>cutcutcutcut</b></div></div>'
)


def test_overlap_overflow_empty_areas_and_aspect(painter: Painter) -> None:
    page = painter.paint(LAYOUT).metrics
    name = [box.id or box.tag for box in page.boxes]
    pairs = {(name[o.first], name[o.second]): (o.area, o.fraction) for o in page.overlaps}
    assert pairs == {("a", "b"): (2500.0, 0.125)}, "neighbours that cover each other, never a child and its parent"
    kinds = {(name[o.box], o.where): o.pixels for o in page.overflows}
    assert kinds[("c", "page")] == 120.0 == kinds[("c", "parent")]
    assert ("d", "text") in kinds and ("e", "cut") in kinds
    assert not {("a", where) for where in ("page", "parent", "cut", "text")} & set(kinds)
    assert (page.width, page.height, page.wide) == (1280, 720, True)
    assert page.empty.largest.area > 0.4 * 1280 * 720 and page.empty.background > 0.8
    full = painter.paint(HEAD + "<p>" + "word " * 3000).metrics
    assert full.empty.fraction < 0.1 and full.content_height > 720 and not full.wide


def test_a_page_cannot_talk_its_metrics_better(painter: Painter) -> None:
    lies = (
        "<script>for (const name of ['getBoundingClientRect','getClientRects','getAttribute']) Element.prototype[name]=()=>[];"
        "window.getComputedStyle=()=>({});Range.prototype.getClientRects=()=>[];JSON.stringify=()=>'{}';Array.prototype.map=null;"
        "Object.defineProperty(window,'innerWidth',{get:()=>9999});Promise.prototype.then=()=>{};"
        "document.createTreeWalker=document.createRange=null;new MutationObserver(()=>document.body.remove()).observe(document,"
        "{subtree:true,attributeFilter:['style']})</script>"
    )
    names = ("body", "fonts", "documentElement", "images", "title", "getAnimations", "createRange")
    clobbered = "".join(f'<img hidden name="{name}">' for name in names)
    form = "".join(f'<input type=hidden name="{name}">' for name in ("firstChild", "firstElementChild", "tagName", "id", "style"))
    honest, liar = painter.paint(LAYOUT), painter.paint(LAYOUT + lies + clobbered + f"<form>{form}</form>")
    assert liar.status == "ok"
    assert liar.metrics.overlaps == honest.metrics.overlaps
    assert liar.metrics.visible_text == honest.metrics.visible_text
    assert {o.where for o in liar.metrics.overflows} == {o.where for o in honest.metrics.overflows}
    inside = painter.paint(HEAD + f"<form>{form}<p style='color:#fff'>ghost</p><p>shown</p></form>").metrics
    assert inside.visible_text == "shown" and inside.hidden_characters == 5


MOVING = (
    HEAD
    + "<style>@keyframes k{to{transform:translate(900px)}}#m{animation:k 3s infinite alternate;width:50px;height:50px;background:red}"
    "#t{transition:left 1s;left:0}</style><div id=m></div><div id=t>moves</div><pre id=p></pre><canvas id=c width=400 height=200></canvas>"
    "<script>const out=[new Date().toISOString(),Date.now(),performance.now(),Math.random(),crypto.randomUUID?.(),"
    "crypto.getRandomValues(new Uint8Array(4))];"
    "let n=0;setInterval(()=>n++,7);requestAnimationFrame(function f(t){n+=t;requestAnimationFrame(f)});t.style.left='500px';"
    "setTimeout(()=>{p.textContent=out.join('\\n')+'\\n'+n;const g=c.getContext('2d');for(let i=0;i<300;i++){"
    "g.fillStyle=`hsl(${Math.random()*360} 80% 50%)`;g.fillRect(Math.random()*400,Math.random()*200,9,9)}},800)</script>"
)


def test_twenty_repeats_are_the_same_bytes(painter: Painter) -> None:
    shots = [painter.paint(MOVING, domain=f"repeat {n % 2}", metrics=n % 4 == 0) for n in range(20)]
    assert {shot.status for shot in shots} == {"ok"}
    assert len({shot.png for shot in shots}) == 1
    assert len({json.dumps(shot.metrics.model_dump(mode="json")) for shot in shots[::4]}) == 1
    assert shots[0].png.startswith(b"\x89PNG") and len(shots[0].png) > 5000


def test_the_same_page_without_our_clock_differs(painter: Painter) -> None:
    """The control arm: what repeats above does not repeat by itself."""

    async def plainly() -> set[bytes]:
        shots = set()
        for _ in range(2):
            page = await painter.service._idle[0].chromium.browser.new_page()
            await page.set_content(MOVING)
            await page.wait_for_function("p.textContent")
            shots.add(await page.screenshot())
            await page.close()
        return shots

    painter.paint(MOVING)  # so that a browser stands ready
    assert len(painter.run(plainly())) == 2


def test_files_of_the_folder_are_served_and_nothing_else(painter: Painter, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/style.css").write_text("p{color:rgb(0,0,1)}")
    (tmp_path / "late.txt").write_text("fetched")
    (tmp_path / "secret").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "deck.html").write_text(
        HEAD
        + "<link rel=stylesheet href=sub/style.css><p id=p>x</p><script>fetch('late.txt').then(r=>r.text()).then(t=>p.textContent=t);"
        "fetch('secret').catch(()=>{});fetch('../../etc/passwd').catch(()=>{});fetch('%2e%2e/%2e%2e/etc/passwd').catch(()=>{})</script>"
    )
    document = Document.of_folder(tmp_path, "deck.html", width=640, height=360)
    assert set(document.files) == {"deck.html", "late.txt", "sub/style.css"}
    shown = painter.run(painter.service.render(document, domain="folder"))
    assert shown.metrics.visible_text == "fetched" and (shown.metrics.width, shown.metrics.height) == (640, 360)
    assert shown.refused_count == 3


def test_a_domain_never_sees_what_another_left(painter: Painter) -> None:
    leave = (
        "<script>localStorage.x='left';sessionStorage.x='left';document.cookie='x=left;secure';window.name='left';window.x='left';"
        "caches.open('x');indexedDB.open('left')</script>"
    )
    look = (
        "<p id=p></p><script>indexedDB.databases().then(d=>p.textContent="
        "JSON.stringify([localStorage.x,sessionStorage.x,document.cookie,window.name,window.x,d.length]))</script>"
    )
    for domain in ("first", "second"):
        painter.paint(leave, domain="first")
        assert painter.paint(look, domain=domain).metrics.visible_text == '[null,null,"","",null,0]'
    tabs = painter.service._idle[0].tabs
    assert tabs["first"] is not tabs["second"] and tabs["first"].page.context is not tabs["second"].page.context
    for n in range(browser.DOMAINS):
        painter.paint("x", domain=f"many {n}", metrics=False)
    assert len(tabs) == browser.DOMAINS


def test_a_browser_is_replaced_when_it_is_old_or_has_grown(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    before = painter.service.started
    monkeypatch.setattr(browser, "PAGES", painter.service._idle[0].pages + 1)
    painter.paint("x")
    assert painter.service._idle == []
    monkeypatch.setattr(browser, "PAGES", 500)
    monkeypatch.setattr(browser, "WEIGHED_EVERY", 1)
    assert painter.paint("x").status == "ok"
    assert (painter.service.started, len(painter.service._idle)) == (before + 1, 1)
    monkeypatch.setattr(browser, "GROWN_BYTES", 1 << 20)
    painter.paint("x")
    assert painter.service._idle == []


def test_nothing_is_left_when_the_worker_is_killed(painter: Painter, tmp_path: Path) -> None:
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom sandboxes.browser.service import RenderService\n"
        "from sandboxes.browser.result import Document\nasync def main():\n"
        f"    service = await RenderService.start(Path({str(tmp_path)!r}), Path({str(painter.folder / 'images')!r}), seats=1)\n"
        "    await service.render(Document.of_html('<p>x'), domain='d', metrics=False)\n    print('ready', flush=True)\n"
        "    await service.render(Document.of_html('<script>while(1);</script>'), domain='d', deadline_s=60)\nasyncio.run(main())\n"
    )
    environment = {**os.environ, "GYMSMITH_TEST_MARK": str(tmp_path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
        time.sleep(0.5)
        ours = _processes(str(tmp_path))
        assert len(ours) > 5, "a browser runs"
        worker.send_signal(signal.SIGKILL)
    until = time.monotonic() + 5.0
    while (left := _processes(str(tmp_path))) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []
    painter.run(_start_and_close(tmp_path, painter.folder / "images"))
    assert not [path for path in tmp_path.rglob("*") if "door." in path.name or "playwright" in path.name]


def test_a_driver_that_was_killed_is_replaced(painter: Painter, tmp_path: Path) -> None:
    litter: list[Path] = []

    async def scene() -> list[Any]:
        before = _drivers()
        litter.extend(Path(tempfile.gettempdir()).glob("playwright*"))
        service = await browser.RenderService.start(tmp_path, painter.folder / "images", seats=1)
        try:
            first = await service.render(Document.of_html("<p>x"), domain="d", metrics=False, deadline_s=60)
            (driver,) = _drivers() - before
            os.kill(driver, signal.SIGKILL)
            return [first, await service.render(Document.of_html("<p>x"), domain="d", metrics=False, deadline_s=60)]
        finally:
            await service.close()

    first, second = painter.run(scene())
    assert first.status == second.status == "ok" and first.png == second.png
    assert not [path for path in Path(tempfile.gettempdir()).glob("playwright*") if path not in litter]


def _drivers() -> set[int]:
    """Playwright's drivers among our children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(child) for child in children if b"run-driver" in Path(f"/proc/{child}/cmdline").read_bytes()}


async def _start_and_close(state: Path, images: Path) -> None:
    await (await browser.RenderService.start(state, images)).close()


def _processes(mark: str) -> list[str]:
    """Processes whose command line or environment names `mark`, and Chromiums whose door it was."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes() + (entry / "mountinfo").read_bytes()
            except OSError:
                continue
            if mark.encode() in text:
                found.append(entry.name)
    return found


def test_bad_arguments_are_named(painter: Painter, tmp_path: Path) -> None:
    with pytest.raises(PolicyRefused, match=r"deadline_s must be between .* got 0"):
        painter.paint("x", deadline_s=0)
    with pytest.raises(PolicyRefused, match=r"width must be between 16 and 4096 pixels, got 100000"):
        Document.of_html("x", width=100_000)
    with pytest.raises(PolicyRefused, match=r"entry must be one of the files, got 'none.html'"):
        Document.of_folder(tmp_path, "none.html")
    with pytest.raises(Capacity, match=r"chromium must be a program.*apt-get install chromium"):
        find(str(tmp_path / "no-such-browser"))


def test_one_list_of_features_reaches_chromium() -> None:
    assert browser_door.merged(["--disable-features=A,B", "-x", "--disable-features=C"]) == ["-x", "--disable-features=A,B,C"]


def test_rectangles() -> None:
    page = Rect(0, 0, 100, 50)
    assert (
        Rect(-5, 10, 20, 20).beyond(page) == 5 and Rect(90, 10, 20, 20).beyond(page) == 10 and Rect(1, 1, 9, 9).beyond(page) == 0
    )
    assert Rect(90, 40, 20, 20).meet(page) == Rect(90, 40, 10, 10) and Rect(200, 0, 5, 5).meet(page).area == 0


def test_a_service_without_walls_says_so(painter: Painter) -> None:
    async def scene() -> Any:
        service = await browser.RenderService.start(painter.folder / "bare", painter.folder / "images", seats=1, unconfined=True)
        try:
            return service.notes, await service.render(Document.of_html("<p>trusted"), domain="d")
        finally:
            await service.close()

    notes, shown = painter.run(asyncio.wait_for(scene(), 60))
    assert (shown.status, shown.isolation, shown.metrics.visible_text) == ("ok", "none", "trusted")
    assert (
        "not confined" in notes[0]
        and painter.service.isolation == "namespace"
        and "not confined" not in str(painter.service.notes)
    )


def test_a_render_job_keeps_pictures_and_reports_by_hash(painter: Painter, tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path)
    store = Store.open(settings)
    (tmp_path / "decks/one").mkdir(parents=True)
    (tmp_path / "decks/one/index.html").write_text("<p>from a folder</p>")
    pages = [{"html": "<p>inline</p>"}, {"folder": "decks/one"}, {"html": "<p>inline</p>"}]
    payload = {"pages": pages, "deadline_s": 60.0}
    hopeless = {"pages": [{"html": "<script>while(1);</script>"}], "deadline_s": 0.5}

    def job(number: int, payload: dict[str, Any]) -> Context:
        store.put_job(Job(id=f"job{number}", kind="render", queue="rollouts", payload=payload))
        claimed = store.claim(f"job{number}", "test")
        assert claimed is not None
        return Context(claimed, store)

    try:
        first, second, third = jobs.door_of("render")(payload, job(1, payload))["renders"]
        assert first["status"] == second["status"] == "ok" and first["png"] == third["png"] != second["png"]
        (stuck,) = jobs.door_of("render")(hopeless, job(2, hopeless))["renders"]
        assert (stuck["status"], stuck["png"]) == ("stopped", "")
        report = json.loads((settings.renders_dir / second["report"]).read_text())
        assert [text["text"] for text in report["metrics"]["texts"]] == ["from a folder"]
        assert (settings.renders_dir / first["png"]).read_bytes().startswith(b"\x89PNG")
        for bad in ({"folder": "../.."}, {"folder": "/etc"}, {}, {"html": "x", "folder": "decks"}):
            with pytest.raises(PolicyRefused, match=r"folder must be|html or folder"):
                jobs.door_of("render")({"pages": [bad]}, job(hash(str(bad)), {"pages": [bad]}))
        with pytest.raises(ConfigError, match="RenderOrder"):
            jobs.door_of("render")({"pages": []}, job(9, {}))
    finally:
        process_worker(settings).close()


def test_the_doctor_renders_a_page(painter: Painter) -> None:
    good = doctor.chromium(Settings.load())
    assert good.state == "ok" and "in a sandbox without a network" in good.detail
    bad = doctor.chromium(Settings.load(chromium="/no/such/browser"))
    assert bad.state == "missing" and "apt-get install chromium" in bad.next_move
