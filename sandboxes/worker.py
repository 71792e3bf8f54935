"""What one worker process keeps between jobs: an event loop in its own thread, one sandbox provider, the image store, caches.

Celery's threads hand coroutines to the loop and wait (`Worker.run`), so every sandbox, engine connection and rollout of a process
lives on one loop, whatever number of jobs is at work. Nothing is opened before it is asked for.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.errors import ImageMissing, NotFound, SandboxError
from gymsmith.policy import HttpPolicy
from gymsmith.schema import Environment, JobContext
from gymsmith.store import Store
from gymsmith.taskdir import Task
from sandboxes import layout
from sandboxes.base import MIB, Image, Provider
from sandboxes.image.images import ImageStore

if TYPE_CHECKING:
    from sandboxes.browser.service import RenderService

log = logging.getLogger(__name__)
T = TypeVar("T")

KEPT_BYTES = 256 * MIB
"""Size of the tasks that stay in memory, the least recently used one leaving first."""

MAX_WARM = 32
"""Warm sandboxes where starting one takes an engine a third of a second; where it takes a millisecond there are none."""

CHECK_S = 1.0
"""How often a waiting job looks whether it was cancelled."""


class Ready(NamedTuple):
    """An environment whose task is in memory and whose image is on this machine."""

    environment: Environment
    task: Task
    image: Image


class Worker:
    """Belongs to one process; thread-safe where it says so."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loop = asyncio.new_event_loop()
        self._why_ended = "it was closed"
        self._thread = threading.Thread(target=self._serve, name="sandboxes", daemon=True)
        self._thread.start()
        self._opening = asyncio.Lock()
        self._provider: Provider | None = None
        self._renderer: RenderService | None = None
        self._images = ImageStore(settings.images_dir)
        self.slots = asyncio.Semaphore(settings.max_sandboxes)
        """One for each sandbox that may be alive; hold one (on the loop) around each attempt."""
        self._ready: OrderedDict[str, Ready] = OrderedDict()
        self._kept = 0
        self._policies: dict[tuple[str, str], HttpPolicy] = {}

    def run(self, work: Coroutine[Any, Any, T], ctx: JobContext | None = None) -> T:
        """Run a coroutine on the loop and wait for it, from any other thread.

        With `ctx` the job's lease is looked at meanwhile; when it is lost or the job is cancelled, so is the work.
        Raises: what `work` raises; Fenced; SandboxError (the loop has ended).
        """
        if not self._thread.is_alive():
            work.close()
            raise self._ended()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                try:
                    return future.result(timeout=CHECK_S)
                except concurrent.futures.TimeoutError:
                    if future.done():
                        return future.result()
                    if not self._thread.is_alive():
                        raise self._ended() from None
                    if ctx is not None:
                        ctx.check()
        except BaseException:
            if not future.done():
                future.cancel()
                concurrent.futures.wait([future], timeout=30.0 if self._thread.is_alive() else 0.0)
            raise

    def _ended(self) -> SandboxError:
        return SandboxError(f"the sandboxes of this process have ended: {self._why_ended}; start the process anew")

    async def provider(self) -> Provider:
        """The sandbox provider of this process, opened on first use."""
        async with self._opening:
            if self._provider is None:
                layout.offer(self.renderer)
                from sandboxes.pool import Maker, WarmPool
                from sandboxes.providers import open_provider

                self._images.provider = self._provider = await open_provider(self.settings, self._images)
                warm = self.settings.warm_sandboxes
                if warm < 0:
                    warm = MAX_WARM if self._provider.name == "docker" else 0
                if warm and isinstance(self._provider, Maker):
                    self._provider = WarmPool(self._provider, max_warm=warm)
            return self._provider

    async def renderer(self) -> RenderService:
        """The render service of this process, opened on first use. Raises: Capacity (no browser can be had here)."""
        async with self._opening:
            if self._renderer is None:
                from sandboxes.browser.service import RenderService

                place = self.settings
                self._renderer = await RenderService.start(place.sandboxes_dir, place.images_dir, chromium=place.chromium)
            return self._renderer

    async def images(self) -> ImageStore:
        """The image store, able to build."""
        await self.provider()
        return self._images

    async def ready(self, store: Store, environment_id: str) -> Ready:
        """The environment of this id, from the store and its folder; kept for the next job.

        Raises:
            NotFound: no such environment.
            ImageMissing: its image is not on this machine and cannot be made from its folder alone.
        """
        known = self._ready.get(environment_id)
        if known is not None:
            self._ready.move_to_end(environment_id)
            return known
        environment, task = await asyncio.to_thread(_read, store, self.settings, environment_id)
        made = Ready(environment, task, await self._image(environment, task))
        if environment_id not in self._ready:
            self._ready[environment_id] = made
            self._kept += _size(task)
        while self._kept > KEPT_BYTES and len(self._ready) > 1:
            self._kept -= _size(self._ready.popitem(last=False)[1].task)
        return made

    async def _image(self, environment: Environment, task: Task) -> Image:
        images = await self.images()
        if environment.image_id:
            try:
                return images.get(environment.image_id)
            except ImageMissing:
                if "/wheelhouse" in task.dockerfile:
                    raise
        return await images.build(task.dockerfile, task.under("environment"), executable=_executable(task))

    def policy(self, store: Store, run_id: str, url: str) -> HttpPolicy:
        """The client of the engine that serves `run_id`; its Run row says where the engine went when it restarts. On the loop."""
        key = (run_id, url)
        if key not in self._policies:
            self._policies[key] = HttpPolicy(_address(store, run_id, url))
        return self._policies[key]

    def close(self) -> None:
        """Destroy every sandbox and end the loop."""
        if not self._thread.is_alive():
            return
        try:
            self.run(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10.0)

    async def _close(self) -> None:
        for policy in self._policies.values():
            await policy.close()
        self._policies.clear()
        layout.offer(None)
        if self._renderer is not None:
            renderer, self._renderer = self._renderer, None
            await renderer.close()
        if self._provider is not None:
            provider, self._provider = self._provider, None
            await provider.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        except BaseException as error:  # an exit that some callback asked for: whoever waits in `run` must hear of it
            self._why_ended = f"{type(error).__name__}: {error}"
            log.critical("event=sandbox_loop_ended error=%s", self._why_ended, exc_info=error)
        finally:
            self._loop.close()


