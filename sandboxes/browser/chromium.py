"""One Chromium in a sandbox of its own: found, started, weighed, ended as a whole tree.

The sandbox gives it a network namespace without any route, unprivileged ids, limits of memory and processes, the host's /usr
read-only and nothing else of the host. It runs with --no-sandbox: the kernel features that Chromium's own sandbox wants are what
a sandbox of ours refuses, so a renderer that is broken out of owns its browser, and the walls are the sandbox's. Playwright's
driver speaks to it over the descriptors of a pipe (`door.py`); nothing listens on a port.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymsmith.errors import Capacity, ImageMissing
from sandboxes.background import begin
from sandboxes.base import MIB, Image, Sandbox, SandboxSpec
from sandboxes.browser import door as browser_door

if TYPE_CHECKING:
    from playwright.async_api import Browser, Playwright

    from sandboxes.namespace import NamespaceProvider

HOW = "apt-get install chromium, or set GYMSMITH_CHROMIUM to a Chromium or Chrome binary"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PROGRAMS = {"/usr/bin/chromium": "/usr/lib/chromium/chromium", "/usr/bin/google-chrome": "/opt/google/chrome/chrome"}
"""Start-up scripts of distributions, which read files that a sandbox has not, and the programs behind them."""

LAUNCH_S = 60.0
MEMORY_BYTES, PROCESSES, DISK_BYTES = 2048 * MIB, 512, 256 * MIB
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-crash-reporter",
    "--no-first-run",
    "--disable-extensions",
    "--disable-3d-apis",
    "--block-new-web-contents",
    "--disable-features=PreloadTopChromeWebUI,WebRtcHideLocalIpsWithMdns,SpareRendererForSitePerProcess,MediaRouter",
    # no name resolves, should the network namespace ever have a route
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    # the same pixels every time
    "--blink-settings=imageAnimationPolicy=2",
    "--disable-lcd-text",
    "--font-render-hinting=none",
    "--force-color-profile=srgb",
    "--disable-smooth-scrolling",
    "--disable-skia-runtime-opts",
    "--disable-partial-raster",
)
_FONT_FOLDERS = ("/usr/share/fonts/truetype/dejavu", "/usr/share/fonts/truetype/liberation", "/usr/share/fonts")
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir>{folder}</dir>
  <cachedir>/tmp/fontcache</cachedir>
  {aliases}
  <match target="font">
    <edit name="antialias" mode="assign"><bool>true</bool></edit>
    <edit name="hinting" mode="assign"><bool>false</bool></edit>
    <edit name="rgba" mode="assign"><const>none</const></edit>
  </match>
</fontconfig>
"""


_ALIASES = {
    "DejaVu Sans,Liberation Sans": ("sans-serif", "system-ui", "Arial", "Helvetica", "Verdana", "Segoe UI", "Inter", "Roboto"),
    "DejaVu Serif,Liberation Serif": ("serif", "Times New Roman", "Times", "Georgia", "Cambria"),
    "DejaVu Sans Mono,Liberation Mono": ("monospace", "Courier New", "Courier", "Consolas", "Menlo"),
}
"""What stands for the families that pages ask for, the first one installed."""


def font_configuration(folder: str) -> str:
    """A fontconfig file that knows the fonts of one folder and nothing else."""
    aliases = []
    for ours, theirs in _ALIASES.items():
        prefer = "".join(f"<family>{name}</family>" for name in ours.split(","))
        aliases += [f'<alias binding="same"><family>{name}</family><prefer>{prefer}</prefer></alias>' for name in theirs]
    return _FONTS.format(folder=folder, aliases="\n  ".join(aliases))


def find(configured: str) -> str:
    """The browser's program file. Raises: Capacity (there is none; the message says how to get one)."""
    found = configured or next((path for name in NAMES if (path := shutil.which(name))), "")
    if not found:
        raise Capacity(f"rendering needs Chromium, none was found; {HOW}")
    program = _PROGRAMS.get(os.path.realpath(found), found)
    program = program if os.path.exists(program) else found
    if not os.access(program, os.X_OK):
        raise Capacity(f"chromium must be a program that can be run, got {program!r}; {HOW}")
    return os.path.realpath(program)


def fonts() -> tuple[str, str]:
    """The only folder of fonts that pages see, and a digest of what is in it. Raises: Capacity (no fonts on this machine)."""
    for folder in _FONT_FOLDERS:
        names = (
            sorted(f"{path.name}:{path.stat().st_size}" for path in Path(folder).rglob("*.ttf")) if os.path.isdir(folder) else []
        )
        if names:
            return folder, hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    raise Capacity(f"rendering needs TrueType fonts below {_FONT_FOLDERS[-1]}, found none; apt-get install fonts-dejavu-core")


class BrowserImages:
    """`gymsmith/host` with a door: the image id is the directory in which one browser's descriptors are handed over."""

    def __init__(self, base: Image, program: str) -> None:
        # a browser from elsewhere than /usr is shown alone with its folder
        inside_usr = program.startswith("/usr/")
        self._binds = base.binds if inside_usr else (*base.binds, (os.path.dirname(program), os.path.dirname(program)))
        self._base = base

    def resolve(self, image_id: str) -> Image:
        if not os.path.isdir(image_id):
            raise ImageMissing(f"a browser's image is its door, {image_id} is no directory")
        return Image(
            id=image_id, layers=self._base.layers, binds=(*self._binds, (image_id, browser_door.INSIDE)), env=self._base.env
        )


