"""Evaluates expressions on the code under test and tells the values as plain text. Run by the host with `python3 -I -S -c`.

Standard input: one JSON object {"path": [directories], "site": [directories or patterns], "observations": [{"imports": {name:
"module:attribute"}, "setup": [statements], "expression": text}, ...]}. Standard output: one line [index, "value" | "type" |
"error", text] for each. A value is told as a literal of exact built-in types, whatever class it had, so nothing that the code
under test defines (an object that equals everything, say) reaches whoever compares. This process knows no expected value; the
host has them, and the hidden tests are not in the sandbox while it runs.
"""

import glob
import importlib
import json
import os
import sys
from typing import Any

MAX_TEXT = 65_536
_ATOMS: tuple[Any, ...] = (int, float, complex, str, bytes)
_COLLECTIONS: tuple[Any, ...] = (list, tuple, set, frozenset)


def plain(value: Any, depth: int = 0) -> Any:
    """The value in exact built-in types. Raises TypeError for what has no such form."""
    if value is None or value is True or value is False:
        return value
    if depth > 20:
        raise TypeError("too deep")
    for kind in _ATOMS:
        if isinstance(value, kind):
            return kind.__add__(value, kind())  # the base class's own method: a subclass has no say in it
    if isinstance(value, dict):
        return {plain(k, depth + 1): plain(v, depth + 1) for k, v in dict.items(value)}
    for kind in _COLLECTIONS:
        if isinstance(value, kind):
            items = [plain(item, depth + 1) for item in kind.__iter__(value)]
            return set(items) if kind is frozenset else kind(items)
    raise TypeError(type(value).__name__)


def observe(told: dict[str, Any]) -> tuple[str, str]:
    """How one expression came out."""
    names: dict[str, Any] = {}
    try:
        for name, where in told.get("imports", {}).items():
            module, _, attribute = where.partition(":")
            names[name] = getattr(importlib.import_module(module), attribute)
        for statement in told.get("setup", ()):
            exec(statement, names)
        value = eval(told["expression"], names)
    except BaseException as error:  # whatever it is, the observation has its result
        return "error", type(error).__name__
    try:
        text = repr(plain(value))
    except Exception:
        return "type", type(value).__name__
    return ("value", text) if len(text) <= MAX_TEXT else ("type", "too long")


def main() -> None:
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the code under test prints is no answer
    standard = [entry for entry in sys.path if entry]
    site = [match for pattern in request["site"] for match in sorted(glob.glob(pattern)) or [pattern]]
    sys.dont_write_bytecode = True
    sys.path[:] = [*standard, *request["path"], *site]
    for index, told in enumerate(request["observations"]):
        kind, text = observe(told)
        answers.write(json.dumps([index, kind, text]) + "\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
