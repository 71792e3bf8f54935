"""A tutorial as a source: texts that tell a reader what to type, from files, folders and this machine's manual pages."""

from __future__ import annotations

import gzip
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gymsmith.errors import NotFound, SourceError
from gymsmith.schema import Source, digest

TEXTS = (".md", ".markdown", ".rst", ".txt", ".1", ".2", ".3", ".5", ".7", ".8")
MAX_TEXT_BYTES = 8 * 1024 * 1024


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


def lessons(uri: str) -> list[str]:
    """The tutorials that a URI stands for: itself, or, for a folder without texts, every folder in it that has a SOURCE.toml."""
    scheme, _, rest = uri.partition(":")
    path = Path(rest).expanduser()
    if scheme != "file" or not path.is_dir() or any(_is_text(p) for p in path.iterdir()):
        return [uri]
    return [f"file:{stated.parent}" for stated in sorted(path.rglob("SOURCE.toml"))] or [uri]


def read_tutorial(uri: str, path: Path) -> Tutorial:
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


def read_manual(uri: str, page: str) -> Tutorial:
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
