"""Whether a task is, or quotes, one of a benchmark that models are measured on.

Lists of benchmarks are files of the user's, in the folder `benchmarks` of the state folder: `*.jsonl`, one object per line, or
`*.json`, a list of them. SWE-bench's own columns are understood (instance_id, repo, base_commit, problem_statement), and for
others the plain words id, repo, commit, text or instruction. A folder of task folders (task.yaml or instruction.md, as
terminal-bench lays them out) is a list, too. Nothing is downloaded.

A task is contaminated when it has the name of a listed one, stands on a listed commit of the same repository, or shares thirteen
words in a row with a listed text (the overlap that GPT-3's report counts, arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gymsmith.errors import SourceError
from gymsmith.schema import Draft, Gate

N = 13
FOLDER = "benchmarks"
SWE_BENCH_REPOSITORIES = (
    "astropy/astropy", "django/django", "matplotlib/matplotlib", "mwaskom/seaborn", "pallets/flask", "psf/requests",
    "pydata/xarray", "pylint-dev/pylint", "pytest-dev/pytest", "scikit-learn/scikit-learn", "sphinx-doc/sphinx", "sympy/sympy",
)  # fmt: skip
"""Where SWE-bench's issues come from (arXiv 2310.06770, table 1). A task from there is not turned down; its evidence says so."""


@dataclass(slots=True)
class Benchmarks:
    """What must not be met again."""

    files: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    """Normal form of an id -> the list it is in."""
    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    """(last part of the repository's name, commit) -> id."""
    grams: dict[bytes, str] = field(default_factory=dict)
    """Eight bytes of each thirteen words -> id."""

    @classmethod
    def of(cls, home: Path) -> Benchmarks:
        """The lists in a state folder. Raises: SourceError: one of them is no list."""
        found = cls()
        folder = home / FOLDER
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_dir() or path.suffix in (".json", ".jsonl"):
                for row in _rows(path):
                    found.add(row, path.name)
                found.files += (path.name,)
        return found

    def add(self, row: dict[str, Any], origin: str) -> None:
        """One task of a benchmark."""
        name = str(row.get("instance_id") or row.get("id") or "")
        if name:
            self.names[_normal(name)] = origin
        repo, commit = str(row.get("repo") or ""), str(row.get("base_commit") or row.get("commit") or "")
        if repo and commit:
            self.commits[(_normal(repo.rstrip("/").rpartition("/")[2]), commit.lower())] = name or repo
        text = str(row.get("problem_statement") or row.get("text") or row.get("instruction") or "")
        self.grams |= dict.fromkeys(grams(text), name or origin)

    def gate(self, draft: Draft) -> Gate:
        """The gate `contamination`."""
        found = []
        for name in {draft.spec.name.rpartition("/")[2], draft.spec.labels.get("instance_id", "")} - {""}:
            if origin := self.names.get(_normal(name)):
                found.append(f"{name} is a task of {origin}")
        place = draft.source.uri.partition("#")[0].removesuffix(".git").rstrip("/")
        repo = _normal(re.split(r"[/:]", place)[-1])
        for commit in {draft.source.commit, draft.spec.labels.get("commit", ""), draft.spec.labels.get("base_commit", "")} - {""}:
            if known := self.commits.get((repo, commit.lower())):
                found.append(f"commit {commit[:12]} of {repo} is that of {known}")
        if shared := next((self.grams[each] for each in grams(draft.instruction) if each in self.grams), ""):
            found.append(f"the text shares {N} words in a row with {shared}")
        said = "; ".join(found) or (
            f"held against {', '.join(self.files)}" if self.files else "no lists of benchmarks were given"
        )
        if place.endswith(SWE_BENCH_REPOSITORIES):
            said += "; its repository is one of SWE-bench's"
        return Gate(name="contamination", passed=not found, detail=said)


def grams(text: str) -> Iterator[bytes]:
    """Hashes of thirteen words in a row, case and punctuation aside."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    for start in range(len(words) - N + 1):
        yield hashlib.blake2b(" ".join(words[start : start + N]).encode(), digest_size=8).digest()


def _normal(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_dir():
        for task in sorted(path.iterdir()):
            texts = [task / "instruction.md", task / "task.yaml"]
            if text := next((each for each in texts if each.is_file()), None):
                yield {"id": task.name, "text": text.read_text(encoding="utf-8", errors="replace")}
        return
    try:
        content = path.read_text(encoding="utf-8")
        rows = (
            json.loads(content) if path.suffix == ".json" else [json.loads(line) for line in content.splitlines() if line.strip()]
        )
    except (ValueError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path} must hold JSON, one object per line or a list of them: {error}; repair or remove it"
        ) from error
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, dict):
            raise SourceError(f"{path} must hold objects with instance_id, repo, base_commit or text, got {str(row)[:80]!r}")
        yield row
