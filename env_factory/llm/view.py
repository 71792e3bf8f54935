"""A task as text for a reader: what an agent finds at the start, and what it never sees."""

from __future__ import annotations

from collections.abc import Iterable

from env_factory.gates.trial import Trial
from gymsmith.errors import OutputLimit, PolicyRefused
from gymsmith.taskdir import Task
from sandboxes.base import Sandbox
from sandboxes.grade import sandbox_spec

MAX_CHARS, MAX_FILE_CHARS = 48_000, 8_000
"""Of all files together, and of one of them."""
MAX_NAMES = 400
MAX_BYTES = 256 * 1024
"""Of a file that is read at all."""
LIST = (
    r"find . -xdev -type d \( -name .git -o -name __pycache__ \) -prune -o -type f -printf '%P\n' | LC_ALL=C sort | head -n 4000"
)


async def at_start(trial: Trial) -> str:
    """The Dockerfile, the names of the files in the working folder, and the contents of as many as there is room for: first those
    that the text names, then those that the solution changes, then small ones.

    Raises: InfrastructureError: sandboxes failed.
    """
    task = trial.task
    changed = {effect.path for effect in trial.effects}
    root = task.spec.workdir.rstrip("/")

    async def look() -> str:
        box = await trial.provider.create(sandbox_spec(task, trial.image, "agent", phase="review"))
        try:
            said = (await box.exec(["/bin/sh", "-c", LIST], max_output_bytes=MAX_BYTES)).output.decode(errors="replace")
            names = said.splitlines()
            found = {name: await _text(box, f"{root}/{name}") for name in names[:MAX_NAMES]}
        finally:
            await box.destroy()
        context = {f"of the image's context: {name}": text for name, text in _context(task) if text not in found.values()}
        listed = "\n".join(names[:MAX_NAMES]) + (f"\n[and {len(names) - MAX_NAMES} more]" if len(names) > MAX_NAMES else "")
        contents = {f"{root}/{name}": text for name, text in found.items() if text is not None} | context

        def rank(path: str) -> tuple[bool, bool, int, str]:
            base = path.rpartition("/")[2]
            return base not in task.instruction, path not in changed, len(contents[path]), path

        return "\n\n".join(
            [
                f"--- Dockerfile\n{task.dockerfile.strip()}",
                f"--- files in {root}\n{listed}",
                *_shown(contents, sorted(contents, key=rank)),
            ]
        )

    return await trial.patiently(look)


def hidden(task: Task) -> tuple[str, str]:
    """The tests and the solution, as far as they are text."""
    tests = {name: task.files[name].decode(errors="replace") for name in sorted(task.files) if name.startswith("tests/")}
    kept = {name: text for name, text in tests.items() if "\0" not in text}
    return "\n\n".join(_shown(kept, sorted(kept, key=lambda n: (n != "tests/test.sh", len(kept[n]))))), task.solution


def _context(task: Task) -> Iterable[tuple[str, str]]:
    for name, data in task.under("environment").items():
        if name != "Dockerfile" and len(data) <= MAX_BYTES and b"\0" not in data:
            yield name, data.decode(errors="replace")


def _shown(contents: dict[str, str], order: Iterable[str]) -> list[str]:
    room = MAX_CHARS
    parts, left_out = [], 0
    for path in order:
        text = contents[path]
        if len(text) > MAX_FILE_CHARS:
            text = f"{text[:MAX_FILE_CHARS]}\n[... {len(text) - MAX_FILE_CHARS} characters more ...]"
        if len(text) > room:
            left_out += 1
            continue
        room -= len(text)
        parts.append(f"--- {path}\n{text.rstrip(chr(10))}")
    return [*parts, *([f"--- the contents of {left_out} more are not shown"] if left_out else [])]


async def _text(box: Sandbox, path: str) -> str | None:
    """A file, if it is text that the agent may read and not large."""
    try:
        data = await box.get(path, MAX_BYTES)
    except (FileNotFoundError, OutputLimit, PolicyRefused):
        return None
    return None if b"\0" in data else data.decode(errors="replace")
