"""Requirements resolved to a folder of wheels, kept by content: of today, or as the index stood at a date.

pip resolves and downloads with `--only-binary=:all:`, so nothing of what is fetched runs here. For a date it is given an index of
our own on this machine's loopback, which offers what the real ones offered then and fetches from them: installs that were right
at a commit's date are not broken by what was published since. A file's date is its own upload time; where the page does not say
(folders of wheels, PEP 503 pages), the earliest upload time that any index states for the same version; a file whose date cannot
be told in either way is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from packaging.utils import canonicalize_name

from env_factory.package_index import Index, IndexFile, version_of
from gymsmith.errors import GymsmithError, NoNetwork, NotFound, SourceError, UnknownPackage

log = logging.getLogger(__name__)

_TIMEOUT_S = 600.0
_AWAY = re.compile(r"NewConnectionError|ConnectTimeout|Temporary failure|ConnectionError|Max retries|ProxyError|timed out")


def download_wheels(
    requirements: Sequence[str], wheelhouse: Path, python: str, *, as_of: datetime | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Resolve requirements to wheels for Python `python` ("3.11"), and keep them by content.

    Returns a folder of wheels that `pip --no-index --find-links` accepts, and the pinned "name==version" of each wheel in it. The
    folder is a set of hard links into `wheelhouse/files`; the same requirements give the same folder again without the network.
    `as_of`: nothing that was uploaded later is taken.

    Raises:
        NoNetwork: no index could be asked.
        SourceError: some requirement has no wheel, or had none then.
    """
    when = as_of.astimezone(UTC).replace(microsecond=0) if as_of else None
    identity = [sorted(requirements), python, *([when.isoformat()] if when else [])]
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    final = wheelhouse / "sets" / key
    if (final / "set.json").is_file():
        return final, tuple(json.loads((final / "set.json").read_text())["pins"])
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".set-", dir=final.parent) as scratch:
        folder = Path(scratch) / key
        folder.mkdir()
        if when is None:
            _download(requirements, folder, python, [], None)
        else:
            with serving(Index.configured(), when) as dated:
                _download(requirements, folder, python, ["--index-url", dated.url], dated)
        pins = []
        for wheel in sorted(folder.glob("*.whl")):
            name, version = wheel.name.split("-")[:2]
            pins.append(f"{canonicalize_name(name)}=={version}")
            kept = wheelhouse / "files" / hashlib.sha256(wheel.read_bytes()).hexdigest() / wheel.name
            if not kept.exists():
                kept.parent.mkdir(parents=True, exist_ok=True)
                os.link(wheel, kept)
        about = {"requirements": sorted(requirements), "python": python, "pins": pins, "as_of": when.isoformat() if when else ""}
        (folder / "set.json").write_text(json.dumps(about))
        try:
            os.rename(folder, final)
        except OSError:
            if not (final / "set.json").is_file():
                raise
    log.info("event=wheels set=%s pins=%s", key, ",".join(pins))
    return final, tuple(pins)


def _download(requirements: Sequence[str], folder: Path, python: str, where: list[str], dated: DatedIndex | None) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", *where]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder), "--", *requirements]
    environment = dict(os.environ)
    if dated is not None:
        # Another index, a folder of wheels or a cache would let in what the date keeps out.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env=environment)
    if dated is not None and dated.trouble:
        raise dated.trouble[0]
    if done.returncode == 0:
        return
    tail = done.stderr.strip()[-600:]
    asked = ", ".join(requirements)
    if dated is not None:
        when = f" as of {dated.as_of:%Y-%m-%d}"
        undated = (
            f"; the index does not say when these were uploaded: {', '.join(sorted(dated.undated))}" if dated.undated else ""
        )
        raise SourceError(f"no wheels for {asked} on Python {python}{when}{undated}: {tail}")
    if _AWAY.search(done.stderr):
        raise NoNetwork(f"could not download {asked}; check the network, then retry: {tail[-200:]}")
    raise SourceError(f"no wheels for {asked} on Python {python}: {tail}")


