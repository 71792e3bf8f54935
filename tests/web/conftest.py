"""A real Chromium over a real server over a filled store."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gymsmith"))

from gymsmith.config import settings as process_settings

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def missing(what: str) -> None:
    """Skip loudly; a run that requires everything fails instead."""
    if os.environ.get("GYMSMITH_REQUIRE_ALL") == "1":
        pytest.fail(f"{what}, and GYMSMITH_REQUIRE_ALL=1")
    pytest.skip(what)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, with a fresh profile."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed (pip install 'gymsmith[browser]')")
    named = process_settings().chromium
    found = named or next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if not found:
        missing("no Chromium (apt install chromium, or set GYMSMITH_CHROMIUM)")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()
