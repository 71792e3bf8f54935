"""The time machine: wheels as an index stood at a date, whatever was published since."""

from __future__ import annotations

import hashlib
import io
import json
import urllib.error
import urllib.request
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from env_factory import wheels
from env_factory.package_index import Index, IndexFile
from gymsmith.errors import NoNetwork, SourceError

THEN = datetime(2022, 6, 1, tzinfo=UTC)


def wheel(name: str, version: str, needs: str = "") -> bytes:
    """A wheel without code."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        info = f"{name}-{version}.dist-info"
        lines = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (f"Requires-Dist: {needs}\n" if needs else "")
        packed.writestr(f"{info}/METADATA", lines)
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    return out.getvalue()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip configured to use one local index: `first` needs `second`; both have releases from before and after the date."""
    root = tmp_path / "simple"
    offers: dict[str, list[tuple[str, str, str | None]]] = {
        "first": [("1.0", "second", "2021-01-01T00:00:00Z"), ("2.0", "second", "2023-01-01T00:00:00.123456Z")],
        "second": [("1.0", "", "2020-01-01T00:00:00Z"), ("1.1", "", "2022-05-31T23:59:59Z"), ("9.0", "", "2022-06-01T00:00:01Z")],
        "undated": [("1.0", "", None)],
        "late": [("1.0", "", "2024-01-01T00:00:00Z")],
    }
    for name, versions in offers.items():
        (root / name).mkdir(parents=True)
        files = []
        for version, needs, when in versions:
            data = wheel(name, version, needs)
            filename = f"{name}-{version}-py3-none-any.whl"
            (root / name / filename).write_bytes(data)
            said = {"filename": filename, "url": filename, "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}
            files.append(said | ({"upload-time": when} if when else {}))
        (root / name / "index.html").write_text(json.dumps({"meta": {"api-version": "1.1"}, "name": name, "files": files}))
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", root.as_uri())
    return root


def test_an_install_of_then_takes_nothing_from_later(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of wheels that pip is configured with must not let the future in either.
    (tmp_path / "links").mkdir()
    (tmp_path / "links/second-9.9-py3-none-any.whl").write_bytes(wheel("second", "9.9"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    folder, pins = wheels.download_wheels(["first"], tmp_path / "house", "3.11", as_of=THEN)
    assert pins == ("first==1.0", "second==1.1") and len(list(folder.glob("*.whl"))) == 2
    # pip alone, which reads no JSON from a folder, finds the newest in folders of wheels.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'links'} {index / 'first'}")
    (index / "first/index.html").unlink()
    today, newest = wheels.download_wheels(["first"], tmp_path / "house", "3.11")
    assert newest == ("first==2.0", "second==9.9") and today != folder
    # The same order is answered from what was kept.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert wheels.download_wheels(["first"], tmp_path / "house", "3.11", as_of=THEN) == (folder, pins)


def test_what_was_not_there_then_is_said_with_the_date(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no wheels for late on Python 3\.11 as of 2022-06-01"):
        wheels.download_wheels(["late"], tmp_path, "3.11", as_of=THEN)
    with pytest.raises(SourceError, match="does not say when these were uploaded: undated"):
        wheels.download_wheels(["undated"], tmp_path, "3.11", as_of=THEN)
    assert not list((tmp_path / "sets").iterdir())


def test_an_index_that_is_away_is_no_network_also_for_a_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(NoNetwork, match="check the network"):
        wheels.download_wheels(["first"], tmp_path, "3.11", as_of=THEN)


def test_a_date_is_told_from_the_same_version_where_a_file_has_none() -> None:
    class Offers(Index):
        """An index whose pages are written down here."""

        def files(self, name: str, wanted: object = bool) -> list[IndexFile]:
            return [
                IndexFile("a-1.0-py3-none-any.whl", "file:///links/a", ""),
                IndexFile("a-1.0.tar.gz", "", "", datetime(2021, 1, 1, tzinfo=UTC)),
                IndexFile("a-2.0-py3-none-any.whl", "file:///links/b", ""),
                IndexFile("a-3.0.tar.gz", "", "", datetime(2023, 1, 1, tzinfo=UTC)),
            ]

    dated = wheels.DatedIndex(Offers((), (), ""), THEN)
    assert list(dated.offered("a")) == ["a-1.0-py3-none-any.whl", "a-1.0.tar.gz"]
    assert not dated.undated


def test_the_index_of_then_answers_only_those_who_know_its_path(index: Path) -> None:
    with wheels.serving(Index.configured(), THEN) as dated:
        root = dated.url.removesuffix("/simple")
        with urllib.request.urlopen(f"{dated.url}/First/") as page:
            names = [file["filename"] for file in json.load(page)["files"]]
        assert names == ["first-1.0-py3-none-any.whl"]
        for path in ("/simple/first/", "/x/simple/first/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root.rpartition("/")[0] + path)
        for path in ("/files/first/first-2.0-py3-none-any.whl", "/files/first/..%2f..%2fetc%2fpasswd", "/simple/nobody/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(root + path)
