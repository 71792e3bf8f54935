"""The gate in front of every request: who may speak to the API, and what a browser may do with the answer.

On loopback no token is asked for, so a foreign web page in the user's browser is the attacker: the Host header must name this
machine (DNS rebinding) and a request that changes something must not come from another origin (cross-site request forgery).
With a token set, every request carries it: as a bearer, or, in a browser, as the cookie that `/login` sets. Every answer
carries a content policy that allows nothing inline and nothing from elsewhere, because pages show text that agents and
environments wrote.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gymsmith.config import Settings
from gymsmith.problems import problem

log = logging.getLogger(__name__)
COOKIE = "gymsmith_token"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_OPEN = ("/healthz", "/login", "/static/")
_SAFE = {"GET", "HEAD", "OPTIONS"}
_HEADERS = {
    "content-security-policy": "; ".join(
        ("default-src 'self'", "base-uri 'none'", "object-src 'none'", "form-action 'self'", "frame-ancestors 'none'")
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def cookie_value(token: str) -> str:
    """What the browser keeps instead of the token itself."""
    return hmac.new(token.encode(), b"gymsmith dashboard", hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.token = settings.token
        self.hosts = LOOPBACK | {settings.host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 or 401 by itself, or let the request through with the headers added to its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await (self._refusal(scope) or self.app)(scope, receive, with_headers)
        except Exception as e:
            # The end of the road for what nobody foresaw: the log gets it all, the client only learns that it happened.
            log.exception("event=unforeseen method=%s path=%s error=%s", scope["method"], scope["path"], type(e).__name__)
            if not started:
                failure = problem(500, "internal", "the server failed on this request; its log names the place", scope["path"])
                await failure(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        path, host = scope["path"], headers.get("host", "")
        # Behind a token a proxy may use any name; without one the name is the only defence against rebinding.
        if not self.token and _name(f"//{host}") not in self.hosts:
            return problem(
                403,
                "bad-host",
                f"the Host header must name this machine ({', '.join(sorted(self.hosts))}), got {host[:80]!r}",
                path,
            )
        if scope["method"] not in _SAFE and not self._same_origin(headers, host):
            return problem(
                403,
                "bad-origin",
                f"this request came from {headers.get('origin', 'another site')[:80]!r}; open the dashboard at http://{host[:80]}",
                path,
            )
        if self.token and not path.startswith(_OPEN) and not self._known(headers):
            if path.startswith("/api/") or path in ("/openapi.json", "/readyz"):
                refusal = problem(
                    401, "no-token", "a token is needed; send 'Authorization: Bearer TOKEN' (GYMSMITH_TOKEN of the server)", path
                )
                refusal.headers["www-authenticate"] = "Bearer"
                return refusal
            return RedirectResponse("/login?next=" + quote(path), status_code=303)
        return None

    @staticmethod
    def _same_origin(headers: Headers, host: str) -> bool:
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = headers.get("origin")
        # Programs send no Origin; browsers send one with every request that can change something.
        return origin is None or urlsplit(origin).netloc.lower() == host.lower()

    def _known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return hmac.compare_digest(given.strip().encode(), self.token.encode())
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return COOKIE in jar and hmac.compare_digest(jar[COOKIE].value.encode(), cookie_value(self.token).encode())


def _name(netloc: str) -> str:
    try:
        return (urlsplit(netloc).hostname or "").lower()
    except ValueError:
        return ""
