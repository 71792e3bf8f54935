"""The embedded broker at full speed with two readers, and kombu's stock transport in the same harness as the control arm.

A stock reader that takes a message before it is written finds an empty file and dies of it; what it leaves stays in the folder.
That is a race, so the control arm is printed and not asserted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kombu import Connection

from gymsmith import broker

MESSAGES = 1500

_READER = """
import json, socket, sys, time
import kombu, gymsmith.broker
url, options, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
with open(out, "w") as f, kombu.Connection(url, transport_options=options) as c:
    def got(body, message):
        f.write(f"{body}\\n")
        message.ack()
    with c.Consumer(queues=[kombu.Queue("q")], callbacks=[got], no_ack=False):
        print("ready", flush=True)
        quiet = 0
        while quiet < 4:
            try:
                c.drain_events(timeout=0.25)
                quiet = 0
            except socket.timeout:
                quiet += 1
"""


def race(folder: Path, url: str, options: dict[str, object], temporary: Path) -> tuple[list[int], list[int]]:
    """Two processes read while this one writes; (numbers received, exit codes of the readers)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(temporary)}
    readers = []
    for i in range(2):
        command = [sys.executable, "-c", _READER, url, json.dumps(options), str(folder / f"got-{i}")]
        readers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
    for reader in readers:
        assert reader.stdout and reader.stdout.readline() == b"ready\n"
    with Connection(url, transport_options=options) as c, c.Producer() as producer:
        for i in range(MESSAGES):
            producer.publish(i, routing_key="q", exchange="", serializer="json")
    codes = [reader.wait(60) for reader in readers]
    received = [int(line) for i in range(2) for line in (folder / f"got-{i}").read_text().split()]
    return sorted(received), codes


def test_two_readers_at_full_speed_get_each_message_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, object] = {"folder": str(tmp_path / "broker")}
    received, codes = race(tmp_path, "gymsmith://localhost/", options, tmp_path)
    assert codes == [0, 0]
    assert received == list(range(MESSAGES))

    stock = tmp_path / "stock"
    for name in ("data", "control"):
        (stock / name).mkdir(parents=True)
    options = {
        "data_folder_in": str(stock / "data"),
        "data_folder_out": str(stock / "data"),
        "control_folder": str(stock / "control"),
    }
    options["polling_interval"] = broker.POLL_S
    received, codes = race(stock, "filesystem://", options, Path("/dev/shm"))
    with capsys.disabled():
        left = MESSAGES - len(set(received))
        print(f"\n  control arm, kombu's filesystem transport: {left} of {MESSAGES} not delivered, readers ended with {codes}")


def test_a_reader_never_sees_a_message_that_is_being_written(tmp_path: Path) -> None:
    with Connection("gymsmith://localhost/", transport_options={"folder": str(tmp_path)}) as c:
        channel = c.channel()
        channel.queue_declare("q")
        (tmp_path / "q" / ".00000000000000000001-half").write_text('{"body"')
        assert channel._size("q") == 0
        (tmp_path / "q" / "00000000000000000001-torn").write_text("")
        with c.Producer(channel) as producer:
            producer.publish("whole", routing_key="q", exchange="")
        message = channel.basic_get("q")
        assert message.payload == "whole"
        assert channel.basic_get("q", no_ack=True) is None


def test_messages_are_first_in_first_out(tmp_path: Path) -> None:
    with Connection("gymsmith://localhost/", transport_options={"folder": str(tmp_path)}) as c, c.SimpleQueue("q") as queue:
        for i in range(20):
            queue.put(i)
        got = []
        for _ in range(20):
            message = queue.get(timeout=1)
            got.append(message.payload)
            message.ack()
        assert got == list(range(20))


def test_what_was_fetched_and_not_acknowledged_is_given_back_at_a_clean_end(tmp_path: Path) -> None:
    options = {"folder": str(tmp_path)}
    with Connection("gymsmith://localhost/", transport_options=options) as c:
        with c.Producer() as producer:
            producer.publish("precious", routing_key="q", exchange="")
        assert c.channel().basic_get("q").payload == "precious"
    with Connection("gymsmith://localhost/", transport_options=options) as c:
        assert c.channel().basic_get("q", no_ack=True).payload == "precious"


def test_an_idle_reader_costs_little(tmp_path: Path) -> None:
    with Connection("gymsmith://localhost/", transport_options={"folder": str(tmp_path)}) as c:
        with c.Consumer(queues=[broker_queue(name) for name in ("a", "b", "c")], callbacks=[lambda *_: None]):
            start = time.process_time()
            for _ in range(8):
                with pytest.raises(TimeoutError):
                    c.drain_events(timeout=0.25)
            assert time.process_time() - start < 0.2, "two idle seconds took more than 10% of a core"


def broker_queue(name: str) -> object:
    """A queue declared by its name alone."""
    from kombu import Queue

    return Queue(name)
