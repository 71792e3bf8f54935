"""What readers answered to the questions of `env_factory/llm/review.py`: `readings.jsonl`, one question and answer a line.

No model was at hand, so readers who saw nothing but the questions took its place: those who did a task saw no tests, and those
who judged it had not done it. `python -m tests.env_factory.readings PORT` is an endpoint that repeats their answers, so that
`gymsmith env judge FOLDER --review` can be run again over the sets that they read (own and sixth). A question that nobody was
asked is refused, which ends the job: prompts that were changed need readers, or a model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gymsmith.schema import digest

FILE = Path(__file__).with_name("readings.jsonl")


def question(messages: Sequence[Mapping[str, str]]) -> str:
    """What names a question."""
    return digest(json.dumps([[m["role"], m["content"]] for m in messages]).encode())[:24]


def known() -> dict[str, str]:
    """Question -> answer, as text."""
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    return {row["question"]: json.dumps(row["answer"]) for row in rows}


def server(port: int = 0) -> ThreadingHTTPServer:
    """The endpoint, on loopback."""
    answers = known()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = answers.get(question(body["messages"]))
            said: dict[str, object] = {"error": {"message": "nobody was asked this"}}
            if text is not None:
                choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                said = {"id": "r", "object": "chat.completion", "model": "readers", "choices": [choice]}
            data = json.dumps(said).encode()
            self.send_response(200 if text is not None else 404)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    made = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    made.daemon_threads = True
    return made


if __name__ == "__main__":
    here = server(int(sys.argv[1]))
    print(f"export GYMSMITH_LLM_URL=http://127.0.0.1:{here.server_address[1]}/v1 GYMSMITH_LLM_MODEL=readers", flush=True)
    here.serve_forever()
