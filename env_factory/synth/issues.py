"""An issue and the pull request that fixed it, as an environment: the tree that the reporter had, and the tests of the fix.

What the agent reads is the report itself, with references taken out, and what can be observed. The change is the pull request's
diff against the commit that it started from; installs are pinned to that commit's date.
"""

from __future__ import annotations

from dataclasses import replace

from env_factory import sources
from env_factory.source_kinds.issue import Issue
from env_factory.source_kinds.repository import Repository
from env_factory.swe.change import Change
from env_factory.swe.notes import cleaned
from gymsmith.config import Settings
from gymsmith.errors import NoTests, NotFound, PolicyRefused, SourceError, UnknownPackage
from sandboxes import patching


def change(issue: Issue, index: int, settings: Settings, python: str) -> Change | str:
    """The change of an issue, or the reason why it cannot become one.

    Raises: NoNetwork, InfrastructureError: the index or the repository could not be asked.
    """
    if not issue.test_patch.strip():
        return "no-tests"
    if not issue.patch.strip():
        return "no-source"
    try:
        repository = sources.read(f"git:{issue.place}#{issue.base_commit}", settings, python=python)
        assert isinstance(repository, Repository)
        before = repository.tree(issue.base_commit)
        files = dict(before.files)
        for diff in (issue.patch, issue.test_patch):
            for path, data in patching.apply(diff, files).items():
                if data is None:
                    files.pop(path, None)
                else:
                    files[path] = data
        after = sources.package_of(repository.holding(files), settings, python=python)
    except patching.PatchFailed:
        return "patch-fails"
    except NoTests:
        return "no-tests"
    except (SourceError, UnknownPackage, NotFound, PolicyRefused):
        return "no-package"
    about = issue.source.model_copy(update={"meta": {**issue.source.meta, **after.source.meta}})
    number = f"{issue.number}" if issue.number else issue.source.digest[:10]
    return Change(
        kind="issue",
        index=index,
        slug=f"{after.name}-issue-{number}",
        after=replace(after, source=about),
        before=before.files,
        text=cleaned(issue.statement),
        labels={"repo": issue.repo, "commit": issue.base_commit, "issue": str(issue.number)},
    )
