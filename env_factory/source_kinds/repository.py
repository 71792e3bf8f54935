"""A repository as a source: from git (a path, file: or https) with its history, or from an archive of one commit.

A git repository is fetched bare, below HOME/repositories (`mirror.py`), and deepened when its history is asked for. A commit that
was fetched once is read again without a network.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from env_factory import archive
from env_factory.source_kinds import download, git_command, licence
from env_factory.source_kinds.git_command import git
from env_factory.source_kinds.mirror import fetch, has, known, locked, read_tree, shallow, sweep
from env_factory.source_kinds.tree import Tree
from gymsmith.config import Settings
from gymsmith.errors import NotFound, SourceError
from gymsmith.schema import Source

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}\Z")
MAX_COMMITS = 100_000
LAST_S = 253_402_300_799
"""The last second of the year 9999."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of the first-parent history. Who wrote it is left out."""

    id: str
    parents: tuple[str, ...]
    date: datetime
    """When it was committed, in UTC: what `as_of` of an install pinned to it wants."""
    message: str
    changed: tuple[tuple[str, str], ...]
    """(A, M, D or T; path) against the first parent, renames told as D and A."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one commit. Hashable by its commit and place; trees are read on demand and kept."""

    source: Source
    """Kind `git` or `archive`; its digest is that of the tree, of an archive that of its bytes."""
    name: str
    """Last part of where it lies, without .git."""
    git_dir: Path | None
    """The bare mirror; None for an archive, which has no history."""
    location: str
    """What git fetches from, without credentials."""
    _unpacked: Tree | None = field(default=None, repr=False)
    _header: str = field(default="", repr=False)
    """Credentials, for fetching more."""

    @property
    def commit(self) -> str:
        """40 hex digits; empty for an archive that does not say."""
        return self.source.commit

    def tree(self, commit: str = "") -> Tree:
        """Files at a commit; at the repository's own when none is named.

        Raises:
            SourceError: an archive was asked for another commit.
            NotFound: there is no such commit in what was fetched.
            PolicyRefused: it is too large, or a path in it is not plain.
        """
        if self._unpacked is not None:
            if commit and commit != self.commit:
                raise SourceError(
                    f"{self.source.uri} is an archive of one commit, it has no {commit[:200]!r}; give the git repository"
                )
            return self._unpacked
        assert self.git_dir is not None
        return read_tree(self.git_dir, commit or self.commit)

    def holding(self, files: Mapping[str, bytes]) -> Repository:
        """The same commit with other files, as after a change that is no commit here."""
        return replace(self, _unpacked=Tree(dict(sorted(files.items()))).checked(self.source.uri))

    def at(self, commit: str) -> Repository:
        """The same repository at another commit, with that commit's digest and licence. Raises: as `tree`."""
        found = self.tree(commit)
        if commit == self.commit or self.git_dir is None:
            return self
        base = self.source.uri.partition("#")[0]
        source = self.source.model_copy(
            update={"uri": f"{base}#{commit}", "commit": commit, "digest": found.digest, "licence": licence.of_tree(found.files)}
        )
        return replace(self, source=source)

    def commits(self, limit: int = 1000) -> list[Commit]:
        """First-parent history, newest first, at most `limit`; an archive has none. The history is fetched as deep as that.

        Raises: as `git_command.git`.
        """
        if self.git_dir is None:
            return []
        limit = min(limit, MAX_COMMITS)
        self._deepen(limit + 1)
        form = "%x1e%H%x1f%P%x1f%ct%x1f%B%x1f"
        words = ["log", "--first-parent", "--diff-merges=first-parent", "--name-status", "--no-renames", "--no-ext-diff", "-z"]
        said = git(
            self.git_dir, *words, f"--max-count={limit}", f"--format=tformat:{form}", "--end-of-options", self.commit, "--"
        )
        found = []
        cut = shallow(self.git_dir)
        for record in said.decode("utf-8", "replace").split("\x1e")[1:]:
            identity, parents, seconds, message, names = record.split("\x1f", 4)
            if identity in cut:
                break  # What it changed cannot be told without its parent.
            words = [word for word in names.replace("\n", "\0").split("\0") if word]
            changed = tuple(zip(words[::2], words[1::2], strict=False))
            found.append(Commit(identity, tuple(parents.split()), _when(seconds), message.strip(), changed))
        return found

    def date(self, commit: str = "") -> datetime | None:
        """When a commit was made, in UTC; None for an archive, which does not say."""
        if self.git_dir is None:
            return None
        said = git(
            self.git_dir, "show", "--no-patch", "--format=%ct", "--end-of-options", known(self.git_dir, commit or self.commit)
        )
        return _when(said.decode().strip().splitlines()[-1])

    def diff(self, old: str, new: str) -> str:
        """Unified diff in git's form from one commit to another, binary files included, renames as deletion and creation.

        Raises: NotFound: a commit is not there; SourceError: it is an archive.
        """
        if self.git_dir is None:
            raise SourceError(f"{self.source.uri} is an archive of one commit; a difference needs the git repository")
        words = ["diff-tree", "-p", "--binary", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "--full-index"]
        pair = [known(self.git_dir, old), known(self.git_dir, new)]
        return git(self.git_dir, *words, "--end-of-options", *pair).decode("utf-8", "surrogateescape")

    def fetch(self, commit: str) -> None:
        """Make sure that a commit (40 digits) of the same place is here. Raises: NotFound, NoNetwork, SourceError."""
        if self.git_dir is None:
            raise SourceError(f"{self.source.uri} is an archive of one commit; give the git repository")
        with locked(self.git_dir):
            if not has(self.git_dir, git_command.check_ref(commit)):
                fetch(self.git_dir, self.location, commit, 1, self._header)

    def _deepen(self, depth: int) -> None:
        assert self.git_dir is not None
        with locked(self.git_dir):
            words = ["rev-list", "--first-parent", "--count", f"--max-count={depth}", "--end-of-options", self.commit, "--"]
            here = int(git(self.git_dir, *words))
            if here < depth and shallow(self.git_dir):
                fetch(self.git_dir, self.location, self.commit, depth, self._header)