@dataclass(slots=True)
class Chromium:
    """A running browser. Made by `start`; `close` ends it with everything that it started."""

    browser: Browser
    box: Sandbox | None
    """None: it is not confined."""
    _running: asyncio.Task[Any] | None
    _door: Path
    _farewell: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, playwright: Playwright, program: str, folder: Path, provider: NamespaceProvider | None) -> Chromium:
        """A browser in a fresh sandbox of `provider`, or, without one, as a plain process of this user.

        Raises: Capacity (it did not start; the message has the end of its log).
        """
        door = Path(tempfile.mkdtemp(prefix="door.", dir=folder))
        door.chmod(0o755)
        box: Sandbox | None = None
        running: asyncio.Task[Any] | None = None
        try:
            if provider is None:
                browser = await _launch(playwright, program, door, {})
                return cls(browser, None, None, door)
            box = await provider.create(_spec(str(door)))
            await box.put_files({"/etc/fonts/fonts.conf": font_configuration(fonts()[0]).encode()})
            running = asyncio.create_task(_run_inside(box))
            wrapper = _wrapper(folder)
            handed = {"GYMSMITH_DOOR": str(door), "GYMSMITH_CHROMIUM": program}
            launching = asyncio.create_task(_launch(playwright, str(wrapper), door, handed))
            await asyncio.wait({launching, running}, return_when=asyncio.FIRST_COMPLETED)
            if not launching.done():
                launching.cancel()
                await asyncio.wait({launching})
                log = running.result().output.decode(errors="replace")
                raise Capacity(f"Chromium must run until it is closed, it ended at once; its log ends: {log[-2000:]}")
            return cls(launching.result(), box, running, door)
        except BaseException:
            if box is not None:
                await box.destroy()
            if running is not None:
                await asyncio.gather(running, return_exceptions=True)
            shutil.rmtree(door, ignore_errors=True)
            raise

    @property
    def alive(self) -> bool:
        return self._farewell is None and self.browser.is_connected() and (self._running is None or not self._running.done())

    async def private_bytes(self) -> int:
        """Memory of all its processes that is not shared with others; 0 for one that is not confined."""
        if self.box is None:
            return 0
        result = await self.box.exec("cat /proc/[0-9]*/statm", timeout_s=10.0)
        pages = [line.split() for line in result.output.decode().splitlines()]
        return sum(int(row[1]) - int(row[2]) for row in pages if len(row) > 2) * os.sysconf("SC_PAGE_SIZE")

    async def end(self) -> None:
        """Kill it without asking it; returns when the last process of its sandbox is dead. The driver is told later."""
        if self.box is not None:
            await self.box.destroy()
        if self._farewell is None:
            self._farewell = begin(self._forget(), "farewell to a browser")

    async def close(self) -> None:
        """End it and everything that was kept for it. Calling it again does nothing."""
        await self.end()
        if self._farewell is not None:
            await self._farewell

    async def _forget(self) -> None:
        with contextlib.suppress(Exception):  # it is dead; this only tells the driver, whose errors about it say nothing new
            async with asyncio.timeout(10.0):
                await self.browser.close()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)
        shutil.rmtree(self._door, ignore_errors=True)


def _spec(door: str) -> SandboxSpec:
    cores = float(os.cpu_count() or 1)
    return SandboxSpec(
        image=door, workdir="/tmp", user="agent", memory_bytes=MEMORY_BYTES, pids=PROCESSES, cpus=cores, disk_bytes=DISK_BYTES
    )


async def _run_inside(box: Sandbox) -> Any:
    source = inspect.getsource(browser_door)
    command = ["/usr/bin/python3", "-I", "-S", "-c", source, "inside"]
    home = {"HOME": "/tmp", "TZ": "UTC", "XDG_CONFIG_HOME": "/tmp/config", "XDG_CACHE_HOME": "/tmp/cache"}
    return await box.exec(command, env=home, timeout_s=7 * 86_400.0, max_output_bytes=16_384)


def _wrapper(folder: Path) -> Path:
    """The program that Playwright starts in the browser's place, written on first use."""
    path = folder / "browser"
    if not path.exists():
        draft = folder / f".browser.{os.getpid()}"
        words = [sys.executable, "-I", "-S", str(Path(browser_door.__file__))]
        draft.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        draft.chmod(0o700)
        os.rename(draft, path)
    return path


async def _launch(playwright: Playwright, program: str, folder: Path, environment: dict[str, str]) -> Browser:
    from playwright.async_api import Error

    try:
        return await playwright.chromium.launch(
            executable_path=program,
            args=list(FLAGS),
            artifacts_dir=folder / "artifacts",
            # the driver trusts its pages
            ignore_default_args=["--disable-ipc-flooding-protection", "--disable-popup-blocking"],
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/nonexistent", "TZ": "UTC", **environment},
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
            timeout=LAUNCH_S * 1000,
        )
    except Error as error:
        raise Capacity(f"Chromium at {program} must start within {LAUNCH_S:.0f} s, it did not: {str(error)[:2000]}") from error
