"""Checks on what a model wrote, before anything of it is built: texts that are texts, paths that stay inside, nothing told twice.

Each raises `Unfit` with a typed reason and a sentence that the model can act on. They are cheap and catch what is common; what is
worth knowing about a task is found out by the gates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from env_factory.llm.conversation import Shape, Unfit
from gymsmith.errors import PolicyRefused
from sandboxes.image import dockerfile

MAX_FILES = 60
MAX_FILE_BYTES, MAX_TOTAL_BYTES = 200_000, 1_000_000
MIN_LINE = 24
"""Characters from which on a line of a solution or a check that stands elsewhere, too, is no accident."""
_PATH = re.compile(r"[A-Za-z0-9._+@%=,~ -]+(/[A-Za-z0-9._+@%=,~ -]+)*\Z")


class File(Shape):
    """A file that a model wrote."""

    path: str
    content: str


def text(name: str, value: str, least: int, most: int) -> str:
    """`value` without its outer blanks, if it is printable and of a size between the two.

    Raises: Unfit (llm-text).
    """
    value = value.strip()
    if not least <= len(value) <= most:
        raise Unfit("llm-text", f"{name} must have {least} to {most} characters, got {len(value)}")
    odd = {c for c in value if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn", "Cs") and c not in "\n\t"}
    if odd:
        raise Unfit(
            "llm-text", f"{name} must be plain printable text, got {', '.join(f'U+{ord(c):04X}' for c in sorted(odd)[:5])}"
        )
    return value


def members(files: Sequence[File], top: str) -> dict[str, bytes]:
    """The files as members below `top`.

    Raises: Unfit (llm-path): a path that is not plain and relative, or a file too many or too large.
    """
    made: dict[str, bytes] = {}
    for file in files:
        parts = file.path.split("/")
        if (
            not _PATH.match(file.path)
            or len(file.path) > 200
            or any(part in ("", ".", "..") or part != part.strip() for part in parts)
        ):
            raise Unfit("llm-path", f"paths must be plain and relative, without '..' and '.', got {file.path[:120]!r}")
        if parts[0] == ".git" or "__pycache__" in parts:
            raise Unfit("llm-path", f"{file.path!r} is history or a cache; make a git history with RUN if the task is about one")
        if file.path in made:
            raise Unfit("llm-path", f"{file.path!r} is there twice")
        made[file.path] = file.content.encode()
        if len(made[file.path]) > MAX_FILE_BYTES:
            raise Unfit("llm-path", f"{file.path!r} is larger than {MAX_FILE_BYTES} bytes")
    if len(made) > MAX_FILES or sum(map(len, made.values())) > MAX_TOTAL_BYTES:
        raise Unfit("llm-path", f"at most {MAX_FILES} files with {MAX_TOTAL_BYTES} bytes together are taken, got {len(made)}")
    for path in made:
        if any(other.startswith(path + "/") for other in made):
            raise Unfit("llm-path", f"{path!r} is a file and a folder")
    return {f"{top}/{path}": data for path, data in made.items()}


def build_file(given: str, workdir: str) -> str:
    """A Dockerfile that is worth building: only steps that are executed here, on our base, ending in `workdir`.

    Raises: Unfit (refused).
    """
    try:
        parsed = dockerfile.parse(given)
    except PolicyRefused as error:
        raise Unfit("refused", str(error)) from None
    for stage in parsed.stages:
        if stage.base not in ("gymsmith/host", "gymsmith/host:latest", *(s.name for s in parsed.stages if s.name)):
            raise Unfit("refused", f"every stage begins with FROM gymsmith/host, got FROM {stage.base[:80]!r}: nothing is pulled")
    last = [step.value.strip().rstrip("/") for step in parsed.stages[-1].steps if step.name == "WORKDIR"]
    if not last or last[-1] != workdir:
        raise Unfit("refused", f"the last WORKDIR must be {workdir}, got {last[-1] if last else 'none'}")
    return given.rstrip("\n") + "\n"


def not_told(secrets: Mapping[str, str], open_: Mapping[str, str]) -> None:
    """No line of a secret text (solution, checks) stands in an open one (instruction, files).

    Raises: Unfit (leak).
    """
    for name, secret in secrets.items():
        for line in {line.strip() for line in secret.splitlines()}:
            if len(line) < MIN_LINE or line.startswith("#"):
                continue
            where = next((told for told, text in open_.items() if line in text), None)
            if where is not None:
                raise Unfit("leak", f"{where} holds a line of {name}: {line[:100]!r}")


def copied(lines: Iterable[str], original: str) -> float:
    """The share of `lines` that stand in `original` as they are; 0.0 for no lines."""
    known = {" ".join(line.split()) for line in original.splitlines()}
    wanted = [" ".join(line.split()) for line in lines if len(line.strip()) >= 8 and not line.lstrip().startswith("#")]
    return sum(line in known or f"$ {line}" in known for line in wanted) / len(wanted) if wanted else 0.0
