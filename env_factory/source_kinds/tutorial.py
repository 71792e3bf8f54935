"""A tutorial as a source: texts that tell a reader what to type.

    file:PATH      one text, or a folder of texts with the reader's files under data/ and what is known of them in SOURCE.toml
    https://...    one page
    man:PAGE       a manual page of this machine, man:PAGE(SECTION) where there are several
    tldr:PAGE      a page of a tldr client's cache on this machine

A text's name tells its form by its ending: Markdown, reStructuredText, HTML, roff. It is given as it is, decoded; finding
commands in it is the synthesizers' business.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from env_factory.source_kinds import download, licence
from env_factory.source_kinds.tree import read_folder
from gymsmith.errors import NotFound, PolicyRefused, SourceError
from gymsmith.schema import Source, digest

TEXTS = (".md", ".markdown", ".rst", ".txt", ".html", ".htm", ".1", ".2", ".3", ".5", ".6", ".7", ".8")
MAX_TEXT_BYTES = 8 * 1024 * 1024
MANUALS = (Path("/usr/share/man"), Path("/usr/local/share/man"))
SECTIONS = ("1", "8", "5", "7", "6")
TLDR = tuple(
    Path(place).expanduser()
    for place in (
        "~/.cache/tldr",
        "~/.tldr",
        "~/.tldrc/tldr",
        "~/.cache/tealdeer/tldr-pages",
        "~/.local/share/tldr",
        "/usr/share/tldr",
    )
)
"""Where clients of tldr keep their pages, below pages or pages.en and common or linux."""


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
    """`file:PATH`. Raises: NotFound: there is nothing; SourceError: no text that can be read; PolicyRefused: too large."""
    if not path.exists():
        raise NotFound(f"expected a tutorial at {path}, there is nothing; give the path of a text or of a folder with texts")
    base = path if path.is_dir() else path.parent
    if path.is_dir():
        documents = sorted(p for p in path.iterdir() if _is_text(p))
    else:
        documents = [path]
    texts: dict[str, str] = {}
    for document in documents:
        if not document.is_file():
            raise SourceError(f"{document} is no plain file; a tutorial is a text")
        if document.stat().st_size > MAX_TEXT_BYTES:
            raise SourceError(f"{document} is larger than {MAX_TEXT_BYTES} bytes; a tutorial is a text")
        name, data = _plain(document.name, document.read_bytes())
        texts[name] = decoded(data, str(document))
    if not texts:
        raise SourceError(f"{path} holds no text ({', '.join(TEXTS[:5])}, ...); put the tutorial's files there")
    files: dict[str, bytes] = {}
    data_folder = base / "data"
    if path.is_dir() and data_folder.is_dir():
        found = read_folder(data_folder).files
        files = {name: found[name] for name in sorted(found, key=lambda name: PurePosixPath(name).parts)}
    parts = [part for name in texts for part in (name.encode(), texts[name].encode())]
    parts += [part for name in files for part in (name.encode(), files[name])]
    said = _stated(base)
    title = said.get("title") or path.stem
    meta = {"title": title} | {key: said[key] for key in ("origin", "authors") if key in said}
    known = said.get("licence") or _licence_beside(base)
    source = Source(uri=uri, kind="tutorial", digest=digest(*parts), licence=known, commit=said.get("commit", ""), meta=meta)
    return Tutorial(source, texts, files, said.get("start", ""), title)


def read_page(url: str) -> Tutorial:
    """`https://...`: one page. Raises: NotFound, NoNetwork, PolicyRefused: it cannot be had; SourceError: it is no text."""
    name, data = download.read(url, MAX_TEXT_BYTES)
    name, data = _plain(name, data)
    if not name.endswith(TEXTS):
        name += ".html" if re.search(rb"<(!doctype html|html|body|pre)\b", data[:4096].lower()) else ".md"
    shown = download.shown(url)
    text = decoded(data, shown)
    title = re.search(r"<title[^>]*>([^<]{1,200})", text, re.I) if name.endswith((".html", ".htm")) else None
    meta = {"title": title.group(1).strip() if title else PurePosixPath(name).stem, "origin": shown}
    source = Source(
        uri=shown, kind="tutorial", digest=hashlib.sha256(data).hexdigest(), licence=_licence_of_page(text), meta=meta
    )
    return Tutorial(source, {name: text}, {}, title=meta["title"])


def read_manual(uri: str, page: str) -> Tutorial:
    """`man:PAGE` or `man:PAGE(SECTION)`. Raises: NotFound: there is no such page; SourceError: it is no name of a page."""
    match = re.match(r"([A-Za-z0-9\[][A-Za-z0-9_.+:\[-]*)(?:\(([1-9][a-z]*)\))?\Z", page)
    if match is None:
        raise SourceError(f"expected the name of a manual page, got {page!r}")
    name, section = match.groups()
    for root in MANUALS:
        for number in [section] if section else SECTIONS:
            for suffix in (".gz", ""):
                path = root / f"man{number[0]}" / f"{name}.{number}{suffix}"
                if path.is_file():
                    return _manual(uri, name, number, path, root)
    raise NotFound(
        f"expected a manual page {page!r} under /usr/share/man, there is none; install its package or name a file:PATH"
    )


def _manual(uri: str, name: str, section: str, path: Path, root: Path) -> Tutorial:
    _, text = _plain(path.name, path.read_bytes())
    # A page of one line that names another one: `.so man1/tar.1`.
    if other := re.match(rb"\.so (man\d\w*/[\w.+:-]+)\s*\Z", text):
        for suffix in (".gz", ""):
            target = root / (other.group(1).decode() + suffix)
            if target.is_file():
                _, text = _plain(target.name, target.read_bytes())
                break
    meta = {"title": name, "section": section}
    source = Source(
        uri=uri, kind="man", digest=hashlib.sha256(text).hexdigest(), licence=licence.of_debian(path.resolve()), meta=meta
    )
    return Tutorial(source, {f"{name}.{section}": text.decode("utf-8", "replace")}, {}, title=name)


def read_tldr(uri: str, page: str) -> Tutorial:
    """`tldr:PAGE`, from the caches of TLDR. Raises: NotFound: no cache has it; SourceError: it is no name of a page."""
    if not re.match(r"[A-Za-z0-9][A-Za-z0-9_.+-]*\Z", page):
        raise SourceError(f"expected the name of a tldr page, got {page!r}")
    for root in TLDR:
        for folder in ("pages", "pages.en", "."):
            for system in ("common", "linux"):
                path = root / folder / system / f"{page}.md"
                if path.is_file():
                    data = path.read_bytes()
                    # The project's licence; pages carry none of their own.
                    source = Source(
                        uri=uri, kind="tutorial", digest=hashlib.sha256(data).hexdigest(), licence="CC-BY-4.0",
                        meta={"title": page, "origin": "tldr-pages", "system": system},
                    )  # fmt: skip
                    return Tutorial(source, {f"{page}.md": decoded(data, str(path))}, {}, title=page)
    raise NotFound(f"expected a tldr page {page!r} in a client's cache, there is none; run `tldr --update` or name file:PATH.md")


def decoded(data: bytes, what: str) -> str:
    """A text's characters, its line ends made one kind. Raises: SourceError: it is binary."""
    if b"\0" in data[:8192] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SourceError(f"{what} is binary; a tutorial is a text")
    said = re.search(rb"<meta[^>]{0,200}charset=[\"']?([A-Za-z0-9_-]{1,40})", data[:4096], re.I)
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else said.group(1).decode() if said else "utf-8"
    try:
        text = data.decode(encoding, "replace")
    except LookupError:
        text = data.decode("utf-8", "replace")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _plain(name: str, data: bytes) -> tuple[str, bytes]:
    """A text's name and bytes, unpacked where it is compressed. Raises: SourceError, PolicyRefused."""
    if not name.endswith(".gz"):
        return name, data
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, MAX_TEXT_BYTES + 1)
        if len(text) <= MAX_TEXT_BYTES and not unpacker.eof:
            text = gzip.decompress(data)
    except (zlib.error, EOFError, OSError) as error:
        raise SourceError(f"{name} is not gzip: {error}") from error
    if len(text) > MAX_TEXT_BYTES:
        raise PolicyRefused(f"{name} unpacks to more than {MAX_TEXT_BYTES} bytes; a tutorial is a text")
    return name.removesuffix(".gz"), text


