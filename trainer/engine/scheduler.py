"""Continuous batching: requests take slots as these come free, prompts are prefilled in chunks between decode steps.

A slot keeps its tokens and their cache when its request is done, so the next turn of the same conversation only prefills what is
new; a prompt that another slot holds is copied. None of this changes a bit of what a request returns (see `geometry`), so results
do not depend on timing or on company.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from gymsmith.errors import ConfigError, UserError
from trainer.config import EngineConfig
from trainer.engine.decoder import Chunk, Decoder
from trainer.engine.geometry import Geometry
from trainer.engine.sampler import sample
from trainer.model.config import ModelConfig

COPY_GAIN = 8
"""Cached tokens of another slot are copied when they save at least so many."""


@dataclass(slots=True, eq=False)
class Request:
    """One generation. `tokens` holds the prompt, then what was produced."""

    rid: str
    tokens: list[int]
    max_new_tokens: int
    temperature: float
    seed: int
    stop: frozenset[int]
    done: Callable[[Request], None]
    """Called once, when `finish` is set."""
    prompt: int = 0
    logprobs: list[float] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    """Weight version of each produced token."""
    finish: Literal["", "stop", "length", "abort"] = ""
    slot: int = -1
    cached: int = 0
    """Prompt tokens that were not computed again."""
    retractions: int = 0

    @property
    def output(self) -> list[int]:
        """Produced ids."""
        return self.tokens[self.prompt :]

    def spans(self) -> list[dict[str, str | int]]:
        """Produced positions [start, end) per weight version, in SGLang's form."""
        out: list[dict[str, str | int]] = []
        for i, version in enumerate(self.versions):
            if out and out[-1]["version"] == version:
                out[-1]["end"] = i + 1
            else:
                out.append({"version": version, "start": i, "end": i + 1})
        return out


@dataclass(slots=True)
class Slot:
    """One row of the decoder."""

    request: Request | None = None
    filled: int = 0
    """Tokens of this slot's row of `Engine.held` whose keys and values are in the cache."""
    used: int = 0
    """Clock of the last use."""


