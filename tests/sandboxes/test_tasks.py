"""The doors, from a payload to rows in the store, with a real engine protocol, real sandboxes and a real store."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from context_mgmt.chat import Chat
from env_factory.synth import shell
from gymsmith import taskdir
from gymsmith.config import Settings
from gymsmith.errors import ConfigError, Fenced, InfrastructureError
from gymsmith.schema import Environment, Job, Run, Status
from gymsmith.store import Store, TrajectoryFilter
from gymsmith.worker import Context
from sandboxes import tasks
from sandboxes.worker import process_worker

FAMILY_A, FAMILY_B = sorted(shell.FAMILIES)[:2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, namespaces: None) -> Iterator[Store]:
    """A store with four environments of two families, and a byte tokenizer."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), max_sandboxes=4)
    with Store.open(settings) as store:
        for seed in range(4):
            draft = shell.draft(shell.make(FAMILY_A if seed % 2 else FAMILY_B, 1, seed))
            folder = taskdir.folder_of(settings.tasks_dir, draft.id)
            taskdir.write(draft, folder)
            store.put_environment(
                Environment(
                    id=draft.id,
                    source=draft.source,
                    spec=draft.spec,
                    instruction=draft.instruction,
                    status=Status.VERIFIED,
                    path=str(folder.relative_to(settings.home)),
                )
            )
        settings.tokenizers_dir.mkdir(parents=True)
        Chat.of_bytes().tokenizer.save(str(settings.tokenizers_dir / "bytes.json"))
        yield store
        process_worker(settings).close()


class Engine:
    """A real HTTP server in SGLang's format that says `actions` in turn, by how many actions a prompt already holds."""

    def __init__(self, *actions: str) -> None:
        self.chat = Chat.of_bytes()
        self.actions = [self.chat.action(action) for action in actions]
        self.bodies: list[dict[str, Any]] = []
        self.url = ""
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Engine:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        turn = body["input_ids"].count(self.chat.act) - 1
        ids = self.actions[min(turn, len(self.actions) - 1)]
        meta = {
            "finish_reason": {"type": "stop", "matched": self.chat.end},
            "weight_version": "7",
            "output_token_logprobs": [[-0.5, i, None] for i in ids],
        }
        return web.Response(text=json.dumps({"output_ids": ids, "meta_info": meta}), content_type="application/json")

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()


def context(store: Store, kind: str, payload: dict[str, Any]) -> Context:
    name = f"{kind}-{time.monotonic_ns()}"
    store.put_job(Job(id=name, kind=kind, queue="rollouts", payload=payload))
    job = store.claim(name, "test")
    assert job is not None
    return Context(job, store)


def items(store: Store, attempts: int = 1) -> list[dict[str, Any]]:
    return [
        {"environment_id": i, "group": f"g/{n}", "attempt": k, "seed": 3}
        for n, i in enumerate(store.environment_ids())
        for k in range(attempts)
    ]


def test_solutions_are_played_and_stored_in_item_order(store: Store) -> None:
    payload = {"run_id": "r1", "items": items(store, 2), "policy": {"kind": "solution"}}
    result = tasks.rollout(payload, context(store, "rollout", payload))
    assert result["rewards"] == [1.0] * 8
    kept = store.trajectories(result["trajectories"])
    assert [(t.environment_id, t.attempt) for t in kept] == [(i["environment_id"], i["attempt"]) for i in payload["items"]]
    assert all(t.looked for t in kept) and result["seconds"]["wall"] > 0
    again = tasks.rollout(payload, context(store, "rollout", payload))
    assert again["trajectories"] == result["trajectories"], "a repeated job replaces, it does not double"
    assert len(store.trajectory_rows(TrajectoryFilter(run_id="r1")).items) == 8


def test_an_engine_is_asked_in_its_format_and_answers_are_trained_exactly(store: Store) -> None:
    with Engine("ls", "exit") as engine:
        payload = {
            "run_id": "r2",
            "items": items(store)[:1],
            "policy": {"url": engine.url, "version": "7"},
            "tokenizer": "bytes.json",
            "sampling": {"temperature": 0.7, "max_new_tokens": 20},
            "context": {"keep_recent_k": 2, "limit_tokens": 900},
        }
        result = tasks.rollout(payload, context(store, "rollout", payload))
    (t,) = store.trajectories(result["trajectories"])
    assert (t.policy_version, t.finish, [s.action for s in t.steps], result["rewards"]) == ("7", "exit", ["ls"], [0.0])
    chat = Chat.of_bytes()
    assert [i for i, m in zip(t.segments[0].ids, t.segments[0].mask, strict=True) if m] == chat.action("ls") + chat.action("exit")
    sampling = engine.bodies[0]["sampling_params"]
    assert (sampling["temperature"], sampling["max_new_tokens"], sampling["stop_token_ids"]) == (0.7, 20, [chat.end])
    assert sampling["sampling_seed"] != engine.bodies[1]["sampling_params"]["sampling_seed"]


def test_the_run_row_says_where_the_engine_is(store: Store) -> None:
    with Engine("exit") as engine:
        store.put_run(Run(id="r3", kind="rl", engine_url=engine.url))
        payload = {"run_id": "r3", "items": items(store)[:1], "policy": {"version": "7"}, "tokenizer": "bytes.json",
                   "context": {"limit_tokens": 900}}  # fmt: skip
        assert tasks.rollout(payload, context(store, "rollout", payload))["rewards"] == [0.0]


