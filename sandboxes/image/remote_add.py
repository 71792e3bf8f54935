"""ADD of a URL: refused, unless its host stands in the build's allow-list; then this process fetches it, bounded.

The file gets Docker's mode (0600) and is never unpacked. `--checksum=sha256:...` is checked; without one the content is part of
the layer's key all the same, so a file that changes makes another layer.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from gymsmith.errors import BuildError, PolicyRefused
from sandboxes.base import MIB
from sandboxes.image import dockerfile
from sandboxes.image.build_context import Member
from sandboxes.image.dockerfile import Step

MAX_BYTES = 512 * MIB
TIMEOUT_S = 60.0
_REMOTE = re.compile(r"([a-z][a-z0-9+.-]*)://|git@", re.IGNORECASE)
_CHECKSUM = re.compile(r"sha256:([0-9a-f]{64})\Z")


async def fetch(step: Step, variables: Mapping[str, str], hosts: Sequence[str]) -> dict[str, Member]:
    """URL -> file, for the remote sources of an ADD. Raises: PolicyRefused: not from there; BuildError: it cannot be had."""
    remote = [word for word in dockerfile.words(step, variables)[:-1] if _REMOTE.match(word)]
    if not remote:
        if "checksum" in step.flags:
            raise step.refused("--checksum goes with a URL; remove the flag")
        return {}
    for url in remote:
        _check(step, url, hosts)
    claimed = _CHECKSUM.match(step.flags.get("checksum", ""))
    if "checksum" in step.flags and (claimed is None or len(remote) != 1):
        raise step.refused(f"--checksum takes sha256:... of one URL, got {step.flags['checksum'][:80]!r}")
    got = {url: await asyncio.to_thread(_get, step, url, hosts) for url in remote}
    for url, data in got.items():
        if claimed is not None and hashlib.sha256(data).hexdigest() != claimed[1]:
            raise BuildError(
                f"Dockerfile line {step.line}: ADD {url[:120]} must hash to {claimed[0]}, it hashes to "
                f"sha256:{hashlib.sha256(data).hexdigest()}; is it the right file?"
            )
    return {url: Member(0o600, data) for url, data in got.items()}


def _check(step: Step, url: str, hosts: Sequence[str]) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.netloc.lower() not in hosts:
        raise PolicyRefused(
            f"Dockerfile line {step.line}: ADD of a URL is refused: {url[:120]!r} is not from "
            f"{', '.join(hosts) or 'an allowed host (there are none)'}; COPY the file instead, or allow its host"
        )


def _get(step: Step, url: str, hosts: Sequence[str]) -> bytes:
    class Redirects(urllib.request.HTTPRedirectHandler):
        """A server may send elsewhere only within the allow-list."""

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            _check(step, newurl, hosts)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    try:
        with urllib.request.build_opener(Redirects).open(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise BuildError(f"Dockerfile line {step.line}: ADD {url[:120]} cannot be fetched: {error}") from error
    if len(data) > MAX_BYTES:
        raise PolicyRefused(f"Dockerfile line {step.line}: ADD {url[:120]} has more than {MAX_BYTES // MIB} MiB")
    return data
