"""Looks for other copies of functions on a machine: installed ones, vendored ones, byte code, archives of the package.

Called as `python3 copies.py REQUEST.json ANSWER.json`; needs the standard library only. A request says {"skip": [folders],
"archives": [starts of file names], "functions": {key: {"file": name of its module, "lines": [text, ...], "doc": text}}}, and the
answer holds {key: path of a copy}. A function has a copy where a file with its module's name holds all its lines, or is byte
code and holds its docstring; an archive of the package counts for every function.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

MAX_BYTES = 8 * 1024 * 1024
ARCHIVES = (".whl", ".tar.gz", ".tar.bz2", ".zip", ".egg", ".pyz")


def find(request: dict[str, Any], top: str = "/") -> dict[str, str]:
    """Key of each function that has a copy below `top` -> where."""
    by_file: dict[str, dict[str, dict[str, Any]]] = {}
    for key, told in request["functions"].items():
        by_file.setdefault(told["file"], {})[key] = told
    found: dict[str, str] = {}
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in request["skip"]]
        for name in names:
            if name.lower().endswith(ARCHIVES) and name.lower().replace("-", "_").startswith(tuple(request["archives"])):
                return dict.fromkeys(request["functions"], os.path.join(folder, name))
            compiled = name.endswith(".pyc")
            wanted = by_file.get(name.split(".")[0] + ".py" if compiled else name)
            if wanted:
                path = os.path.join(folder, name)
                found |= dict.fromkeys(held(path, wanted, compiled), path)
    return found


def held(path: str, functions: dict[str, dict[str, Any]], compiled: bool) -> list[str]:
    """Which of the functions the file holds."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES)
    except OSError:
        return []
    if compiled:
        return [key for key, told in functions.items() if told["doc"].encode() in data]
    lines = {line.strip() for line in data.decode(errors="replace").splitlines()}
    return [key for key, told in functions.items() if lines.issuperset(told["lines"])]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(find(request), file)


if __name__ == "__main__":
    main()