def test_evaluation_reports_by_family(store: Store) -> None:
    payload = {
        "run_id": "r4",
        "name": "held-out",
        "environments": {"kind": "shell"},
        "policy": {"kind": "solution"},
        "mode": "greedy",
        "seed": 9,
        "concurrency": 2,
    }
    report = store.report(tasks.evaluate(payload, context(store, "evaluate", payload))["report_id"])
    assert (report.overall.n, report.overall.passed, report.mode, report.seed) == (4, 4, "greedy", 9)
    assert {name: score.n for name, score in report.groups.items()} == {FAMILY_A: 2, FAMILY_B: 2}
    assert report.passed_without_look == 0 and report.errors == 0 and report.mean_commands >= 1
    assert len(store.trajectory_rows(TrajectoryFilter(run_id="r4")).items) == 4
    with Engine("exit") as engine:
        payload |= {"policy": {"url": engine.url}, "tokenizer": "bytes.json", "context": {"limit_tokens": 900}}
        idle = store.report(tasks.evaluate(payload, context(store, "evaluate", payload))["report_id"])
        assert {body["sampling_params"]["temperature"] for body in engine.bodies} == {0.0}
    assert (idle.overall.passed, idle.mean_commands, idle.policy_version) == (0, 0.0, "7")


def test_a_stale_attempt_stores_nothing(store: Store) -> None:
    payload = {"run_id": "r5", "items": items(store)[:1], "policy": {"kind": "solution"}}
    ctx = context(store, "rollout", payload)
    stale = Context(ctx.job.model_copy(update={"attempt": ctx.job.attempt + 1}), store)
    with pytest.raises(Fenced):
        tasks.rollout(payload, stale)
    assert not store.trajectory_rows(TrajectoryFilter(run_id="r5")).items


def test_a_cancelled_job_stops_and_leaves_no_sandbox(store: Store) -> None:
    with Engine("sh -c 'sleep 5'", "cat nothing") as engine:
        payload = {"run_id": "r6", "items": items(store) * 4, "policy": {"url": engine.url}, "tokenizer": "bytes.json",
                   "max_turns": 500, "context": {"limit_tokens": 100_000}}  # fmt: skip
        ctx = context(store, "rollout", payload)
        threading.Timer(0.5, lambda: setattr(ctx, "stop_reason", "cancelled")).start()
        start = time.monotonic()
        with pytest.raises(Fenced):
            tasks.rollout(payload, ctx)
        assert time.monotonic() - start < 4
    worker = process_worker(store.settings)

    async def free() -> bool:
        for _ in range(store.settings.max_sandboxes):
            await asyncio.wait_for(worker.slots.acquire(), 5)
        for _ in range(store.settings.max_sandboxes):
            worker.slots.release()
        return True

    assert worker.run(free())


def test_wrong_payloads_name_what_is_wrong(store: Store) -> None:
    for payload, words in [
        ({"run_id": "r", "items": [], "policy": {"kind": "solution"}, "colour": 1}, "colour"),
        ({"run_id": "r", "items": items(store)[:1], "policy": {"url": "http://x"}}, "tokenizer"),
        ({"run_id": "r", "items": items(store)[:1], "tokenizer": "none.json"}, "tokenizer file"),
    ]:
        with pytest.raises(ConfigError, match=words):
            tasks.rollout(payload, context(store, "rollout", payload))
    nobody = {"run_id": "r", "name": "x", "environments": {"kind": "none"}, "policy": {"kind": "solution"}}
    with pytest.raises(ConfigError, match="got none"):
        tasks.evaluate(nobody, context(store, "evaluate", nobody))


def test_an_environment_without_its_image_is_an_error_beside_the_others(store: Store) -> None:
    environment = store.environment(store.environment_ids()[0])
    task = taskdir.read(taskdir.folder_of(store.settings.tasks_dir, environment.id))
    needs_wheels = {**task.files, "environment/Dockerfile": task.files["environment/Dockerfile"] + b"RUN ls /wheelhouse\n"}
    lost = environment.model_copy(update={"id": "1" * 32, "image_id": "2" * 32})
    store.put_environment(lost)
    taskdir.write(replace(task, files=needs_wheels), taskdir.folder_of(store.settings.tasks_dir, lost.id))
    payload = {"run_id": "r8", "name": "x", "environments": [environment.id, lost.id], "policy": {"kind": "solution"}}
    report = store.report(tasks.evaluate(payload, context(store, "evaluate", payload))["report_id"])
    assert (report.overall.n, report.overall.passed, report.errors) == (1, 1, 1)
    (row,) = store.trajectory_rows(TrajectoryFilter(run_id="r8", failed=True)).items
    assert row.error.startswith("ImageMissing") and row.reward is None


def test_a_job_whose_every_attempt_failed_through_us_is_worth_another_try(store: Store) -> None:
    environment = store.environment(store.environment_ids()[0])
    lost = environment.model_copy(update={"id": "0" * 32})
    store.put_environment(lost)
    folder = taskdir.folder_of(store.settings.tasks_dir, lost.id)
    taskdir.write(taskdir.read(taskdir.folder_of(store.settings.tasks_dir, environment.id)), folder)
    with Engine("exit") as engine:
        payload = {"run_id": "r7", "items": [{"environment_id": lost.id}], "policy": {"url": engine.url + "/nowhere"},
                   "tokenizer": "bytes.json", "context": {"limit_tokens": 900}}  # fmt: skip
        with pytest.raises(InfrastructureError, match="none of 1 attempts"):
            tasks.rollout(payload, context(store, "rollout", payload))