def _is_text(path: Path) -> bool:
    """A text to read; files in capitals (README, LICENSE) are about the texts."""
    name = path.name.removesuffix(".gz")
    return name.endswith(TEXTS) and path.is_file() and not PurePosixPath(name).stem.isupper()


def _stated(folder: Path) -> dict[str, str]:
    """What SOURCE.toml beside a text states: title, authors, origin, licence (SPDX), commit, start. Empty without one."""
    stated = folder / "SOURCE.toml"
    if not stated.is_file():
        return {}
    try:
        return {key: str(value) for key, value in tomllib.loads(stated.read_text(encoding="utf-8")).items()}
    except tomllib.TOMLDecodeError as error:
        raise SourceError(f"{stated} is not TOML: {error}") from error


def _licence_beside(folder: Path) -> str:
    """From licence files in the same folder."""
    named = [path for path in folder.iterdir() if licence.is_licence(path.name) and path.is_file()]
    return licence.of_tree({path.name: path.read_bytes()[:200_000] for path in named})


def _licence_of_page(text: str) -> str:
    """From a link with rel="license", or a link to Creative Commons."""
    if found := re.search(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)", text, re.I):
        kind, name, version = found.groups()
        return f"CC0-{version}" if kind.lower() == "publicdomain" else f"CC-{name.upper()}-{version}"
    return ""
