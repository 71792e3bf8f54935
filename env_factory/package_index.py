"""The package index as pip is configured on this machine: what it has, and files fetched by digest.

The index is asked directly (PEP 503 HTML or PEP 691 JSON, https or file URLs, plain find-links folders) because pip, asked for an
sdist, runs its build backend to learn its metadata: code of a stranger, on the host. Wheels hold their metadata as data, so for
those pip itself resolves and downloads (`--only-binary=:all:`), and nothing that is fetched here is ever executed here.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import logging
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import InvalidVersion, Version

from gymsmith.errors import NoNetwork, SourceError, UnknownPackage

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 64 * 1024 * 1024
"""A file of an index larger than this is refused."""
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One file that an index offers."""

    filename: str
    url: str
    sha256: str
    """Hex digest that the index states, or empty."""


@dataclass(frozen=True, slots=True)
class Index:
    """Where pip looks on this machine."""

    urls: tuple[str, ...]
    find_links: tuple[str, ...]
    cert: str

    @classmethod
    def configured(cls) -> Index:
        """Read pip's own configuration (files and environment) through `pip config list`.

        Raises:
            SourceError: this Python has no pip.
        """
        done = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SourceError(f"expected pip beside {sys.executable}, got: {done.stderr.strip()[-200:]}; install pip there")
        values: dict[str, str] = {}
        for line in done.stdout.splitlines():
            name, _, quoted = line.partition("=")
            try:
                values[name] = str(ast.literal_eval(quoted))
            except (ValueError, SyntaxError):
                continue

        def of(key: str) -> str:
            return next((values[s + key] for s in (":env:.", "download.", "global.") if values.get(s + key)), "")

        urls = (
            []
            if of("no-index") in ("1", "true", "True")
            else [of("index-url") or "https://pypi.org/simple", *of("extra-index-url").split()]
        )
        return cls(tuple(u.rstrip("/") for u in urls), tuple(of("find-links").split()), of("cert"))

    def sdists(self, name: str) -> dict[Version, IndexFile]:
        """Every sdist of the project, over all indexes.

        Raises:
            UnknownPackage: no index knows the project.
            NoNetwork: no index could be asked.
        """
        known, asked, trouble = False, False, ""
        found: dict[Version, IndexFile] = {}
        canonical = canonicalize_name(name)
        for folder in self.find_links:
            if Path(folder).is_dir():
                offers = [IndexFile(p.name, p.resolve().as_uri(), "") for p in sorted(Path(folder).iterdir())]
                _collect(offers, canonical, found)
        for url in self.urls:
            try:
                offers = self._page(f"{url}/{canonical}/")
            except (urllib.error.URLError, OSError) as error:
                if _says_absent(error):
                    asked = True
                else:
                    trouble = f"{_host(url)}: {error}"
                continue
            asked = known = True
            _collect(offers, canonical, found)
        # An index that knows the project but offers no sdist says nothing about those that did not answer.
        if found or (known and not trouble):
            return found
        if asked and not trouble:
            raise UnknownPackage(f"no package index knows {name!r}; check the spelling, or point pip at the index that has it")
        if not self.urls:
            raise UnknownPackage(f"{name!r} is not in {', '.join(self.find_links) or 'any folder'}; pip is set to use no index")
        raise NoNetwork(
            f"could not ask a package index for {name!r} ({trouble}); check the network or pip's index-url, then retry"
        )

    def fetch(self, file: IndexFile) -> bytes:
        """The bytes of a file, checked against the digest that the index states.

        Raises:
            NoNetwork: it cannot be fetched.
            SourceError: it is too large, or not what the index says.
        """
        try:
            data = self._get(file.url, MAX_FILE_BYTES)
        except (urllib.error.URLError, OSError) as error:
            raise NoNetwork(f"could not fetch {file.filename} ({error}); check the network, then retry") from error
        got = hashlib.sha256(data).hexdigest()
        if file.sha256 and got != file.sha256:
            raise SourceError(
                f"{file.filename}: expected sha256 {file.sha256}, got {got}; the index or a proxy is damaged, retry"
            )
        return data

    def _page(self, url: str) -> list[IndexFile]:
        if url.startswith("file:"):
            url = url.rstrip("/") + "/index.html"
        body = self._get(url, MAX_FILE_BYTES)
        if body.lstrip()[:1] == b"{":
            files = json.loads(body)["files"]
            return [
                IndexFile(f["filename"], urllib.parse.urljoin(url, f["url"]), f.get("hashes", {}).get("sha256", ""))
                for f in files
            ]
        page = _Anchors(url)
        page.feed(body.decode("utf-8", "replace"))
        return page.files

    def _get(self, url: str, limit: int) -> bytes:
        """Body of a URL; the credentials in it go into a header, never into a message."""
        parts = urllib.parse.urlsplit(url)
        headers = {"Accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.5, */*;q=0.1", "User-Agent": "gymsmith"}
        if parts.username:
            pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
            url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        context = ssl.create_default_context(cafile=self.cert or None) if url.startswith("https:") else None
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S, context=context) as answer:
            data: bytes = answer.read(limit + 1)
        if len(data) > limit:
            raise SourceError(f"{parts.path} is larger than {limit} bytes; such a package is not a source for environments")
        return data


