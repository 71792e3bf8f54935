"""Reads what a tutorial tells its reader to type: commands in order, and the prose that leads up to each.

Markdown (fenced blocks, also with the `:::` boxes of lesson sites), reStructuredText (code-block directives and literal blocks),
HTML (`pre` elements) and manual pages (the EXAMPLES section, else every literal block). Nothing is executed here. Boxes with
exercises are left out: they are alternatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser

SHELLS = ("bash", "sh", "shell", "console", "shell-session", "zsh")
EDITORS = ("nano", "vi", "vim", "emacs", "gedit", "ed")
_ASIDE = re.compile(
    r"^:{3,}\s*(challenge|solution|instructor|spoiler|discussion|checklist|prereq|objectives|questions|keypoints)\b"
)
_FENCE = re.compile(r"^(\s*)(```+|~~~+)\s*\{?\.?([\w-]*)")


@dataclass(frozen=True, slots=True)
class Line:
    """One command that the reader types."""

    command: str
    """May span lines."""
    heading: str
    prose: str
    """The text between the previous block and this one."""
    block: int
    """Which block of the text it stands in."""
    writes: tuple[str, str] | None = None
    """(file name, content) where the command opens an editor: what the text says to type there."""


@dataclass(slots=True)
class _Block:
    language: str
    body: list[str]
    heading: str
    prose: str


def lines(name: str, text: str) -> list[Line]:
    """The commands of a text; `name` tells its format by its ending."""
    if name.endswith((".md", ".markdown", ".txt")):
        blocks = list(_markdown(text))
    elif name.endswith(".rst"):
        blocks = list(_rst(text))
    elif name.endswith((".html", ".htm")):
        blocks = _Page.read(text)
    else:
        blocks = list(_manual(text))
    return list(_commands(blocks))


def _commands(blocks: Sequence[_Block]) -> Iterator[Line]:
    for number, block in enumerate(blocks):
        if block.language not in SHELLS:
            continue
        prompted = any(re.match(r"\s*[$%] \S", line) for line in block.body)
        if not prompted and block.language in ("console", "shell-session"):
            continue
        for command in _prompted(block.body) if prompted else _plain(block.body):
            words = command.split()
            writes = None
            if words[0] in EDITORS and len(words) == 2:
                writes = (words[1], _typed(blocks, number))
            yield Line(command, block.heading, block.prose, number, writes)


def _typed(blocks: Sequence[_Block], number: int) -> str:
    """What the text says to type into an editor: the next block without a prompt, if it comes before the next command."""
    for block in blocks[number + 1 :]:
        prompted = any(re.match(r"\s*\$ \S", line) for line in block.body)
        if block.language in ("source", "text", *SHELLS) and not prompted:
            return "\n".join(block.body).strip("\n") + "\n"
        if prompted:
            break
    return ""


def _prompted(body: Sequence[str]) -> Iterator[str]:
    """Lines after a prompt, with the continuation lines below them; what is printed in between is left out."""
    current: list[str] = []
    for line in body:
        if started := re.match(r"\s*[$%] (\S.*)$", line):
            if current:
                yield "\n".join(current)
            current = [started.group(1)]
        elif current and (more := re.match(r"\s*> ?(.*)$", line)):
            current.append(more.group(1))
        elif current and (current[-1].endswith("\\") or _open(current)):
            current.append(line)
        elif current:
            yield "\n".join(current)
            current = []
    if current:
        yield "\n".join(current)


def _plain(body: Sequence[str]) -> Iterator[str]:
    """A block without prompts: each line is a command, unless the block is one construct."""
    text = "\n".join(line for line in body if not line.lstrip().startswith("#"))
    if re.search(r"^\s*(for|while|if|case|function)\b|<<|\\$|\{$", text, re.M):
        if text.strip():
            yield text.strip("\n")
        return
    yield from (line.strip() for line in text.splitlines() if line.strip())


def _open(current: Sequence[str]) -> bool:
    """Whether a loop that began is still without its end."""
    words = re.findall(r"(?<![\w-])(do|done)(?![\w-])", "\n".join(current))
    return words.count("do") > words.count("done")


def _markdown(text: str) -> Iterator[_Block]:
    heading = ""
    prose: list[str] = []
    boxes: list[bool] = []
    body: list[str] | None = None
    fence = indent = language = ""
    rows = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S).splitlines()
    for at, line in enumerate(rows):
        if body is not None:
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                # Kramdown, the older lesson sites' Markdown, names the language behind the block.
                named = re.match(r"\{:\s*\.(?:language-)?([\w-]+)", rows[at + 1].strip()) if at + 1 < len(rows) else None
                language = language or (named.group(1) if named else "console")
                if not any(boxes):
                    yield _Block(language, body, heading, "\n".join(prose))
                    prose = []
                body = None
            else:
                body.append(line.removeprefix(indent))
            continue
        if opened := _FENCE.match(line):
            indent, fence, language = opened.groups()
            body = []
            continue
        if line.startswith(":::"):
            if re.fullmatch(r":{3,}\s*", line):
                if boxes:
                    boxes.pop()
            else:
                boxes.append(bool(_ASIDE.match(line)))
            continue
        if title := re.match(r"#+\s+(.*?)\s*#*$", line):
            if not any(boxes):
                heading, prose = title.group(1), []
            continue
        if not any(boxes) and not line.startswith((">", "{:")):
            prose.append(line)


def _rst(text: str) -> Iterator[_Block]:
    heading, rows = "", text.splitlines()
    prose: list[str] = []
    at = 0
    while at < len(rows):
        line = rows[at]
        directive = re.match(r"(\s*)\.\. (?:code-block|code|sourcecode|highlight)::\s*([\w-]*)", line)
        literal = re.match(r"(\s*)(.*)::\s*$", line) if not directive and not line.lstrip().startswith("..") else None
        if directive or literal:
            margin = len((directive or literal).group(1))  # type: ignore[union-attr]
            if literal:
                prose.append(literal.group(2))
            body, at = [], at + 1
            while at < len(rows) and (not rows[at].strip() or len(rows[at]) - len(rows[at].lstrip()) > margin):
                body.append(rows[at])
                at += 1
            body = [row for row in body if not re.match(r"\s+:[\w-]+:", row)]
            least = min((len(row) - len(row.lstrip()) for row in body if row.strip()), default=0)
            yield _Block(
                (directive.group(2) if directive else "") or "console", [row[least:] for row in body], heading, "\n".join(prose)
            )
            prose = []
            continue
        if at + 1 < len(rows) and line.strip() and re.fullmatch(r"([=\-~^\"'#*+])\1{2,}", rows[at + 1].strip()):
            heading, prose, at = line.strip(), [], at + 2
            continue
        prose.append(line)
        at += 1


class _Page(HTMLParser):
    """The blocks of an HTML page: each `pre` with the heading and the paragraphs above it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[_Block] = []
        self.heading = ""
        self.prose = ""
        self.language = ""
        self.text = ""
        self.inside = ""

    @classmethod
    def read(cls, text: str) -> list[_Block]:
        """The blocks of a text."""
        page = cls()
        page.feed(text)
        page.close()
        return page.blocks

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = " ".join(value or "" for key, value in attrs if key == "class")
        if tag in ("pre", "p", "h1", "h2", "h3", "h4", "li", "script", "style", "nav") and self.inside != "pre":
            self._end()
            self.inside = tag
        if found := re.search(r"(?:language|highlight|lang|brush)[-:](?:text-)?([\w-]+)|\b(console|bash|shell|sh)\b", said):
            self.language = next(word for word in found.groups() if word)
        if tag == "code" and self.inside in ("p", "li"):
            self.text += "`"
        if tag == "br":
            self.text += "\n"

    def handle_endtag(self, tag: str) -> None:
        if tag == "code" and self.inside in ("p", "li"):
            self.text += "`"
        if tag == self.inside:
            self._end()

    def handle_data(self, data: str) -> None:
        self.text += data

    def _end(self) -> None:
        text, self.text = self.text, ""
        if self.inside == "pre":
            self.blocks.append(_Block(self.language or "console", text.strip("\n").split("\n"), self.heading, self.prose))
            self.prose = self.language = ""
        elif self.inside in ("p", "li"):
            self.prose += f"{text}\n\n"
        elif self.inside.startswith("h"):
            self.heading, self.prose = " ".join(text.split()), ""
        self.inside = ""


