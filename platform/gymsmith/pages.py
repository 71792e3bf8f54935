"""The dashboard as an application of its own, mounted below the API: pages, static files, login, and errors that people can
read.

Jinja2 templates and a little script of our own; every page works without script, which only adds search as you type, keys and
live updates. What is shown on a page comes from the store in this process, not through HTTP.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from gymsmith import render
from gymsmith.config import Settings
from gymsmith.errors import GymsmithError
from gymsmith.guard import COOKIE, cookie_value
from gymsmith.store import Store
from gymsmith.views import environments, evaluations, jobs, overview, runs, trajectories

COOKIE_S = 30 * 86400


def create_pages(settings: Settings, store: Store) -> FastAPI:
    """The pages over an open store."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.store, app.state.settings = store, settings
    for section in (overview, environments, trajectories, runs, evaluations, jobs):
        app.include_router(section.router)
    _add_login(app, settings)
    _add_errors(app)

    @app.get("/static/{version}/{name}")
    def static(version: str, name: str) -> Response:
        return render.static_response(version, name)

    @app.get("/favicon.ico")
    def favicon() -> Response:
        return RedirectResponse(render.static_url("mark.svg"), status_code=308)

    return app


def _add_login(app: FastAPI, settings: Settings) -> None:
    @app.get("/login")
    def login(request: Request, next: str = "/") -> Response:
        return render.page(request, "login.html", "", next=_local(next), wrong=False)

    @app.post("/login")
    async def log_in(request: Request) -> Response:
        form = parse_qs((await request.body())[:4096].decode("utf-8", "replace"))
        target = _local(form.get("next", ["/"])[0])
        given = form.get("token", [""])[0].strip()
        if not settings.token or not hmac.compare_digest(given.encode(), settings.token.encode()):
            return render.page(request, "login.html", "", status=403, next=target, wrong=True)
        response = RedirectResponse(target, status_code=303)
        response.set_cookie(
            COOKIE,
            cookie_value(settings.token),
            max_age=COOKIE_S,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def _local(target: str) -> str:
    # "//host" and "/\host" are addresses elsewhere to a browser.
    return target if target.startswith("/") and not target.startswith(("//", "/\\")) else "/"


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(GymsmithError)
    async def _ours(request: Request, error: GymsmithError) -> Response:
        return render.page(request, "error.html", "", status=error.status, code=error.code, detail=str(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        detail = "; ".join(
            f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}, got {str(e.get('input'))[:100]!r}" for e in error.errors()
        )
        return render.page(request, "error.html", "", status=422, code="invalid", detail=detail)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        detail = f"There is no page {request.url.path}." if error.status_code == 404 else str(error.detail)
        return render.page(request, "error.html", "", status=error.status_code, code=str(error.status_code), detail=detail)

    @app.exception_handler(Exception)
    async def _unforeseen(request: Request, error: Exception) -> Response:
        # Only what is shown; the error itself goes on to the guard, which writes it to the log.
        return render.page(
            request,
            "error.html",
            "",
            status=500,
            code="internal",
            detail="The server failed on this page; its log names the place.",
        )