def read_git(uri: str, rest: str, settings: Settings) -> Repository:
    """`git:LOCATION` or `git:LOCATION#REF`; LOCATION is a path, a file: or an https: URL, REF a branch, a tag or a commit.

    Raises: NotFound, NoNetwork, SourceError, PolicyRefused: see `git_command`.
    """
    place, _, ref = rest.partition("#")
    location, header, name = _location(place)
    ref = git_command.check_ref(ref) if ref else "HEAD"
    mirror = settings.home / "repositories" / f"{hashlib.sha256(location.encode()).hexdigest()[:24]}.git"
    mirror.parent.mkdir(parents=True, exist_ok=True)
    sweep(mirror.parent)
    with locked(mirror):
        if not (mirror / "HEAD").is_file():
            scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=mirror.parent))
            try:
                git(None, "init", "--quiet", "--bare", "--template=", "--end-of-options", str(scratch / "bare"))
                commit = fetch(scratch / "bare", location, ref, 1, header)
                (scratch / "bare").rename(mirror)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        elif COMMIT.match(ref) and has(mirror, ref):
            commit = ref
        else:
            commit = fetch(mirror, location, ref, 1, header)
    found = read_tree(mirror, commit)
    shown = (
        f"git:{location if location.startswith('https:') else urllib.parse.unquote(location.removeprefix('file://'))}#{commit}"
    )
    source = Source(
        uri=shown, kind="git", digest=found.digest, commit=commit, licence=licence.of_tree(found.files), meta={"name": name}
    )
    log.info("event=repository name=%s commit=%s files=%d licence=%s", name, commit[:12], len(found.files), source.licence or "-")
    return Repository(source, name, mirror, location, None, header)


def read_archive(uri: str, rest: str) -> Repository:
    """`archive:PATH`, a file: or an https: URL of a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip. Needs no git.

    Raises: NotFound, NoNetwork, SourceError, PolicyRefused.
    """
    filename, data = download.read(rest)
    found, comment = archive.tree(filename, data)
    if not found.files:
        raise SourceError(f"{filename} holds no file; expected the archive of a repository")
    name = re.sub(r"(\.tar(\.\w+)?|\.tgz|\.zip)\Z", "", filename)
    source = Source(
        uri=f"archive:{download.shown(rest)}",
        kind="archive",
        digest=hashlib.sha256(data).hexdigest(),
        # git archive writes the commit that it was made from into the archive's comment.
        commit=comment if COMMIT.match(comment) else "",
        licence=licence.of_tree(found.files),
        meta={"name": name},
    )
    return Repository(source, name, None, download.shown(rest), found)


def _location(place: str) -> tuple[str, str, str]:
    """(what git is given, a header with credentials or "", name)."""
    parts = urllib.parse.urlsplit(place)
    if parts.scheme == "https" and parts.hostname:
        header = ""
        if parts.username:
            pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            header = "Authorization: Basic " + base64.b64encode(pair.encode()).decode()
        location = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()
        return location, header, parts.path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".git")
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        path = Path(urllib.parse.unquote(parts.path))
    elif not parts.scheme and "\0" not in place and place:
        path = Path(place).expanduser().resolve()
    else:
        raise SourceError(f"expected a path, a file: or an https: URL of a git repository, got {download.shown(place)[:200]!r}")
    if not path.exists():
        raise NotFound(f"expected a git repository at {path}, there is nothing; check the path")
    name = (path.parent if path.name == ".git" else path).name.removesuffix(".git").removesuffix(".bundle")
    return path.as_uri(), "", name


def _when(seconds: str) -> datetime:
    # Anybody may write any number into a commit; no date is later than what datetime knows.
    return datetime.fromtimestamp(min(max(int(seconds), 0), LAST_S), UTC)
