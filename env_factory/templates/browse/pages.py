"""Pages of an offline collection, and their index: what `tools.Library` opens.

`pack` makes the zip, the same bytes for the same pages. `documents` finds pages in the files of a package: its HTML as it is,
else its reStructuredText, Markdown and plain text as simple HTML. Nothing is fetched or executed here.
"""

from __future__ import annotations

import html
import io
import json
import posixpath
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from env_factory.templates.browse.tools import TITLE, plain, words

MIN_BYTES, MAX_BYTES = 1500, 400_000
MAX_PAGES = 400
_TITLE = re.compile(r"<title[^>]*>(.*?)</title>", re.DOTALL | re.IGNORECASE)
_HEAD = re.compile(r"<h1[^>]*>(.*?)</h1>", re.DOTALL | re.IGNORECASE)
_TEXTS = (".rst", ".md", ".markdown", ".txt")
_FOLDERS = ("doc", "docs", "documentation", "manual", "guide")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}\Z")


class Page(NamedTuple):
    """One page."""

    path: str
    """Ends in .html."""
    title: str
    markup: str


def pack(pages: Sequence[Page]) -> bytes:
    """The collection as a zip: pages and index.json, the same bytes for the same pages."""
    terms: dict[str, list[tuple[int, int]]] = defaultdict(list)
    rows: list[tuple[str, str, int]] = []
    for number, page in enumerate(pages):
        counted = Counter(words(plain(page.markup)))
        for word in words(page.title):
            counted[word] += TITLE
        rows.append((page.path, page.title, sum(counted.values())))
        for term, times in counted.items():
            terms[term].append((number, times))
    mean = sum(row[2] for row in rows) / max(1, len(rows))
    index = {"mean": round(mean, 3), "pages": rows, "terms": {term: terms[term] for term in sorted(terms)}}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        members = [("index.json", json.dumps(index, separators=(",", ":"))), *((page.path, page.markup) for page in pages)]
        for name, text in members:
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, text.encode())
    return out.getvalue()


def documents(files: Mapping[str, bytes]) -> list[Page]:
    """The documentation among a package's files, in the order of their paths; titles are made unique."""
    chosen = [path for path in sorted(files) if _is_documentation(path) and MIN_BYTES <= len(files[path]) <= MAX_BYTES]
    ready = [path for path in chosen if path.endswith((".html", ".htm"))]
    pages: list[Page] = []
    seen: set[str] = set()
    for path in (ready or chosen)[:MAX_PAGES]:
        text = files[path].decode("utf-8", "replace")
        markup = text if path in ready else "".join(_converted(text, posixpath.basename(path)))
        found = _TITLE.search(markup) or _HEAD.search(markup)
        title = (plain(found.group(1)) if found else "")[:120] or posixpath.basename(path)
        while title in seen:
            title = (
                f"{title} ({posixpath.dirname(path) or path})"
                if f"{title} ({posixpath.dirname(path) or path})" not in seen
                else f"{title}, {path}"
            )
        seen.add(title)
        name = path if path.endswith(".html") else f"{posixpath.splitext(path)[0]}.html"
        pages.append(Page(name, title, markup))
    return pages


def _is_documentation(path: str) -> bool:
    folders = path.lower().split("/")[:-1]
    return (
        path.endswith((".html", ".htm", *_TEXTS)) and any(folder in _FOLDERS for folder in folders) and "requirements" not in path
    )


def _converted(text: str, name: str) -> Iterator[str]:
    """A text with underlined or hash headings, paragraphs, indented and fenced code, as HTML."""
    blocks = re.split(r"\n\s*\n", text.expandtabs(4).replace("\r\n", "\n"))
    title, body, fenced = "", [], False
    for block in blocks:
        lines = block.strip("\n").split("\n")
        mark = re.match(r"(#{1,6})\s+(.*)", lines[0])
        if fenced or lines[0].lstrip().startswith("```"):
            fenced ^= block.count("```") % 2 == 1
            body.append(f"<pre>{html.escape(block)}</pre>")
            continue
        if mark:
            title, level = title or mark.group(2), len(mark.group(1))
            body.append(f"<h{level}>{html.escape(mark.group(2))}</h{level}>")
            lines = lines[1:]
        elif len(lines) >= 2 and _UNDERLINE.match(lines[1].strip()) and lines[0].strip():
            body.append(f"<h{2 if title else 1}>{html.escape(lines[0].strip())}</h{2 if title else 1}>")
            title, lines = title or lines[0].strip(), lines[2:]
        rest = "\n".join(lines)
        if rest.strip():
            name_ = "pre" if rest.startswith(("    ", "   ")) else "p"
            body.append(f"<{name_}>{html.escape(rest)}</{name_}>")
    said = html.escape(title or name)
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{said}</title></head>\n<body>\n'
    yield "\n".join(body)
    yield "\n</body></html>\n"
