"""Server-sent events over a real socket: cut, resumed, nothing lost and nothing twice."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from served import V, make_job, served
from starlette.testclient import TestClient

from gymsmith.schema import Metric, Run
from gymsmith.store import Event, Store


class Stream:
    """A raw client of server-sent events."""

    def __init__(self, address: str, path: str, last: str = "") -> None:
        self.connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last} if last else {})
        self.connection.request("GET", path, headers=headers)
        self.response = self.connection.getresponse()
        assert self.response.status == 200 and self.response.getheader("content-type", "").startswith("text/event-stream")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        event: dict[str, Any] = {}
        while line := self.response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "data":
                event["data"] = json.loads(value)
            elif name in ("id", "event"):
                event[name] = value
            elif not line.strip() and "data" in event:
                yield event
                event = {}

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def test_a_cut_stream_resumes_without_loss_or_doubles(store: Store) -> None:
    job, other = make_job(store), make_job(store)
    with served(store) as address:
        path = f"{V}/jobs/{job.id}/events"
        total, got, last = 300, [], ""

        def write() -> None:
            for i in range(total):
                store.add_events([Event(kind="job.progress", job_id=j.id, data={"i": i}) for j in (job, other)])
                time.sleep(0.002)
            store.claim(job.id, "me")
            store.finish(job.id, 1, {})

        writer = threading.Thread(target=write)
        writer.start()
        ended = False
        while not ended:
            stream = Stream(address, path, last)
            for count, event in enumerate(stream):
                last = event["id"]
                if event["event"] == "job.progress":
                    got.append(event["data"]["i"])
                ended = event["event"] == "end"
                if count == 40:
                    break  # the client loses its connection again and again
            stream.close()
        writer.join()
    assert got == list(range(total))


def test_new_points_of_a_run_are_streamed_once(store: Store) -> None:
    store.put_run(Run(id="r", kind="rl"))
    store.put_metrics([Metric(run_id="r", step=s, name=n, value=s) for s in range(5) for n in ("loss", "eval/rate")])
    with served(store) as address:
        points: list[list[Any]] = []

        def read(last: str, until: int) -> str:
            stream = Stream(address, f"{V}/runs/r/events", last)
            for event in stream:
                last = event["id"]
                if event["event"] == "metrics":
                    points.extend(event["data"]["points"])
                if len(points) >= until:
                    break
            stream.close()
            return last

        last = read("", 10)
        store.put_metrics([Metric(run_id="r", step=s, name="loss", value=math.nan if s == 6 else s) for s in range(5, 9)])
        last = read(last, 14)
        # One curve may lag behind another by a few steps.
        store.put_metrics([Metric(run_id="r", step=5, name="eval/rate", value=0.5)])
        read(last, 15)
    assert sorted((p[0], p[1]) for p in points) == sorted([("loss", s) for s in range(9)] + [("eval/rate", s) for s in range(6)])
    assert next(p[2] for p in points if p[:2] == ["loss", 6]) is None


def test_events_are_json_without_an_event_stream(client: TestClient, store: Store) -> None:
    job = make_job(store)
    store.flush_events()
    store.add_events([Event(kind="job.progress", job_id=job.id, data={"i": i}) for i in range(3)])
    first = client.get(f"{V}/jobs/{job.id}/events").json()["items"]
    assert [(e["kind"], e["data"]) for e in first] == [
        ("job.state", {"state": "queued", "attempt": 0}),
        *(("job.progress", {"i": i}) for i in range(3)),
    ]
    assert client.get(f"{V}/jobs/{job.id}/events", params={"after": first[1]["id"]}).json()["items"] == first[2:]
    bad = client.get(f"{V}/events", headers={"accept": "text/event-stream", "last-event-id": "x;y"})
    assert bad.status_code == 400 and bad.json()["code"] == "bad-request"