class DatedIndex:
    """What an index offered at a date, as pages of PEP 691 and files."""

    def __init__(self, index: Index, as_of: datetime) -> None:
        self.index, self.as_of = index, as_of
        self.url = ""
        self.trouble: list[GymsmithError] = []
        """Errors of the real index; the first one is the reason why pip failed."""
        self.undated: set[str] = set()
        """Projects of which no file's date could be told."""
        self._pages: dict[str, dict[str, IndexFile]] = {}
        self._lock = threading.Lock()

    def offered(self, project: str) -> dict[str, IndexFile]:
        """Files of a project by name that were there at the date. Raises: UnknownPackage, NoNetwork."""
        with self._lock:
            if project not in self._pages:
                self._pages[project] = self._then(project, self.index.files(project))
            return self._pages[project]

    def _then(self, project: str, files: Sequence[IndexFile]) -> dict[str, IndexFile]:
        first: dict[object, datetime] = {}
        for file in files:
            _, version = version_of(file.filename)
            if file.uploaded is not None and version is not None:
                first[version] = min(first.get(version, file.uploaded), file.uploaded)
        dates = [(file, file.uploaded or first.get(version_of(file.filename)[1])) for file in files]
        if files and not any(date for _, date in dates):
            self.undated.add(project)
        then: dict[str, IndexFile] = {}
        for file, date in dates:
            if date is not None and date <= self.as_of:
                then.setdefault(file.filename, file)
        return then

    def page(self, project: str) -> bytes:
        """The project's page."""
        files = [
            {
                "filename": name,
                "url": f"../../files/{project}/{quote(name)}",
                "hashes": {"sha256": file.sha256} if file.sha256 else {},
                "requires-python": file.requires_python or None,
                "yanked": file.yanked,
                "core-metadata": file.metadata,
            }
            for name, file in self.offered(project).items()
        ]
        return json.dumps({"meta": {"api-version": "1.0"}, "name": project, "files": files}).encode()

    def content(self, project: str, name: str) -> bytes:
        """A file, or the metadata beside it. Raises: NotFound, NoNetwork, SourceError."""
        file = self.offered(project).get(name.removesuffix(".metadata"))
        if file is None:
            raise NotFound(f"no such file: {name}")
        return self.index.fetch(file) if name == file.filename else self.index.fetch_metadata(file)


@contextlib.contextmanager
def serving(index: Index, as_of: datetime) -> Iterator[DatedIndex]:
    """The index as it stood at `as_of`, on a port of the loopback interface, under a path that nobody can guess."""
    dated = DatedIndex(index, as_of)
    secret = secrets.token_urlsafe(16)

    class Handler(BaseHTTPRequestHandler):
        """Two kinds of paths: /SECRET/simple/PROJECT/ and /SECRET/files/PROJECT/NAME."""

        def do_GET(self) -> None:
            words = [part for part in self.path.partition("?")[0].split("/") if part]
            try:
                if len(words) == 3 and words[:2] == [secret, "simple"]:
                    return self._send(200, dated.page(canonicalize_name(words[2])), "application/vnd.pypi.simple.v1+json")
                if len(words) == 4 and words[:2] == [secret, "files"]:
                    return self._send(200, dated.content(words[2], unquote(words[3])), "application/octet-stream")
            except (UnknownPackage, NotFound):
                pass
            except GymsmithError as error:
                # pip would ask again and again for a page that failed; that this one failed is remembered.
                dated.trouble.append(error)
            self._send(404, b"", "text/plain")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            """What pip asks for is not logged: the path is a secret."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="dated-index", daemon=True, kwargs={"poll_interval": 0.05})
    thread.start()
    dated.url = f"http://127.0.0.1:{server.server_port}/{secret}/simple"
    try:
        yield dated
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
