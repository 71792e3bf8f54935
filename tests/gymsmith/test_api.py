"""The JSON API against a real store: lists, orders, its own description."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import household
import population
import pytest
from served import HERE, ORDER, V, make_job
from starlette.testclient import TestClient

from gymsmith.api import create_app
from gymsmith.config import Settings
from gymsmith.schema import Metric, Run
from gymsmith.store import Store


@pytest.fixture
def filled(store: Store) -> dict[str, str]:
    """The store holds a small house."""
    return household.fill(store, store.settings)


# ---------------------------------------------------------------- lists


def test_pages_of_5000_environments_are_all_of_them_once(settings: Settings) -> None:
    with Store.open(settings) as store, TestClient(create_app(settings, store), base_url=HERE) as client:
        wanted = set()
        for i in range(5000):
            e = population.environment(i, age_s=10 + i // 7)  # several share a moment, so ties are paged through as well
            store.put_environment(e)
            wanted.add(e.id)
        seen: list[str] = []
        cursor = ""
        while cursor is not None:
            page = client.get(f"{V}/environments", params={"limit": 170, "cursor": cursor}).json()
            seen += [item["id"] for item in page["items"]]
            assert (page["total"], page["total_is_capped"]) == (5000 if len(seen) <= 850 else 5001, False)
            if len(seen) == 850:
                store.put_environment(population.environment(9000))  # newer than all: must not shift the pages that follow
            cursor = page["next_cursor"]
        assert len(seen) == len(set(seen)) == 5000
        assert set(seen) == wanted


def test_search_filters_and_facets_agree(client: TestClient, filled: dict[str, str]) -> None:
    verified = client.get(f"{V}/environments", params={"status": "verified", "label": "family:chain", "limit": 200}).json()
    assert verified["items"]
    assert all(i["status"] == "verified" and i["spec"]["labels"]["family"] == "chain" for i in verified["items"])
    facets = client.get(f"{V}/environments:facets", params={"status": "verified"}).json()
    assert facets["family"]["chain"] == verified["total"] == len(verified["items"])
    assert facets["status"]["rejected"] > 0, "a facet leaves out its own filter, or there is no way back"
    assert "seed" not in facets, "a label with thousands of values is no facet"
    found = client.get(f"{V}/environments", params={"text": "inflec repair"}).json()
    assert found["total"] == facets["kind"].get("mutation", 0) + facets_of(client, "rejected", "mutation") + facets_of(
        client, "unproven", "mutation"
    )
    assert client.get(f"{V}/environments", params={"text": '"; DROP TABLE environments; --'}).status_code == 200
    rejects = client.get(f"{V}/environments:rejects").json()
    assert sum(rejects.values()) == facets["status"]["rejected"]


def facets_of(client: TestClient, status: str, kind: str) -> int:
    """How many of this kind have this status."""
    return int(client.get(f"{V}/environments:facets", params={"status": status}).json()["kind"].get(kind, 0))


def test_one_environment_with_evidence_and_files(client: TestClient, filled: dict[str, str], store: Store) -> None:
    base = f"{V}/environments/{filled['environment']}"
    environment = client.get(base).json()
    gates = {g["name"]: g for g in client.get(f"{base}/evidence").json()["gates"]}
    assert gates["noop"]["rewards"] == [0, 0, 0] and gates["oracle"]["rewards"] == [1, 1, 1]
    names = [f["name"] for f in client.get(f"{base}/files").json()]
    assert names[:2] == ["instruction.md", "task.toml"] and "tests/test.sh" in names
    file = client.get(f"{base}/files/instruction.md")
    assert file.text == environment["instruction"]
    assert file.headers["content-type"] == "application/octet-stream" and file.headers["content-disposition"] == "attachment"

    secret = store.settings.home / "secret"
    secret.write_text("secret")
    root = store.settings.home / environment["path"]
    os.symlink(secret, root / "link")
    os.symlink(store.settings.home, root / "up")
    for name in (
        "link",
        "up/secret",
        "../../../secret",
        "..%2f..%2f..%2fsecret",
        "%2e%2e/%2e%2e/%2e%2e/secret",
        str(secret),
        "tests",
    ):
        answer = client.get(f"{base}/files/{name}")
        assert answer.status_code == 404 and answer.content != b"secret", name


def test_trajectories_are_read_in_parts(client: TestClient, filled: dict[str, str], store: Store) -> None:
    base = f"{V}/trajectories/{filled['trajectory']}"
    x = store.trajectory(filled["trajectory"])
    head = client.get(base).json()
    assert (head["steps"], head["segments"]) == (len(x.steps), [len(s.ids) for s in x.segments])
    steps = []
    offset: str | None = "0"
    while offset is not None:
        page = client.get(f"{base}/steps", params={"offset": offset, "limit": 4}).json()
        steps += page["items"]
        offset = page["next_cursor"]
    assert steps == [s.model_dump(mode="json") for s in x.steps]
    part = client.get(f"{base}/segments/1", params={"offset": 30, "limit": 50}).json()
    s = x.segments[1]
    assert (part["ids"], part["mask"], part["logprobs"]) == (s.ids[30:80], s.mask[30:80], s.logprobs[30:80])
    assert part["texts"] is None, "no tokenizer in the state folder"
    assert client.get(f"{base}/segments/9").status_code == 404
    rows = client.get(f"{V}/trajectories", params={"run_id": "rl-7", "min_reward": 1, "limit": 200}).json()
    assert rows["total"] == len(rows["items"]) > 10 and all(r["reward"] >= 1 for r in rows["items"])
    assert client.get(f"{V}/trajectories", params={"failed": True}).json()["items"][0]["id"] == filled["lost"]


def test_curves_keep_their_shape_and_hold_no_nan(client: TestClient, store: Store) -> None:
    store.put_run(Run(id="r", kind="rl"))
    store.put_metrics(
        [Metric(run_id="r", step=s, name="loss", value=100.0 if s == 7001 else math.sin(s / 500)) for s in range(10_000)]
    )
    store.put_metrics([Metric(run_id="r", step=3, name="bad", value=math.nan)])
    body = client.get(f"{V}/runs/r/metrics", params={"points": 500})
    series = json.loads(body.text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))["series"]
    assert len(series["loss"]) == 500
    assert [7001, 100.0] in series["loss"], "thinning lost a spike"
    assert (series["loss"][0][0], series["loss"][-1][0]) == (0, 9999)
    assert series["bad"] == [[3, None]]
    later = client.get(f"{V}/runs/r/metrics", params={"after": 9990, "name": "loss"}).json()
    assert [p[0] for p in later["series"]["loss"]] == list(range(9991, 10_000)) and later["last_step"] == 9999
    assert client.get(f"{V}/runs/nope/metrics").status_code == 404


# ---------------------------------------------------------------- orders


def test_an_import_is_a_job_of_its_own_kind(client: TestClient) -> None:
    answer = client.post(f"{V}/environments:import", json={"path": "/data/tasks", "format": "harbor"})
    job = answer.json()
    assert answer.status_code == 202 and answer.headers["location"] == f"{V}/jobs/{job['id']}"
    assert (job["kind"], job["queue"], job["payload"]) == ("import", "factory", {"path": "/data/tasks", "format": "harbor"})
    for wrong in ({"path": ""}, {"path": "x", "format": "zip"}, {"path": "x", "more": 1}):
        assert client.post(f"{V}/environments:import", json=wrong).status_code == 422


def test_equal_orders_with_one_key_are_one_job(client: TestClient, store: Store) -> None:
    def post(_: int) -> Any:
        return client.post(f"{V}/environments:generate", json=ORDER, headers={"idempotency-key": "k1"})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(post, range(48)))
    assert {a.status_code for a in answers} == {202}
    assert len({a.json()["id"] for a in answers}) == 1 == store.job_total().n
    assert sum("idempotency-replayed" not in a.headers for a in answers) >= 1
    job = answers[0].json()
    assert answers[0].headers["location"] == f"{V}/jobs/{job['id']}"
    assert (job["kind"], job["queue"], job["payload"]["n"], job["payload"]["gates"]) == ("generate", "factory", 12, "admission")
    other = client.post(f"{V}/environments:generate", json=ORDER | {"n": 13}, headers={"idempotency-key": "k1"})
    assert other.status_code == 409 and other.json()["code"] == "conflict"
    assert client.post(f"{V}/environments:generate", json=ORDER).json()["id"] != job["id"], "without a key every order is new"


def test_a_bad_order_makes_no_job(client: TestClient, store: Store) -> None:
    wrong = ({"kind": "magic"}, {"n": 0}, {"colour": "red"}, {"review": True, "gates": "full"})
    for body in (*(ORDER | each for each in wrong), {"kind": "shell"}):
        answer = client.post(f"{V}/environments:generate", json=body)
        assert answer.status_code == 422 and answer.json()["code"] == "invalid" and answer.json()["errors"]
    assert client.post(f"{V}/evaluations", json={"run_id": "nope", "name": "x", "environments": ["a"]}).status_code == 404
    assert client.post(f"{V}/rollouts", json={"run_id": "nope", "items": [{"environment_id": "a"}]}).status_code == 404
    assert store.job_total().n == 0


def test_evaluations_and_rollouts_are_jobs_of_their_run(client: TestClient, store: Store) -> None:
    store.put_run(Run(id="r", kind="rl"))
    evaluation = client.post(
        f"{V}/evaluations",
        json={"run_id": "r", "name": "held out", "environments": {"labels": {"split": "held_out"}}, "mode": "greedy"},
    ).json()
    assert (evaluation["kind"], evaluation["run_id"], evaluation["payload"]["mode"]) == ("evaluate", "r", "greedy")
    rollout = client.post(
        f"{V}/rollouts", json={"run_id": "r", "items": [{"environment_id": "e", "attempt": 0, "seed": 1}]}
    ).json()
    assert (rollout["kind"], rollout["queue"], len(rollout["payload"]["items"])) == ("rollout", "rollouts", 1)
    assert client.get(f"{V}/jobs", params={"run_id": "r"}).json()["total"] == 2


def test_wait_answers_when_the_job_ends_and_cancel_is_idempotent(client: TestClient, store: Store) -> None:
    job = make_job(store)
    store.claim(job.id, "me")
    threading.Timer(0.4, lambda: store.finish(job.id, 1, {"x": 1})).start()
    start = time.monotonic()
    answer = client.get(f"{V}/jobs/{job.id}", params={"wait": 20}).json()
    assert answer["state"] == "succeeded" and answer["result"] == {"x": 1} and time.monotonic() - start < 5
    waiting = make_job(store)
    start = time.monotonic()
    assert client.get(f"{V}/jobs/{waiting.id}", params={"wait": 0.3}).json()["state"] == "queued"
    assert 0.25 < time.monotonic() - start < 5
    for _ in range(2):
        assert client.post(f"{V}/jobs/{waiting.id}:cancel").json()["state"] == "cancelled"
    assert client.post(f"{V}/jobs/nope:cancel").status_code == 404


# ---------------------------------------------------------------- contract

OPERATIONS = {
    "cancelJob",
    "followEvents",
    "followJob",
    "followRun",
    "generateEnvironments",
    "getEnvironment",
    "getEnvironmentDifficulty",
    "getEnvironmentEvidence",
    "listEnvironmentDifficulties",
    "getEnvironmentFacets",
    "getEnvironmentFile",
    "getEnvironmentRejects",
    "getEvaluation",
    "getHealth",
    "importEnvironments",
    "getJob",
    "getReadiness",
    "getRun",
    "getRunMetrics",
    "getTrajectory",
    "getTrajectorySegment",
    "listEnvironmentFiles",
    "listEnvironments",
    "listEvaluations",
    "listJobs",
    "listRuns",
    "listTrajectories",
    "listTrajectorySteps",
    "orderEvaluation",
    "orderRollouts",
}


def test_the_description_names_every_operation_once(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert sorted(ids) == sorted(OPERATIONS), "operation ids are part of the contract: clients are generated from them"
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        name = operation["operationId"]
        assert " " in operation["summary"] and operation["summary"].lower() != name.lower(), f"{name} has no summary of its own"
        failures = {status: answer for status, answer in operation["responses"].items() if not status.startswith("2")}
        assert set(failures) == {"4XX", "5XX"}, name
        for answer in failures.values():
            assert answer["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        assert all(answer["content"] for status, answer in operation["responses"].items() if status.startswith("2")), name
    known = document["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))) <= set(known), "a reference leads nowhere"
    assert {"status", "detail", "code"} <= set(known["Problem"]["properties"])
    assert client.get("/docs").status_code == 404, "FastAPI's own page loads scripts from elsewhere"


def test_readiness_tells_what_is_wrong(client: TestClient, store: Store) -> None:
    make_job(store)
    body = client.get("/readyz").json()
    assert body["status"] == "ok" and body["queues"][0]["queue"] == "factory" and body["queues"][0]["queued"] == 1


def test_importing_the_api_loads_nothing_heavy() -> None:
    root = Path(__file__).parents[2]
    heavy = "torch,docker,playwright,sglang,transformers,swebench,tokenizers,alembic,numpy"
    code = f"import sys, gymsmith.api; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'platform'}"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert out.stdout.strip() == "[]"
