"""Rows of SWE-bench as drafts, and files of rows.

A row that can be run brings its image, a script and the name of a log parser (swebench 5). Such a row becomes a draft whose
hidden tests run that script and tell each `PASSED` line of pytest's last summary; the host compares them with FAIL_TO_PASS and
PASS_TO_PASS and counts nothing else as passed. The solution is the gold diff. Rows without an image are sources
(`swebench:PATH#INSTANCE`), not tasks; rows of other log parsers can be evaluated (`gymsmith evaluate swebench`) and are refused
here by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from env_factory.formats import foreign
from env_factory.source_kinds import issue
from gymsmith.errors import SourceError
from gymsmith.schema import Draft
from gymsmith.taskdir import Task

PARSERS = ("parse_log_pytest",)
"""Log parsers whose verdict is that of pytest's summary with -rA."""
NEEDED = ("image", "eval_script", "log_parser", "eval_type")
WORKDIR = "/testbed"
VERIFIER_S = 1800.0

RUN = r"""#!/bin/bash
# Runs the row's script and tells which tests pytest's summary calls PASSED, between its two marks.
log=$(mktemp) || exit 1
bash /tests/eval.sh > "$log" 2>&1
echo "tests ended with $?" >&2
LC_ALL=C awk '
    />>>>> Start Test Output/ { between = 1; inside = 0; next }
    />>>>> End Test Output/ { between = 0; inside = 0; next }
    between && /^=+ *short test summary info *=+$/ { inside = 1; delete seen; delete bad; next }
    inside && /^=+ .* =+$/ { inside = 0; next }
    inside && $1 == "PASSED" && NF > 1 { seen[$2]++ }
    inside && $1 ~ /^(FAILED|ERROR|SKIPPED|XFAIL|XPASS)$/ && NF > 1 { bad[$2] = 1 }
    END { for (id in seen) print (id in bad || seen[id] > 1 ? "FAIL " : "PASS ") id }' "$log" | grep -Fxf /tests/expected.txt
tail -c 4000 "$log" >&2
exit 0
"""


def read(row: Mapping[str, Any], where: str) -> Draft:
    """A row as a draft.

    Raises:
        SourceError: a column is missing or malformed, or its log parser is not read here.
    """
    about = issue.of_row(row, where)
    if missing := [name for name in NEEDED if not isinstance(row.get(name), str) or not row[name].strip()]:
        raise SourceError(
            f"{where}: the row has no {', '.join(missing)}, so it cannot be run; as a source (swebench:PATH#NAME) it can be built"
        )
    image, parser = str(row["image"]), str(row["log_parser"])
    if parser not in PARSERS:
        raise SourceError(f"{where}: expected log_parser {' or '.join(PARSERS)}, got {parser!r}; evaluate the row instead")
    if not re.match(r"[a-z0-9][A-Za-z0-9._/:@-]{0,250}\Z", image):
        raise SourceError(f"{where}: expected image to name an image, got {image[:100]!r}")
    # An id is read up to its first blank, as swebench's parser reads it.
    expected = tuple(dict.fromkeys(name.split()[0] for name in (*about.fail_to_pass, *about.pass_to_pass) if name.split()))
    if not about.fail_to_pass:
        raise SourceError(f"{where}: expected at least one id in FAIL_TO_PASS, got none; nothing would grade the task")
    script = str(row["eval_script"])
    for mark in (">>>>> Start Test Output", ">>>>> End Test Output"):
        if mark not in script:
            raise SourceError(f"{where}: expected eval_script to print {mark!r}, which says where the tests' log is")
    workdir = _workdir(script)
    end = "END_OF_GOLD_PATCH"
    while end in about.patch:
        end += "_"
    solve = (
        f"#!/bin/bash\ncd {workdir} || exit 1\ncat > /tmp/gold.patch <<'{end}'\n{about.patch.rstrip(chr(10))}\n{end}\n"
        "git apply /tmp/gold.patch || patch --batch --forward --fuzz=5 -p1 -i /tmp/gold.patch\n"
    )
    lines = "".join(f"PASS {name}\nFAIL {name}\n" for name in expected)
    files = {
        "environment/Dockerfile": foreign.dockerfile_of(f"FROM {image}\n", workdir, {}, where).encode(),
        "tests/test.sh": RUN.encode(),
        "tests/eval.sh": script.encode(),
        "tests/expected.txt": lines.encode(),
        "tests/row.json": (json.dumps(dict(row), indent=1, sort_keys=True, default=str) + "\n").encode(),
        "solution/solve.sh": solve.encode(),
    }
    fields = {
        "name": foreign.name_of(None, str(row["instance_id"])),
        "kind": "swebench",
        "labels": {"format": "swebench", "instance": str(row["instance_id"])[:200], "repo": about.repo, "version": about.version,
                   "f2p": str(len(about.fail_to_pass)), "min_p2p": str(min(5, len(about.pass_to_pass)))},
        "agent_timeout_s": 3600.0,
        "verifier_timeout_s": VERIFIER_S,
        "verifier_mode": "separate",
        "workdir": workdir,
        "artifacts": [workdir],
        "protected": ["conftest.py", "*/conftest.py", "pytest.ini", "*.pth", "sitecustomize.py", "*/sitecustomize.py"],
        "report": "stdout",
        "expected": expected,
        "memory_mb": 4096,
        "pids": 512,
        "max_turns": 100,
    }  # fmt: skip
    return foreign.draft(
        source=about.source,
        fields=fields,
        instruction=foreign.instruction_of(about.statement, where),
        files=files,
        executable=frozenset({"tests/test.sh"}),
        what=where,
    )


def row_of(task: Task) -> dict[str, Any] | None:
    """The row that a task was imported from; None for others."""
    kept = task.files.get("tests/row.json") if task.spec.kind == "swebench" else None
    found = json.loads(kept) if kept else None
    return found if isinstance(found, dict) and "instance_id" in found else None


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows as .json, .jsonl or .parquet, whole or not at all.

    Raises:
        SourceError: the name ends otherwise, or parquet needs pyarrow.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    try:
        if path.suffix == ".jsonl":
            scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        elif path.suffix == ".json":
            scratch.write_text(json.dumps(list(rows), ensure_ascii=False, indent=1), encoding="utf-8")
        elif path.suffix == ".parquet":
            try:
                from pyarrow import Table, parquet
            except ModuleNotFoundError as error:
                raise SourceError(
                    f"{path}: writing parquet needs pyarrow; pip install 'gymsmith[swe]', or name it .jsonl"
                ) from error
            parquet.write_table(Table.from_pylist([dict(row) for row in rows]), scratch)
        else:
            raise SourceError(f"expected a file named .json, .jsonl or .parquet, got {path.name!r}")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _workdir(script: str) -> str:
    """Where a row's script goes first, if that is a plain absolute path."""
    found = re.search(r"^\s*cd\s+['\"]?(/[A-Za-z0-9._/-]+)['\"]?\s*$", script, re.M)
    return found.group(1).rstrip("/") if found and ".." not in found.group(1) else WORKDIR
