"""Reads pages of documented examples: what each example is said to do, its command, and what the reader has to fill in.

    tldr       `- Sort a file in descending order:` above `sort {{[-r|--reverse]}} {{path/to/file}}`
    manual     commands of the section EXAMPLES with the prose above them, and jq's own form (filter, input, `=>` output)
    RST, HTML, Markdown    commands of code blocks with the prose above them

Nothing is executed here.
"""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from env_factory.lessons import commands

WORDS = "string pattern search_pattern regex search_string find regular_expression text word words old"
NAMED = dict.fromkeys(WORDS.split(), "{word}") | {
    "replace": "new", "suffix": ".bak", "command": "cat {file}", "delimiter": ",", "new": "other", "prefix": "part_", "n": "3",
    "count": "3",
}  # fmt: skip
"""What is put where a tldr page names a kind of value. `{word}` occurs in the files that the reader has."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example, ready to run in the reader's folder."""

    page: str
    number: int
    told: str
    """What the page says it does."""
    command: str
    blanks: tuple[tuple[str, str], ...] = ()
    """(what the page has, what stands there here)."""
    operands: tuple[str, ...] = ()
    """Names of files and folders in the command."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that the page itself shows."""


def read(name: str, text: str, rng: random.Random, words: list[str]) -> list[Example]:
    """The examples of a page. `words`: fresh words, one folder name per example among them."""
    stem = name.rpartition("/")[2].split(".")[0]
    if re.search(r"^- .+:\s*$\n\n`.+`$", text, re.M):
        return list(_tldr(stem, text, words))
    if re.search(r"^=> ", text, re.M) and name.startswith("jq"):
        return list(_jq(stem, text, words))
    return list(_told(stem, name, text))


def _tldr(page: str, text: str, words: list[str]) -> Iterator[Example]:
    found = re.findall(r"^- (.+?):?\s*$\n\n`(.+)`$", text, re.M)
    for number, (told, command) in enumerate(found):
        folder, word = words[number % len(words)], words[(number + 7) % len(words)]
        blanks: list[tuple[str, str]] = []
        operands: list[str] = []

        def fill(blank: re.Match[str], folder: str = folder, word: str = word) -> str:
            said = blank.group(1)
            value = _value(said, folder, word)
            if said == "command":
                operands.append(f"{folder}/file.txt")  # noqa: B023
            elif "path/to/" in said or re.fullmatch(r"[\w*./-]*\.[a-z]\w*|\w*file\w*|director\w+", said):
                operands.extend(value.split())  # noqa: B023
            if not said.startswith("["):
                blanks.append((said, value))  # noqa: B023
            return value

        filled = re.sub(r"\{\{(.*?)\}\}(?!\})", fill, command)
        plain = re.sub(r"\[(\w)\]", r"\1", told)
        yield Example(page, number, plain, filled, tuple(blanks), tuple(dict.fromkeys(operands)))


def _value(said: str, folder: str, word: str) -> str:
    """What is put in place of one blank of a tldr page."""
    if options := re.fullmatch(r"\[(-\S+)\|(--[\w-]+.*)\]", said):
        return options.group(2).rstrip("]")
    said = re.sub(r"\[(\.\w+)(?:\|[^\]]*)?\]", r"\1", said)
    if "|" in said and "path/to" not in said:
        said = said.split("|")[0]
    said = re.sub(r"\s*\.\.\.", "", said)
    if said in NAMED:
        return NAMED[said].format(word=word, file=f"{folder}/file.txt")
    said = said.replace("path/to/", f"{folder}/").replace("*.ext", "*.txt").replace(".ext", ".txt")
    return re.sub(r"\b(file\d*|input_file|source_file)(?![\w.])", r"\1.txt", said)


def _jq(page: str, text: str, words: list[str]) -> Iterator[Example]:
    """`jq 'FILTER'`, then the input below it, then `=> ` and the output."""
    heading, prose, number = "", "", 0
    for part in re.split(r"(?=^\.S[SH] )|(?<=^\.fi$)", text, flags=re.M):
        if title := re.match(r'\.S[SH] "?(.*?)"?$', part, re.M):
            heading, prose = commands.unroff(title.group(1)), ""
        body = part.partition("\n.nf\n")
        prose = f"{prose}\n{body[0]}"
        for filter_, given in re.findall(r"^jq '(.*)'$\n +(.*)$\n=> ", body[2].replace("\\'", "'"), re.M):
            rows = [commands.unroff(re.sub(r"^\.\w+ ?", "", row)) for row in prose.splitlines() if not row.startswith(".S")]
            said = " ".join(" ".join(rows).split())
            sentences = re.split(r"(?<=[.!])\s+(?=[A-Z])", said)
            told = " ".join(sentences[:4])[:600]
            name = f"{words[number % len(words)]}{number}.json"
            command = f"jq -c {shlex.quote(commands.unroff(filter_))} {name}"
            files = {name: f"{commands.unroff(given).strip()}\n"}
            yield Example(page, number, f"{heading}: {told}", command, ((heading, name),), (name,), files)
            number += 1


def _told(page: str, name: str, text: str) -> Iterator[Example]:
    """Commands of code blocks, with the last sentences of the prose above."""
    for number, line in enumerate(commands.lines(name, text)):
        command = re.sub(r"\s+(#.*|\(\d+\))$", "", line.command)
        if line.writes is not None or "\n" in command or re.search(r"\.\.\.|<\w[\w-]*>|https?:|\bsudo\b", command):
            continue
        try:
            tokens = shlex.split(command)
        except ValueError:
            continue
        prose = re.sub(r"\s+", " ", re.sub(r"[`*]", "", line.prose)).strip()
        told = " ".join(re.split(r"(?<=[.:!])\s+(?=[A-Z])", prose)[-3:])[-500:]
        operands = [
            t for t in tokens[1:] if re.fullmatch(r"[A-Za-z0-9][\w./-]*\.\w{1,5}|foo|bar|baz|[a-z]+file\d?|letters|storage", t)
        ]
        if tokens and len(told) >= 20:
            yield Example(page, number, told, command, tuple((t, t) for t in operands), tuple(dict.fromkeys(operands)))