def _manual(text: str) -> Iterator[_Block]:
    found = re.search(r"^\.S[hH] \"?EXAMPLES?\"?\s*$(.*?)(?=^\.S[hH] |\Z)", text, re.M | re.S)
    heading = "EXAMPLES" if found else "DESCRIPTION"
    prose: list[str] = []
    body: list[str] | None = None
    for line in (found.group(1) if found else text).splitlines():
        if re.match(r"\.(nf|EX|Bd\b.*-literal)", line):
            body = []
        elif re.match(r"\.(fi|EE|Ed)", line) and body is not None:
            yield _Block("sh", body, heading, "\n".join(prose))
            prose, body = [], None
        elif body is not None:
            body.append(unroff(line))
        elif not line.startswith(('.\\"', ".P", ".LP", ".TP", ".IP", ".RS", ".RE", ".sp")):
            prose.append(unroff(re.sub(r"^\.\w+ ?", "", line)))


def unroff(line: str) -> str:
    """Text of a line of roff: escapes taken out."""
    line = re.sub(r"\\f(\[[^\]]*\]|.)|\\s[-+]?\d|\\&|\\/|\\,", "", line)
    line = line.replace("\\*(Aq", "'").replace("\\.", ".")
    return line.replace("\\-", "-").replace("\\e", "\\").replace("\\(aq", "'").replace("\\(dq", '"').replace("\\ ", " ")
