"""Sources: fetched and checked without running any of their code, and refused by name."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from env_factory import archive, package_index, sources
from env_factory.package_index import Index
from env_factory.source_kinds import licence, python_project, tutorial
from gymsmith.config import Settings
from gymsmith.errors import NoNetwork, NoTests, NotFound, PolicyRefused, SourceError, UnknownPackage


def sdist(files: dict[str, str], top: str = "tiny-1.0") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


LESSON = Path(__file__).parents[2] / "examples/tutorials/shell-novice"
SETUP_TRAP = "import pathlib; pathlib.Path({path!r}).write_text('ran')"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip configured to use one local index, with a package `tiny` whose setup.py would leave a trace if it ever ran."""
    root = tmp_path / "simple"
    trap = SETUP_TRAP.format(path=str(tmp_path / "trace"))
    for name, files in {
        "tiny": {"tiny.py": "def f(): return 1\n", "tests/test_tiny.py": "def test_f(): pass\n", "setup.py": trap},
        "bare": {"bare.py": "x = 1\n", "setup.py": trap},
    }.items():
        (root / name).mkdir(parents=True)
        data = sdist({**files, "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n"}, f"{name}-1.0")
        (root / name / f"{name}-1.0.tar.gz").write_bytes(data)
        link = f'<a href="{name}-1.0.tar.gz#sha256={hashlib.sha256(data).hexdigest()}">{name}</a>'
        (root / name / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", root.as_uri())
    return root


def test_an_sdist_is_found_checked_and_kept_without_being_run(index: Path, tmp_path: Path) -> None:
    configured = Index.configured()
    assert configured.urls == (index.as_uri(),)
    (file,) = configured.sdists("Tiny").values()
    assert "tests/test_tiny.py" in archive.unpack(file.filename, configured.fetch(file))
    (index / "tiny" / "tiny-1.0.tar.gz").write_bytes(b"damaged")
    with pytest.raises(SourceError, match="expected sha256"):
        configured.fetch(file)
    assert not (tmp_path / "trace").exists()


def test_unknown_names_and_versions_and_missing_tests_have_their_errors(index: Path, wheelhouse: Settings) -> None:
    with pytest.raises(UnknownPackage, match="no package index knows 'nothing'"):
        sources.read("pypi:nothing==1.0", wheelhouse)
    with pytest.raises(UnknownPackage, match=r"these newest ones: 1\.0"):
        sources.read("pypi:tiny==2.0", wheelhouse)
    with pytest.raises(NoTests, match="holds no tests"):
        sources.read("pypi:bare==1.0", wheelhouse)
    for wrong in ("pypi:tiny", "pypi:tiny>=1", "pypi:", "shell:find"):
        with pytest.raises(SourceError, match="expected pypi:"):
            sources.read(wrong, wheelhouse)
    assert not (wheelhouse.home / "gymsmith.db").exists() and not wheelhouse.tasks_dir.exists()


def test_an_index_that_cannot_be_reached_is_no_network(monkeypatch: pytest.MonkeyPatch, wheelhouse: Settings) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:geheim@127.0.0.1:9/simple")
    with pytest.raises(NoNetwork, match="check the network") as caught:
        sources.read("pypi:tiny==1.0", wheelhouse)
    assert "geheim" not in str(caught.value)
    assert not wheelhouse.home.exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "top/../../x", "/etc/passwd", "top/a\\..\\b"])
def test_an_archive_that_climbs_out_is_refused(name: str) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(PolicyRefused, match="would leave the folder"):
        archive.unpack("x.tar.gz", out.getvalue())


