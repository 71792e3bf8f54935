"""The git program, run so that a stranger's repository cannot run anything here.

No hooks, no submodules, no user's or system's configuration, no prompts, no protocols but https and local files, everything it
says bounded in bytes and seconds. Words that come from outside stand behind `--end-of-options` and are checked before. What the
repository's own configuration could do is left to git's ownership check: a local repository of another user is refused by git.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from gymsmith.errors import NoNetwork, NotFound, PolicyRefused, SourceError

MAX_OUTPUT_BYTES = 64 * 1024 * 1024
MAX_MIRROR_BYTES = 2 * 1024**3
"""A repository whose fetched objects are larger is refused."""
TIMEOUT_S = 600.0
_PASSED = ("GIT_SSL_CAINFO", "GIT_SSL_CAPATH")
"""What an installation says about its certificates; no other GIT_* variable is heard."""
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.symlinks": "false",
    "protocol.allow": "never",
    "protocol.https.allow": "always",
    "protocol.file.allow": "always",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "transfer.fsckObjects": "true",
    "fetch.fsck.zeroPaddedFilemode": "ignore",
    "fetch.fsck.missingSpaceBeforeDate": "ignore",
    "fetch.fsck.badTimezone": "ignore",
    "transfer.bundleURI": "false",
    "credential.helper": "",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "diff.external": "",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
}
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,200}\Z")
_AWAY = re.compile(
    r"Could not resolve|Failed to connect|Connection (refused|timed out|reset)|timed out|Operation too slow"
    r"|unable to get local issuer|returned error: (429|5\d\d)|early EOF|unexpected disconnect|certificate|SSL|TLS|gnutls",
    re.I,
)
_NO_SUCH_REF = re.compile(r"couldn't find remote ref|not our ref|no such remote ref|unadvertised object|Cannot fetch both", re.I)
_NO_SUCH_PLACE = re.compile(
    r"does not appear to be a git repository|returned error: 404|not found|not a git repository|not valid", re.I
)


def check_ref(ref: str) -> str:
    """`ref`, when it is the name of a branch or tag or a whole commit id. Raises: SourceError."""
    if not _REF.match(ref) or ".." in ref or "//" in ref or ref.endswith(("/", ".", ".lock")):
        raise SourceError(f"expected a branch, a tag or a commit's 40 digits, got {ref[:200]!r}")
    return ref


def git(
    folder: Path | None, *words: str, stdin: bytes = b"", limit: int = MAX_OUTPUT_BYTES, timeout_s: float = TIMEOUT_S,
    header: str = "", what: str = "the repository",
) -> bytes:  # fmt: skip
    """Standard output of `git WORDS`, run on the bare repository `folder`.

    `header` goes with https requests and is a secret; `what` names the repository in errors.

    Raises:
        SourceError and its kin: git is missing, or refused; its message is kept.
        PolicyRefused: it says more than `limit` bytes, or the repository grows beyond MAX_MIRROR_BYTES.
        NoNetwork: it took longer than `timeout_s`, or could not reach the other side.
    """
    program = shutil.which("git")
    if program is None:
        raise SourceError("a git source needs the program git, which is not here; install git, or give an archive (archive:PATH)")
    config = dict(_CONFIG) | ({"http.extraHeader": header} if header else {})
    command = [program, *(["--git-dir", str(folder)] if folder else []), "--no-pager", *words]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, stderr=said, env=_environment(config), cwd="/", start_new_session=True
        )
        try:
            output = _read(process, folder, limit, timeout_s, words[0], said.fileno())
        finally:
            # Helpers of git (a remote's, pack's) are its process group and end with it.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        if process.returncode:
            said.seek(0)
            raise failure(words[0], said.read(1 << 16).decode("utf-8", "replace"), what)
    return output


def failure(verb: str, said: str, what: str) -> SourceError | NotFound:
    """The typed error of what git said."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("remote: ", "hint: "))]
    tail = re.sub(r"//[^/@\s]+@", "//", " ".join(lines)[-400:])
    if "dubious ownership" in said:
        return SourceError(f"{what} belongs to another user, whose configuration git does not trust; clone it first: {tail}")
    if re.search(r"could not read Username|Authentication failed|returned error: 40[13]", said):
        return SourceError(f"{what} is not public or the credentials are wrong: {tail}")
    if _NO_SUCH_REF.search(said):
        return NotFound(f"{what} has no such branch, tag or commit: {tail}")
    if _NO_SUCH_PLACE.search(said):
        return NotFound(f"there is no git repository at {what}: {tail}")
    if _AWAY.search(said):
        return NoNetwork(f"could not fetch {what}; check the network, then retry: {tail}")
    return SourceError(f"git {verb} failed on {what}: {tail or 'without a word'}")


def _environment(config: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in _PASSED}
    kept |= {f"GIT_CONFIG_KEY_{n}": key for n, key in enumerate(config)}
    kept |= {f"GIT_CONFIG_VALUE_{n}": value for n, value in enumerate(config.values())}
    return kept | {
        "GIT_CONFIG_COUNT": str(len(config)),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "https:file",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "SSH_ASKPASS": "/bin/false",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "HOME": "/nonexistent",
        "XDG_CONFIG_HOME": "/nonexistent",
        "LC_ALL": "C",
    }


def _read(process: subprocess.Popen[bytes], folder: Path | None, limit: int, timeout_s: float, verb: str, said: int) -> bytes:
    assert process.stdout is not None
    ends = time.monotonic() + timeout_s
    chunks: list[bytes] = []
    total, watched = 0, time.monotonic()
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while True:
            if waiting.select(0.25):
                chunk = os.read(process.stdout.fileno(), 1 << 20)
                if not chunk:
                    break
                chunks.append(chunk)
                total += len(chunk)
            if total > limit or os.fstat(said).st_size > limit:
                raise PolicyRefused(f"git {verb} says more than {limit} bytes; such a repository is no source for environments")
            now = time.monotonic()
            if now > ends:
                raise NoNetwork(f"git {verb} took longer than {timeout_s:g} s; check the network, then retry")
            if folder is not None and now - watched > 0.5:
                watched = now
                if _size(folder) > MAX_MIRROR_BYTES:
                    raise PolicyRefused(f"the repository is larger than {MAX_MIRROR_BYTES} bytes; give an archive of one commit")
    process.wait(timeout=max(1.0, ends - time.monotonic()))
    return b"".join(chunks)


def _size(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(here, name)).st_size
            except FileNotFoundError:
                continue
    return total
