"""Which format lies at a place, and the tasks in it, each read when its turn comes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from env_factory import archive
from env_factory.formats import harbor, json_lines, swe_rows, task_repository, terminal_bench
from env_factory.source_kinds import download, issue
from env_factory.source_kinds.tree import Tree, read_folder
from gymsmith.errors import NotFound, PolicyRefused, SourceError
from gymsmith.schema import Draft
from sandboxes.swebench_rows import OURS

Format = Literal["auto", "harbor", "terminal-bench", "jsonl", "swebench", "task-repository"]
MAX_TASKS = 20_000
"""Of one import."""
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_FOLDERS: dict[Format, tuple[str, Callable[[Tree, str, str], Draft]]] = {
    "harbor": (harbor.MARK, harbor.of_tree),
    "terminal-bench": (terminal_bench.MARK, terminal_bench.of_tree),
}


class Found(NamedTuple):
    """One task, before it was understood."""

    name: str
    read: Callable[[], Draft]
    """Raises: SourceError, PolicyRefused: it cannot become a draft."""


def find(place: str, wanted: Format = "auto") -> tuple[Format, Iterator[Found]]:
    """(the format, the tasks at a place: a folder, an archive or a file).

    Raises: NotFound, SourceError, PolicyRefused, NoNetwork: it cannot be read at all.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _in_folder(path, place, wanted)
    name = place.partition("?")[0].lower()
    if name.endswith(ARCHIVES):
        filename, data = download.read(place)
        tree, _ = archive.tree(filename, data)
        return _in_tree(tree, download.shown(place), filename.partition(".")[0], wanted)
    if name.endswith((".json", ".jsonl", ".parquet")):
        return _in_rows(place, wanted)
    if not path.exists() and "://" not in place:
        raise NotFound(f"expected tasks at {place}, there is nothing; check the path")
    raise SourceError(f"expected a folder, an archive ({', '.join(ARCHIVES)}), .json, .jsonl or .parquet, got {place!r}")


def _in_folder(path: Path, place: str, wanted: Format) -> tuple[Format, Iterator[Found]]:
    """Each task is read from its own folder when its turn comes: a data set may be larger than memory."""
    if wanted in ("auto", "task-repository") and (path / task_repository.CONFIG).is_file():
        config = path / task_repository.CONFIG
        if config.is_symlink() or config.stat().st_size > 1 << 20:
            raise PolicyRefused(f"{config} is a link or larger than a MiB; expected the file of a task repository")
        task_repository.check(Tree({task_repository.CONFIG: config.read_bytes()}), place)
        names = sorted(entry.name for entry in os.scandir(path / "tasks") if entry.is_dir()) if (path / "tasks").is_dir() else []
        if not names:
            raise SourceError(f"{place}: expected folders below tasks/, there are none")
        return "task-repository", (_repository_task(path / "tasks" / name, name, place) for name in names)
    for form, (mark, read) in _FOLDERS.items():
        if wanted in ("auto", form) and (tops := _marked(path, mark)):
            return form, (_task_folder(top, "" if top == path else os.path.relpath(top, path), place, read) for top in tops)
    with os.scandir(path) as entries:
        holds = ", ".join(sorted(entry.name for entry in entries)[:5]) or "no files"
    raise SourceError(f"expected {_marks(wanted)} in {place}, there is none; it holds {holds}")


def _marked(path: Path, mark: str) -> list[Path]:
    """Folders that hold `mark`, without those inside another one: a task may have others' marks among its files."""
    found = []
    for here, folders, names in os.walk(path):
        # A link in the mark's place is found here and refused when the task is read.
        if mark in names or mark in folders:
            found.append(Path(here))
            folders.clear()
        folders[:] = sorted(name for name in folders if name != ".git")
        if len(found) > MAX_TASKS:
            raise PolicyRefused(f"{path} holds more than {MAX_TASKS} tasks; import it in parts")
    return found


