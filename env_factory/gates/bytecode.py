"""Whether compiled Python is of a source that is known: then it tells nobody anything.

The source is compiled again by this interpreter and compared; nothing of the file is unmarshalled or run. Byte code of another
Python counts as unknown.
"""

from __future__ import annotations

import importlib.util
import marshal
import re

HEAD = 16
"""Magic number, flags, and time and size of the source or its hash (PEP 552)."""
MAX_BYTES = 1_000_000
_NAMES = re.compile(rb"[\x20-\x7e]+\.py")
SHIFTS = 3
"""Bytes before a name that may look like letters of it: a type and a length."""


def compiled_from(code: bytes, source: bytes) -> bool:
    """Whether `code` is what this Python makes of `source`, at any optimisation, under any file name."""
    if code[:4] != importlib.util.MAGIC_NUMBER or max(len(code), len(source)) > MAX_BYTES:
        return False
    names = {found[shift:] for found in _NAMES.findall(code[HEAD:]) for shift in range(SHIFTS)}
    return any(_made(source, name.decode(), level) == code[HEAD:] for name in sorted(names) for level in (0, 1, 2))


def _made(source: bytes, name: str, level: int) -> bytes:
    try:
        made = compile(source, name, "exec", dont_inherit=True, optimize=level)
        return marshal.dumps(
            made
        )  # Held by a name, as the importer holds it: marshal writes other bytes for what nobody else holds.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return b""
