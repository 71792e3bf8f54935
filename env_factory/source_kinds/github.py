"""An issue and the pull request that closed it, asked of GitHub's API (REST, version 2022-11-28) with a token.

`github:OWNER/REPO#NUMBER` names either of the two. From a pull request the issue is found by its closing keyword; from an issue
the pull request is found in its timeline: one that was merged and says that it closes the issue. The record is kept below
HOME/issues, in the form that `issue:PATH` reads.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import urlsplit

from env_factory.source_kinds import download
from env_factory.source_kinds.issue import Issue, of_record
from gymsmith.config import Settings
from gymsmith.errors import NotFound, SourceError

_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+)#(\d{1,9})\Z")
MAX_PAGES = 10
PER_PAGE = 100


def closed_by(text: str, repo: str) -> list[int]:
    """Issues of `repo` that a pull request's text says it closes (close, fix, resolve and their forms, as GitHub reads them)."""
    word = r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?)\b:?\s+"
    place = rf"(?:{re.escape(repo)}|https?://github\.com/{re.escape(repo)}/issues/)?#?(\d{{1,9}})\b"
    found = re.finditer(rf"{word}{place}", text, re.I)
    return [int(match.group(1)) for match in found if "#" in match.group(0) or "/issues/" in match.group(0)]


def read_github(uri: str, rest: str, settings: Settings) -> Issue:
    """See the module.

    Raises:
        SourceError: the URI is malformed, there is no token, or the pair of issue and pull request cannot be told.
        NotFound, NoNetwork: as the API says.
    """
    match = _PLACE.match(rest)
    if match is None:
        raise SourceError(f"expected github:OWNER/REPO#NUMBER, got {uri!r}")
    if not settings.github_token:
        raise SourceError(f"{uri} is asked of GitHub's API: set GITHUB_TOKEN, or export it and give issue:PATH")
    repo, number = match.group(1), int(match.group(2))
    api = _Api(settings.github_api, settings.github_token)
    asked = api.get(f"/repos/{repo}/issues/{number}")
    if "pull_request" in asked:
        pull = api.get(f"/repos/{repo}/pulls/{number}")
        closes = closed_by(f"{pull.get('title')}\n{pull.get('body')}", repo)
        if not closes:
            raise SourceError(f"{uri} is a pull request that says of no issue that it closes it; name the issue")
        issue = api.get(f"/repos/{repo}/issues/{closes[0]}")
    else:
        issue, pull = asked, _pull_for(api, repo, number, uri)
    record = {
        "repository": repo,
        "licence": (api.get(f"/repos/{repo}").get("license") or {}).get("spdx_id") or "",
        "issue": {key: issue.get(key) for key in ("number", "title", "body", "created_at")},
        "comments": [
            {key: comment.get(key) for key in ("body", "created_at")}
            for comment in api.pages(f"/repos/{repo}/issues/{issue['number']}/comments")
        ],
        "pull_request": {key: pull.get(key) for key in ("number", "title", "body", "created_at", "merged_at", "merge_commit_sha")}
        | {"base": {"sha": (pull.get("base") or {}).get("sha")}},
        "diff": api.text(f"/repos/{repo}/pulls/{pull['number']}", "application/vnd.github.diff"),
    }
    found = of_record(record, f"github:{repo}#{issue['number']}")
    path = settings.home / "issues" / f"{found.source.digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".writing")
    scratch.write_text(json.dumps(record, indent=1), encoding="utf-8")
    scratch.replace(path)
    return found


def _pull_for(api: _Api, repo: str, number: int, uri: str) -> dict[str, Any]:
    """The merged pull request that closes an issue, from the issue's timeline."""
    for event in api.pages(f"/repos/{repo}/issues/{number}/timeline"):
        other = (event.get("source") or {}).get("issue") or {}
        if event.get("event") != "cross-referenced" or "pull_request" not in other:
            continue
        if not (other["pull_request"] or {}).get("merged_at"):
            continue
        if number in closed_by(f"{other.get('title')}\n{other.get('body')}", repo):
            return api.get(f"/repos/{repo}/pulls/{int(other['number'])}")
    raise NotFound(f"{uri}: expected a merged pull request that says it closes the issue, there is none; name the pull request")


class _Api:
    """Reads the API of one host; the token goes there and nowhere else."""

    def __init__(self, root: str, token: str) -> None:
        parts = urlsplit(root)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise SourceError(f"expected github_api to be an https: URL, got {root!r}; a token is not sent in the open")
        self.root = root.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "X-GitHub-Api-Version": "2022-11-28"}

    def text(self, path: str, accept: str) -> str:
        """Body of an answer."""
        return download.get(self.root + path, self._headers | {"Accept": accept}).decode("utf-8", "replace")

    def _json(self, path: str) -> Any:
        said = self.text(path, "application/vnd.github+json")
        try:
            return json.loads(said)
        except ValueError as error:
            raise SourceError(f"{self.root}{path}: expected JSON, got {said[:80]!r}; is github_api right?") from error

    def get(self, path: str) -> dict[str, Any]:
        """An object."""
        found = self._json(path)
        if not isinstance(found, dict):
            raise SourceError(f"{self.root}{path}: expected an object, got {str(found)[:80]!r}")
        return found

    def pages(self, path: str) -> list[dict[str, Any]]:
        """Objects of a list, over its pages (MAX_PAGES at most)."""
        found: list[dict[str, Any]] = []
        for page in range(1, MAX_PAGES + 1):
            items = self._json(f"{path}?per_page={PER_PAGE}&page={page}")
            if not isinstance(items, list):
                raise SourceError(f"{self.root}{path}: expected a list, got {str(items)[:80]!r}")
            found += [item for item in items if isinstance(item, dict)]
            if len(items) < PER_PAGE:
                break
        return found