def _task_folder(top: Path, name: str, place: str, read: Callable[[Tree, str, str], Draft]) -> Found:
    where = f"{place}#{name}" if name else place
    return Found(name or top.resolve().name, lambda: read(read_folder(top), where, top.resolve().name))


def _repository_task(folder: Path, name: str, place: str) -> Found:
    def read() -> Draft:
        row = task_repository.read_task(read_folder(folder), name, f"{place}: tasks/{name}")
        return _row(row, f"{place}#{name}").read()

    return Found(name, read)


def _in_rows(place: str, wanted: Format) -> tuple[Format, Iterator[Found]]:
    path = Path(place).expanduser()
    if wanted in ("auto", "jsonl") and place.endswith(".jsonl") and path.is_file():
        # One task at a time: a file of tasks may be larger than memory.
        first = next(_lines(path), (0, None))[1]
        if wanted == "jsonl" or json_lines.is_task(first):
            return "jsonl", (_line(row, place, number) for number, row in _lines(path))
    elif wanted in ("auto", "jsonl") and not place.endswith(".parquet"):
        rows = issue.records(place)
        if wanted == "jsonl" or (rows and json_lines.is_task(rows[0])):
            return "jsonl", (_line(row, place, number) for number, row in enumerate(rows, 1))
    if wanted not in ("auto", "swebench"):
        raise SourceError(f"expected {wanted}, got a file of rows: {place!r}")
    return "swebench", (_row(row, f"{place}#{row['instance_id']}") for row in issue.read_rows(Path(place)))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(number of the line, what it says); None for a line that is no JSON."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                yield number, None


def _in_tree(tree: Tree, where: str, name: str, wanted: Format) -> tuple[Format, Iterator[Found]]:
    if wanted in ("auto", "task-repository") and task_repository.CONFIG in tree.files:
        rows = task_repository.read(tree, where)
        return "task-repository", (_row(row, f"{where}#{row['instance_id']}") for row in rows)
    for form, (mark, read) in _FOLDERS.items():
        if wanted in ("auto", form) and (tops := _outermost(tree, mark)):
            if tops == [""]:
                return form, iter([_folder(tree, where, name, read)])
            return form, (_folder(tree.below(top), f"{where}#{top}", top, read) for top in tops)
    raise SourceError(
        f"expected {_marks(wanted)} in {where}, there is none; it holds {', '.join(list(tree.files)[:5]) or 'no files'}"
    )


def _marks(wanted: Format) -> str:
    return f"{harbor.MARK}, {terminal_bench.MARK} or {task_repository.CONFIG}" if wanted == "auto" else f"a task of {wanted}"


def _outermost(tree: Tree, mark: str) -> list[str]:
    """Folders that hold `mark`, without those inside another one: a task may have others' marks among its files."""
    tops = sorted((path.removesuffix(mark).rstrip("/") for path in tree.files if f"/{path}".endswith(f"/{mark}")), key=len)
    if "" in tops:
        return [""]
    kept: list[str] = []
    for top in tops:
        if not any(top.startswith(f"{other}/") for other in kept):
            kept.append(top)
    return sorted(kept)


def _folder(tree: Tree, where: str, name: str, read: Callable[[Tree, str, str], Draft]) -> Found:
    return Found(name, lambda: read(tree, where, name.rpartition("/")[2]))


def _line(row: Any, place: str, number: int) -> Found:
    spec = row.get("spec") if isinstance(row, dict) else None
    name = spec.get("name") if isinstance(spec, dict) else None
    return Found(f"{name or 'task'} ({number})", lambda: json_lines.load(row, f"{place}: task {number}"))


def _row(row: dict[str, Any], where: str) -> Found:
    def read() -> Draft:
        image = str(row.get("image") or "")
        if image.startswith(OURS):
            ours = image.removeprefix(OURS)
            raise SourceError(f"{where} is a row of environment {ours} without its files; export that one as jsonl or harbor")
        return swe_rows.read(row, where)

    return Found(str(row["instance_id"]), read)
