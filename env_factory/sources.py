"""Reads a source into memory, with its digest and licence, before anything is made from it.

    pypi:NAME==VERSION   the package's sdist, and the wheels that its tests need, kept in the wheelhouse
    file:PATH            a tutorial: one Markdown, reStructuredText or man file, or a folder of them with their data under data/
    man:PAGE             a manual page of this machine

Nothing of a source is executed here; building and testing happen in sandboxes. A source that cannot become environments raises
before anything is written to the state folder, except for the wheelhouse's cache.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path, PurePosixPath

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from env_factory import archive
from env_factory.package_index import Index, download_wheels
from gymsmith.config import Settings
from gymsmith.errors import NoTests, NotFound, SourceError, UnknownPackage
from gymsmith.schema import Source, digest

log = logging.getLogger(__name__)

TEXTS = (".md", ".markdown", ".rst", ".txt", ".1", ".2", ".3", ".5", ".7", ".8")
MAX_TEXT_BYTES = 8 * 1024 * 1024
_TEST_FOLDERS = ("tests", "test", "testing")
_TEST_FILE = re.compile(r"(test_.*|.*_test|tests?)\.py\Z")
_TEST_EXTRAS = ("test", "tests", "testing")
_TOOLING = re.compile(
    r"(pytest|pip|tox|coverage|pytest-cov|pytest-codspeed|codecov|black|ruff|flake8|mypy|pycodestyle|pre-commit)\b(?![-.])"
)
_NOT_CODE = {
    *_TEST_FOLDERS,
    "docs",
    "documentation",
    "doc",
    "examples",
    "example",
    "benchmarks",
    "scripts",
    "tools",
    "build",
    "dist",
}


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package with its own tests."""

    source: Source
    name: str
    version: str
    files: Mapping[str, bytes]
    """The sdist, by path."""
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

    def is_test(self, path: str) -> bool:
        """Whether a file belongs to the suite."""
        return any(path == test or path.startswith(test + "/") for test in self.tests)


@dataclass(frozen=True, slots=True)
class Tutorial:
    """Texts that tell a reader what to type, and the files that they speak of."""

    source: Source
    texts: Mapping[str, str]
    """Text by file name, in reading order."""
    files: Mapping[str, bytes]
    """What the reader is assumed to have, by path below the reader's home."""
    start: str = ""
    """Where the reader begins, relative to home."""
    title: str = ""


def read(uri: str, settings: Settings, *, python: str = "3.11") -> Package | Tutorial:
    """Fetch and check a source. `python` is the version in the sandbox that the wheels are for.

    Raises:
        UnknownPackage, NoNetwork, NoTests, NotFound, SourceError: see the error tree.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "pypi" and rest:
        return _package(uri, rest, settings, python)
    if scheme == "file" and rest:
        return _tutorial(uri, Path(rest).expanduser())
    if scheme == "man" and rest:
        return _manual(uri, rest)
    raise SourceError(f"expected pypi:NAME==VERSION, file:PATH or man:PAGE, got {uri!r}")


def lessons(uri: str) -> list[str]:
    """The tutorials that a URI stands for: itself, or, for a folder without texts, every folder in it that has a SOURCE.toml."""
    scheme, _, rest = uri.partition(":")
    path = Path(rest).expanduser()
    if scheme != "file" or not path.is_dir() or any(_is_text(p) for p in path.iterdir()):
        return [uri]
    return [f"file:{stated.parent}" for stated in sorted(path.rglob("SOURCE.toml"))] or [uri]


def _package(uri: str, rest: str, settings: Settings, python: str) -> Package:
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
    tests = _tests(files)
    if not tests:
        raise NoTests(
            f"{filename} holds no tests (no tests/ folder, no test_*.py); choose a package whose sdist brings its suite"
        )
    roots = ("src",) if any(p.startswith("src/") and p.endswith(".py") for p in files) else ("",)
    code = tuple(
        p
        for p in files
        if p.endswith(".py")
        and p.startswith("src/" if roots == ("src",) else "")
        and not any(p == t or p.startswith(t + "/") for t in tests)
        and p.split("/")[0] not in _NOT_CODE
        and PurePosixPath(p).name not in ("setup.py", "conftest.py", "noxfile.py")
    )
    if not code:
        raise SourceError(f"{filename} holds no Python code besides its tests; choose a pure-Python package")
    needed, extra = _requirements(files, metadata)
    try:
        wheels, names = download_wheels(["pip", "pytest", *needed, *extra], settings.wheelhouse_dir, python)
    except SourceError:
        if not extra:
            raise
        # A test extra may name what exists as source only; the suite is tried without it.
        wheels, names = download_wheels(["pip", "pytest", *needed], settings.wheelhouse_dir, python)
    source = Source(
        uri=f"pypi:{wanted.name}=={version}",
        kind="pypi",
        digest=hashlib.sha256(data).hexdigest(),
        licence=_licence(metadata),
        meta={"name": wanted.name, "version": str(version), "file": filename},
    )
    return Package(source, wanted.name, str(version), files, tests, roots, code, wheels, names, metadata)


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


def _tests(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Outermost test folders that hold test files, and test files that stand alone."""
    found: set[str] = set()
    for path in files:
        parts = path.split("/")
        if not _TEST_FILE.match(parts[-1]):
            continue
        folder = next((i for i, part in enumerate(parts[:-1]) if part in _TEST_FOLDERS), None)
        if parts[0] in _NOT_CODE - set(_TEST_FOLDERS):
            continue
        if folder is not None:
            found.add("/".join(parts[: folder + 1]))
        elif re.match(r"test_.*\.py\Z|.*_test\.py\Z|tests?\.py\Z", parts[-1]):
            found.add(path)
    return tuple(sorted(found))


