"""Words of a Dockerfile: variables, quotes and escapes, as Docker's own shell lexer reads them (moby, `shell/lex.go`).

Which instruction splits its text how is told in `dockerfile.py`; what RUN hands to its shell never comes here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from gymsmith.errors import PolicyRefused

MAX_DEPTH = 20
"""Of ${A:-${B:-...}}."""


def expand(text: str, variables: Mapping[str, str], line: int) -> str:
    """`text` as one word: $NAME, ${NAME}, ${NAME:-word} and ${NAME:+word} replaced (unset: empty), quotes removed.

    Raises: PolicyRefused: an open quote or brace, or another modifier; `line` is for the message.
    """
    return _Lexer(text, variables, line).until("")


def expand_text(text: str, variables: Mapping[str, str], line: int) -> str:
    """A here-document with variables replaced; quotes mean nothing in it, a backslash keeps a dollar."""
    return _Lexer(text, variables, line).document()


def split(text: str) -> list[str]:
    """The words of `text`, split at white space outside quotes; quotes and escapes are kept."""
    words: list[str] = []
    word, quote, escaped = "", "", False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter.isspace():
            if word:
                words.append(word)
            word = ""
            continue
        word += letter
    return [*words, word] if word else words


def pairs(text: str, variables: Mapping[str, str], line: int) -> list[tuple[str, str]]:
    """NAME=VALUE pairs, or the old form `NAME the rest`. All values see the variables as they were before the instruction.

    Raises: PolicyRefused.
    """
    words = split(text)
    if "=" not in words[0]:
        rest = text.strip()[len(words[0]) :].strip()
        if not rest:
            raise PolicyRefused(f"Dockerfile line {line}: expected NAME=VALUE, got {text[:80]!r}")
        return [(expand(words[0], variables, line), expand(rest, variables, line))]
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise PolicyRefused(f"Dockerfile line {line}: expected NAME=VALUE, got {word[:80]!r}; quote values with spaces")
        found.append((expand(name, variables, line), expand(value, variables, line)))
    return found


def json_form(value: str) -> list[str] | None:
    """The words of the exec form `["a", "b"]`, or None when `value` is the shell form."""
    if not value.startswith("["):
        return None
    try:
        listed = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return listed if isinstance(listed, list) and all(isinstance(word, str) for word in listed) else None


class _Lexer:
    def __init__(self, text: str, variables: Mapping[str, str], line: int) -> None:
        self.text = text
        self.variables = variables
        self.line = line
        self.at = 0
        self.depth = 0

    def _next(self) -> str:
        self.at += 1
        return self.text[self.at - 1 : self.at]

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _bad(self, expected: str) -> PolicyRefused:
        return PolicyRefused(
            f"Dockerfile line {self.line}: expected {expected}, got {self.text[:80]!r}; escape it with \\ or quote it"
        )

    def until(self, stop: str) -> str:
        """Everything up to `stop` (a closing brace), which is consumed; "" means the end of the text."""
        out = ""
        while letter := self._next():
            if letter == stop:
                return out
            if letter == "'":
                end = self.text.find("'", self.at)
                if end < 0:
                    raise self._bad("a closing single quote")
                out += self.text[self.at : end]
                self.at = end + 1
            elif letter == '"':
                out += self._double()
            elif letter == "$":
                out += self._dollar()
            elif letter == "\\":
                out += self._next()
            else:
                out += letter
        if stop:
            raise self._bad(f"a closing {stop}")
        return out

    def document(self) -> str:
        """Everything, with quotes as they stand."""
        out = ""
        while letter := self._next():
            if letter == "$":
                out += self._dollar()
            elif letter == "\\" and self._peek() in ("$", "\\"):
                out += self._next()
            else:
                out += letter
        return out

    def _double(self) -> str:
        out = ""
        while letter := self._next():
            if letter == '"':
                return out
            if letter == "$":
                out += self._dollar()
            elif letter == "\\" and self._peek() in ('"', "$", "\\"):
                out += self._next()
            else:
                out += letter
        raise self._bad("a closing double quote")

    def _name(self) -> str:
        begin = self.at
        while self._peek().isalnum() or self._peek() == "_":
            self.at += 1
        return self.text[begin : self.at]

    def _dollar(self) -> str:
        if self._peek() != "{":
            name = self._name()
            return self.variables.get(name, "") if name else "$"
        self.at += 1
        name = self._name()
        value = self.variables.get(name, "")
        letter = self._next()
        if name and letter == "}":
            return value
        present = bool(value) if letter == ":" else name in self.variables
        modifier = self._next() if letter == ":" else letter
        if not name or modifier not in ("-", "+"):
            raise self._bad("$NAME, ${NAME}, ${NAME:-word} or ${NAME:+word}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._bad(f"at most {MAX_DEPTH} variables within one another")
        word = self.until("}")
        self.depth -= 1
        if modifier == "-":
            return value if present else word
        return word if present else ""
