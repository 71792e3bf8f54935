"""The token-exact record of an episode: what went into the policy and what came out, as ids.

Each call appends to the present segment when its prompt extends it (`prompt[: len(ids)] == ids`), else it opens a new
segment. Inside a segment only ids sampled in that segment are trainable, so an action that a later prompt repeats as context
trains once, where it was sampled. Nothing here knows text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gymsmith.schema import Generation, Segment, VersionSpan


class Transcript:
    """Segments of one episode, in the order of their first call."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self.sampled = 0
        """Ids that the policy produced."""
        self.unscored = 0
        """Produced ids without a finite logprob; they are context and never train."""

    def record(self, prompt: Sequence[int], generation: Generation) -> bool:
        """Append one call of the policy. Returns whether a new segment was opened.

        Raises:
            ValueError: ids and logprobs differ in length, or a version span leaves the ids.
        """
        n = len(generation.ids)
        if len(generation.logprobs) != n:
            raise ValueError(f"every produced id needs a logprob, got {n} ids and {len(generation.logprobs)} logprobs")
        if any(not 0 <= span.start <= span.end <= n for span in generation.versions):
            raise ValueError(f"version spans must lie within [0, {n}), got {generation.versions}")
        opened = self._context(list(prompt))
        segment = self._segments[-1]
        base = len(segment.ids)
        scored = [math.isfinite(p) for p in generation.logprobs]
        segment.ids.extend(generation.ids)
        segment.mask.extend(map(int, scored))
        segment.logprobs.extend(p if ok else 0.0 for p, ok in zip(generation.logprobs, scored, strict=True))
        for span in generation.versions:
            last = segment.versions[-1] if segment.versions else None
            if last is not None and last.version == span.version and last.end == base + span.start:
                segment.versions[-1] = VersionSpan.model_construct(version=span.version, start=last.start, end=base + span.end)
            elif span.end > span.start:
                segment.versions.append(
                    VersionSpan.model_construct(version=span.version, start=base + span.start, end=base + span.end)
                )
        self.sampled += n
        self.unscored += n - sum(scored)
        return opened

    def segments(self) -> list[Segment]:
        """The segments that hold something to train on. They belong to the caller once the episode is over."""
        return [segment for segment in self._segments if any(segment.mask)]

    def _context(self, prompt: list[int]) -> bool:
        """Make `prompt` the present context; True when that took a new segment."""
        if self._segments:
            segment = self._segments[-1]
            seen = len(segment.ids)
            if prompt[:seen] == segment.ids:
                new = len(prompt) - seen
                segment.ids.extend(prompt[seen:])
                segment.mask.extend([0] * new)
                segment.logprobs.extend([0.0] * new)
                return False
        self._segments.append(
            Segment.model_construct(ids=prompt, mask=[0] * len(prompt), logprobs=[0.0] * len(prompt), versions=[])
        )
        return True
