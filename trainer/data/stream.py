"""Micro-batches of a mix, read ahead by worker threads, resumable exactly.

Workers and read-ahead change when a batch is made, never which: the state is the plan that the next batch belongs to and its
place in it. Copying and checking bytes releases the interpreter's lock, so threads are enough and share the mapped shards.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from gymsmith.errors import ConfigError
from trainer.data.mix import Mix, Place, Window
from trainer.data.packing import Batch

Slot = tuple[Window, int]
"""A micro-batch: its window and its number in it."""


class Stream:
    """Batches in order.

    Args:
        workers: threads that read.
        ahead: batches that are kept ready.
    """

    def __init__(self, mix: Mix, workers: int = 1, ahead: int = 4) -> None:
        self.mix = mix
        self.workers, self.ahead = max(1, workers), max(1, ahead)
        self.waited_s = 0.0
        """Seconds that `next` has waited for data."""
        self._last: Slot
        self._begin(Place(), 0)

    def next(self) -> Batch:
        """The next micro-batch.

        Raises:
            CorruptData: a document is damaged; the message names it.
            ConfigError: every phase is over.
        """
        started = time.perf_counter()
        if not self._coming:
            phases = len(self.mix.phases)
            raise ConfigError(f"expected one more batch, got the end of all {phases} phases; give the last one more steps")
        batch, (window, index) = self._coming.popleft()
        found = batch.result()
        self._last = window, index
        self._fill()
        self.waited_s += time.perf_counter() - started
        return found

    @property
    def epochs(self) -> dict[str, float]:
        """How often each source has been dealt, the current window included."""
        dealt = self._last[0].after.dealt
        return {deck.name: deck.epoch(dealt[deck.name]) for deck in self.mix.decks if deck.name in dealt}

    def state(self) -> dict[str, Any]:
        """Where the next batch lies; JSON-able."""
        window, index = self._last
        return {"window": window.start.dump(), "index": index + 1}

    def restore(self, state: dict[str, Any]) -> None:
        """Go where `state` was taken, by a stream of any number of workers and any depth."""
        self.close()
        self._begin(Place(**state["window"]), int(state["index"]))

    def close(self) -> None:
        """Stop reading ahead."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, start: Place, index: int) -> None:
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        window = self.mix.plan(start)
        self._last = window, index - 1
        self._slots = self._walk(window, index)
        self._coming: deque[tuple[Future[Batch], Slot]] = deque()
        self._fill()

    def _walk(self, window: Window, index: int) -> Iterator[Slot]:
        """Every slot from here on; the next window is planned while this one is read."""
        while True:
            over = window.after.phase == len(self.mix.phases)
            coming = None if over else self._pool.submit(self.mix.plan, window.after)
            for i in range(index, window.batches):
                yield window, i
            if coming is None:
                return
            window, index = coming.result(), 0

    def _fill(self) -> None:
        for slot in islice(self._slots, self.ahead - len(self._coming)):
            self._coming.append((self._pool.submit(self.mix.read, *slot), slot))
