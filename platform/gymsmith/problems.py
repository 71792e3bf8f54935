"""Errors as problem documents (RFC 9457): `type, title, status, detail, instance, code, errors`.

`code` is the stable word of `gymsmith.errors`, shared with the CLI. Errors of ours become documents with their own status;
what nobody foresaw is answered by the guard.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from gymsmith.errors import BuildError, GymsmithError, InfrastructureError

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """The document, for OpenAPI."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[dict[str, Any]] = []


def problem(status: int, code: str, detail: str, instance: str, errors: list[dict[str, Any]] | None = None) -> Response:
    """One problem document as a response."""
    document = Problem(
        title=HTTPStatus(status).phrase, status=status, detail=detail, instance=instance, code=code, errors=errors or []
    )
    return JSONResponse(document.model_dump(), status_code=status, media_type=MEDIA_TYPE)


def of_error(error: GymsmithError, instance: str) -> Response:
    """The document of one of our errors."""
    extra = [{"log": error.log[-4000:]}] if isinstance(error, BuildError) and error.log else None
    response = problem(error.status, error.code, str(error), instance, extra)
    if isinstance(error, InfrastructureError):
        response.headers["retry-after"] = "2"
    return response


def install(app: FastAPI) -> None:
    """Make `app` answer every foreseen failure with a problem document."""

    @app.exception_handler(GymsmithError)
    async def _ours(request: Request, error: GymsmithError) -> Response:
        return of_error(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        found = [
            {"where": ".".join(map(str, e["loc"])), "expected": e["msg"], "got": repr(e.get("input"))[:200]}
            for e in error.errors()
        ]
        detail = "; ".join(f"{e['where']}: {e['expected']}, got {e['got']}" for e in found)
        return problem(422, "invalid", detail, request.url.path, found)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        response = problem(
            error.status_code, HTTPStatus(error.status_code).name.lower().replace("_", "-"), str(error.detail), request.url.path
        )
        response.headers.update(error.headers or {})
        return response
