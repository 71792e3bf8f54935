"""Search, open and find over an offline collection of HTML pages: the program that browse environments bring for their agent.

Run as `python3 -I browse.py COLLECTION search|open|find|answer ...` inside of a sandbox, where it answers with whole HTML pages;
imported by the factory, which judges its questions with the same `Library`. A collection is a zip: the pages, and `index.json`
(titles, lengths, postings). Ranking is BM25 (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework", eq. 3.15), with
the title counted `TITLE` times. Standard library only; nothing here knows a question or an answer.
"""

from __future__ import annotations

import html
import io
import json
import math
import posixpath
import re
import sys
import zipfile
from collections import Counter

RESULTS = 10
FOUND = 40
K1, B = 1.2, 0.75
TITLE = 5
ANSWER = "/work/answer.txt"
_WORD = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_TAG = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_BLOCK = re.compile(
    r"<(?:p|li|tr|dd|dt|pre|h[1-6]|blockquote|aside|td)\b[^>]*>(.*?)(?=<(?:p|li|tr|dd|dt|pre|h[1-6]|blockquote|aside|/ul|/table|/body)\b|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_USAGE = "search WORDS | open PAGE | find PAGE WORDS | answer TEXT"


def words(text: str) -> list[str]:
    """The words of a text as they are searched: lower case, hyphens kept inside."""
    return _WORD.findall(text.lower())


def plain(markup: str) -> str:
    """The text of a page or a part of one."""
    return re.sub(r"\s+", " ", html.unescape(_TAG.sub(" ", markup))).strip()


class Library:
    """One collection, opened from the bytes or the path of its zip."""

    def __init__(self, source: bytes | str) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        self._index = json.loads(self._zip.read("index.json"))
        self._pages: list[list] = self._index["pages"]  # type: ignore[type-arg]

    def rank(self, query: str) -> list[str]:
        """Paths of the best pages for a query, the best first."""
        scores: Counter[int] = Counter()
        total, mean = len(self._pages), self._index["mean"]
        for term in sorted(set(words(query))):
            postings = self._index["terms"].get(term, [])
            rarity = math.log(1 + (total - len(postings) + 0.5) / (len(postings) + 0.5))
            for number, times in postings:
                length = self._pages[number][2]
                scores[number] += rarity * times * (K1 + 1) / (times + K1 * (1 - B + B * length / mean))
        best = sorted(scores.items(), key=lambda pair: (-round(pair[1], 9), pair[0]))[:RESULTS]
        return [self._pages[number][0] for number, _ in best]

    def title(self, path: str) -> str:
        """The title of a page that is there."""
        return next(str(row[1]) for row in self._pages if row[0] == path)

    def page(self, path: str) -> str | None:
        """The markup of a page, by its path or a link to it; None: there is none."""
        name = posixpath.normpath(path.strip().split("#")[0]).lstrip("/.")
        known = {str(row[0]) for row in self._pages}
        return self._zip.read(name).decode("utf-8", "replace") if name in known else None

    def search(self, query: str) -> str:
        """A page of results."""
        asked, rows = set(words(query)), []
        for path in self.rank(query):
            blocks = [plain(block) for block in _BLOCK.findall(self.page(path) or "")] or [""]
            best = max(blocks, key=lambda text: (len(asked & set(words(text))), -len(text)))
            rows.append(
                f'<li><a href="{html.escape(path)}">{html.escape(self.title(path))}</a><p>{html.escape(best[:200])}</p></li>'
            )
        body = f"<ol>{''.join(rows)}</ol>" if rows else "<p>No page has any of these words.</p>"
        return _shell(f"Results for {query}", body)

    def open(self, path: str) -> str:
        """A whole page."""
        markup = self.page(path)
        if markup is not None:
            return markup
        near = "".join(
            f'<li><a href="{html.escape(p)}">{html.escape(self.title(p))}</a></li>' for p in self.rank(path.replace("/", " "))
        )
        return _shell("No such page", f"<p>There is no page {html.escape(path)}.</p><ul>{near}</ul>")

    def find(self, path: str, query: str) -> str:
        """The passages of a page that hold all of the words, each under its heading."""
        markup = self.page(path)
        if markup is None:
            return self.open(path)
        asked, heading = set(words(query)), ""
        rows: list[str] = []
        for match in _BLOCK.finditer(markup):
            text = plain(match.group(1))
            if match.group(0)[1:2].lower() == "h":
                heading = text
            if asked and asked <= set(words(text)) and len(rows) < FOUND:
                rows.append(f"<li><b>{html.escape(heading)}</b> {html.escape(text)}</li>")
        body = f"<ul>{''.join(rows)}</ul>" if rows else "<p>No passage holds all of these words.</p>"
        return _shell(f"{self.title(posixpath.normpath(path.split('#')[0]).lstrip('/.'))}: {query}", body)


def _shell(title: str, body: str) -> str:
    said = html.escape(title)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{said}</title></head>'
    return f"{head}\n<body><h1>{said}</h1>\n{body}\n</body></html>\n"


def main(arguments: list[str]) -> int:
    """One call of one tool; prints a page."""
    collection, name, *given = arguments if len(arguments) >= 2 else ["", ""]
    if name == "answer" and given:
        text = " ".join(" ".join(given).split())
        with open(ANSWER, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
        print(_shell("Answer", f"<p>The answer is now: {html.escape(text)}</p>"), end="")
        return 0
    if (name, len(given)) not in (("open", 1),) and not (name in ("search", "find") and len(given) > (name == "find")):
        print(_shell("Usage", f"<p>{html.escape(_USAGE)}</p>"), end="")
        return 2
    library = Library(collection)
    if name == "search":
        said = library.search(" ".join(given))
    else:
        said = library.open(given[0]) if name == "open" else library.find(given[0], " ".join(given[1:]))
    sys.stdout.write(said)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
