"""Where documented examples are read: a tutorial as it is, or the documentation in a package's sdist with the package installed.

The examples of a package's documentation call its own programs on the files that come with it, so those are what the reader has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from env_factory import sources
from env_factory.source_kinds.package import read_sdist
from env_factory.wheels import download_wheels
from gymsmith.config import Settings
from gymsmith.errors import SourceError

HEAD = "FROM gymsmith/host\n"
SITE = "/opt/site"
TEXTS = (".rst", ".md", ".html", ".htm", ".1")
ASIDE = ("changelog", "changes", "history", "news", "license", "licence", "authors", "contributing", "release")
"""Texts of a package that tell nothing about its use."""
MAX_FILE_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class Book:
    """Pages, what their reader has, and the first lines of the reader's Dockerfile."""

    tutorial: sources.Tutorial
    head: str = HEAD
    wheels: Path | None = None
    """Folder that the Dockerfile finds at /wheelhouse."""


def read(uri: str, settings: Settings, python: str) -> Book:
    """`pypi:NAME==VERSION`: its documentation; otherwise what `sources.read` makes a tutorial of.

    Raises: SourceError: neither. What `sources.read` raises.
    """
    if not uri.startswith("pypi:"):
        tutorial = sources.read(uri, settings, python=python)
        if not isinstance(tutorial, sources.Tutorial):
            raise SourceError(f"examples needs a text (file:PATH, man:PAGE, ...) or pypi:NAME==VERSION, got {uri!r}")
        return Book(tutorial)
    sdist = read_sdist(uri, uri.removeprefix("pypi:"), settings)
    wheels, _ = download_wheels(["pip", f"{sdist.name}=={sdist.version}"], settings.wheelhouse_dir, python)
    pip = next(path.name for path in wheels.iterdir() if path.name.startswith("pip-"))
    texts = {
        path: data.decode("utf-8", "replace")
        for path, data in sorted(sdist.files.items())
        if path.endswith(TEXTS) and not path.rpartition("/")[2].lower().startswith(ASIDE)
    }
    files = {
        p: d for p, d in sdist.files.items() if len(d) <= MAX_FILE_BYTES and not p.endswith((*TEXTS, ".py", ".cfg", ".toml"))
    }
    head = (
        f"{HEAD}RUN python3 /wheelhouse/{pip}/pip install --quiet --no-index --find-links /wheelhouse --no-cache-dir "
        f"--disable-pip-version-check --root-user-action ignore --target {SITE} {sdist.name}=={sdist.version}\n"
        f"ENV PYTHONPATH={SITE} PYTHONDONTWRITEBYTECODE=1 PATH={SITE}/bin:/usr/local/bin:/usr/bin:/bin\n"
    )
    title = f"documentation of {sdist.name} {sdist.version}"
    return Book(sources.Tutorial(sdist.source, texts, files, title=title), head, wheels)