def download_wheels(
    requirements: Sequence[str], wheelhouse: Path, python: str, *, as_of: datetime | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Resolve requirements to wheels for Python `python` ("3.11"), and keep them by content.

    Returns a folder of wheels that `pip --no-index --find-links` accepts, and the pinned "name==version" of each wheel in it. The
    folder is a set of hard links into `wheelhouse/files`; the same requirements give the same folder again without the network.

    Raises:
        NoNetwork: no index could be asked.
        SourceError: some requirement has no wheel.
    """
    key = hashlib.sha256(json.dumps([sorted(requirements), python]).encode()).hexdigest()[:24]
    final = wheelhouse / "sets" / key
    if (final / "set.json").is_file():
        return final, tuple(json.loads((final / "set.json").read_text())["pins"])
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".set-", dir=final.parent) as scratch:
        folder = Path(scratch) / key
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder), *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            tail = done.stderr.strip()[-600:]
            if re.search(
                r"NewConnectionError|ConnectTimeout|Temporary failure|ConnectionError|Max retries|ProxyError|timed out",
                done.stderr,
            ):
                raise NoNetwork(f"could not download {', '.join(requirements)}; check the network, then retry: {tail[-200:]}")
            raise SourceError(f"no wheels for {', '.join(requirements)} on Python {python}: {tail}")
        pins = []
        for wheel in sorted(folder.glob("*.whl")):
            name, version = wheel.name.split("-")[:2]
            pins.append(f"{canonicalize_name(name)}=={version}")
            kept = wheelhouse / "files" / hashlib.sha256(wheel.read_bytes()).hexdigest() / wheel.name
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.link(wheel, kept)
        (folder / "set.json").write_text(json.dumps({"requirements": sorted(requirements), "python": python, "pins": pins}))
        try:
            os.rename(folder, final)
        except OSError:
            if not (final / "set.json").is_file():
                raise
    log.info("event=wheels set=%s pins=%s", key, ",".join(pins))
    return final, tuple(pins)


class _Anchors(HTMLParser):
    """The links of a PEP 503 page."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.files: list[IndexFile] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href") if tag == "a" else None
        if href:
            url, _, fragment = urllib.parse.urljoin(self.base, href).partition("#")
            digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
            self.files.append(IndexFile(urllib.parse.unquote(url.rsplit("/", 1)[-1]), url, digest))


def _collect(offers: Sequence[IndexFile], canonical: str, found: dict[Version, IndexFile]) -> None:
    for file in offers:
        try:
            name, version = parse_sdist_filename(file.filename)
        except (InvalidSdistFilename, InvalidVersion):
            continue
        if name == canonical:
            found.setdefault(version, file)


def _says_absent(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (404, 410)
    reason = getattr(error, "reason", error)
    return isinstance(reason, FileNotFoundError)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or "the local index"
