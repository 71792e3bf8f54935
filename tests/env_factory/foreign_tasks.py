"""Tasks as others write them: Harbor, terminal-bench, SWE-bench."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from typing import Any

import tomli_w

from env_factory.source_kinds.tree import Tree
from tests.env_factory.conftest import lacking


def needs_swebench() -> None:
    """Skip aloud, or fail where nothing may be skipped, without the extra `swe`."""
    if importlib.util.find_spec("swebench") is None:
        lacking("the extra `swe` is not installed; pip install 'gymsmith[swe]'")


HARBOR: dict[str, Any] = {
    "schema_version": "1.4",
    "task": {
        "name": "acme/sum",
        "description": "Add.",
        "authors": [{"name": "A. Person", "email": "a@example.org"}],
        "keywords": ["k"],
    },
    "metadata": {"difficulty": "easy", "category": "math", "tags": ["t"]},
    "agent": {"timeout_sec": 120.0},
    "verifier": {"timeout_sec": 30.0, "env": {"MODE": "strict 'one'"}},
    "environment": {"memory": "1G", "cpus": 2, "env": {"GREETING": 'say "hi"'}},
    "solution": {"env": {"ANSWER": "42"}},
}


def theirs(change: Callable[[dict[str, Any], dict[str, bytes]], None] = lambda document, files: None) -> Tree:
    document = json.loads(json.dumps(HARBOR))
    files = {
        "instruction.md": b"<!-- canary GUID 1234 -->\n# harbor-canary\n\nWrite 42 to sum.txt.\n",
        "environment/Dockerfile": b"FROM gymsmith/host\nWORKDIR /srv\nWORKDIR app\n",
        "tests/test.sh": b"#!/bin/bash\necho $MODE\n",
        "solution/solve.sh": b"echo $ANSWER > sum.txt\n",
        "README.md": b"about",
        "LICENSE": b"This is free and unencumbered software released into the public domain.",
    }
    change(document, files)
    return Tree({"task.toml": tomli_w.dumps(document).encode(), **files})


COMPOSE = """services:
  client:
    build: {dockerfile: Dockerfile}
    image: ${T_BENCH_TASK_DOCKER_CLIENT_IMAGE_NAME}
    container_name: ${T_BENCH_TASK_DOCKER_CLIENT_CONTAINER_NAME}
    command: ["sh", "-c", "sleep infinity"]
    environment: ["TEST_DIR=${T_BENCH_TEST_DIR}", "COLOR=blue"]
    volumes: ["${T_BENCH_TASK_LOGS_PATH}:${T_BENCH_CONTAINER_LOGS_PATH}"]
"""


def bench(**files: str) -> Tree:
    members = {
        "task.yaml": "instruction: |-\n  Write 42 to sum.txt.\ndifficulty: medium\ntags: [a]\nmax_agent_timeout_sec: 100.0\n",
        "docker-compose.yaml": COMPOSE,
        "Dockerfile": "FROM gymsmith/host\nWORKDIR /app\n",
        "run-tests.sh": "#!/bin/bash\ncat $TEST_DIR/said\n",
        "tests/said": "",
        "solution.sh": "echo 42 > sum.txt\n",
        "data/in.txt": "x",
    } | files
    return Tree({path: text.encode() for path, text in members.items() if text is not None})


PATCH = "diff --git a/f.py b/f.py\n--- a/f.py\n+++ b/f.py\n@@ -1 +1 @@\n-x\n+y\n"
ROW: dict[str, Any] = {
    "instance_id": "o__tiny-9", "repo": "o/tiny", "base_commit": "a" * 40, "patch": PATCH,
    "test_patch": PATCH.replace("f.py", "t.py"),
    "problem_statement": "It says x:\r\n\n  no: 1.0\n", "hints_text": "", "created_at": "2024-03-01T10:00:00Z", "version": "1.0",
    "FAIL_TO_PASS": '["t.py::a"]', "PASS_TO_PASS": '["t.py::b[1 2]"]', "environment_setup_commit": "a" * 40,
    "image": "ours/tiny:1", "eval_script": "cd /testbed\n: '>>>>> Start Test Output'\npytest -rA\n: '>>>>> End Test Output'\n",
    "log_parser": "parse_log_pytest", "eval_type": "pass_and_fail",
}  # fmt: skip
