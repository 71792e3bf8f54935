"""Folding: which rounds a prompt shows, and the hard limit."""

from __future__ import annotations

import itertools
import time

import pytest

from context_mgmt.budget import Budget, Limits
from context_mgmt.chat import Chat
from context_mgmt.fold import FoldConfig, Window


def filled(chat: Chat, config: FoldConfig, rounds: int) -> tuple[Window, list[str | None]]:
    """A window after `rounds` rounds `cat N` -> `out N`, and each prompt as text."""
    window = Window(chat, "task", config)
    texts: list[str | None] = []
    for i in range(rounds + 1):
        prompt = window.prompt(8)
        texts.append(None if prompt is None else chat.decode(prompt))
        window.add(chat.action(f"cat {i}"), chat.observation(f"out {i}", config.observation_tokens))
    return window, texts


HEAD = "<|doc|><|task|>task<|end|><|act|>"


def shown(i: int, text: str | None = None) -> str:
    return f"cat {i}<|end|><|obs|>{text or f'out {i}'}<|end|><|act|>"


def test_no_folding_shows_everything(chat: Chat) -> None:
    _, texts = filled(chat, FoldConfig(limit_tokens=4096), 4)
    assert texts[4] == HEAD + "".join(map(shown, range(4)))


def test_turns_older_than_k_leave(chat: Chat) -> None:
    window, texts = filled(chat, FoldConfig(keep_recent_k=2, limit_tokens=4096), 5)
    assert texts[:4] == [HEAD, HEAD + shown(0), HEAD + shown(0) + shown(1), HEAD + shown(1) + shown(2)]
    assert texts[5] == HEAD + shown(3) + shown(4)
    assert window.folded == window.dropped == 3


def test_observations_older_than_k_leave_and_actions_stay(chat: Chat) -> None:
    window, texts = filled(chat, FoldConfig(keep_recent_k=1, fold="observations", limit_tokens=4096), 3)
    assert texts[3] == HEAD + shown(0, "omitted") + shown(1, "omitted") + shown(2)
    assert (window.folded, window.dropped) == (2, 0)


def test_block_folding_makes_prompts_that_extend_each_other(chat: Chat) -> None:
    _, texts = filled(chat, FoldConfig(keep_recent_k=2, every=3, limit_tokens=4096), 9)
    forks = sum(not b.startswith(a) for a, b in itertools.pairwise(texts) if a and b)
    assert forks == 2  # rounds 5 and 8 fold; without blocks every round from 3 on does
    assert texts[5] == HEAD + shown(3) + shown(4)
    assert texts[7] == HEAD + "".join(map(shown, (3, 4, 5, 6)))


def test_hard_limit_restarts_from_the_last_rounds_and_then_gives_up(chat: Chat) -> None:
    one = len(chat.action("cat 0")) + len(chat.observation("out 0", 56))
    start = len(chat.start("task"))
    config = FoldConfig(keep_recent_k=3, fold="observations", limit_tokens=start + 3 * one + 8 + 1)
    _, texts = filled(chat, config, 5)
    assert texts[3] == HEAD + "".join(map(shown, (0, 1, 2)))
    assert texts[4] == HEAD + "".join(map(shown, (1, 2, 3)))  # with the marker of round 0 it would not fit
    tight = FoldConfig(keep_recent_k=3, limit_tokens=start + one + 8)
    assert filled(chat, tight, 3)[1][3] == HEAD + shown(2)
    assert filled(chat, FoldConfig(keep_recent_k=3, limit_tokens=max(16, start + one + 7)), 3)[1][1] is None
    assert filled(chat, FoldConfig(limit_tokens=start + one + 8), 3)[1][1:3] == [HEAD + shown(0), None]


def test_config_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="keep_recent_k"):
        FoldConfig(keep_recent_k=0)
    with pytest.raises(ValueError, match="extra"):
        FoldConfig.model_validate({"keep": 1})


def test_budget_names_what_ran_out() -> None:
    budget = Budget(Limits(max_turns=2))
    assert budget.spent() is None
    budget.spend(5)
    assert budget.spent() is None
    budget.spend(5)
    assert (budget.spent(), budget.generated_tokens) == ("turns", 10)
    late = Budget(Limits(timeout_s=1.0), started=time.monotonic() - 2.0)
    assert (late.spent(), late.seconds_left) == ("timeout", 0.0)
