"""A repository as a source: from git (a path, file: or https) with its history, or from an archive of one commit.

A git repository is fetched bare, below HOME/repositories, and is only ever read through git's plumbing: nothing is checked out,
so no hook, filter or submodule of it has a chance. It is fetched as shallow as the other side allows and deepened when its
history is asked for. A commit that was fetched once is read again without a network.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import logging
import re
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from env_factory import archive
from env_factory.source_kinds import download, git_command, licence, tree
from env_factory.source_kinds.git_command import git
from env_factory.source_kinds.tree import Tree
from gymsmith.config import Settings
from gymsmith.errors import NotFound, SourceError
from gymsmith.schema import Source

log = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}\Z")
MAX_COMMITS = 100_000
ABANDONED_S = 6 * 3600.0
"""A fetch that is older than this belongs to a process that was killed: git gives up long before."""
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
        return _read_tree(self.git_dir, commit or self.commit)

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
        shallow = _shallow(self.git_dir)
        for record in said.decode("utf-8", "replace").split("\x1e")[1:]:
            identity, parents, seconds, message, names = record.split("\x1f", 4)
            if identity in shallow:
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
            self.git_dir, "show", "--no-patch", "--format=%ct", "--end-of-options", _known(self.git_dir, commit or self.commit)
        )
        return _when(said.decode().strip().splitlines()[-1])

    def diff(self, old: str, new: str) -> str:
        """Unified diff in git's form from one commit to another, binary files included, renames as deletion and creation.

        Raises: NotFound: a commit is not there; SourceError: it is an archive.
        """
        if self.git_dir is None:
            raise SourceError(f"{self.source.uri} is an archive of one commit; a difference needs the git repository")
        words = ["diff-tree", "-p", "--binary", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color", "--full-index"]
        pair = [_known(self.git_dir, old), _known(self.git_dir, new)]
        return git(self.git_dir, *words, "--end-of-options", *pair).decode("utf-8", "surrogateescape")

    def fetch(self, commit: str) -> None:
        """Make sure that a commit (40 digits) of the same place is here. Raises: NotFound, NoNetwork, SourceError."""
        if self.git_dir is None:
            raise SourceError(f"{self.source.uri} is an archive of one commit; give the git repository")
        with _locked(self.git_dir):
            if not _has(self.git_dir, git_command.check_ref(commit)):
                _fetch(self.git_dir, self.location, commit, 1, self._header)

    def _deepen(self, depth: int) -> None:
        assert self.git_dir is not None
        with _locked(self.git_dir):
            words = ["rev-list", "--first-parent", "--count", f"--max-count={depth}", "--end-of-options", self.commit, "--"]
            here = int(git(self.git_dir, *words))
            if here < depth and _shallow(self.git_dir):
                _fetch(self.git_dir, self.location, self.commit, depth, self._header)


def read_git(uri: str, rest: str, settings: Settings) -> Repository:
    """`git:LOCATION` or `git:LOCATION#REF`; LOCATION is a path, a file: or an https: URL, REF a branch, a tag or a commit.

    Raises: NotFound, NoNetwork, SourceError, PolicyRefused: see `git_command`.
    """
    place, _, ref = rest.partition("#")
    location, header, name = _location(place)
    ref = git_command.check_ref(ref) if ref else "HEAD"
    mirror = settings.home / "repositories" / f"{hashlib.sha256(location.encode()).hexdigest()[:24]}.git"
    mirror.parent.mkdir(parents=True, exist_ok=True)
    _sweep(mirror.parent)
    with _locked(mirror):
        if not (mirror / "HEAD").is_file():
            scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=mirror.parent))
            try:
                git(None, "init", "--quiet", "--bare", "--template=", "--end-of-options", str(scratch / "bare"))
                commit = _fetch(scratch / "bare", location, ref, 1, header)
                (scratch / "bare").rename(mirror)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        elif COMMIT.match(ref) and _has(mirror, ref):
            commit = ref
        else:
            commit = _fetch(mirror, location, ref, 1, header)
    found = _read_tree(mirror, commit)
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


def _fetch(mirror: Path, location: str, ref: str, depth: int, header: str) -> str:
    """Fetch `ref` and `depth` commits behind it; all of them where the other side cannot give a part. Returns the commit."""
    words = ["fetch", "--quiet", "--no-tags", "--force", "--no-write-fetch-head", "--no-recurse-submodules", "--no-auto-gc"]
    target = f"refs/gymsmith/{hashlib.sha256(ref.encode()).hexdigest()[:16]}"
    pair = ["--end-of-options", location, f"{ref}:{target}"]
    try:
        git(mirror, *words, f"--depth={depth}", *pair, header=header, what=location)
    except SourceError as error:
        if "shallow" not in str(error):
            raise
        git(mirror, *words, *pair, header=header, what=location)
    commit = _known(mirror, target)
    git(mirror, "update-ref", "--no-deref", f"refs/gymsmith/{commit}", commit)
    return commit


def _known(mirror: Path, name: str) -> str:
    """The commit's id. Raises: NotFound."""
    try:
        return git(mirror, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode().strip()
    except (SourceError, NotFound) as error:
        raise NotFound(f"expected a commit of the repository, got {name[:200]!r}, which was not fetched") from error


def _has(mirror: Path, commit: str) -> bool:
    try:
        return bool(_known(mirror, commit))
    except NotFound:
        return False


def _shallow(mirror: Path) -> set[str]:
    """Commits whose parents were not fetched."""
    try:
        return set((mirror / "shallow").read_text(encoding="ascii").split())
    except FileNotFoundError:
        return set()


@lru_cache(maxsize=4)
def _read_tree(mirror: Path, commit: str) -> Tree:
    listing = git(mirror, "ls-tree", "-r", "-z", "-l", "--full-tree", "--end-of-options", _known(mirror, commit))
    what = f"commit {commit[:12]}"
    rows: list[tuple[str, str, str]] = []
    submodules = []
    total = 0
    for line in listing.split(b"\0")[:-1]:
        about, _, name = line.partition(b"\t")
        mode, kind, blob, size = about.decode("ascii").split()
        path = name.decode("utf-8", "surrogateescape")
        if kind != "blob":
            submodules.append(path)
            continue
        total += int(size)
        tree.check_path(path, what)
        rows.append((mode, blob, path))
        tree.check_size(len(rows), total, what)
    wanted = "".join(f"{blob}\n" for _, blob, _ in rows).encode()
    said = git(mirror, "cat-file", "--batch", stdin=wanted, limit=total + 128 * (len(rows) + 1)) if rows else b""
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    at = 0
    for mode, _, path in rows:
        head, _, _ = said[at : at + 200].partition(b"\n")
        said_of = head.split()
        if len(said_of) != 3 or said_of[1] != b"blob":
            raise SourceError(f"{what} lacks an object that its tree names: {head[:80]!r}; the repository is damaged")
        length = int(said_of[2])
        at += len(head) + 1
        data = said[at : at + length]
        at += length + 1
        if mode == "120000":
            links[path] = data.decode("utf-8", "replace")
        else:
            files[path] = data
    executable = frozenset(path for mode, _, path in rows if mode == "100755")
    return Tree(dict(sorted(files.items())), executable, links, tuple(submodules)).checked(what)


def _sweep(folder: Path) -> None:
    """Remove what killed processes were fetching long ago."""
    for left in folder.glob(".fetching-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _when(seconds: str) -> datetime:
    # Anybody may write any number into a commit; no date is later than what datetime knows.
    return datetime.fromtimestamp(min(max(int(seconds), 0), LAST_S), UTC)


@contextlib.contextmanager
def _locked(mirror: Path) -> Iterator[None]:
    """One writer of a mirror at a time, over all processes of this machine."""
    with mirror.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
