"""Templates and static files of the dashboard: where they lie, how a page is rendered, how a file is served.

In a wheel they are packaged as `gymsmith/_web`; in an editable install or a checkout they are the repository's `web/`. Static
files are few and small: they are read once, and their address holds a digest of all of them, so that browsers may keep them
for ever.
"""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from gymsmith import ansi
from gymsmith.errors import ConfigError, NotFound
from gymsmith.schema import Job, now

TELLING = ("family", "level", "package", "operator", "page", "split")
"""Labels that say most about an environment, in this order; the others are details."""


def app_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("gymsmith")
    except PackageNotFoundError:
        return "0+source"


@lru_cache(maxsize=1)
def web_folder() -> Path:
    """The folder that holds `templates` and `static`.

    Raises:
        ConfigError: the installation lacks it.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "_web", here.parent.parent / "web"):
        if (folder / "templates" / "base.html").is_file():
            return folder
    raise ConfigError(
        f"the dashboard's templates are neither in {here / '_web'} nor in {here.parent.parent / 'web'}; install gymsmith again"
    )


@lru_cache(maxsize=1)
def _static() -> tuple[str, dict[str, bytes]]:
    files = {p.name: p.read_bytes() for p in sorted((web_folder() / "static").iterdir()) if p.is_file()}
    h = hashlib.sha256()
    for name, data in files.items():
        h.update(f"{name}\0{len(data)}\0".encode() + data)
    return h.hexdigest()[:12], files


def static_url(name: str) -> str:
    """Address of a static file."""
    return f"/static/{_static()[0]}/{name}"


def static_response(digest: str, name: str) -> Response:
    """A static file; an old address still works but is not kept.

    Raises:
        NotFound: there is no such file.
    """
    current, files = _static()
    if name not in files:
        raise NotFound(f"no static file {name[:80]!r}")
    media = {".js": "text/javascript"}.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    keep = "public, max-age=31536000, immutable" if digest == current else "no-cache"
    return Response(files[name], media_type=media, headers={"cache-control": keep})


@lru_cache(maxsize=1)
def _templates() -> Environment:
    # Autoescape stands for every template; what comes from agents goes through `plain` or `spans` besides.
    env = Environment(
        loader=FileSystemLoader(web_folder() / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        auto_reload=False,
    )
    env.globals["static"] = static_url
    env.filters.update(
        spans=lambda text: ansi.spans(str(text)),
        plain=lambda text: ansi.plain(str(text)),
        path=lambda text: quote(str(text), safe=""),
        num=lambda n: f"{n:,}".replace(",", "\u202f"),
        ago=ago,
        dur=duration,
        size=size,
        job_line=job_line,
        telling=lambda labels: {k: labels[k] for k in TELLING if k in labels},
    )
    return env


def page(request: Request, template: str, section: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """Render a template. `section` is the address of the main navigation's entry to mark."""
    home = request.app.state.settings.home
    html = _templates().get_template(template).render(section=section, version=app_version(), home=home, **context)
    return HTMLResponse(html, status_code=status, headers={"cache-control": "no-store"})


def ago(when: datetime) -> str:
    """`3 min ago`."""
    s = max(0.0, (now() - when).total_seconds())
    for limit, unit_s, word in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if s < limit:
            return f"{s / unit_s:.0f} {word} ago"
    return f"{s / 86400:.0f} days ago"


def duration(span: timedelta | float) -> str:
    """`850 ms`, `12.3 s`, `4 min 05 s`, `2 h 10 min`."""
    s = span.total_seconds() if isinstance(span, timedelta) else span
    if s < 1:
        return f"{s * 1000:.0f} ms"
    if s < 100:
        return f"{s:.1f} s"
    if s < 5400:
        return f"{int(s // 60)} min {int(s % 60):02d} s"
    return f"{int(s // 3600)} h {int(s % 3600 // 60):02d} min"


def size(n: int) -> str:
    """`512 B`, `4.1 KB`."""
    if n < 1000:
        return f"{n} B"
    return f"{n / 1000:.1f} KB" if n < 1_000_000 else f"{n / 1e6:.1f} MB"


_LINES: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
    "generate": lambda p: [p.get("source"), p.get("kind"), p.get("n") and f"{p['n']} wanted", p.get("split")],
    "verify": lambda p: [p.get("environment_id")],
    "train": lambda p: [p.get("stage"), p.get("run_id")],
    "rollout": lambda p: [f"{len(p.get('items') or [])} attempts", p.get("run_id")],
    "evaluate": lambda p: [p.get("name"), p.get("mode"), p.get("run_id")],
    "evaluate_swebench": lambda p: [p.get("predictions"), p.get("dataset")],
    "render": lambda p: [f"{len(p.get('pages') or [])} pages", p.get("run_id")],
}


def job_line(job: Job) -> str:
    """What a job is about, in one line."""
    parts = _LINES.get(job.kind, lambda p: [])(job.payload)
    return " · ".join(str(part) for part in parts if part) or job.id
