"""What the API refuses, and how: problem documents, strange hosts and origins, missing tokens."""

from __future__ import annotations

import pytest
from served import HERE, ORDER, V
from starlette.testclient import TestClient

from gymsmith.api import create_app
from gymsmith.config import Settings
from gymsmith.errors import ConfigError
from gymsmith.store import Store


def test_failures_are_problem_documents(client: TestClient, store: Store) -> None:
    for path, status, code in (
        (f"{V}/environments/nope", 404, "not-found"),
        (f"{V}/nope", 404, "not-found"),
        (f"{V}/environments?cursor=junk", 400, "bad-request"),
        (f"{V}/environments?limit=0", 422, "invalid"),
        (f"{V}/environments?label=nocolon", 400, "bad-request"),
        (f"{V}/environments?status=splendid", 422, "invalid"),
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), path
        document = answer.json()
        assert (
            document["code"] == code
            and document["status"] == status
            and document["detail"]
            and document["instance"] == path.split("?")[0]
        )


def test_what_nobody_foresaw_is_a_500_that_tells_nothing(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(store.settings, store)

    @app.get("/healthz/boom")
    def boom() -> None:
        raise RuntimeError("inner secret")

    app.router.routes.insert(0, app.router.routes.pop())
    client = TestClient(app, base_url=HERE)
    answer = client.get("/healthz/boom")
    assert answer.status_code == 500 and "inner secret" not in answer.text and answer.json()["code"] == "internal"
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert "inner secret" in caplog.text


def test_only_this_machine_and_this_origin_may_speak(store: Store) -> None:
    app = create_app(store.settings, store)
    for host in ("127.0.0.1:8642", "localhost:1", "[::1]:8642"):
        assert TestClient(app, base_url=HERE).get("/healthz", headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "127.0.0.1@evil.example"):
        answer = TestClient(app, base_url=HERE).get(f"{V}/jobs", headers={"host": host})
        assert answer.status_code == 403 and answer.json()["code"] == "bad-host", host
    client = TestClient(app, base_url=HERE)
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
    ):
        answer = client.post(f"{V}/environments:generate", json=ORDER, headers=headers)
        assert answer.status_code == 403 and answer.json()["code"] == "bad-origin", headers
    assert store.job_total().n == 0
    assert client.post(f"{V}/environments:generate", json=ORDER, headers={"origin": HERE}).status_code == 202


def test_a_token_guards_everything_but_health_and_login(settings: Settings, store: Store) -> None:
    token = "correct horse battery staple"
    guarded = store.settings.model_copy(update={"host": "0.0.0.0", "token": token})
    client = TestClient(create_app(guarded, store), base_url="http://gym.example", follow_redirects=False)
    assert client.get("/healthz").status_code == 200
    for path in (f"{V}/jobs", "/openapi.json", "/readyz"):
        answer = client.get(path)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
    assert client.get(f"{V}/jobs", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert client.get(f"{V}/jobs", headers={"authorization": f"Bearer {token}"}).status_code == 200
    assert client.get("/jobs").headers["location"] == "/login?next=/jobs"
    assert client.post("/login", data={"token": "wrong", "next": "/jobs"}).status_code == 403
    entered = client.post("/login", data={"token": token, "next": "//evil.example"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert (
        "HttpOnly" in entered.headers["set-cookie"]
        and "SameSite=strict" in entered.headers["set-cookie"]
        and token not in entered.headers["set-cookie"]
    )
    assert client.get("/jobs").status_code == 200, "the cookie is enough for the browser"
    with pytest.raises(ConfigError, match="at least 16 characters"):
        create_app(settings.model_copy(update={"host": "0.0.0.0", "token": "short"}), store)
