"""Commit mirroring: what a project's history did to code and tests at once, as environments.

The tree is the one before the commit, the solution its part in code, the tests come with it. What the agent reads is what the
commit added to release notes and manual, and what can be observed; the message is a supplement. Installs are pinned to the date
of the commit. Nothing of the repository's history is in an environment.
"""

from __future__ import annotations

from collections.abc import Iterator

from env_factory.source_kinds.diff import is_test
from env_factory.source_kinds.repository import Commit, Repository
from env_factory.sources import package_of
from env_factory.swe.change import Change
from env_factory.swe.notes import added, cleaned, is_note
from gymsmith.config import Settings
from gymsmith.errors import NoTests, NotFound, PolicyRefused, SourceError, UnknownPackage

HISTORY = 1000
"""Commits that are looked at, newest first."""


def changes(
    repository: Repository, settings: Settings, python: str, *, done: frozenset[int] = frozenset(), limit: int = HISTORY
) -> Iterator[tuple[int, Change | str]]:
    """Each commit by its place in the history, as a change or the reason why it is none. `done`: places that are settled.

    Raises: NoNetwork, InfrastructureError: the index or the repository could not be asked.
    """
    for index, commit in enumerate(repository.commits(limit)):
        if index not in done:
            yield index, _change(repository, commit, index, settings, python)


def _change(repository: Repository, commit: Commit, index: int, settings: Settings, python: str) -> Change | str:
    if len(commit.parents) != 1:
        return "merge" if commit.parents else "root"
    paths = [path for _, path in commit.changed]
    if not any(path.endswith(".py") and is_test(path) for path in paths):
        return "no-tests"
    if not any(path.endswith(".py") and not is_test(path) and not is_note(path) for path in paths):
        return "no-source"
    try:
        before = repository.tree(commit.parents[0]).files
        after = package_of(repository.at(commit.id), settings, python=python)
    except NoTests:
        return "no-tests"
    except (SourceError, UnknownPackage, NotFound, PolicyRefused):
        return "no-package"
    return Change(
        kind="commit",
        index=index,
        slug=f"{after.name}-commit-{commit.id[:10]}",
        after=after,
        before=before,
        text=told(commit.message, added(before, after.files)),
        labels={"commit": commit.id, "date": commit.date.date().isoformat()},
    )


def told(message: str, notes: str) -> str:
    """Notes, and the message where it adds to them."""
    said, more = cleaned(notes), cleaned(message)
    return "\n\n".join(part for part in (more if more not in said else "", said) if part)
