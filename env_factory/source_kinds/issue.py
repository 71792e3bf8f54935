"""An issue together with the change that fixed it: from an exported JSON file, from GitHub's API, or a row of SWE-bench.

    issue:PATH[#NUMBER]         one record, a list of them (.json) or one a line (.jsonl)
    swebench:PATH[#INSTANCE]    rows of SWE-bench (.json, .jsonl, .parquet)
    github:OWNER/REPO#NUMBER    asked of the API, see `github.py`

A record holds what GitHub's API and its `gh` tool give: {"repository": "OWNER/REPO", "issue": {...}, "comments": [...],
"pull_request": {...}, "diff": "..."}; "clone_url" says where the repository lies if not on GitHub (https:, or a path where the
record is a file of this machine). The names of both tools are understood (created_at, createdAt; base.sha, baseRefOid). Only what
was said before the pull request becomes a hint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from env_factory.source_kinds import diff, download
from env_factory.source_kinds.repository import COMMIT
from gymsmith.errors import NotFound, SourceError
from gymsmith.schema import Source, digest

MAX_BYTES = 512 * 1024 * 1024
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+\Z")
_COLUMNS = ("instance_id", "repo", "base_commit", "patch", "test_patch", "problem_statement", "FAIL_TO_PASS", "PASS_TO_PASS")


@dataclass(frozen=True, slots=True)
class Issue:
    """A problem that somebody reported, and the change that fixed it."""

    source: Source
    """Kind `issue` or `swebench`; its commit is the one before the change."""
    repo: str
    """OWNER/NAME."""
    place: str
    """What `git:PLACE` fetches the repository from."""
    number: int
    """Of the issue; 0 where a row does not say."""
    title: str
    text: str
    """What was reported, without its title."""
    hints: str
    """What was said below it before the change was proposed."""
    created_at: datetime | None
    base_commit: str
    patch: str
    """Diff against `base_commit`, without its tests."""
    test_patch: str
    """The part of the diff that changes tests."""
    pull: int = 0
    """Number of the pull request; 0 where a row does not say."""
    fail_to_pass: tuple[str, ...] = ()
    """Ids of tests, where a row names them."""
    pass_to_pass: tuple[str, ...] = ()
    version: str = ""

    @property
    def statement(self) -> str:
        """Title and text."""
        return f"{self.title}\n\n{self.text}".strip() if self.title else self.text.strip()


def read_issue(uri: str, rest: str) -> Issue:
    """`issue:PATH` or `issue:PATH#NUMBER`. Raises: NotFound, SourceError: no such file or record, or it lacks something."""
    place, _, number = rest.partition("#")
    found = records(place, f"expected issue:PATH of .json or .jsonl, got {uri!r}")
    if number:
        found = [record for record in found if str(_of(record, "issue").get("number")) == number]
    if len(found) != 1:
        numbers = ", ".join(str(_of(record, "issue").get("number", "?")) for record in found[:10])
        raise NotFound(f"expected one issue in {uri!r}, got {len(found)} ({numbers or 'none'}); name one with #NUMBER")
    return of_record(found[0], uri if number else f"{uri}#{_of(found[0], 'issue').get('number')}")


def read_row(uri: str, rest: str) -> Issue:
    """`swebench:PATH#INSTANCE`. Raises: NotFound, SourceError: no such file or row, or it lacks a column."""
    place, _, name = rest.partition("#")
    rows = read_rows(Path(place))
    wanted = [row for row in rows if not name or row["instance_id"] == name]
    if len(wanted) != 1:
        known = ", ".join(str(row["instance_id"]) for row in (wanted or rows)[:5])
        raise NotFound(f"expected one row in {uri!r}, got {len(wanted)} (there are {known}, ...); name one with #INSTANCE")
    return of_row(wanted[0], f"swebench:{place}#{wanted[0]['instance_id']}")


def members(uri: str) -> list[str]:
    """One URI for each issue or row of a file. Raises: as `read_issue` and `read_row`."""
    scheme, _, rest = uri.partition(":")
    if "#" in rest:
        return [uri]
    if scheme == "swebench":
        return [f"{uri}#{row['instance_id']}" for row in read_rows(Path(rest))]
    return [f"{uri}#{_of(record, 'issue').get('number')}" for record in records(rest, uri)]


def of_record(record: Mapping[str, Any], uri: str) -> Issue:
    """An exported record as an issue. Raises: SourceError: a field is missing or of the wrong form; the message names it."""
    issue, pull = _of(record, "issue"), _of(record, "pull_request")
    repo = record.get("repository") or record.get("repo") or ""
    repo = repo.get("full_name", "") if isinstance(repo, Mapping) else str(repo)
    if not _REPO.match(repo):
        raise SourceError(f"{uri}: expected repository to be OWNER/NAME, got {repo[:100]!r}")
    base = _of(pull, "base").get("sha") or pull.get("baseRefOid") or record.get("base_commit") or ""
    if not COMMIT.match(str(base)):
        raise SourceError(f"{uri}: expected pull_request.base.sha to be a commit's 40 digits, got {base!r}")
    whole = record.get("diff") or pull.get("diff")
    if not isinstance(whole, str) or not whole.strip():
        raise SourceError(f"{uri}: expected the pull request's diff under `diff`, got {whole!r}; gh pr diff NUMBER prints it")
    patch, test_patch = diff.split(whole)
    title, text = str(issue.get("title") or ""), str(issue.get("body") or "")
    if not (title + text).strip():
        raise SourceError(f"{uri}: expected a title or a body of the issue, got neither")
    proposed = _when(pull, "created_at", "createdAt")
    comments = record.get("comments") or issue.get("comments") or []
    hints = [
        str(comment.get("body") or "")
        for comment in (comments if isinstance(comments, Sequence) and not isinstance(comments, str) else [])
        if isinstance(comment, Mapping)
        and ((said := _when(comment, "created_at", "createdAt")) is None or proposed is None or said < proposed)
    ]
    licence = record.get("licence") or record.get("license") or ""
    licence = licence.get("spdx_id") or "" if isinstance(licence, Mapping) else str(licence)
    kept = json.dumps([repo, base, title, text, hints, whole], sort_keys=True).encode()
    place = str(record.get("clone_url") or f"https://github.com/{repo}")
    if not place.startswith("https:") and re.match(r"\w+:https?:", uri):
        raise SourceError(f"{uri}: expected clone_url to be an https: URL in a record from elsewhere, got {place[:200]!r}")
    number, pull_number = _number(issue), _number(pull)
    return Issue(
        source=Source(
            uri=uri,
            kind="issue",
            digest=digest(kept),
            licence="" if licence == "NOASSERTION" else licence,
            commit=str(base),
            meta={"repo": repo, "issue": str(number), "pull": str(pull_number)},
        ),
        repo=repo,
        place=place,
        number=number,
        title=title,
        text=text,
        hints="\n\n".join(hint for hint in hints if hint.strip()),
        created_at=_when(issue, "created_at", "createdAt") or proposed,
        base_commit=str(base),
        patch=patch,
        test_patch=test_patch,
        pull=pull_number,
    )


def of_row(row: Mapping[str, Any], uri: str) -> Issue:
    """A row of SWE-bench as an issue. Raises: SourceError: a column is missing or of the wrong form; the message names it."""
    if missing := [name for name in _COLUMNS if row.get(name) is None]:
        raise SourceError(f"{uri}: a row must have the columns {', '.join(_COLUMNS)}; it lacks {', '.join(missing)}")
    repo, base = str(row["repo"]), str(row["base_commit"])
    if not COMMIT.match(base) or not _REPO.match(repo):
        raise SourceError(f"{uri}: expected repo OWNER/NAME and base_commit of 40 digits, got {repo[:100]!r} and {base[:60]!r}")
    number = re.search(r"-(\d{1,9})\Z", str(row["instance_id"]))
    kept = json.dumps([str(row[name]) for name in _COLUMNS]).encode()
    return Issue(
        source=Source(
            uri=uri,
            kind="swebench",
            digest=digest(kept),
            licence=str(row.get("license") or ""),
            commit=base,
            meta={"repo": repo, "instance": str(row["instance_id"])},
        ),
        repo=repo,
        place=f"https://github.com/{repo}",
        number=0,
        title="",
        text=str(row["problem_statement"]),
        hints=str(row.get("hints_text") or ""),
        created_at=_when(row, "created_at"),
        base_commit=base,
        patch=str(row["patch"]),
        test_patch=str(row["test_patch"]),
        pull=int(number.group(1)) if number else 0,
        fail_to_pass=ids(row, "FAIL_TO_PASS", uri),
        pass_to_pass=ids(row, "PASS_TO_PASS", uri),
        version=str(row.get("version") or ""),
    )


def ids(row: Mapping[str, Any], column: str, what: str) -> tuple[str, ...]:
    """A column of test ids, which is a list or a list written as JSON. Raises: SourceError."""
    given = row.get(column)
    try:
        found = json.loads(given) if isinstance(given, str) else list(given) if given is not None else []
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise SourceError(f"{what}: expected {column} to be a list of test ids, got {str(given)[:100]!r}")
    return tuple(found)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json, .jsonl or .parquet file, each with an instance_id.

    Raises:
        NotFound: there is no such file.
        SourceError: it cannot be read, or a row is no object with an instance_id.
    """
    path = path.expanduser()
    if path.suffix == ".parquet" and path.is_file():
        try:
            from pyarrow import ArrowException, parquet
        except ModuleNotFoundError as error:
            raise SourceError(f"{path}: reading parquet needs pyarrow; pip install 'gymsmith[swe]', or give .jsonl") from error
        try:
            rows: list[Any] = parquet.read_table(path).to_pylist()
        except (ArrowException, OSError, ValueError) as error:
            raise SourceError(f"{path} is not a readable parquet file: {error}") from error
    else:
        rows = records(str(path), f"expected swebench:PATH of .json, .jsonl or .parquet, got {str(path)!r}")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("instance_id"), str):
            raise SourceError(f"{path}: expected row {number} to be an object with an instance_id, got {str(row)[:100]!r}")
    return rows


def records(place: str, wrong: str = "") -> list[Any]:
    """The objects of a .json or .jsonl file. `wrong`: the error for a file of another name. Raises: NotFound, SourceError."""
    name, data = download.read(place, MAX_BYTES)
    try:
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in data.decode().split("\n") if line.strip()]
        if not name.endswith(".json"):
            raise SourceError(wrong or f"expected a file named .json or .jsonl, got {place!r}")
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} is not JSON (.json) or JSON lines (.jsonl): {error}") from error
    if isinstance(found, dict) and found and all(isinstance(value, dict) and "instance_id" in value for value in found.values()):
        return list(found.values())
    return found if isinstance(found, list) else [found]


def _of(record: Any, key: str) -> Mapping[str, Any]:
    found = record.get(key) if isinstance(record, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _number(record: Mapping[str, Any]) -> int:
    given = record.get("number")
    return given if isinstance(given, int) and not isinstance(given, bool) and given >= 0 else 0


def _when(record: Mapping[str, Any], *names: str) -> datetime | None:
    """A time as text (ISO 8601) or as a datetime, in UTC."""
    given = next((record[name] for name in names if record.get(name)), None)
    try:
        found = given if isinstance(given, datetime) else datetime.fromisoformat(str(given))
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
