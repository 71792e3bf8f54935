"""A task as text for a reader: what an agent finds at the start, and what it never sees."""

from __future__ import annotations

import re
from collections.abc import Iterable

from env_factory.gates.trial import Trial
from gymsmith.errors import OutputLimit, PolicyRefused
from gymsmith.taskdir import Task
from sandboxes.base import Sandbox
from sandboxes.grade import sandbox_spec

MAX_CHARS, MAX_FILE_CHARS, MAX_TEST_CHARS = 48_000, 8_000, 24_000
"""Of all files together, of one of them, and of one that holds tests."""
MAX_NAMES, MAX_NAMED = 400, 20
"""Names that are listed, and files elsewhere that the text names."""
MAX_BYTES = 256 * 1024
"""Of a file that is read at all."""
LIST = (
    r"find . -xdev -type d \( -name .git -o -name __pycache__ \) -prune -o -type f -readable -printf '%P\n' 2>/dev/null "
    "| LC_ALL=C sort | head -n 4000"
)
_PATH = re.compile(r"(?<![\w/.~-])(?:/[\w.+-]+)+")
_FURNISHING = re.compile(r"(apt-get|apt|pip3?|python3 -m pip|mkdir|chown|chmod|useradd|adduser|ln|rm)\b")


async def at_start(trial: Trial) -> str:
    """What the agent finds: what the Dockerfile installs, the names of the files in the working folder, and the contents of as
    many as there is room for: first those that the text names, then those that the solution changes, then small ones.

    Raises: InfrastructureError: sandboxes failed.
    """
    task = trial.task
    changed = {effect.path for effect in trial.effects}
    root = task.spec.workdir.rstrip("/")
    named = dict.fromkeys(path.rstrip(".") for path in _PATH.findall(task.instruction))

    def rank(path: str) -> tuple[bool, bool]:
        return path.rpartition("/")[2] not in task.instruction, path not in changed

    async def look() -> str:
        box = await trial.provider.create(sandbox_spec(task, trial.image, "agent", phase="review"))
        try:
            said = (await box.exec(["/bin/sh", "-c", LIST], max_output_bytes=MAX_BYTES)).output.decode(errors="replace")
            every = said.splitlines()
            names = sorted(sorted(every, key=lambda name: rank(f"{root}/{name}"))[:MAX_NAMES])
            found = {f"{root}/{name}": await _text(box, f"{root}/{name}") for name in names}
            for path in [path for path in named if not path.startswith(f"{root}/") and path != root][:MAX_NAMED]:
                found[path] = await _text(box, path)
        finally:
            await box.destroy()
        listed = "\n".join(names) + (f"\n[and {len(every) - MAX_NAMES} more]" if len(every) > MAX_NAMES else "")
        contents = {path: text for path, text in found.items() if text is not None}
        order = sorted(contents, key=lambda path: (*rank(path), len(contents[path]), path))
        return "\n\n".join(
            [
                f"--- Dockerfile\n{furnishing(task.dockerfile)}",
                f"--- files in {root}\n{listed}",
                *_shown(contents, order, MAX_FILE_CHARS),
            ]
        )

    return await trial.patiently(look)


def furnishing(dockerfile: str) -> str:
    """A Dockerfile without the steps that make the task: no agent sees them."""
    lines = re.sub(r"\\\n\s*", " ", dockerfile.strip()).split("\n")
    parts = [[part.strip() for part in re.split(r"&&|;", line[4:])] if line.upper().startswith("RUN ") else [] for line in lines]
    hidden = [any(not _FURNISHING.match(part) for part in run) or "<<" in line for run, line in zip(parts, lines, strict=True)]
    if not any(hidden):
        return dockerfile.strip()
    return "\n".join("RUN [not shown]" if hide else line for hide, line in zip(hidden, lines, strict=True))


def hidden(task: Task) -> tuple[str, str]:
    """The tests and the solution, as far as they are text."""
    tests = {name: task.files[name].decode(errors="replace") for name in sorted(task.files) if name.startswith("tests/")}
    kept = {name: text for name, text in tests.items() if "\0" not in text}
    order = sorted(kept, key=lambda n: (n != "tests/test.sh", len(kept[n])))
    return "\n\n".join(_shown(kept, order, MAX_TEST_CHARS)), task.solution


def _shown(contents: dict[str, str], order: Iterable[str], longest: int) -> list[str]:
    room = MAX_CHARS
    parts, left_out = [], 0
    for path in order:
        text = contents[path]
        if len(text) > longest:
            text = f"{text[:longest]}\n[... {len(text) - longest} characters more ...]"
        if len(text) > room:
            left_out += 1
            continue
        room -= len(text)
        parts.append(f"--- {path}\n{text.rstrip(chr(10))}")
    return [*parts, *([f"--- the contents of {left_out} more are not shown"] if left_out else [])]


async def _text(box: Sandbox, path: str) -> str | None:
    """A file, if it is text that the agent may read and not large."""
    test = 'test -f "$0" && test -r "$0" && test "$(stat -Lc %s "$0")" -le "$1"'
    if not (await box.exec(["/bin/sh", "-c", test, path, str(MAX_BYTES)])).ok:
        return None
    try:
        data = await box.get(path, MAX_BYTES)
    except (OSError, OutputLimit, PolicyRefused):
        return None
    return None if b"\0" in data else data.decode(errors="replace")
