"""`gymsmith bench loop`: real RL steps through queue, HTTP, store and sandboxes, against static batching and httpx.

The steps run in a state folder of their own, twice with continuous and twice with static batching in turns, from the same weights
on the same environments; then a served engine is asked the same questions with our client and with httpx.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

from gymsmith.attach import House, attached
from gymsmith.bench import Row
from gymsmith.config import Settings
from gymsmith.policy import HttpPolicy
from gymsmith.schema import Run

JOBS_TIMED = 200
CALLS_TIMED = 400
IN_FLIGHT = 16


def measure(settings: Settings, quick: bool) -> list[Row]:
    """The RL loop: episodes per second, where the time goes, batching, client and queue."""
    steps = 4 if quick else 12
    with attached(settings) as house:
        taught, pool = small_model(house, quick)
        runs: dict[str, list[Run]] = {"continuous": [], "static": []}
        for kind in ("continuous", "static", "static", "continuous"):
            run = house.train(
                "rl",
                recipe="demo",
                seed=1,
                start=taught.id,
                inputs={"environments": pool},
                overrides=[f"rl.steps={steps}", f"engine.batching={kind}", "rl.schedule.warmup_steps=0"],
                name=f"{kind} batching",
            )
            runs[kind].append(run)
        ours, peer = (totals(house, runs[kind]) for kind in ("continuous", "static"))
        job_ms = queue_cpu_ms(house)
        with house.served(taught.id) as engine:
            client = client_cpu_ms(engine.engine_url)
    return [*loop_rows(ours, peer), *side_rows(ours, job_ms, client)]


def small_model(house: House, quick: bool) -> tuple[Run, list[str]]:
    """A model that has learnt the format, so that episodes are as long as in earnest, and environments for it."""
    corpus = house.run("corpus", {"seed": 1, "sessions": 500}, label="corpus").result
    pretrained = house.train(
        "pretrain",
        recipe="demo",
        seed=1,
        inputs={"corpus": corpus["path"]},
        overrides=[f"pretrain.steps={150 if quick else 500}"],
        name="pretrain",
    )
    order = {"source": "shell:all", "kind": "shell", "n": 72, "seed": 1, "gates": "controls"}
    pool = sorted(house.run("generate", order, label="environments").result["admitted"])
    shown = house.start_run("rollout", name="demonstrations")
    items = [{"environment_id": i, "group": f"demo/{i}"} for i in pool]
    payload = {"run_id": shown.id, "items": items, "policy": {"kind": "solution"}, "tokenizer": pretrained.summary["tokenizer"]}
    house.run("rollout", payload, label="demonstrations", run_id=shown.id)
    taught = house.train("sft", recipe="demo", seed=1, start=pretrained.id, inputs={"demonstrations_run": shown.id}, name="sft")
    return taught, pool


def totals(house: House, runs: list[Run]) -> dict[str, float]:
    """Sums over the steps of runs, without the first of each: it holds the warm-up of workers and caches."""
    sums: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        metrics = house.store.metrics(run.id)
        for metric in metrics:
            if metric.step > 1:
                sums[metric.name] += metric.value
        sums["steps"] += max(m.step for m in metrics) - 1
    return sums


def loop_rows(ours: dict[str, float], peer: dict[str, float]) -> list[Row]:
    """Throughput and the split of the time, continuous against static batching."""
    wall, other = ours["seconds"], peer["seconds"]

    def pair(metric: str, unit: str, mine: float, theirs: float, bar: str = "", ok: bool | None = None) -> Row:
        return Row(
            metric,
            unit,
            round(mine, 4),
            round(theirs, 4),
            "static batching",
            round(mine / theirs, 3) if theirs else None,
            bar,
            ok,
        )

    rate = ours["episodes"] / wall
    rows = [
        pair("episodes", "1/s", rate, peer["episodes"] / other, ">= 40", rate >= 40),
        pair("sampled tokens", "1/s", ours["sampled_tokens"] / wall, peer["sampled_tokens"] / other),
        pair(
            "decode steps per sampled token",
            "",
            ours["decode_steps"] / ours["decode_tokens"],
            peer["decode_steps"] / peer["decode_tokens"],
        ),
        pair("seconds per step", "s", wall / ours["steps"], other / peer["steps"]),
    ]
    split = {
        "decode": ours["decode_seconds"],
        "prefill": ours["prefill_seconds"],
        "waiting for sandboxes, queue and clients": ours["rollout_seconds"] - ours["decode_seconds"] - ours["prefill_seconds"],
        "gradient, checkpoint and bookkeeping": wall - ours["rollout_seconds"],
    }
    return rows + [Row(f"share: {name}", "%", round(100 * seconds / wall, 1)) for name, seconds in split.items()]


def side_rows(ours: dict[str, float], job_ms: float, client: dict[str, float]) -> list[Row]:
    """Queue and HTTP client."""
    share = 100 * job_ms / 1000 * 16 * ours["steps"] / ours["seconds"]
    return [
        Row("CPU of one job through the queue", "ms", round(job_ms, 3)),
        Row("queue share of a step (16 jobs, of one core)", "%", round(share, 2), bar="<= 3", ok=share <= 3),
        Row(
            "HTTP client CPU per call",
            "ms",
            round(client["ours"], 3),
            round(client["httpx"], 3),
            "httpx",
            round(client["ours"] / client["httpx"], 3),
            "<= 1",
            client["ours"] <= 1,
        ),
    ]


def queue_cpu_ms(house: House) -> float:
    """CPU of ordering, carrying and finishing one job, over all processes below this one, idle polling taken off."""
    from gymsmith import jobs

    idle_before = tree_cpu_s()
    time.sleep(2.0)
    idle_per_s = (tree_cpu_s() - idle_before) / 2.0
    before, started = tree_cpu_s(), time.monotonic()
    empty = {"run_id": house.start_run("rollout", name="empty").id, "items": [], "policy": {"kind": "solution"}}
    ids = [jobs.submit(house.store, "rollout", empty).id for _ in range(JOBS_TIMED)]
    jobs.wait(house.store, ids, timeout_s=120)
    spent = tree_cpu_s() - before - idle_per_s * (time.monotonic() - started)
    return 1000 * max(spent, 0.0) / JOBS_TIMED


def tree_cpu_s() -> float:
    """CPU seconds of this process and all its descendants that live."""
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, tuple[int, float]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / tick)
    mine, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in mine} - mine
        grown = bool(more)
        mine |= more
    return sum(parents[pid][1] for pid in mine if pid in parents)


def client_cpu_ms(url: str) -> dict[str, float]:
    """CPU per call of our client and of httpx, asking the same engine for one token, the same number in flight, interleaved."""
    import httpx

    body = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 1, "temperature": 1.0}, "return_logprob": True}

    async def ours() -> float:
        policy = HttpPolicy(url)
        try:

            async def call(n: int) -> None:
                await policy.generate([1, 2, 3], max_new_tokens=1, temperature=1.0, seed=n, stop_token_ids=[5])

            return await in_flight(call)
        finally:
            await policy.close()

    async def theirs() -> float:
        async with httpx.AsyncClient(timeout=60) as client:

            async def call(n: int) -> None:
                (await client.post(f"{url}/generate", json=body)).json()

            return await in_flight(call)

    rounds = [(asyncio.run(ours()), asyncio.run(theirs())) for _ in range(3)]
    middle = [sorted(values)[1] for values in zip(*rounds, strict=True)]
    return {"ours": middle[0], "httpx": middle[1]}


async def in_flight(call: Callable[[int], Awaitable[None]]) -> float:
    """CPU milliseconds of this process per call, after a warm-up."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(n: int) -> None:
        async with gate:
            await call(n)

    await asyncio.gather(*(one(n) for n in range(IN_FLIGHT)))
    before = time.process_time()
    await asyncio.gather(*(one(n) for n in range(CALLS_TIMED)))
    return 1000 * (time.process_time() - before) / CALLS_TIMED
