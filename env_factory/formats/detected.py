"""Which format lies at a place, and the tasks in it, each read when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from env_factory import archive
from env_factory.formats import harbor, json_lines, swe_rows, task_repository, terminal_bench
from env_factory.source_kinds import download, issue
from env_factory.source_kinds.tree import Tree, read_folder
from gymsmith.errors import NotFound, SourceError
from gymsmith.schema import Draft
from sandboxes.swebench_rows import OURS

Format = Literal["auto", "harbor", "terminal-bench", "jsonl", "swebench", "task-repository"]
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
        return _in_tree(read_folder(path), place, path.resolve().name, wanted)
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


def _in_rows(place: str, wanted: Format) -> tuple[Format, Iterator[Found]]:
    if wanted in ("auto", "jsonl") and not place.endswith(".parquet"):
        rows = issue.records(place)
        if wanted == "jsonl" or (rows and json_lines.is_task(rows[0])):
            return "jsonl", (_line(row, place, number) for number, row in enumerate(rows, 1))
    if wanted not in ("auto", "swebench"):
        raise SourceError(f"expected {wanted}, got a file of rows: {place!r}")
    return "swebench", (_row(row, f"{place}#{row['instance_id']}") for row in issue.read_rows(Path(place)))


def _in_tree(tree: Tree, where: str, name: str, wanted: Format) -> tuple[Format, Iterator[Found]]:
    if wanted in ("auto", "task-repository") and task_repository.CONFIG in tree.files:
        rows = task_repository.read(tree, where)
        return "task-repository", (_row(row, f"{where}#{row['instance_id']}") for row in rows)
    for form, (mark, read) in _FOLDERS.items():
        if wanted in ("auto", form) and (tops := _outermost(tree, mark)):
            if tops == [""]:
                return form, iter([_folder(tree, where, name, read)])
            return form, (_folder(tree.below(top), f"{where}#{top}", top, read) for top in tops)
    marks = f"{harbor.MARK}, {terminal_bench.MARK} or {task_repository.CONFIG}" if wanted == "auto" else f"a task of {wanted}"
    raise SourceError(f"expected {marks} in {where}, there is none; it holds {', '.join(list(tree.files)[:5]) or 'no files'}")


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
