"""Task repositories of swebench 5: rows as a folder of plain files, and back.

    sweb.yaml                     the data sets it publishes and their splits
    tasks/INSTANCE/task.yaml      the short columns; the long ones in tests.json, problem_statement.md, hints.md, gold.patch,
                                  test.patch and eval.sh
    tasks/INSTANCE/Dockerfile     its image, with this folder as build context

`swebench dataset check` wants each image named after its instance; the name that a row had is kept beside it. A row of one of our
environments comes with the Dockerfile and the files that its image is made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from env_factory.formats.foreign import no_links, text
from env_factory.formats.terminal_bench import yaml_value
from env_factory.source_kinds import issue
from env_factory.source_kinds.tree import Tree
from gymsmith.errors import SourceError

CONFIG = "sweb.yaml"
_FILES = {
    "patch": "gold.patch",
    "test_patch": "test.patch",
    "eval_script": "eval.sh",
    "problem_statement": "problem_statement.md",
}
_HINTS = "hints.md"
_TESTS = ("FAIL_TO_PASS", "PASS_TO_PASS")
_OUTSIDE = ("split", "datasets", "row_image")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z")
_TAKEN = frozenset({"task.yaml", "tests.json", "Dockerfile", _HINTS, *_FILES.values()})


def export(rows: Sequence[Mapping[str, Any]], builds: Mapping[str, Tree], dataset: str = "gymsmith/gymsmith") -> Tree:
    """Rows as a task repository. `builds`: instance id -> Dockerfile and context; a row without is built FROM its image.

    Raises:
        SourceError: a row cannot be written down; the message names it and what is wrong.
    """
    files: dict[str, bytes] = {CONFIG: _dumped({"datasets": [dataset], "splits": ["test"]})}
    executable: set[str] = set()
    for row in rows:
        name = str(row.get("instance_id", ""))
        if not _NAME.match(name) or f"tasks/{name}/task.yaml" in files:
            raise SourceError(f"expected instance ids that are plain names, each once, got {name[:100]!r}")
        top = f"tasks/{name}"
        short = {key: value for key, value in row.items() if key not in (*_FILES, *_TESTS, "hints_text")}
        short |= {"split": "test", "datasets": [dataset], "image": image_of(name)}
        short |= {"row_image": row["image"]} if row.get("image") else {}
        files[f"{top}/task.yaml"] = _dumped(short)
        tests = {key: list(issue.ids(row, key, name)) for key in _TESTS}
        files[f"{top}/tests.json"] = (json.dumps(tests, indent=2, ensure_ascii=False) + "\n").encode()
        for column, filename in _FILES.items():
            if not isinstance(row.get(column), str):
                raise SourceError(f"{name}: expected a text in column {column}, got {str(row.get(column))[:80]!r}")
            files[f"{top}/{filename}"] = row[column].encode()
        if row.get("hints_text"):
            files[f"{top}/{_HINTS}"] = str(row["hints_text"]).encode()
        build = builds.get(name) or Tree({"Dockerfile": f"FROM {row.get('image') or image_of(name)}\n".encode()})
        if both := sorted((_TAKEN - {"Dockerfile"}) & build.files.keys()):
            raise SourceError(f"{name}: its build context holds {both[0]!r}, which is a file of the format")
        files |= {f"{top}/{path}": data for path, data in build.files.items()}
        executable |= {f"{top}/{path}" for path in build.executable}
    if len(files) == 1:
        raise SourceError("expected at least one row to export, got none")
    return Tree(dict(sorted(files.items())), frozenset(executable))


def read(tree: Tree, where: str) -> list[dict[str, Any]]:
    """Rows of a task repository, in the order of their names, with the columns that `export` was given.

    Raises:
        SourceError: a file is missing or malformed; the message names it.
        PolicyRefused: it holds a link.
    """
    no_links(tree, where)
    check(tree, where)
    names = sorted({path.split("/")[1] for path in tree.files if path.startswith("tasks/") and path.count("/") > 1})
    rows = [read_task(tree.below(f"tasks/{name}"), name, f"{where}: tasks/{name}") for name in names]
    if not rows:
        raise SourceError(f"{where}: expected folders below tasks/, there are none")
    return rows


def image_of(instance: str) -> str:
    """The name that swebench derives for an instance's image."""
    return f"swebench/sweb.eval.x86_64.{instance.lower()}:latest".replace("__", "_1776_")


def check(tree: Tree, where: str) -> None:
    """Raise unless the repository's own file names its data sets. Raises: SourceError."""
    config = yaml_value(text(tree, CONFIG, where), f"{where}: {CONFIG}")
    if not isinstance(config, dict) or not config.get("datasets"):
        raise SourceError(f"{where}: expected {CONFIG} to name its datasets, got {str(config)[:80]!r}")


def read_task(task: Tree, name: str, where: str) -> dict[str, Any]:
    """The row of one folder below tasks/. Raises: as `read`."""
    no_links(task, where)
    row = yaml_value(text(task, "task.yaml", where), f"{where}: task.yaml")
    if not isinstance(row, dict) or row.get("instance_id") != name:
        raise SourceError(f"{where}: expected task.yaml to say instance_id {name!r}, got {str(row)[:80]!r}")
    try:
        tests = json.loads(text(task, "tests.json", where))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: tests.json is not JSON: {error}") from error
    if not isinstance(tests, dict):
        raise SourceError(f"{where}: expected tests.json to be an object, got {str(tests)[:80]!r}")
    # As the classic data sets and our own rows write them: lists as JSON text.
    row |= {key: json.dumps(list(issue.ids(tests, key, where))) for key in _TESTS}
    row |= {column: text(task, filename, where) for column, filename in _FILES.items()}
    row["hints_text"] = text(task, _HINTS, where) if _HINTS in task.files else ""
    if row.get("row_image"):
        row["image"] = row["row_image"]
    return {key: str(value) if isinstance(value, bool) else value for key, value in row.items() if key not in _OUTSIDE}


class _Dumper(yaml.SafeDumper):
    """Several lines as a literal block."""


_Dumper.add_representer(
    str, lambda dumper, said: dumper.represent_scalar("tag:yaml.org,2002:str", said, style="|" if "\n" in said else None)
)


def _dumped(document: Mapping[str, Any]) -> bytes:
    try:
        said = yaml.dump(dict(document), Dumper=_Dumper, sort_keys=True, allow_unicode=True, default_flow_style=False)
    except yaml.YAMLError as error:
        raise SourceError(f"expected columns of plain values, got one that YAML does not write: {error}") from error
    return said.encode()