class Engine:
    """Requests in, tokens out, one `step` at a time. Not thread-safe: one thread owns it."""

    def __init__(self, model: ModelConfig, config: EngineConfig, geometry: Geometry | None = None) -> None:
        if model.max_positions < config.context:
            raise ConfigError(
                f"engine.context must be <= the model's {model.max_positions} positions, got {config.context}; lower it"
            )
        self.config = config
        self.decoder = Decoder(model, config, geometry)
        self.version = ""
        self.paused = False
        self.waiting: deque[Request] = deque()
        self.slots = [Slot() for _ in range(config.slots)]
        self.held = np.full((config.slots, config.context + 1), -1, np.int64)
        self.prefilling: list[Request] = []
        self.decoding: list[Request] = []
        self.patience = 0
        self.clock = 0
        self.counts: Counter[str] = Counter()
        """decode_steps, decode_tokens, prefill_steps, prefill_tokens, cached_tokens, slot_steps."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """prefill, decode."""

    def update(self, weights: Mapping[str, Tensor], version: str) -> None:
        """Serve these weights from the next token on. Caches of running requests stay; see `retract` and `flush`."""
        self.decoder.load(weights)
        self.version = version

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            UserError: an empty prompt, ids outside the vocabulary, or more tokens than the context holds.
        """
        request.prompt = len(request.tokens)
        vocabulary = self.decoder.config.vocab_size
        if not request.tokens or min(request.tokens) < 0 or max(request.tokens) >= vocabulary:
            raise UserError(f"expected input_ids within [0, {vocabulary}), got {request.tokens[:8]}; wrong tokenizer?")
        if request.prompt + request.max_new_tokens > self.config.context or request.max_new_tokens < 1:
            raise UserError(
                f"expected at least 1 new token and prompt + max_new_tokens <= {self.config.context}, "
                f"got {request.prompt} + {request.max_new_tokens}; shorten the prompt or raise engine.context"
            )
        self.waiting.append(request)

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return not self.paused and bool(self.waiting or self.prefilling or self.decoding)

    @property
    def load(self) -> int:
        """Requests that are not done."""
        return len(self.waiting) + len(self.prefilling) + len(self.decoding)

    def step(self) -> None:
        """Admit, prefill one chunk of each waiting prompt when it is time to, decode one token of every running sequence."""
        if not self.busy:
            return
        self._admit()
        half_done = any(self.slots[r.slot].filled > r.cached for r in self.prefilling)
        enough = len(self.prefilling) >= self.config.prefill_batch or self.patience >= self.config.prefill_wait
        if self.prefilling and (half_done or enough or not self.decoding):
            started = time.perf_counter()
            self._prefill()
            self.seconds["prefill"] += time.perf_counter() - started
            self.patience = 0
        if self.decoding:
            started = time.perf_counter()
            self._decode()
            self.seconds["decode"] += time.perf_counter() - started
            self.patience += 1

    def abort(self, rid: str = "") -> int:
        """End one request, or all, with what it has.

        Returns:
            How many were ended.
        """
        chosen = [r for r in (*self.waiting, *self.prefilling, *self.decoding) if rid in ("", r.rid)]
        for request in chosen:
            self._finish(request, "abort")
        return len(chosen)

    def retract(self) -> None:
        """Send running requests back to the queue; their tokens stay, their caches are computed anew."""
        for request in reversed([*self.prefilling, *self.decoding]):
            self.slots[request.slot].request = None
            request.slot, request.retractions = -1, request.retractions + 1
            self.waiting.appendleft(request)
        self.prefilling.clear()
        self.decoding.clear()
        self.flush()

    def flush(self) -> bool:
        """Forget cached tokens of idle slots. False when running requests keep theirs."""
        for slot in self.slots:
            if slot.request is None:
                slot.filled = 0
        return not (self.prefilling or self.decoding)

    def _admit(self) -> None:
        if self.config.batching == "static" and (self.decoding or self.prefilling):
            return
        while self.waiting:
            free = [i for i, slot in enumerate(self.slots) if slot.request is None]
            if not free:
                return
            self._place(self.waiting.popleft(), free)

    def _place(self, request: Request, free: Sequence[int]) -> None:
        """Give a request the idle slot that saves most; ties go to the longest unused."""
        known = self._common(request.tokens)
        best = max(free, key=lambda i: (known[i], -self.slots[i].used, -i))
        elsewhere = int(known.argmax())
        if known[best] + COPY_GAIN <= known[elsewhere]:
            best = min(free, key=lambda i: (self.slots[i].filled > 0, self.slots[i].used, i))
            self.decoder.copy(elsewhere, best, int(known[elsewhere]))
            known[best] = known[elsewhere]
        elif known[best] < COPY_GAIN:
            best = min(free, key=lambda i: (self.slots[i].filled > 0, self.slots[i].used, i))
            known[best] = 0
        slot = self.slots[best]
        slot.request, slot.filled = request, int(known[best])
        self.held[best, : len(request.tokens)] = request.tokens
        request.slot, request.cached = best, slot.filled
        self.counts["cached_tokens"] += slot.filled
        self.prefilling.append(request)

    def _common(self, tokens: Sequence[int]) -> np.ndarray:
        """Per slot, how many leading tokens of a prompt its cache holds; at most all but one, which must be computed."""
        if not self.decoder.geometry.elastic:
            return np.zeros(len(self.slots), np.int64)
        ids = np.asarray(tokens[:-1], np.int64)
        same = np.logical_and.accumulate(self.held[:, : len(ids)] == ids, axis=1).sum(1)
        return self.decoder.usable(np.minimum(same, [slot.filled for slot in self.slots]))

    def _prefill(self) -> None:
        """One chunk for each prompt. Prompts that are equal from the start are computed once and copied."""
        leaders: dict[tuple[int, ...], Request] = {}
        twins: list[tuple[Request, Request]] = []
        chosen: list[Request] = []
        for request in self.prefilling:
            key = (self.slots[request.slot].filled, *request.tokens) if self.decoder.geometry.elastic else (request.slot,)
            leader = leaders.setdefault(key, request)
            if leader is request:
                chosen.append(request)
            else:
                twins.append((leader, request))
        chunks = []
        for request in chosen:
            start = self.slots[request.slot].filled
            chunks.append(Chunk(request.slot, start, min(start + self.config.chunk, len(request.tokens))))
        logits = self.decoder.prefill(self.held, chunks)
        ready: list[Request] = []
        rows: list[int] = []
        place = {id(request): row for row, request in enumerate(chosen)}
        for row, (request, chunk) in enumerate(zip(chosen, chunks, strict=True)):
            self.slots[request.slot].filled = chunk.stop
            self.counts["prefill_tokens"] += chunk.stop - chunk.start
            if chunk.stop == len(request.tokens):
                ready.append(request)
                rows.append(row)
        for leader, request in twins:
            filled = self.slots[leader.slot].filled
            self.decoder.copy(leader.slot, request.slot, filled)
            self.slots[request.slot].filled = request.cached = filled
            self.counts["cached_tokens"] += filled
            if filled == len(request.tokens):
                ready.append(request)
                rows.append(place[id(leader)])
        self.counts["prefill_steps"] += 1
        if ready:
            gone = {id(r) for r in ready}
            self.prefilling = [r for r in self.prefilling if id(r) not in gone]
            self.decoding += ready
            self._sample(ready, logits[rows])

    def _decode(self) -> None:
        running = list(self.decoding)
        slots = np.array([r.slot for r in running])
        lengths = np.array([len(r.tokens) for r in running])
        logits = self.decoder.decode(self.held, slots, lengths)
        for request, length in zip(running, lengths.tolist(), strict=True):
            self.slots[request.slot].filled = length
        self.counts["decode_steps"] += 1
        self.counts["decode_tokens"] += len(running)
        self.counts["slot_steps"] += self.config.slots
        self._sample(running, logits)

    def _sample(self, requests: Sequence[Request], logits: Tensor) -> None:
        """One token for each, in order."""
        ids, logprobs = sample(
            logits, [r.temperature for r in requests], [r.seed for r in requests], [len(r.tokens) for r in requests]
        )
        for request, token, logprob in zip(requests, ids, logprobs, strict=True):
            self.held[request.slot, len(request.tokens)] = token
            request.tokens.append(token)
            request.logprobs.append(logprob)
            request.versions.append(self.version)
            if token in request.stop:
                self._finish(request, "stop")
            elif len(request.logprobs) >= request.max_new_tokens:
                self._finish(request, "length")

    def _finish(self, request: Request, reason: Literal["stop", "length", "abort"]) -> None:
        for queue in (self.waiting, self.prefilling, self.decoding):
            if request in queue:
                queue.remove(request)
        if request.slot >= 0:
            self.clock += 1
            slot = self.slots[request.slot]
            slot.request, slot.used = None, self.clock
        request.finish = reason
        request.done(request)
