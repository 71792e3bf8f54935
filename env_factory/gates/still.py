"""What can be said of a draft without running anything; the rest is for the gates that run it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from env_factory.gates.bytecode import compiled_from
from gymsmith.schema import Draft, Gate

TEST = re.compile(r"(test.*|.*[._-]test|conftest)\.\w+")
"""Base names of files that hold tests."""
PROGRAM = re.compile(r".*\.(py|sh|bash|js|ts|rb|pl|go|rs|c|cc|cpp|java|lua|php|sql)")


def leak(draft: Draft, level: str = "full") -> Gate:
    """Hidden tests and the solution must not be where the agent can read them.

    Tests may keep a copy of what the agent starts from, to reckon with. At the level "admission", where what a solution makes is
    looked for in the image (`leaks.py`), only the solution and the tests' own programs count; elsewhere every hidden file does.
    """
    inside = {name: data for name, data in draft.files.items() if name.startswith("environment/")}
    secret = {name: data for name, data in draft.files.items() if name.startswith(("tests/", "solution/")) and len(data) > 40}
    if level == "admission":
        secret = {name: data for name, data in secret.items() if name.startswith("solution/") or _judges(name, draft)}
    found = [f"{a} is {b}" for b, data in secret.items() for a, other in inside.items() if other == data]
    found += [
        f"{name} is history or a cache"
        for name, data in inside.items()
        if re.search(r"/(\.git|\.hg|__pycache__|\.pytest_cache)/|\.py[co]\Z", name) and not _known(name, data, inside)
    ]
    found += [
        f"the instruction names the test {test}" for test in draft.spec.expected if "::" in test and test in draft.instruction
    ]
    solution = draft.files.get("solution/solve.sh", b"").decode(errors="replace")
    lines = {line.strip() for line in solution.splitlines() if len(line.strip()) >= 24 and not line.startswith("#")}
    found += [f"the instruction holds a line of the solution: {line[:60]}" for line in sorted(lines) if line in draft.instruction]
    return Gate(name="leak", passed=not found, detail="; ".join(found[:5]))


def _judges(name: str, draft: Draft) -> bool:
    """Whether a hidden file is part of the tests and not what they reckon with: by its name, or a program that test.sh calls."""
    base = PurePosixPath(name).name
    called = draft.files.get("tests/test.sh", b"").decode(errors="replace")
    return bool(TEST.fullmatch(base)) or (bool(PROGRAM.fullmatch(base)) and base in called)


def _known(name: str, data: bytes, inside: Mapping[str, bytes]) -> bool:
    """Whether a file is byte code of the source beside it."""
    place = PurePosixPath(name)
    folder = place.parent.parent if place.parent.name == "__pycache__" else place.parent
    return (
        compiled_from(data, inside.get(str(folder / f"{place.name.split('.')[0]}.py"), b"")) if place.suffix == ".pyc" else False
    )


def looking(draft: Draft) -> Gate:
    """What has to be looked up must not stand in the instruction."""
    said = [
        token
        for token in draft.spec.hidden
        if re.search(rf"(?<![A-Za-z0-9]){re.escape(token)}(?![A-Za-z0-9])", draft.instruction)
    ]
    return Gate(name="looking", passed=not said, detail=f"the instruction tells {', '.join(said)}" if said else "")
