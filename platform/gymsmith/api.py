"""The switchboard's public face: the JSON API under /api/v1, the health pages, and the dashboard around them.

It reads the store and puts jobs; no room is imported, nothing heavy is loaded. Embedded, the supervisor serves it; scaled out,
`uvicorn --factory gymsmith.api:create_app`. The description is /openapi.json; there is no page that loads scripts from elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from gymsmith import openapi, pages, problems
from gymsmith.config import Settings, settings
from gymsmith.endpoints import environments, evaluations, jobs, runs, trajectories
from gymsmith.endpoints.envelope import PREFIX, SettingsDep, StoreDep
from gymsmith.errors import ConfigError, GymsmithError, NotFound
from gymsmith.guard import LOOPBACK, Guard
from gymsmith.render import app_version
from gymsmith.store import Store
from gymsmith.streams import Tail

MIN_TOKEN = 16
"""Characters of a token that guards an address others can reach."""
LOW_DISK_BYTES = 200 * 1024 * 1024


def create_app(config: Settings | None = None, store: Store | None = None) -> FastAPI:
    """The whole application. A store that is not given is opened now and closed at shutdown.

    Raises:
        ConfigError: an address that others can reach, without a token of MIN_TOKEN characters.
        StoreError: the state folder cannot be used.
    """
    config = config or settings()
    if config.host not in LOOPBACK and len(config.token) < MIN_TOKEN:
        raise ConfigError(
            f"host {config.host} can be reached by others, so the token must have at least {MIN_TOKEN} characters, "
            f"got {len(config.token)}; "
            "set GYMSMITH_TOKEN, or host to 127.0.0.1"
        )
    opened = store or Store.open(config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if store is None:
            opened.close()

    app = FastAPI(
        title="Gymsmith",
        version=app_version(),
        description="Environments, rollouts, training runs and evaluations. Long work is a job: 202, then watch it.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.store, app.state.settings, app.state.tail = opened, config, Tail(opened)
    for resource in (environments, jobs, trajectories, runs, evaluations):
        app.include_router(resource.router, prefix=PREFIX)
    _add_health(app)
    problems.install(app)
    openapi.describe(app)

    @app.api_route("/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    def no_such_resource(rest: str) -> Response:
        raise NotFound(f"no resource /api/{rest[:200]} with this method; /openapi.json lists what there is")

    app.mount("/", pages.create_pages(config, opened))
    app.add_middleware(Guard, settings=config)
    return app


def _add_health(app: FastAPI) -> None:
    @app.get("/healthz", operation_id="getHealth", tags=["health"])
    def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok", "version": app_version()}

    @app.get("/readyz", operation_id="getReadiness", tags=["health"])
    def readyz(store: StoreDep, config: SettingsDep) -> Response:
        """The database answers, the disk has room; queue depths for whoever watches."""
        checks: dict[str, str] = {}
        queues = []
        try:
            queues = [
                {"queue": q.queue, "queued": q.queued, "running": q.running, "oldest_s": round(q.oldest_s, 3)}
                for q in store.queue_depths()
            ]
        except GymsmithError as e:
            checks["store"] = str(e)
        # Before the first write the folder does not exist; what counts is the disk that it will be on.
        free = shutil.disk_usage(next(p for p in (config.home, *config.home.parents) if p.is_dir())).free
        if free < LOW_DISK_BYTES:
            checks["disk"] = f"{free} bytes are free below {config.home} and {LOW_DISK_BYTES} are needed; make room"
        body = {"status": "failing" if checks else "ok", "failing": checks, "queues": queues, "disk_free_bytes": free}
        return JSONResponse(body, status_code=503 if checks else 200)
