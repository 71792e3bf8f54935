"""The chat client against a real HTTP server: what is asked again, what never is, what is cut off, where the key goes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import pytest

from gymsmith import doctor, llm
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, LlmError, LlmRefused
from gymsmith.llm import Answer, Endpoint, LlmClient
from tests.env_factory.endpoint import KEY, serving

ASKED = [{"role": "system", "content": "You write tasks."}, {"role": "user", "content": "One, please."}]


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("GYMSMITH_LLM_")]:
        monkeypatch.delenv(name)


def ask(endpoint: Endpoint, **more: Any) -> Answer:
    async def once() -> Answer:
        async with LlmClient(endpoint, first_pause_s=0.01) as client:
            return await client.complete(ASKED, **({"max_tokens": 100, "seed": 7} | more))

    return asyncio.run(once())


def answered(script: Sequence[str], **more: Any) -> tuple[Answer, list[dict[str, Any]]]:
    with serving(script) as served:
        return ask(Endpoint.of(Settings.load(**served.settings())), **more), served.asked


def test_request_answer_and_cost() -> None:
    schema = {"title": "Task", "type": "object"}
    answer, (asked,) = answered(["terminal-good"], schema=schema)
    assert asked == {
        "model": "recorded-1", "messages": ASKED, "max_tokens": 100, "temperature": 0.0, "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "Task", "schema": schema}},
    }  # fmt: skip
    assert "Registers of a choir" in answer.text and (answer.finish, answer.requests, answer.estimated) == ("stop", 1, False)
    assert (answer.prompt_tokens, answer.completion_tokens) == (1000, 500)
    assert answer.cost_usd == pytest.approx((1000 * 2.0 + 500 * 10.0) / 1e6)


def test_busy_away_cut_off_or_out_of_the_format_is_asked_again() -> None:
    answer, asked = answered(["busy", "down", "cut", "a-web-page", "terminal-good"])
    assert answer.requests == 5 and asked[0] == asked[4] and "choir" in answer.text


def test_a_silent_endpoint_is_asked_again_and_then_counts_as_away() -> None:
    with serving(["silent", "terminal-good"]) as served:
        endpoint = Endpoint.of(Settings.load(**served.settings(), llm_timeout_s=0.3))
        assert ask(endpoint).requests == 2
    with serving(lambda _: "down") as served:
        with pytest.raises(LlmError, match="within 6 requests, the last got 503"):
            ask(Endpoint.of(Settings.load(**served.settings())))
        assert len(served.asked) == llm.TRIES
    with pytest.raises(LlmError, match="within 6 requests"):
        ask(Endpoint.of(Settings.load(**served.settings())))  # nobody listens there any more


@pytest.mark.parametrize(("script", "says"), [("no-credit", "no credit left"), ("key-refused", "look at GYMSMITH_LLM_KEY")])
def test_what_never_changes_is_asked_once_and_the_key_is_not_told(
    script: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), serving([script]) as served, pytest.raises(LlmRefused, match=says) as refused:
        ask(Endpoint.of(Settings.load(**served.settings())))
    assert served.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(refused.value) + caplog.text


def test_a_parameter_that_the_endpoint_does_not_know_is_left_out() -> None:
    answer, asked = answered(["no-response-format", "terminal-good"], schema={"type": "object"})
    assert answer.requests == 1 and "response_format" in asked[0] and "response_format" not in asked[1]


def test_questions_under_way_together_learn_the_same() -> None:
    async def both(endpoint: Endpoint) -> list[Answer]:
        async with LlmClient(endpoint, first_pause_s=0.01) as client:
            asked = [client.complete(ASKED, max_tokens=9, seed=n, schema={"type": "object"}) for n in range(4)]
            return await asyncio.gather(*asked)

    with serving(lambda body: "no-response-format" if "response_format" in body else "terminal-good") as served:
        assert all(answer.requests == 1 for answer in asyncio.run(both(Endpoint.of(Settings.load(**served.settings())))))


def test_an_answer_without_an_end_is_cut_off_and_counted() -> None:
    answer, asked = answered(["endless"])
    assert answer.finish == "endless" and answer.estimated and len(asked) == 1
    assert answer.completion_tokens > llm.MAX_ANSWER_BYTES / 4 and answer.cost_usd > 0


def test_tokens_that_nobody_counted_are_estimated_and_said_to_be() -> None:
    answer, _ = answered(["uncounted"])
    assert answer.estimated and answer.prompt_tokens == 10 and answer.completion_tokens > 500


def test_a_key_in_an_answer_is_taken_out() -> None:
    answer, _ = answered(["repeats-the-key"])
    assert KEY not in answer.text and "The key is [key]." in answer.text
    # Servers of one's own take anything, and "x" stands in every script.
    assert LlmClient(Endpoint("http://127.0.0.1/v1", "m", "x")).clean("exit 0") == "exit 0"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "set GYMSMITH_LLM_URL"),
        ({"llm_url": "ftp://h/v1", "llm_model": "m"}, "scheme 'ftp'"),
        ({"llm_url": "https://h/v1"}, "GYMSMITH_LLM_MODEL"),
        ({"llm_url": "https://me:secret@h/v1", "llm_model": "m"}, "must not hold a name or a password"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused_in_words(given: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        Endpoint.of(Settings.load(**given))
    assert "secret" not in str(refused.value)


def test_settings_and_endpoints_do_not_show_the_key() -> None:
    settings = Settings.load(llm_url="https://h/v1?api-version=3", llm_key=KEY, llm_model="m")
    endpoint = Endpoint.of(settings)
    assert KEY not in repr(settings) + repr(endpoint)
    assert (endpoint.where, endpoint.target) == ("https://h/v1", "https://h/v1/chat/completions?api-version=3")


def test_the_doctor_asks_the_endpoint_and_buys_nothing() -> None:
    none = doctor.language_model(Settings.load())
    assert none.state == "missing" and "none is needed" in none.detail and "GYMSMITH_LLM_URL" in none.next_move
    with serving([]) as served:
        good = doctor.language_model(Settings.load(**served.settings()))
        assert good.state == "ok" and "recorded-1 at http://127.0.0.1" in good.detail and "2 and 10 USD" in good.detail
        other = doctor.language_model(Settings.load(**served.settings() | {"llm_model": "another"}))
        assert other.state == "missing" and "lists recorded-1" in other.detail
        refused = doctor.language_model(Settings.load(**served.settings() | {"llm_key": KEY + "x"}))
        assert refused.state == "missing" and "does not take the key" in refused.detail
        assert served.asked == [] and not any(KEY in str(check) for check in (good, other, refused))
    assert "does not answer" in doctor.language_model(Settings.load(**served.settings())).detail
