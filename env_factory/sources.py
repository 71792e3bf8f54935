"""Reads a source into memory, with its digest, licence and commit, before anything is made from it.

    pypi:NAME==VERSION      the package's sdist, and the wheels that its tests need, kept in the wheelhouse
    git:PLACE#REF           a repository with its history; PLACE is a path, file: or https: URL, REF a branch, tag or commit
    archive:PLACE           a repository at one commit, as .tar.gz, .zip and their like; needs no git
    file:PATH               a tutorial: one Markdown, RST, HTML or man file, or a folder of them with their data under data/
    https://...             a tutorial: one page of the web
    man:PAGE, tldr:PAGE     a manual page of this machine, a page of a tldr client's cache
    issue:PATH#NUMBER       an issue and the pull request that fixed it, exported as JSON
    github:OWNER/REPO#N     the same, asked of GitHub's API (GITHUB_TOKEN)
    swebench:PATH#INSTANCE  the same, from a row of SWE-bench (.json, .jsonl, .parquet)

Nothing of a source is executed here; building and testing happen in sandboxes. A source that cannot become environments raises
before anything is written to the state folder, except for the caches of packages and repositories.
"""

from __future__ import annotations

from pathlib import Path

from env_factory.source_kinds import issue
from env_factory.source_kinds.github import read_github
from env_factory.source_kinds.issue import Issue as Issue
from env_factory.source_kinds.package import Package as Package
from env_factory.source_kinds.package import package_of as package_of
from env_factory.source_kinds.package import read_package
from env_factory.source_kinds.repository import Commit as Commit
from env_factory.source_kinds.repository import Repository as Repository
from env_factory.source_kinds.repository import read_archive, read_git
from env_factory.source_kinds.tree import Tree as Tree
from env_factory.source_kinds.tutorial import Tutorial as Tutorial
from env_factory.source_kinds.tutorial import lessons as lessons
from env_factory.source_kinds.tutorial import read_manual, read_page, read_tldr, read_tutorial
from gymsmith.config import Settings
from gymsmith.errors import SourceError

FORMS = (
    "pypi:NAME==VERSION, git:PLACE#REF, archive:PLACE, file:PATH, https://..., man:PAGE, tldr:PAGE, issue:PATH#NUMBER, "
    "github:OWNER/REPO#NUMBER or swebench:PATH#INSTANCE"
)


def read(uri: str, settings: Settings, *, python: str = "3.11") -> Package | Repository | Tutorial | Issue:
    """Fetch and check a source. `python` is the version in the sandbox that the wheels are for.

    Raises:
        UnknownPackage, NoNetwork, NoTests, NotFound, SourceError, PolicyRefused: see the error tree.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "pypi" and rest:
        return read_package(uri, rest, settings, python)
    if scheme == "git" and rest:
        return read_git(uri, rest, settings)
    if scheme == "archive" and rest:
        return read_archive(uri, rest)
    if scheme == "file" and rest:
        return read_tutorial(uri, Path(rest).expanduser())
    if scheme == "https" and rest:
        return read_page(uri)
    if scheme == "man" and rest:
        return read_manual(uri, rest)
    if scheme == "tldr" and rest:
        return read_tldr(uri, rest)
    if scheme == "issue" and rest:
        return issue.read_issue(uri, rest)
    if scheme == "github" and rest:
        return read_github(uri, rest, settings)
    if scheme == "swebench" and rest:
        return issue.read_row(uri, rest)
    raise SourceError(f"expected {FORMS}, got {uri!r}")


def members(uri: str) -> list[str]:
    """The sources that a URI stands for: the issues or rows of a file, the tutorials of a folder, else itself.

    Raises:
        NotFound, SourceError: a file of issues cannot be read.
    """
    return issue.members(uri) if uri.startswith(("issue:", "swebench:")) else lessons(uri)
