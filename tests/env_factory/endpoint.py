"""An OpenAI-compatible endpoint on loopback that answers from `completions/`, in the order that a test asks for.

It is a real HTTP server in threads: what it cuts off, delays and repeats goes over a real connection. What it was asked is kept.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "sk-for-the-tests-4f1d7c"
FOLDER = Path(__file__).parent / "completions"


class Endpoint:
    """What the server says, and what it heard."""

    def __init__(self, script: Sequence[str] | Callable[[dict[str, Any]], str]) -> None:
        self.script = script
        self.fill = {"key": KEY}
        """What stands for {key} and its like in a completion."""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self._lock = threading.Lock()

    def next(self, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        """The completion for a request."""
        with self._lock:
            self.asked.append(body)
            self.headers.append(headers)
            if callable(self.script):
                return self.filled(completion(self.script(body)))
            assert len(self.asked) <= len(self.script), (
                f"asked {len(self.asked)} times, the script has {len(self.script)} answers"
            )
            return self.filled(completion(self.script[len(self.asked) - 1]))

    def filled(self, said: Any) -> Any:
        """Every text with its slots filled."""
        if isinstance(said, str):
            for name, value in self.fill.items():
                said = said.replace("{" + name + "}", value)
        elif isinstance(said, dict):
            said = {name: self.filled(value) for name, value in said.items()}
        elif isinstance(said, list):
            said = [self.filled(value) for value in said]
        return said

    def settings(self) -> dict[str, Any]:
        """Settings that lead here."""
        return {"llm_url": self.url, "llm_key": KEY, "llm_model": "recorded-1", "llm_price_in": 2.0, "llm_price_out": 10.0}


def completion(name: str) -> dict[str, Any]:
    """A file of the folder, with `like` and `change` worked in."""
    said: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if "like" in said:
        said = completion(said["like"]) | said
        said["answer"] = said["answer"] | said.get("change", {})
    return said


@contextmanager
def serving(script: Sequence[str] | Callable[[dict[str, Any]], str]) -> Iterator[Endpoint]:
    """An endpoint for as long as the block lasts."""
    endpoint = Endpoint(script)
    stop = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/chat/completions", self.path
            said = endpoint.next(body, dict(self.headers))
            if said.get("wire") == "silent":
                stop.wait(1.0)
            text = said.get("body")
            if text is None:
                message = {"role": "assistant", "content": said["text"] if "text" in said else json.dumps(said.get("answer"))}
                if said.get("refusal"):
                    message = {"role": "assistant", "content": None, "refusal": said["text"]}
                usage = said.get("usage", {"prompt_tokens": 1000, "completion_tokens": 500})
                choice = {"index": 0, "message": message, "finish_reason": said.get("finish", "stop")}
                text = json.dumps(
                    {"id": "c", "object": "chat.completion", "model": "recorded-1", "choices": [choice], "usage": usage}
                )
            data = text.encode()
            self.send_response(said.get("status", 200))
            for name, value in said.get("headers", {}).items():
                self.send_header(name, value)
            if said.get("wire") == "endless":
                self.end_headers()
                self.close_connection = True
                while not stop.is_set():
                    try:
                        self.wfile.write(b" " * 65536)
                    except OSError:
                        return
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if said.get("wire") == "cut" else data)
            self.close_connection = self.close_connection or said.get("wire") == "cut"

        def do_GET(self) -> None:
            assert self.path == "/v1/models", self.path
            known = self.headers.get("Authorization") == f"Bearer {KEY}"
            data = json.dumps({"data": [{"id": "recorded-1"}]} if known else {"error": {"message": KEY}}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
