"""Terminal output as harmless spans of text.

What an agent or an environment wrote is hostile: it may hold HTML, terminal control sequences, hyperlinks (OSC 8) or
characters that reverse the reading direction. `spans` turns it into (text, CSS classes) pairs: colours and weights survive,
overwriting by carriage return and backspace is applied line by line, every other sequence is dropped and every invisible
control becomes a visible mark. Escaping for HTML is the template's work; nothing here produces markup.

Not a terminal: cursor addressing and full-screen programs are not replayed.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Span(NamedTuple):
    """A stretch of text of one look. `classes` is a list with spaces, of a closed set (`a-fg0`..`a-fg15`, `a-b`, ...)."""

    text: str
    classes: str


_SEQUENCE = re.compile(
    r"(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*+(?:\x07|\x1b\\|\x9c)?"  # OSC: titles, hyperlinks, clipboard
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*+(?:\x1b\\|\x9c)?"  # DCS, SOS, PM, APC
    r"|(?:\x1b\[|\x9b)([0-9:;<=>?]*)[ -/]*([@-~]?)"  # CSI, of which SGR and erase-line mean something here
    r"|\x1b[ -/]*[0-~]?"  # any other escape
)
_MARKED = re.compile(
    r"[\x00-\x07\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_ATTRIBUTES = {1: "a-b", 2: "a-dim", 3: "a-i", 4: "a-u", 7: "a-inv", 9: "a-s"}
_OFF = {22: ("a-b", "a-dim"), 23: ("a-i",), 24: ("a-u",), 27: ("a-inv",), 29: ("a-s",)}


def _mark(match: re.Match[str]) -> str:
    code = ord(match.group())
    return chr(0x2400 + code) if code < 0x20 else f"‹U+{code:04X}›"


def plain(text: str) -> str:
    """`text` without sequences and with visible marks for controls: for one-line places, titles and attributes."""
    return _MARKED.sub(_mark, _SEQUENCE.sub("", text).replace("\r\n", "\n").replace("\b", ""))


class _Look:
    """The graphic rendition in force."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.attributes: set[str] = set()
        self.fg = ""
        self.bg = ""

    def classes(self) -> str:
        return " ".join(sorted(self.attributes) + [c for c in (self.fg, self.bg) if c])

    def apply(self, parameters: str) -> None:
        """Select graphic rendition. Of the extended colours only the sixteen named ones are kept, the others are dropped."""
        codes = [int(p) if p.isdigit() and len(p) < 4 else 0 for p in re.split("[;:]", parameters)] if parameters else [0]
        at = 0
        while at < len(codes):
            code = codes[at]
            if code == 0:
                self.reset()
            elif code in _ATTRIBUTES:
                self.attributes.add(_ATTRIBUTES[code])
            elif code in _OFF:
                self.attributes.difference_update(_OFF[code])
            elif 30 <= code <= 37 or 90 <= code <= 97:
                self.fg = f"a-fg{code - 30 if code < 40 else code - 82}"
            elif 40 <= code <= 47 or 100 <= code <= 107:
                self.bg = f"a-bg{code - 40 if code < 50 else code - 92}"
            elif code == 39:
                self.fg = ""
            elif code == 49:
                self.bg = ""
            elif code in (38, 48):
                mode = codes[at + 1] if at + 1 < len(codes) else 0
                colour = codes[at + 2] if mode == 5 and at + 2 < len(codes) else 16
                name = f"a-{'fg' if code == 38 else 'bg'}{colour}" if colour < 16 else ""
                if code == 38:
                    self.fg = name
                else:
                    self.bg = name
                at += 2 if mode == 5 else 4 if mode == 2 else 0
            at += 1


def spans(text: str) -> list[Span]:
    """The visible result of `text`, newlines kept, as spans in reading order. Linear in the length of `text`."""
    cells: list[tuple[str, str]] = []
    line_start = column = 0
    look = _Look()
    classes = ""
    text = text.replace("\r\n", "\n")

    def put(chunk: str) -> None:
        nonlocal column
        at = line_start + column
        if at >= len(cells):
            cells.extend((c, classes) for c in chunk)
        else:
            cells[at : at + len(chunk)] = [(c, classes) for c in chunk]
        column += len(chunk)

    def write(chunk: str) -> None:
        nonlocal line_start, column
        for piece in re.split(r"([\n\r\b])", chunk):
            if piece == "\n":
                cells.append(("\n", ""))
                line_start, column = len(cells), 0
            elif piece == "\r":
                column = 0
            elif piece == "\b":
                column = max(0, column - 1)
            elif piece:
                put(_MARKED.sub(_mark, piece))

    done = 0
    for match in _SEQUENCE.finditer(text):
        write(text[done : match.start()])
        done = match.end()
        if match.group(2) == "m":
            look.apply(match.group(1))
            classes = look.classes()
        elif match.group(2) == "K":
            if match.group(1) == "2":
                del cells[line_start:]
                column = 0
            elif match.group(1) in ("", "0"):
                del cells[line_start + column :]
    write(text[done:])

    out: list[Span] = []
    start = 0
    for at in range(1, len(cells) + 1):
        if at == len(cells) or cells[at][1] != cells[start][1]:
            out.append(Span("".join(c for c, _ in cells[start:at]), cells[start][1]))
            start = at
    return out
