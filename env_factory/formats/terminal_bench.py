"""terminal-bench v1 task folders as drafts: task.yaml, a Compose file with one service, run-tests.sh, tests/ and a solution.

The task's own script runs as it is; what pytest printed is then judged by us. terminal-bench's parser counts SKIPPED and XFAIL as
passed, so an agent that gets its test skipped is done: here each line of the last summary must say PASSED, and there must be one.
Refused by name: several services, other parsers than pytest, tests that share the agent's shell, and options of Compose that a
sandbox does not have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from env_factory.formats import foreign
from env_factory.source_kinds.tree import Tree
from gymsmith.errors import SourceError
from gymsmith.schema import Draft

MARK = "task.yaml"
AGENT_S, TESTS_S = 360.0, 60.0
"""terminal-bench's own limits where a task names none."""
_IGNORED = {"build", "image", "container_name", "command", "environment", "working_dir", "volumes", "platform", "expose",
            "entrypoint", "stdin_open", "tty", "init", "restart", "deploy", "mem_limit", "cpus", "networks",
            "hostname"}  # fmt: skip
"""Options of a service that mean nothing here or are read below; its volumes are those of the logs."""
_VARIABLE = re.compile(r"\$\{T_BENCH_[A-Z_]+\}")
_NOT_MEMBERS = ("task.yaml", "docker-compose.yaml", "solution.sh", "solution.yaml", "run-tests.sh")

JUDGE = r"""#!/bin/bash
# Runs the task's own script and judges what pytest printed: every line of its last summary has to be PASSED.
# Skipped, expected to fail, unexpectedly passed, errors and no line at all are all no pass.
export TEST_DIR=/tests T_BENCH_TEST_DIR=/tests
out=$(mktemp) || exit 1
bash /tests/run-tests.sh > "$out" 2>&1
cat "$out"
reward=$(LC_ALL=C awk '
    /^=+ *short test summary info *=+$/ { inside = 1; passed = 0; other = 0; next }
    inside && /^=+ .* =+$/ { inside = 0; next }
    inside && $1 == "PASSED" && NF > 1 { passed++; next }
    inside && $1 ~ /^(FAILED|ERROR|SKIPPED|XFAIL|XPASS)$/ { other++ }
    END { print (passed > 0 && other == 0) ? 1 : 0 }' "$out")
mkdir -p /logs/verifier && echo "${reward:-0}" > /logs/verifier/reward.txt
"""


def of_tree(tree: Tree, where: str, folder: str) -> Draft:
    """A task folder as a draft. `where`: what names it in its source and in errors; `folder`: its own name.

    Raises:
        SourceError: it is malformed, or asks for what is not to be had here.
        PolicyRefused: it holds a link.
    """
    foreign.no_links(tree, where)
    task = _yaml(foreign.text(tree, MARK, where), f"{where}: {MARK}")
    parser = task.get("parser_name", "pytest")
    if parser != "pytest":
        raise SourceError(f"{where}: expected parser_name pytest, got {parser!r}; other parsers are not run here")
    if task.get("run_tests_in_same_shell"):
        raise SourceError(f"{where}: run_tests_in_same_shell asks for the agent's own shell, which is dead when tests run")
    if task.get("difficulty", "unknown") not in ("easy", "medium", "hard", "unknown"):
        raise SourceError(f"{where}: expected difficulty easy, medium, hard or unknown, got {task['difficulty']!r}")
    if not isinstance(task.get("instruction"), str):
        raise SourceError(f"{where}: expected an instruction in {MARK}, got {task.get('instruction')!r}")
    context, dockerfile, env, declared = _service(tree, where)
    workdir = foreign.workdir_of(dockerfile, declared, where)
    hidden = (*_NOT_MEMBERS, "tests/")
    files = {
        f"environment/{path}": data
        for path, data in (tree.below(context) if context else tree).files.items()
        if context or not path.startswith(hidden)
    }
    # What a Dockerfile copies out of the hidden places is refused when it is built: it would show the tests to the agent.
    files["environment/Dockerfile"] = foreign.dockerfile_of(dockerfile, workdir, env, where).encode()
    files |= {path: data for path, data in tree.files.items() if path.startswith("tests/")}
    runner = foreign.text(tree, "run-tests.sh", where)
    if "tests/test.sh" in files:
        raise SourceError(f"{where}: tests/test.sh is where our own script goes; rename it")
    files |= {"tests/run-tests.sh": runner.encode(), "tests/test.sh": JUDGE.encode()}
    solution = _solution(tree, where)
    if solution:
        files["solution/solve.sh"] = solution.encode()
    labels = {"format": "terminal-bench", "category": str(task.get("category") or "software_engineering")[:80]}
    labels |= {"tests_download": "yes"} if foreign.wants_network(runner) else {}
    fields = {
        "name": foreign.name_of(None, folder),
        "kind": "terminal-bench",
        "keywords": [str(tag)[:80] for tag in task.get("tags") or []][:50],
        "difficulty": str(task.get("difficulty", "unknown")),
        "labels": labels,
        "agent_timeout_s": foreign.seconds(task.get("max_agent_timeout_sec"), AGENT_S, where),
        "verifier_timeout_s": foreign.seconds(task.get("max_test_timeout_sec"), TESTS_S, where),
        "verifier_mode": "shared",
        "workdir": workdir,
        "artifacts": [workdir],
        "report": "reward",
        "memory_mb": 2048,
        "max_turns": 50,
    }
    return foreign.draft(
        source=foreign.source_of("terminal-bench", where, tree, {"title": folder, "authors": str(task.get("author_name") or "")}),
        fields=fields,
        instruction=foreign.instruction_of(task["instruction"], where),
        files=files,
        executable=tree.executable | {"tests/test.sh", "tests/run-tests.sh"},
        what=where,
    )


