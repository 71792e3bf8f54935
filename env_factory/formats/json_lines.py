"""Tasks as JSON lines: one object a task, with every file in it, so that a data set is one file that any tool can read.

    {"format": "gymsmith.task/1", "id": ..., "source": {...}, "spec": {...}, "instruction": ..., "status": ...,
     "evidence": {...}, "files": {PATH: {"text": ...} or {"base64": ...}}, "executable": [PATH, ...],
     "alternatives": [SCRIPT, ...], "cheats": [[NAME, SCRIPT], ...]}

The id is a content hash and is checked; `status` and `evidence` tell what the writer's gates said and are believed by nobody.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from gymsmith import taskdir
from gymsmith.errors import SourceError
from gymsmith.schema import Draft, Environment, Evidence, Source, TaskSpec
from gymsmith.taskdir import MAX_FOLDER_BYTES, Task

FORMAT = "gymsmith.task/1"


def dump(task: Task, environment: Environment | None = None, evidence: Evidence | None = None) -> dict[str, Any]:
    """The task as an object."""
    return {
        "format": FORMAT,
        "id": task.id,
        "source": task.source.model_dump(mode="json"),
        "spec": task.spec.model_dump(mode="json"),
        "instruction": task.instruction,
        "status": environment.status.value if environment else "draft",
        "evidence": evidence.model_dump(mode="json") if evidence else None,
        "files": {name: _content(data) for name, data in sorted(task.files.items())},
        "executable": sorted(task.executable),
        "alternatives": list(task.alternatives),
        "cheats": [list(cheat) for cheat in task.cheats],
    }


def is_task(row: Any) -> bool:
    """Whether an object says that it is of this format."""
    return isinstance(row, Mapping) and str(row.get("format", "")).startswith("gymsmith.task/")


def load(row: Any, where: str) -> Draft:
    """The draft that an object describes.

    Raises:
        SourceError: a key is missing or wrong, or the id is not that of the content.
        PolicyRefused: a member's path would leave the folder.
    """
    if not isinstance(row, Mapping) or row.get("format") != FORMAT:
        raise SourceError(f"{where}: expected an object of format {FORMAT}, got {str(row)[:80]!r}")
    try:
        files = {str(name): _bytes(content, f"{where}: {name}") for name, content in dict(row["files"]).items()}
        draft = Draft(
            source=Source.model_validate(row["source"]),
            spec=TaskSpec.model_validate(row["spec"]),
            instruction=_text(row["instruction"], f"{where}: instruction"),
            files=files,
            alternatives=tuple(_text(script, f"{where}: alternatives") for script in row.get("alternatives", [])),
            cheats=tuple((_text(n, f"{where}: cheats"), _text(s, f"{where}: cheats")) for n, s in row.get("cheats", [])),
            executable=frozenset(_text(name, f"{where}: executable") for name in row.get("executable", [])),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise SourceError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {str(first['input'])[:80]!r}"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{where}: the object is not of format {FORMAT}: {type(error).__name__} {error}") from error
    for name in files:
        taskdir.check_member(name)
    if sum(map(len, files.values())) > MAX_FOLDER_BYTES:
        raise SourceError(f"{where}: expected at most {MAX_FOLDER_BYTES} bytes of files, got {sum(map(len, files.values()))}")
    if row.get("id") not in (None, draft.id):
        raise SourceError(f"{where}: expected id {draft.id}, which is that of the content, got {str(row.get('id'))[:80]!r}")
    return draft


def line(row: Mapping[str, Any]) -> str:
    """One line of a file."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def _content(data: bytes) -> dict[str, str]:
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _bytes(content: Any, where: str) -> bytes:
    if isinstance(content, Mapping) and len(content) == 1 and isinstance(content.get("text"), str):
        try:
            return str(content["text"]).encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"{where}: expected text, got half of a surrogate pair: {error}") from error
    if isinstance(content, Mapping) and len(content) == 1 and isinstance(content.get("base64"), str):
        try:
            return base64.b64decode(content["base64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise SourceError(f"{where}: expected base64: {error}") from error
    raise SourceError(f'{where}: expected {{"text": ...}} or {{"base64": ...}}, got {str(content)[:80]!r}')


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str) or any(0xD800 <= ord(letter) < 0xE000 for letter in given):
        raise SourceError(f"{where}: expected text, got {ascii(given)[:80]}")
    return given
