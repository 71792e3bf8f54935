"""A Python package index (PEP 503) out of a content-addressed cache, for sandboxes whose policy is `index`.

Nothing is fetched while a sandbox runs: what the cache lacks does not exist. Files come into it by `gymsmith index add` or the
factory's `download_wheels`, lie below the digest of their content, and are read again and compared with it before they are first
served. A sandbox sees the packages that its policy names and no others, so what a task can install does not depend on what
other tasks have brought into the cache.

    ROOT/files/SHA256/FILENAME        wheels and sdists
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from gymsmith.errors import Capacity, SourceError
from sandboxes.network import Connection, NetworkPolicy, Refused, split_pin

_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Package:
    """One file of the cache."""

    name: str
    """Canonical project name."""
    version: Version
    filename: str
    sha256: str


def parse_filename(filename: str) -> tuple[str, Version] | None:
    """(canonical name, version) of a wheel or an sdist; None for any other file."""
    try:
        if filename.endswith(".whl"):
            name, version, _, _ = parse_wheel_filename(filename)
        else:
            name, version = parse_sdist_filename(filename)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None
    return str(name), version


class PackageCache:
    """The packages below `root`. Any number of processes may add and read; it is made by the first `add`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files = root / "files"
        self._listed_at = 0
        self._listing: dict[str, list[Package]] = {}
        self._sound: set[str] = set()

    def add(self, path: Path) -> Package:
        """Copy a wheel or sdist into the cache. Raises: SourceError (it is neither)."""
        parsed = parse_filename(path.name)
        if parsed is None:
            raise SourceError(f"expected a wheel or an sdist (NAME-VERSION.tar.gz), got {path.name!r}")
        data = path.read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        folder = self._files / sha256
        if not (folder / path.name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, delete=False) as scratch:
                scratch.write(data)
                os.fchmod(scratch.fileno(), 0o644)
            os.replace(scratch.name, folder / path.name)
            os.utime(self._files)
        return Package(*parsed, path.name, sha256)

    def packages(self, name: str) -> list[Package]:
        """What the cache has of a project, by its canonical name."""
        try:
            changed = os.stat(self._files).st_mtime_ns
        except FileNotFoundError:
            return []
        if changed != self._listed_at:
            self._listing = self._list()
            self._listed_at = changed
        return self._listing.get(name, [])

    def _list(self) -> dict[str, list[Package]]:
        found: dict[str, list[Package]] = {}
        for folder in os.scandir(self._files):
            for filename in os.listdir(folder.path):
                parsed = parse_filename(filename)
                if parsed is not None:
                    found.setdefault(parsed[0], []).append(Package(*parsed, filename, folder.name))
        for packages in found.values():
            packages.sort(key=lambda package: (package.version, package.filename))
        return found

    def offered(self, policy: NetworkPolicy, name: str) -> list[Package]:
        """What a policy lets a sandbox see of a project."""
        versions = [version for pin, version in map(split_pin, policy.packages) if canonicalize_name(pin) == name]
        everything = "" in versions
        wanted = {Version(version) for version in versions if version}
        return [package for package in self.packages(name) if everything or package.version in wanted] if versions else []

    def require(self, policy: NetworkPolicy) -> None:
        """Refuse to start what would find its packages missing. Raises: Capacity."""
        for pin in policy.packages:
            name, version = split_pin(pin)
            try:
                found = [p for p in self.packages(canonicalize_name(name)) if not version or p.version == Version(version)]
            except InvalidVersion as error:
                raise Capacity(f"network packages must name versions, got {pin!r}: {error}") from error
            if not found:
                raise Capacity(f"package {pin} must be in this machine's cache {self.root}, it is not; gymsmith index add {pin}")

    def open(self, package: Package) -> int:
        """A descriptor of a file whose content is what its address says. Raises: Refused, OSError."""
        descriptor = os.open(self._files / package.sha256 / package.filename, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if package.sha256 not in self._sound:
                with open(descriptor, "rb", closefd=False) as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != package.sha256:
                        raise Refused("damaged-file", f"{package.filename} is not what its digest says", 503)
                os.lseek(descriptor, 0, os.SEEK_SET)
                self._sound.add(package.sha256)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise


class IndexService:
    """Answers the connections of one sandbox."""

    def __init__(self, cache: PackageCache, policy: NetworkPolicy) -> None:
        self.cache = cache
        self.policy = policy

    async def __call__(self, connection: Connection) -> None:
        while (request := await connection.head()) is not None:
            line, headers = request
            method, _, rest = line.partition(" ")
            path, _, version = rest.partition(" ")
            if not version.startswith("HTTP/1.") or "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
                raise Refused("bad-request", line, 400)
            if method not in ("GET", "HEAD"):
                raise Refused("method", line, 405)
            await self._answer(connection, path.partition("?")[0], with_body=method == "GET")
            if version == "HTTP/1.0" or headers.get("connection", "").lower() == "close":
                return

    async def _answer(self, connection: Connection, path: str, *, with_body: bool) -> None:
        parts = [unquote(part) for part in path.split("/") if part]
        if parts == ["simple"]:
            names = sorted({canonicalize_name(split_pin(pin)[0]) for pin in self.policy.packages})
            await self._page(connection, [(f"/simple/{name}/", name) for name in names], with_body=with_body)
        elif len(parts) == 2 and parts[0] == "simple":
            packages = self.cache.offered(self.policy, canonicalize_name(parts[1]))
            if packages:
                links = [(f"/files/{p.sha256}/{quote(p.filename)}#sha256={p.sha256}", p.filename) for p in packages]
                await self._page(connection, links, with_body=with_body)
            else:
                await self._absent(connection, parts[1])
        elif len(parts) == 3 and parts[0] == "files":
            parsed = parse_filename(parts[2])
            offered = self.cache.offered(self.policy, parsed[0]) if parsed else []
            package = next((p for p in offered if [p.sha256, p.filename] == parts[1:]), None)
            if package is None:
                await self._absent(connection, parts[2])
            else:
                await self._file(connection, package, with_body=with_body)
        else:
            await self._absent(connection, path)

    async def _absent(self, connection: Connection, what: str) -> None:
        """A 404, as pip expects it; the connection goes on."""
        connection.gate.refuse(Refused("no-such-package", what).refusal)
        await connection.answer(404, b"this sandbox's index does not offer that\n")

    async def _page(self, connection: Connection, links: Sequence[tuple[str, str]], *, with_body: bool) -> None:
        anchors = "".join(f'<a href="{html.escape(url)}">{html.escape(text)}</a><br>\n' for url, text in links)
        body = f"<!DOCTYPE html>\n<html><body>\n{anchors}</body></html>\n".encode()
        await connection.answer(200, body if with_body else b"", "text/html; charset=utf-8")

    async def _file(self, connection: Connection, package: Package, *, with_body: bool) -> None:
        try:
            descriptor = await asyncio.to_thread(self.cache.open, package)
        except OSError as error:
            raise Refused("damaged-file", f"{package.filename}: {error.strerror}", 503) from error
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
            await connection.write(head.encode())
            while with_body and (chunk := file.read(_CHUNK_BYTES)):
                await connection.write(chunk)