def test_links_and_bombs_in_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        link = tarfile.TarInfo("top/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("top/empty"), io.BytesIO())
    assert archive.unpack("x.tar.gz", out.getvalue()) == {"empty": b""}
    monkeypatch.setattr(archive, "MAX_TOTAL_BYTES", 1000)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("top/zeros", b"\0" * 100_000)
    with pytest.raises(PolicyRefused, match="unpacks to"):
        archive.unpack("x.zip", bomb.getvalue())
    with pytest.raises(SourceError, match="not a readable archive"):
        archive.unpack("x.tar.gz", b"no archive")


def test_tests_are_told_from_code() -> None:
    files = {
        "pkg/__init__.py": b"", "pkg/tests/__init__.py": b"", "pkg/tests/test_a.py": b"", "pkg/tests/sub/test_b.py": b"",
        "docs/test_docs.py": b"", "test_top.py": b"", "tests/data.txt": b"", "pkg/contest.py": b"",
    }  # fmt: skip
    assert python_project.tests(files) == ("pkg/tests", "test_top.py")


def test_a_folder_of_texts_states_its_licence(wheelhouse: Settings) -> None:
    lesson = sources.read(f"file:{LESSON}", wheelhouse)
    assert isinstance(lesson, sources.Tutorial)
    assert lesson.source.licence == "CC-BY-4.0" and "swcarpentry/shell-novice" in lesson.source.meta["origin"]
    assert "LICENSE.md" not in lesson.texts and "03-create.md" in lesson.texts
    assert any(name.endswith("alkanes/cubane.pdb") for name in lesson.files)
    with pytest.raises(NotFound):
        sources.read("file:/no/such/tutorial.md", wheelhouse)
    with pytest.raises(NotFound):
        sources.read("man:no-such-page", wheelhouse)


def test_every_form_of_a_tutorial_is_read_with_its_licence(tmp_path: Path, wheelhouse: Settings) -> None:
    lesson = tmp_path / "lesson"
    (lesson / "data/deep").mkdir(parents=True)
    (lesson / "data/deep/in.csv").write_bytes(b"a,b\r\n")
    (lesson / "a.md").write_text("# A\r\n")
    (lesson / "b.rst").write_text("B\n=\n")
    (lesson / "c.html").write_bytes('<meta charset="latin-1"><pre>caf\u00e9</pre>'.encode("latin-1"))
    (lesson / "d.1.gz").write_bytes(gzip.compress(b".TH D 1\n"))
    (lesson / "LICENSE").write_text(
        "Permission is hereby granted, free of charge, to any person obtaining a copy ... the above copyright notice"
    )
    read = sources.read(f"file:{lesson}", wheelhouse)
    assert isinstance(read, sources.Tutorial)
    assert list(read.texts) == ["a.md", "b.rst", "c.html", "d.1"] and read.texts["a.md"] == "# A\n"
    assert "caf\u00e9" in read.texts["c.html"] and read.files == {"deep/in.csv": b"a,b\r\n"}
    assert (read.source.licence, len(read.source.digest)) == ("MIT", 64)


def test_texts_that_are_none_are_refused(tmp_path: Path, wheelhouse: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary.md").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "torn.1.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    with pytest.raises(SourceError, match="binary"):
        sources.read(f"file:{tmp_path}/binary.md", wheelhouse)
    with pytest.raises(SourceError, match="not gzip"):
        sources.read(f"file:{tmp_path}/torn.1.gz", wheelhouse)
    monkeypatch.setattr(tutorial, "MAX_TEXT_BYTES", 1000)
    (tmp_path / "bomb.1.gz").write_bytes(gzip.compress(b"x" * 100_000))
    with pytest.raises(PolicyRefused, match="unpacks to more than 1000 bytes"):
        sources.read(f"file:{tmp_path}/bomb.1.gz", wheelhouse)
    os.mkfifo(tmp_path / "pipe.md")
    with pytest.raises(SourceError, match="no plain file"):
        sources.read(f"file:{tmp_path}/pipe.md", wheelhouse)


def test_manual_and_tldr_pages_of_this_machine(tmp_path: Path, wheelhouse: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "man1").mkdir()
    (tmp_path / "man1/tool.1").write_text(".TH TOOL 1\n")
    (tmp_path / "man1/alias.1.gz").write_bytes(gzip.compress(b".so man1/tool.1\n"))
    (tmp_path / "pages/linux").mkdir(parents=True)
    (tmp_path / "pages/linux/tool.md").write_text("# tool\n\n> Works.\n\n- Run:\n\n`tool {{file}}`\n")
    monkeypatch.setattr(tutorial, "MANUALS", (tmp_path,))
    monkeypatch.setattr(tutorial, "TLDR", (tmp_path,))
    for uri, name in (("man:tool", "tool.1"), ("man:tool(1)", "tool.1"), ("man:alias", "alias.1"), ("tldr:tool", "tool.md")):
        read = sources.read(uri, wheelhouse)
        assert isinstance(read, sources.Tutorial) and list(read.texts) == [name] and len(read.source.digest) == 64
        assert "TH TOOL" in read.texts[name] or "tool {{file}}" in read.texts[name]
    assert read.source.licence == "CC-BY-4.0"
    for uri in ("tldr:absent", "man:tool(8)"):
        with pytest.raises(NotFound, match="expected a"):
            sources.read(uri, wheelhouse)
    for uri in ("tldr:../../etc/passwd", "man:../../etc/passwd"):
        with pytest.raises(SourceError, match="expected the name of a"):
            sources.read(uri, wheelhouse)


def test_a_page_of_the_web_is_a_tutorial(tmp_path: Path) -> None:
    (tmp_path / "guide").write_text(
        '<html><title> A guide </title><pre>ls</pre><a rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/">'
    )
    (tmp_path / "plain.md").write_text("# Hello\n")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        page = tutorial.read_page(f"{root}/guide")
        assert (page.title, page.source.licence, list(page.texts)) == ("A guide", "CC-BY-SA-4.0", ["guide.html"])
        assert list(tutorial.read_page(f"{root}/plain.md").texts) == ["plain.md"]
        with pytest.raises(NotFound, match="answered 404"):
            tutorial.read_page(f"{root}/absent")
        server.shutdown()
    with pytest.raises(SourceError, match="expected a path, a file: or an https: URL"):
        tutorial.read_page("http://example.org/x")


@pytest.mark.parametrize(
    ("said", "spdx"),
    [
        ("MIT License", "MIT"), ("mit", "MIT"), ("Apache Software License", "Apache-2.0"), ("BSD-3-Clause", "BSD-3-Clause"),
        ("GNU General Public License v3 or later (GPLv3+)", "GPL-3.0-or-later"), ("ISC License (ISCL)", "ISC"),
        ("UNKNOWN", ""), ("", ""), ("Our own terms\nand more", "Our own terms"), ("MIT OR Apache-2.0", "MIT OR Apache-2.0"),
    ],
)  # fmt: skip
def test_licences_become_spdx_where_they_are_known(said: str, spdx: str) -> None:
    assert licence.spdx(said) == spdx


@pytest.mark.network
@pytest.mark.usefixtures("index_reachable")
def test_a_real_package_comes_with_wheels_and_is_kept(wheelhouse: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    package = sources.read("pypi:inflection==0.5.1", wheelhouse)
    assert isinstance(package, sources.Package)
    assert package.tests == ("test_inflection.py",) and package.code == ("inflection/__init__.py",)
    assert package.source.licence.startswith("MIT") and len(package.source.digest) == 64
    assert any(pin.startswith("pytest==") for pin in package.pins) and list(package.wheels.glob("pytest-*.whl"))
    # Fetched once, it is there without the index.
    monkeypatch.setattr(package_index.Index, "configured", lambda: pytest.fail("the index was asked again"))
    assert sources.read("pypi:inflection==0.5.1", wheelhouse) == package
