"""Bare mirrors of git repositories on this machine: fetched as shallow as the other side allows, read through plumbing alone.

Nothing is checked out, so no hook, filter or submodule of a repository has a chance.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from env_factory.source_kinds import tree
from env_factory.source_kinds.git_command import git
from env_factory.source_kinds.tree import Tree
from gymsmith.errors import NotFound, SourceError

ABANDONED_S = 6 * 3600.0
"""A fetch that is older than this belongs to a process that was killed: git gives up long before."""


def fetch(mirror: Path, location: str, ref: str, depth: int, header: str) -> str:
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
    commit = known(mirror, target)
    git(mirror, "update-ref", "--no-deref", f"refs/gymsmith/{commit}", commit)
    return commit


def known(mirror: Path, name: str) -> str:
    """The commit's id. Raises: NotFound."""
    try:
        return git(mirror, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}").decode().strip()
    except (SourceError, NotFound) as error:
        raise NotFound(f"expected a commit of the repository, got {name[:200]!r}, which was not fetched") from error


def has(mirror: Path, commit: str) -> bool:
    """Whether a commit was fetched."""
    try:
        return bool(known(mirror, commit))
    except NotFound:
        return False


def shallow(mirror: Path) -> set[str]:
    """Commits whose parents were not fetched."""
    try:
        return set((mirror / "shallow").read_text(encoding="ascii").split())
    except FileNotFoundError:
        return set()


@lru_cache(maxsize=4)
def read_tree(mirror: Path, commit: str) -> Tree:
    """Files of a commit.

    Raises: NotFound, PolicyRefused: see `Repository.tree`. SourceError: the mirror is damaged.
    """
    listing = git(mirror, "ls-tree", "-r", "-z", "-l", "--full-tree", "--end-of-options", known(mirror, commit))
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


def sweep(folder: Path) -> None:
    """Remove what killed processes were fetching long ago."""
    for left in folder.glob(".fetching-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def locked(mirror: Path) -> Iterator[None]:
    """One writer of a mirror at a time, over all processes of this machine."""
    with mirror.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
