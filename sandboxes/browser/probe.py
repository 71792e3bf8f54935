"""Whether pages can be rendered on this machine, found by rendering one: for `gymsmith doctor`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from gymsmith.errors import Capacity, GymsmithError
from sandboxes.browser.chromium import HOW, find
from sandboxes.browser.result import Document, Rendered
from sandboxes.browser.service import RenderService


def probe(chromium: str) -> dict[str, Any]:
    """{"works": bool, "summary": text, "next_move": text}. Changes nothing; takes a few seconds where there is a browser."""
    try:
        program = find(chromium)
        version = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20).stdout.strip()
        with tempfile.TemporaryDirectory() as folder:
            shown = asyncio.run(_one_page(Path(folder), program))
    except Capacity as error:
        reason, _, move = str(error).partition("; ")
        return {"works": False, "summary": reason, "next_move": move or HOW}
    except (GymsmithError, OSError, subprocess.SubprocessError) as error:
        return {"works": False, "summary": f"Chromium cannot be asked: {error}", "next_move": HOW}
    if shown.status != "ok":
        return {"works": False, "summary": f"{version} at {program}: {shown.cause}", "next_move": HOW}
    summary = f"{version} at {program}; pages are rendered in a sandbox without a network ({os.cpu_count()} browsers at once)"
    return {"works": True, "summary": summary, "next_move": ""}


async def _one_page(folder: Path, program: str) -> Rendered:
    service = await RenderService.start(folder / "state", folder / "images", chromium=program, seats=1)
    try:
        return await service.render(Document.of_html("<p>ok"), domain="probe", deadline_s=30.0)
    finally:
        await service.close()