def _requirements(files: Mapping[str, bytes], metadata: bytes) -> tuple[list[str], list[str]]:
    """(what the package needs, what its tests need besides), from metadata that stands written in the sdist."""
    lines = Parser().parsestr(metadata.decode("utf-8", "replace")).get_all("Requires-Dist") or []
    needed: list[str] = []
    extra: list[str] = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed.append(_bare(requirement))
        elif any(requirement.marker.evaluate({"extra": name}) for name in _TEST_EXTRAS):
            extra.append(_bare(requirement))
    if not lines:
        for path, data in files.items():
            if path.endswith(".egg-info/requires.txt"):
                needed += [s for line in data.decode().split("[")[0].splitlines() if (s := line.strip())]
    try:
        groups = tomllib.loads(files.get("pyproject.toml", b"").decode()).get("dependency-groups", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        groups = {}
    for name in _TEST_EXTRAS:
        extra += [entry for entry in groups.get(name, []) if isinstance(entry, str)]
    return needed, [e for e in extra if not _TOOLING.match(e)]


def _bare(requirement: Requirement) -> str:
    """The requirement without its marker, which has been decided."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _licence(metadata: bytes) -> str:
    message = Parser().parsestr(metadata.decode("utf-8", "replace"))
    if expression := message.get("License-Expression"):
        return str(expression)
    for classifier in message.get_all("Classifier") or []:
        if classifier.startswith("License :: ") and "::" in classifier[11:]:
            return str(classifier.rsplit("::", 1)[1].strip())
    text = str(message.get("License") or "")
    return text.strip().splitlines()[0][:80] if text.strip() and text.strip() != "UNKNOWN" else ""


def _tutorial(uri: str, path: Path) -> Tutorial:
    if not path.exists():
        raise NotFound(f"expected a tutorial at {path}, there is nothing; give the path of a text or of a folder with texts")
    base = path if path.is_dir() else path.parent
    if path.is_dir():
        documents = sorted(p for p in path.iterdir() if _is_text(p))
    else:
        documents = [path]
    texts: dict[str, str] = {}
    for document in documents:
        if document.stat().st_size > MAX_TEXT_BYTES:
            raise SourceError(f"{document} is larger than {MAX_TEXT_BYTES} bytes; a tutorial is a text")
        texts[document.name] = document.read_text(encoding="utf-8", errors="replace")
    if not texts:
        raise SourceError(f"{path} holds no text ({', '.join(TEXTS[:4])}, ...); put the tutorial's files there")
    files: dict[str, bytes] = {}
    data = base / "data"
    if path.is_dir() and data.is_dir():
        for entry in sorted(data.rglob("*")):
            if entry.is_file() and not entry.is_symlink():
                files[entry.relative_to(data).as_posix()] = entry.read_bytes()
    parts = [part for name in texts for part in (name.encode(), texts[name].encode())]
    parts += [part for name in files for part in (name.encode(), files[name])]
    said = _stated(base)
    title = said.get("title") or path.stem
    meta = {"title": title} | {key: said[key] for key in ("origin", "authors") if key in said}
    source = Source(uri=uri, kind="tutorial", digest=digest(*parts), licence=said.get("licence", ""), meta=meta)
    return Tutorial(source, texts, files, said.get("start", ""), title)


def _is_text(path: Path) -> bool:
    """A text to read; files in capitals (README, LICENSE) are about the texts."""
    return path.suffix in TEXTS and path.is_file() and not path.stem.isupper()


def _stated(folder: Path) -> dict[str, str]:
    """What SOURCE.toml beside a text states: title, authors, origin, licence (SPDX id), start. Empty when there is none."""
    stated = folder / "SOURCE.toml"
    if not stated.is_file():
        return {}
    try:
        return {key: str(value) for key, value in tomllib.loads(stated.read_text(encoding="utf-8")).items()}
    except tomllib.TOMLDecodeError as error:
        raise SourceError(f"{stated} is not TOML: {error}") from error


def _manual(uri: str, page: str) -> Tutorial:
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9_.+:-]*\Z", page):
        raise SourceError(f"expected the name of a manual page, got {page!r}")
    for root in (Path("/usr/share/man"), Path("/usr/local/share/man")):
        for section in ("1", "8", "5", "7", "6"):
            for suffix in (".gz", ""):
                path = root / f"man{section}" / f"{page}.{section}{suffix}"
                if path.is_file():
                    data = path.read_bytes()
                    text = gzip.decompress(data) if suffix else data
                    source = Source(
                        uri=uri, kind="man", digest=hashlib.sha256(text).hexdigest(), meta={"title": page, "section": section}
                    )
                    return Tutorial(source, {f"{page}.{section}": text.decode("utf-8", "replace")}, {}, title=page)
    raise NotFound(
        f"expected a manual page {page!r} under /usr/share/man, there is none; install its package or name a file:PATH"
    )