_workers: dict[Settings, Worker] = {}
_guard = threading.Lock()


def process_worker(settings: Settings) -> Worker:
    """The worker of this process for these settings, made on first use and closed at exit."""
    with _guard:
        if settings not in _workers:
            _workers[settings] = Worker(settings)
            atexit.register(_workers[settings].close)
        return _workers[settings]


def close_all() -> None:
    """Close every worker of this process. At interpreter exit it is too late for a provider that needs threads to do so."""
    for worker in list(_workers.values()):
        worker.close()


def _read(store: Store, settings: Settings, environment_id: str) -> tuple[Environment, Task]:
    environment = store.environment(environment_id)
    folder = taskdir.folder_of(settings.tasks_dir, environment_id)
    if not folder.is_dir():
        raise NotFound(
            f"environment {environment_id} should have its folder at {folder}, nothing is there; generate it again or copy the "
            "tasks folder of the machine that made it"
        )
    return environment, taskdir.read(folder)


def _size(task: Task) -> int:
    return sum(map(len, task.files.values()))


def _executable(task: Task) -> frozenset[str]:
    prefix = "environment/"
    return frozenset(name.removeprefix(prefix) for name in task.executable if name.startswith(prefix))


def _address(store: Store, run_id: str, url: str) -> Callable[[], str]:
    """Where the engine of a run listens now; `url` when its row does not say."""

    def find() -> str:
        try:
            return (store.run(run_id).engine_url if run_id else "") or url
        except NotFound:
            return url

    return find
