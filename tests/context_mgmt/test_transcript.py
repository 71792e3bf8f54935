"""The transcript: every sampled id is kept, trains exactly once, and context trains never."""

from __future__ import annotations

import math
import random

import pytest

from context_mgmt.chat import Chat
from context_mgmt.fold import FoldConfig, Window
from context_mgmt.transcript import Transcript
from gymsmith.schema import Generation, Segment, VersionSpan

ALPHABET = ["a", "Z", " ", "\n", "é", "漢", "🙂", "<|end|>", "<|act|>", "\x00", "ls", "12"]


def generation(ids: list[int], version: str = "7", logprob: float = -0.5) -> Generation:
    return Generation(
        ids=ids, logprobs=[logprob] * len(ids), versions=[VersionSpan(version=version, start=0, end=len(ids))], finish="stop"
    )


def play(chat: Chat, config: FoldConfig, rng: random.Random) -> tuple[Transcript, Window, list[list[int]], list[list[int]]]:
    """A random dialogue; returns what each call saw and what it produced."""
    transcript, window = Transcript(), Window(chat, "".join(rng.choices(ALPHABET, k=8)), config)
    prompts, produced = [], []
    for _ in range(rng.randrange(1, 12)):
        prompt = window.prompt(8)
        if prompt is None:
            break
        action = [rng.randrange(chat.vocab_size) for _ in range(rng.randrange(0, 7))]
        if rng.random() < 0.8:
            action.append(chat.end)
        transcript.record(prompt, generation(action))
        prompts.append(prompt)
        produced.append(action)
        window.add(
            action + chat.closing(action),
            chat.observation("".join(rng.choices(ALPHABET, k=rng.randrange(30))), config.observation_tokens),
        )
    return transcript, window, prompts, produced


CONFIGS = [
    FoldConfig(limit_tokens=4096),
    FoldConfig(keep_recent_k=1, limit_tokens=4096),
    FoldConfig(keep_recent_k=2, fold="observations", limit_tokens=4096),
    FoldConfig(keep_recent_k=2, every=3, limit_tokens=4096),
    FoldConfig(keep_recent_k=3, fold="observations", limit_tokens=120, observation_tokens=20),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.fold}-{c.keep_recent_k}-{c.every}-{c.limit_tokens}")
def test_random_dialogues_keep_every_sampled_id_once(chat: Chat, config: FoldConfig) -> None:
    rng = random.Random(5)
    several = 0
    for _ in range(200):
        transcript, _, prompts, produced = play(chat, config, rng)
        segments = transcript.segments()
        several += len(segments) > 1
        trained = [i for s in segments for i, m in zip(s.ids, s.mask, strict=True) if m]
        assert trained == [i for action in produced for i in action]
        for s in segments:
            assert len(s.ids) == len(s.mask) == len(s.logprobs)
            assert [p != 0.0 for p in s.logprobs] == [m == 1 for m in s.mask]
            assert sum(span.end - span.start for span in s.versions) == sum(s.mask)
        full = [*transcript._segments]
        for prompt, action in zip(prompts, produced, strict=True):
            exact = prompt + action
            assert any(s.ids[: len(exact)] == exact for s in full), "a call's ids must be a prefix of its segment"
    assert (several > 0) == (config.keep_recent_k is not None)


def test_an_extension_stays_in_its_segment_and_a_fold_opens_one() -> None:
    t = Transcript()
    assert t.record([1, 2], generation([3, 4]))
    assert not t.record([1, 2, 3, 4, 9, 9], generation([5], "8"))
    assert t.record([1, 2, 4, 9], generation([6]))
    first, second = t.segments()
    assert first == Segment(
        ids=[1, 2, 3, 4, 9, 9, 5],
        mask=[0, 0, 1, 1, 0, 0, 1],
        logprobs=[0, 0, -0.5, -0.5, 0, 0, -0.5],
        versions=[VersionSpan(version="7", start=2, end=4), VersionSpan(version="8", start=6, end=7)],
    )
    assert (second.ids, second.mask) == ([1, 2, 4, 9, 6], [0, 0, 0, 0, 1])


def test_a_version_change_inside_an_action_keeps_its_place() -> None:
    t = Transcript()
    spans = [VersionSpan(version="1", start=0, end=2), VersionSpan(version="2", start=2, end=3)]
    t.record([0], Generation(ids=[5, 6, 7], logprobs=[-1, -1, -1], versions=spans, finish="stop"))
    assert t.segments()[0].versions == [VersionSpan(version="1", start=1, end=3), VersionSpan(version="2", start=3, end=4)]


def test_an_id_without_logprob_is_context_and_counted() -> None:
    t = Transcript()
    t.record([0], Generation.model_construct(ids=[5, 6], logprobs=[math.nan, -1.0], versions=[], finish="abort"))
    segment = t.segments()[0]
    assert (segment.mask, segment.logprobs, t.unscored) == ([0, 0, 1], [0.0, 0.0, -1.0], 1)


def test_a_generation_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a logprob"):
        Transcript().record([0], Generation(ids=[1, 2], logprobs=[-1.0], versions=[], finish="stop"))
    with pytest.raises(ValueError, match="version spans"):
        Transcript().record(
            [0], Generation(ids=[1], logprobs=[-1.0], versions=[VersionSpan(version="1", start=0, end=2)], finish="stop")
        )
