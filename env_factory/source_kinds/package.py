"""A Python package with its own tests: from the index by name, or from a repository at one commit.

What it needs to be tested without a network is resolved to wheels, here, by pip; for a commit, to the wheels that stood in the
index at the commit's date (the time machine of `wheels.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from env_factory import archive
from env_factory.package_index import Index
from env_factory.source_kinds import licence, python_project
from env_factory.source_kinds.repository import Repository
from env_factory.wheels import download_wheels
from gymsmith.config import Settings
from gymsmith.errors import NoTests, SourceError, UnknownPackage
from gymsmith.schema import Source

log = logging.getLogger(__name__)

ALWAYS = ("pip", "pytest")
RELEASED = {"3.9": 2020, "3.10": 2021, "3.11": 2022, "3.12": 2023, "3.13": 2024, "3.14": 2025}
"""Python version -> year whose October brought it: no wheel is taken from before its interpreter."""


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package with its own tests."""

    source: Source
    name: str
    version: str
    files: Mapping[str, bytes]
    """The sdist, or the repository's tree, by path."""
    tests: tuple[str, ...]
    """Folders and files of the test-suite, by path."""
    roots: tuple[str, ...]
    """What has to be on the import path, relative to the sdist: "" or "src"."""
    code: tuple[str, ...]
    """Python files of the package itself, tests left out, by path."""
    wheels: Path
    """Folder of wheels that an offline install takes: pytest, pip, and what the package needs."""
    pins: tuple[str, ...]
    """name==version of each wheel."""
    metadata: bytes
    """PKG-INFO."""

    @property
    def slug(self) -> str:
        """The name as part of an environment's name."""
        return self.name.lower().replace("_", "-")

    def is_test(self, path: str) -> bool:
        """Whether a file belongs to the suite."""
        return any(path == test or path.startswith(test + "/") for test in self.tests)


class Sdist(NamedTuple):
    """The source distribution of one version, unpacked in memory."""

    source: Source
    filename: str
    files: dict[str, bytes]
    name: str
    version: str
    metadata: bytes
    """PKG-INFO."""


def read_package(uri: str, rest: str, settings: Settings, python: str) -> Package:
    """`pypi:NAME==VERSION`: the sdist of that version, with wheels of today.

    Raises: UnknownPackage, NoNetwork, NoTests, SourceError, PolicyRefused.
    """
    sdist = read_sdist(uri, rest, settings)
    return _package(sdist.source, sdist.filename, sdist.files, sdist.name, sdist.version, sdist.metadata, settings, python, None)


def read_sdist(uri: str, rest: str, settings: Settings) -> Sdist:
    """The sdist alone: for what needs neither tests nor wheels. Raises: UnknownPackage, NoNetwork, SourceError, PolicyRefused."""
    try:
        wanted = Requirement(rest)
        pins = [s for s in wanted.specifier if s.operator == "=="]
        version = Version(pins[0].version) if len(pins) == len(wanted.specifier) == 1 else None
    except (InvalidRequirement, InvalidVersion):
        version = None
        wanted = None
    if wanted is None or version is None:
        raise SourceError(f"expected pypi:NAME==VERSION with one exact version, got {uri!r}; for example pypi:inflection==0.5.1")
    filename, data = _sdist(wanted.name, version, settings.wheelhouse_dir)
    files = archive.unpack(filename, data)
    metadata = files.get("PKG-INFO") or next((b for p, b in files.items() if p.endswith("egg-info/PKG-INFO")), b"")
    source = Source(
        uri=f"pypi:{wanted.name}=={version}",
        kind="pypi",
        digest=hashlib.sha256(data).hexdigest(),
        licence=licence.of_metadata(metadata) or licence.of_tree(files),
        meta={"name": wanted.name, "version": str(version), "file": filename},
    )
    return Sdist(source, filename, files, wanted.name, str(version), metadata)


def package_of(repository: Repository, settings: Settings, *, python: str = "3.11", as_of: datetime | None = None) -> Package:
    """The Python package that a repository holds at its commit, with wheels as the index had them at the commit's date.

    `as_of`: another date (in UTC) for the wheels; an archive without one is given wheels of today. Never earlier than `python`.

    Raises: NoTests, NoNetwork, SourceError: see `wheels.download_wheels`.
    """
    files = dict(repository.tree().files)
    name, version = python_project.name_and_version(files, repository.name)
    files |= python_project.generated_version(files, version)
    when = as_of or repository.date()
    if when is not None and python in RELEASED:
        when = max(when, datetime(RELEASED[python], 12, 1, tzinfo=UTC))
    about = {"name": name, "version": version} | ({"as_of": when.isoformat()} if when else {})
    source = repository.source.model_copy(update={"meta": repository.source.meta | about})
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    return _package(source, repository.source.uri, dict(sorted(files.items())), name, version, metadata, settings, python, when)


def _package(
    source: Source, what: str, files: dict[str, bytes], name: str, version: str, metadata: bytes, settings: Settings, python: str,
    as_of: datetime | None,
) -> Package:  # fmt: skip
    tests = python_project.tests(files)
    if not tests:
        raise NoTests(f"{what} holds no tests (no tests/ folder, no test_*.py); choose a package whose sdist brings its suite")
    roots = python_project.roots(files)
    code = python_project.code(files, tests, roots)
    if not code:
        raise SourceError(f"{what} holds no Python code besides its tests; choose a pure-Python package")
    needed, extra = python_project.needs(files, metadata if source.kind == "pypi" else b"")
    needed, extra = python_project.without(needed, name), python_project.without(extra, name)
    try:
        wheels, names = download_wheels([*ALWAYS, *needed, *extra], settings.wheelhouse_dir, python, as_of=as_of)
    except SourceError:
        if not extra:
            raise
        # A test extra may name what exists as source only; the suite is tried without it.
        wheels, names = download_wheels([*ALWAYS, *needed], settings.wheelhouse_dir, python, as_of=as_of)
    return Package(source, name, version, files, tests, roots, code, wheels, names, metadata)


def _sdist(name: str, version: Version, wheelhouse: Path) -> tuple[str, bytes]:
    """The sdist, from the wheelhouse when it was fetched before."""
    record = wheelhouse / "sdists" / f"{name.lower()}-{version}.json"
    if record.is_file():
        known = json.loads(record.read_text())
        kept = wheelhouse / "files" / known["sha256"] / known["filename"]
        if kept.is_file() and hashlib.sha256(data := kept.read_bytes()).hexdigest() == known["sha256"]:
            return known["filename"], data
    index = Index.configured()
    offers = index.sdists(name)
    file = offers.get(version)
    if file is None:
        near = ", ".join(str(v) for v in sorted(offers)[-5:]) or "none"
        raise UnknownPackage(f"expected an sdist of {name}=={version}, the index has these newest ones: {near}")
    data = index.fetch(file)
    sha256 = hashlib.sha256(data).hexdigest()
    _put(wheelhouse / "files" / sha256 / file.filename, data)
    _put(record, json.dumps({"filename": file.filename, "sha256": sha256, "url_name": file.url.rsplit("/", 1)[-1]}).encode())
    log.info("event=sdist file=%s bytes=%d sha256=%s", file.filename, len(data), sha256)
    return file.filename, data


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(data)
    os.replace(scratch, path)
