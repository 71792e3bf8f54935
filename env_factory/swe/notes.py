"""What a project itself says about a change: the lines that the change added to its notes and manual, cleaned.

Taken out is what only the project's makers understand (numbers of issues, commits, names of people) and what would give the
hidden tests or the place of the repair away (paths, names of tests). A commit's own message is a supplement, never enough.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

MIN_CHARS = 80
"""Letters and digits that a text must have to be an instruction."""
MAX_CHARS = 4000
_NOTES = re.compile(r"(changes|changelog|change_log|history|news|releases?|release[-_]notes)\b", re.I)
_TEXTS = (".md", ".rst", ".txt", "")
_REFERENCES = (
    r"\(?\b(?:by|thanks to|thank you,?|contributed by|patch by|reported by) +@?[\w-]+(?: +[A-Z][\w-]+)*\)?",
    r":(?:issue|pr|pull|gh|user|commit|ghissue):`[^`]*`",
    r"`?(?:[\w.-]+/[\w.-]+)?#\d+`?_*",
    r"\bGH-?\d+\b",
    r"\bhttps?://\S+/(?:issues|pull|commit)/\S+",
    r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b",
    r"@[\w-]+",
    r"\[\s*\]\(\s*\)",
    r"\(\s*[,;]*\s*\)",
)
_TRAILERS = re.compile(
    r"^\s*((signed-off|co-authored|reviewed)-by\b|(closes?|fix(es|ed)?|refs?|see|resolves?)\W*(#|gh-|http))", re.I
)
_HEADING = re.compile(
    r"^[\W\d]*$|^(v|version|release)?[\s.\d()\[\]:-]*(\d{4}-\d\d-\d\d|unreleased|tbd)?[\W\d]*$|^[=~^#*-]{3,}$", re.I
)


def is_note(path: str) -> bool:
    """A file of notes about releases, or a page of the manual."""
    place = PurePosixPath(path)
    if place.suffix.lower() not in _TEXTS:
        return False
    return bool(_NOTES.match(place.stem)) or place.parts[0].lower() in ("docs", "doc", "documentation") or place.stem == "README"


def added(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Lines that stand in the notes and the manual after the change and not before; release notes first."""
    paths = [path for path in after if is_note(path) and after[path] != before.get(path)]
    paths.sort(key=lambda path: (not _NOTES.match(PurePosixPath(path).stem), path))
    told: list[str] = []
    for path in paths:
        old, new = (files.get(path, b"").decode("utf-8", "replace").splitlines() for files in (before, after))
        for tag, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if tag in ("insert", "replace"):
                told += new[start:end]
    return "\n".join(told)


def cleaned(text: str, *, secrets: Sequence[str] = ()) -> str:
    """The text without references, headings, paths of code and names of tests. `secrets`: further words that must not stand."""
    kept: list[str] = []
    for line in text.replace("\r", "").split("\n"):
        if _TRAILERS.match(line) and len(useful(line)) < 60:
            continue
        for pattern in _REFERENCES:
            line = re.sub(pattern, "", line, flags=re.I if "by" in pattern else 0)
        line = re.sub(r"\s+([.,;:])", r"\1", line).rstrip()
        if re.search(r"\btest_\w+|\w+\.pyi?\b", line) or any(secret in line for secret in secrets):
            continue
        if _HEADING.match(line) and line.strip():
            continue
        if line.strip() or (kept and kept[-1].strip()):
            kept.append(line)
    return "\n".join(kept).strip()[:MAX_CHARS]


def useful(text: str) -> str:
    """Letters and digits alone."""
    return re.sub(r"[^A-Za-z0-9]", "", text)