def _service(tree: Tree, where: str) -> tuple[str, str, dict[str, str], str | None]:
    """(folder of the build context, "" for the task's own; Dockerfile; variables; working directory)."""
    if "docker-compose.yaml" not in tree.files:
        return "", foreign.text(tree, "Dockerfile", where), {}, None
    what = f"{where}: docker-compose.yaml"
    services = _yaml(foreign.text(tree, "docker-compose.yaml", where), what).get("services")
    if not isinstance(services, dict) or len(services) != 1:
        names = ", ".join(map(str, services)) if isinstance(services, dict) else repr(services)
        raise SourceError(f"{what}: expected one service, got {names}; tasks of several containers are not run here")
    ((name, service),) = services.items()
    if not isinstance(service, dict):
        raise SourceError(f"{what}: expected service {name!r} to be a table, got {service!r}")
    if strange := sorted(set(service) - _IGNORED):
        raise SourceError(f"{what}: service {name!r} has {', '.join(map(str, strange))}, which a sandbox does not have")
    for volume in service.get("volumes") or []:
        source = str(volume.get("source") if isinstance(volume, dict) else volume).partition(":")[0]
        if not _VARIABLE.search(str(volume)):
            raise SourceError(
                f"{what}: expected volumes of the logs alone, got {str(volume)[:80]!r} ({source}); COPY files instead"
            )
    given = service.get("environment") or {}
    pairs = given.items() if isinstance(given, dict) else (str(pair).partition("=")[::2] for pair in given)
    env = {str(key): str(value) for key, value in pairs if not _VARIABLE.search(str(value))}
    build = service.get("build")
    if build is None:
        image = service.get("image")
        if not isinstance(image, str) or not re.match(r"[a-z0-9][A-Za-z0-9._/:@-]{0,250}\Z", image):
            raise SourceError(f"{what}: expected build or the name of an image, got {image!r}")
        return "", f"FROM {image}\n", env, service.get("working_dir")
    table: Mapping[str, Any] = build if isinstance(build, dict) else {"context": build}
    if strange := sorted(set(table) - {"context", "dockerfile"}):
        raise SourceError(f"{what}: build has {', '.join(map(str, strange))}, which is not taken; write it into the Dockerfile")
    context = re.sub(r"^(\./)+|^\.$|/+$", "", str(table.get("context") or "."))
    if context.startswith(("/", "..")) or ".." in context.split("/"):
        raise SourceError(f"{what}: expected a build context below the task, got {table['context']!r}")
    name = str(table.get("dockerfile") or "Dockerfile").removeprefix("./")
    return context, foreign.text(tree, f"{context}/{name}" if context else name, where), env, service.get("working_dir")


def _solution(tree: Tree, where: str) -> str:
    """The reference solution as a script; empty when there is none that a script can be."""
    if "solution.sh" in tree.files:
        script = foreign.text(tree, "solution.sh", where)
        return script if script.startswith("#!") else f"#!/bin/bash\n{script}"
    if "solution.yaml" not in tree.files:
        return ""
    steps = yaml_value(foreign.text(tree, "solution.yaml", where), f"{where}: solution.yaml")
    if not isinstance(steps, list) or not all(isinstance(step, dict) and isinstance(step.get("command"), str) for step in steps):
        raise SourceError(f"{where}: expected solution.yaml to be a list of commands, got {json.dumps(steps, default=str)[:100]}")
    # Keys that are pressed while a program waits for them cannot be played by a script.
    if any(step.get("append_enter") is False for step in steps):
        return ""
    return "\n".join(["#!/bin/bash", *(step["command"].rstrip("\n") for step in steps)]) + "\n"


def _yaml(text: str, what: str) -> dict[str, Any]:
    found = yaml_value(text, what)
    if not isinstance(found, dict):
        raise SourceError(f"{what}: expected a table, got {str(found)[:80]!r}")
    return found


def yaml_value(text: str, what: str) -> Any:
    """What a YAML document says. Aliases are refused: a few lines of them unfold to gigabytes. Raises: SourceError."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise SourceError(f"{what}: expected YAML without aliases; write the values out")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SourceError(f"{what} is not YAML: {' '.join(str(error).split())[:300]}") from error
