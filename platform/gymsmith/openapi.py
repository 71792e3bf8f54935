"""The API's description, /openapi.json: what FastAPI derives from the code, made true where it guesses.

Summaries are the first line of each function's docstring instead of its name with spaces. Every failure is a problem document and
nothing else. What is a stream of events, or the bytes of a file, says so.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gymsmith.problems import MEDIA_TYPE, Problem

_REF = "#/components/schemas/"
_FAILURES = {
    "4XX": "What was asked cannot be done; `detail` says what was expected, what came and the next move.",
    "5XX": "Our machinery failed; ask again, after `retry-after` seconds where that is given.",
}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}, "application/json": {"schema": {"type": "object"}}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODIES = {"followJob": _EVENTS, "followRun": _EVENTS, "followEvents": _EVENTS, "getEnvironmentFile": _BYTES}


def describe(app: FastAPI) -> None:
    """Make `app` describe itself so; the document is made at the first request and kept."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI) -> dict[str, Any]:
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = made.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema(ref_template=_REF + "{model}")
    failures = {
        status: {"description": text, "content": {MEDIA_TYPE: {"schema": {"$ref": _REF + "Problem"}}}}
        for status, text in _FAILURES.items()
    }
    for operations in made["paths"].values():
        for operation in operations.values():
            said, _, rest = operation.pop("description", "").partition("\n")
            operation["summary"] = said.strip().rstrip(".")
            if rest.strip():
                operation["description"] = rest.strip()
            kept = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
            operation["responses"] = kept | failures
            if operation["operationId"] in _BODIES:
                kept["200"]["content"] = _BODIES[operation["operationId"]]
    return made
