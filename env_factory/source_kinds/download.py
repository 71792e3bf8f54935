"""The bytes behind a path, a file: or an https: URL, bounded, and how the place is shown without its credentials."""

from __future__ import annotations

import base64
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

from gymsmith.errors import NoNetwork, NotFound, PolicyRefused, SourceError

MAX_BYTES = 256 * 1024 * 1024
_TIMEOUT_S = 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _OnlySafe(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to https alone, and does not take credentials along."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https:") and urllib.parse.urlsplit(newurl).hostname not in _LOOPBACK:
            raise PolicyRefused(f"{shown(req.full_url)} redirects to {shown(newurl)}; only https is followed")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if made is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            made.headers.pop("Authorization", None)
        return made


def shown(place: str) -> str:
    """`place` without credentials, for messages and for what is kept."""
    parts = urllib.parse.urlsplit(place)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else place


def read(place: str, limit: int = MAX_BYTES) -> tuple[str, bytes]:
    """(file name, bytes).

    Raises:
        SourceError: it is neither a path nor a file: or https: URL.
        NotFound: nothing is there.
        PolicyRefused: it is larger than `limit` bytes.
        NoNetwork: it cannot be fetched.
    """
    parts = urllib.parse.urlsplit(place)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        data = get(place, {}, limit)
        return urllib.parse.unquote(parts.path.rstrip("/").rsplit("/", 1)[-1]) or parts.hostname or "page", data
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        path = Path(urllib.parse.unquote(parts.path))
    elif not parts.scheme and place and "\0" not in place:
        path = Path(place).expanduser()
    else:
        raise SourceError(f"expected a path, a file: or an https: URL, got {shown(place)[:200]!r}")
    if not path.is_file():
        raise NotFound(f"expected a file at {path}, there is none; check the path")
    if path.stat().st_size > limit:
        raise PolicyRefused(f"{path} is {path.stat().st_size} bytes large; at most {limit} are taken")
    return path.name, path.read_bytes()


def get(url: str, headers: dict[str, str], limit: int = MAX_BYTES) -> bytes:
    """Body of an https URL (http only on this machine); credentials in it travel as a header.

    Raises:
        NotFound: the server says 404 or 410.
        SourceError: it refuses otherwise.
        NoNetwork: it cannot be asked, or is busy (429, 5xx).
        PolicyRefused: the body is larger than `limit`.
    """
    parts = urllib.parse.urlsplit(url)
    sent = {"User-Agent": "gymsmith", **headers}
    if parts.username:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        sent["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    opener = urllib.request.build_opener(_OnlySafe, urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    try:
        with opener.open(urllib.request.Request(shown(url), headers=sent), timeout=_TIMEOUT_S) as answer:
            data: bytes = answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        said = f"{shown(url)} answered {error.code} {error.reason}"
        if error.code in (404, 410):
            raise NotFound(f"{said}; check the address") from error
        if error.code == 429 or error.code >= 500 or error.headers.get("x-ratelimit-remaining") == "0":
            raise NoNetwork(f"{said}; wait, then retry") from error
        raise SourceError(f"{said}; it may need credentials") from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise NoNetwork(f"could not fetch {shown(url)} ({error}); check the network, then retry") from error
    if len(data) > limit:
        raise PolicyRefused(f"{shown(url)} is larger than {limit} bytes; at most that is taken")
    return data
