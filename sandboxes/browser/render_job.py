"""What a `render` job is and does: pages in, files by content hash out.

A page comes with the order or lies in a folder of the state folder; pictures and reports go into `settings.renders_dir`, so the
job's result holds names alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from pydantic import Field

from gymsmith.config import Settings
from gymsmith.errors import PolicyRefused
from gymsmith.schema import JobContext, Word
from sandboxes.browser.result import Document, Rendered
from sandboxes.worker import Worker

MAX_HTML = 512 * 1024


class PageOrder(Word):
    """One page: either of `html` and `folder`."""

    html: str = Field(default="", max_length=MAX_HTML)
    folder: str = ""
    """Below the state folder, relative to it; the page may load what lies in it."""
    entry: str = "index.html"
    width: int = 1280
    height: int = 720


class RenderOrder(Word):
    """Payload of a render job."""

    pages: list[PageOrder] = Field(min_length=1, max_length=10_000)
    domain: str = ""
    """Whose pages these are: pages of one domain may share a tab. Empty: this job's alone."""
    deadline_s: float = Field(default=10.0, ge=0.05, le=600)
    metrics: bool = True
    run_id: str = ""


async def render_all(worker: Worker, ctx: JobContext, order: RenderOrder) -> list[dict[str, Any]]:
    """Render the pages of an order, in order. Raises: PolicyRefused, Capacity, SandboxGone."""
    service = await worker.renderer()
    done: list[dict[str, Any]] = []
    for page in order.pages:
        document = await asyncio.to_thread(_document, page, ctx.settings)
        shown = await service.render(
            document, domain=order.domain or f"job {ctx.job.id}", deadline_s=order.deadline_s, metrics=order.metrics
        )
        done.append(await asyncio.to_thread(_keep, shown, ctx.settings.renders_dir))
        ctx.progress(done=len(done), total=len(order.pages), unit="pages")
    return done


def _document(page: PageOrder, settings: Settings) -> Document:
    if bool(page.html) == bool(page.folder):
        raise PolicyRefused(f"a page needs html or folder, one of them, got {'both' if page.html else 'neither'}")
    if page.html:
        return Document.of_html(page.html, width=page.width, height=page.height)
    folder = (settings.home / page.folder).resolve()
    if not folder.is_relative_to(settings.home.resolve()) or not folder.is_dir():
        raise PolicyRefused(f"folder must be a folder below {settings.home}, got {page.folder!r}")
    return Document.of_folder(folder, page.entry, width=page.width, height=page.height)


def _keep(shown: Rendered, folder: Path) -> dict[str, Any]:
    report = json.dumps(shown.report(), sort_keys=True).encode()
    return {
        "status": shown.status,
        "cause": shown.cause,
        "png": _write(folder, shown.png, "png") if shown.png else "",
        "report": _write(folder, report, "json"),
    }


def _write(folder: Path, data: bytes, ending: str) -> str:
    name = f"{hashlib.sha256(data).hexdigest()}.{ending}"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / f".{uuid.uuid4().hex}"
        draft.write_bytes(data)
        os.rename(draft, folder / name)
    return name
