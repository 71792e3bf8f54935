"""The package index as pip is configured on this machine: what it has, and files fetched by digest.

The index is asked directly (PEP 503 HTML or PEP 691 JSON, https or file URLs, plain find-links folders) because pip, asked for an
sdist, runs its build backend to learn its metadata: code of a stranger, on the host. Wheels hold their metadata as data, so for
those pip itself resolves and downloads (`wheels.py`), and nothing that is fetched here is ever executed here.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import logging
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
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
    uploaded: datetime | None = None
    """When it was put there, in UTC; only PEP 700 pages say so."""
    requires_python: str = ""
    yanked: bool = False
    metadata: bool = False
    """Its core metadata can be fetched beside it (PEP 658)."""


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
        found: dict[Version, IndexFile] = {}
        canonical = canonicalize_name(name)
        for file in self.files(name, lambda offers: any(_is_sdist(offer, canonical) for offer in offers)):
            version = _is_sdist(file, canonical)
            if version is not None:
                found.setdefault(version, file)
        return found

    def files(self, name: str, wanted: Callable[[Sequence[IndexFile]], bool] = bool) -> list[IndexFile]:
        """Every file of the project, over all folders and indexes, in their order. `wanted`: whether these are worth something.

        Raises:
            UnknownPackage: no index knows the project.
            NoNetwork: an index could not be asked, and the others have nothing that is wanted.
        """
        known, asked, trouble = False, False, ""
        found: list[IndexFile] = []
        canonical = canonicalize_name(name)
        for folder in self.find_links:
            if Path(folder).is_dir():
                found += [IndexFile(p.name, p.resolve().as_uri(), "") for p in sorted(Path(folder).iterdir())]
        found = [file for file in found if project_of(file.filename) == canonical]
        for url in self.urls:
            try:
                found += self._page(f"{url}/{canonical}/")
            except (urllib.error.URLError, OSError) as error:
                if _says_absent(error):
                    asked = True
                else:
                    trouble = f"{_host(url)}: {error}"
                continue
            asked = known = True
        # An index that knows the project but offers nothing wanted says nothing about those that did not answer.
        if wanted(found) or (known and not trouble):
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

    def fetch_metadata(self, file: IndexFile) -> bytes:
        """Core metadata beside a file that has it. Raises: NoNetwork."""
        try:
            return self._get(f"{file.url}.metadata", MAX_FILE_BYTES)
        except (urllib.error.URLError, OSError) as error:
            raise NoNetwork(
                f"could not fetch the metadata of {file.filename} ({error}); check the network, then retry"
            ) from error

    def _page(self, url: str) -> list[IndexFile]:
        if url.startswith("file:"):
            url = url.rstrip("/") + "/index.html"
        body = self._get(url, MAX_FILE_BYTES)
        if body.lstrip()[:1] == b"{":
            files = json.loads(body)["files"]
            return [
                IndexFile(
                    f["filename"],
                    urllib.parse.urljoin(url, f["url"]),
                    f.get("hashes", {}).get("sha256", ""),
                    _when(f.get("upload-time")),
                    f.get("requires-python") or "",
                    bool(f.get("yanked")),
                    bool(f.get("core-metadata") or f.get("dist-info-metadata")),
                )
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


class _Anchors(HTMLParser):
    """The links of a PEP 503 page."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.files: list[IndexFile] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        href = given.get("href") if tag == "a" else None
        if href:
            url, _, fragment = urllib.parse.urljoin(self.base, href).partition("#")
            digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
            name = urllib.parse.unquote(url.rsplit("/", 1)[-1])
            requires = given.get("data-requires-python") or ""
            self.files.append(IndexFile(name, url, digest, requires_python=requires, yanked="data-yanked" in given))


def project_of(filename: str) -> str:
    """Canonical name of the project that a wheel or an sdist belongs to; empty for other files."""
    return version_of(filename)[0]


def version_of(filename: str) -> tuple[str, Version | None]:
    """(project, version) of a wheel or an sdist; ("", None) for other files."""
    try:
        if filename.endswith(".whl"):
            name, version, _, _ = parse_wheel_filename(filename)
        else:
            name, version = parse_sdist_filename(filename)
    except (InvalidSdistFilename, InvalidWheelFilename, InvalidVersion):
        return "", None
    return name, version


def _is_sdist(file: IndexFile, canonical: str) -> Version | None:
    name, version = version_of(file.filename)
    return version if name == canonical and not file.filename.endswith(".whl") else None


def _when(said: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(said)) if said else None
    except ValueError:
        return None
    return found if found is None or found.tzinfo else found.replace(tzinfo=UTC)


def _says_absent(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (404, 410)
    reason = getattr(error, "reason", error)
    return isinstance(reason, FileNotFoundError)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or "the local index"
