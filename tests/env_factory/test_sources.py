"""Sources: fetched and checked without running any of their code, and refused by name."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from env_factory import archive, package_index, sources
from env_factory.package_index import Index
from env_factory.source_kinds import python_project
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
    tutorial = sources.read(f"file:{LESSON}", wheelhouse)
    assert isinstance(tutorial, sources.Tutorial)
    assert tutorial.source.licence == "CC-BY-4.0" and "swcarpentry/shell-novice" in tutorial.source.meta["origin"]
    assert "LICENSE.md" not in tutorial.texts and "03-create.md" in tutorial.texts
    assert any(name.endswith("alkanes/cubane.pdb") for name in tutorial.files)
    with pytest.raises(NotFound):
        sources.read("file:/no/such/tutorial.md", wheelhouse)
    with pytest.raises(NotFound):
        sources.read("man:no-such-page", wheelhouse)


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
