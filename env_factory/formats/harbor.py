"""Harbor task folders (schema 1.4): ours as one that anybody can build, and anybody's as a draft.

Out: the folder as `gymsmith.taskdir` writes it, on a public base image (`portable.py`), with the users of both phases named. In:
a folder with our own table in `[metadata.gymsmith]` gives back exactly what was exported; any other is mapped, and what has no
counterpart here is refused by name: several steps, several services, a verifier's own image, other systems than Linux,
accelerators, tool servers, variables of the host.
"""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from env_factory.formats import foreign, portable
from env_factory.source_kinds.tree import Tree, read_folder, write_folder
from gymsmith import taskdir
from gymsmith.errors import NotFound, SourceError
from gymsmith.schema import Draft
from gymsmith.taskdir import Task

MARK = "task.toml"
AGENT_S, VERIFIER_S = 600.0, 600.0
"""Harbor's own limits where a task names none."""
MEMORY_MB = 2048
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?\Z")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\Z", re.I)
_NOT_HERE = {
    "environment.gpus": "accelerators",
    "environment.gpu_types": "accelerators",
    "environment.tpu": "accelerators",
    "environment.mcp_servers": "tool servers",
    "steps": "several steps",
    "verifier.collect": "commands that collect from other services",
}


def export(task: Task, base: str = portable.DEFAULT_BASE) -> Tree:
    """The task as a folder for Harbor. Raises: SourceError: it reads /wheelhouse in a way that cannot be exported."""
    name = "environment/Dockerfile"
    files = dict(task.files) | {name: portable.portable(task.dockerfile, base).encode()}
    moved = Task(task.spec, task.source, task.instruction, files, task.alternatives, task.cheats, task.executable)
    with tempfile.TemporaryDirectory(prefix="gymsmith-export-") as scratch:
        taskdir.write(moved, Path(scratch) / "task")
        tree = read_folder(Path(scratch) / "task")
    document = tomllib.loads(tree.files[MARK].decode())
    document["agent"]["user"] = "agent"
    document["verifier"]["user"] = "root"
    return Tree(dict(tree.files) | {MARK: tomli_w.dumps(document).encode()}, tree.executable)


def read(folder: Path) -> Draft:
    """The draft that a folder of this machine describes, whoever wrote it. Raises: NotFound: it holds no task; as `of_tree`."""
    if not (folder / MARK).exists():
        raise NotFound(f"expected a task folder at {folder}, {MARK} is missing; check the path")
    return of_tree(read_folder(folder), str(folder), folder.name)


def of_tree(tree: Tree, where: str, folder: str) -> Draft:
    """A task folder as a draft. `where`: what names it in its source and in errors; `folder`: its own name.

    Raises:
        SourceError: it is malformed, or asks for what is not to be had here.
        PolicyRefused: it holds a link, or a member outside the known folders.
    """
    foreign.no_links(tree, where)
    try:
        document = tomllib.loads(foreign.text(tree, MARK, where))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SourceError(f"{where}: {MARK} is not TOML: {error}") from error
    if isinstance(_table(document, "metadata").get("gymsmith"), dict):
        return _ours(tree, where)
    return _theirs(tree, document, where, folder)


def _ours(tree: Tree, where: str) -> Draft:
    with tempfile.TemporaryDirectory(prefix="gymsmith-import-") as scratch:
        write_folder(tree, Path(scratch) / "task")
        try:
            task = taskdir.read(Path(scratch) / "task")
        except SourceError as error:
            raise SourceError(f"{where}: {str(error).replace(scratch, '')}") from error
    name = "environment/Dockerfile"
    foreign.text(tree, name, where)
    files = dict(task.files) | {name: portable.restored(task.dockerfile).encode()}
    return Draft(task.source, task.spec, task.instruction, files, task.alternatives, task.cheats, task.executable)


def _theirs(tree: Tree, document: dict[str, Any], where: str, folder: str) -> Draft:
    said, environment, agent, verifier = (_table(document, key) for key in ("task", "environment", "agent", "verifier"))
    for place, word in _NOT_HERE.items():
        table, _, key = place.rpartition(".")
        if (_table(document, table) if table else document).get(key):
            raise SourceError(f"{where}: {place} asks for {word}, which is not to be had here")
    if environment.get("os", "linux") != "linux":
        raise SourceError(f"{where}: expected environment.os linux, got {environment['os']!r}")
    for path in ("environment/docker-compose.yaml", "environment/singularity-compose.yaml"):
        if path in tree.files:
            raise SourceError(f"{where}: {path} asks for several services or for options of an engine, which are not run here")
    mode = verifier.get("environment_mode") or ("separate" if verifier.get("environment") else "shared")
    if any(path in tree.files for path in ("tests/Dockerfile", "tests/docker-compose.yaml")) or verifier.get("environment"):
        raise SourceError(f"{where}: its verifier has an image of its own, which is not run here; bake it into environment/")
    dockerfile = _dockerfile(tree, environment, where)
    workdir = foreign.workdir_of(dockerfile, environment.get("workdir"), where)
    test = foreign.with_environment(foreign.text(tree, "tests/test.sh", where), _strings(verifier, "env", where), where)
    files = {p: d for p, d in tree.files.items() if p.startswith(("environment/", "tests/", "solution/"))}
    files["environment/Dockerfile"] = foreign.dockerfile_of(
        dockerfile, workdir, _strings(environment, "env", where), where
    ).encode()
    files["tests/test.sh"] = (test if test.startswith("#!") else f"#!/bin/bash\n{test}").encode()
    if "solution/solve.sh" in files:
        solve = foreign.with_environment(
            foreign.text(tree, "solution/solve.sh", where), _strings(_table(document, "solution"), "env", where), where
        )
        files["solution/solve.sh"] = solve.encode()
    network, hosts = _network(agent, environment, where)
    metadata = _table(document, "metadata")
    labels = {"format": "harbor", "wanted_network": network}
    labels |= {"category": str(metadata["category"])[:80]} if metadata.get("category") else {}
    labels |= {"tests_download": "yes"} if foreign.wants_network(test) else {}
    authors = [*_list(said, "authors"), {"name": metadata.get("author_name"), "email": metadata.get("author_email")}]
    fields = {
        "name": foreign.name_of(said.get("name"), folder),
        "kind": "harbor",
        "description": str(said.get("description") or "")[:1000],
        "keywords": [str(word)[:80] for word in [*_list(said, "keywords"), *_list(metadata, "tags")]][:50],
        "difficulty": str(metadata.get("difficulty") or "uncalibrated")[:40],
        "labels": labels,
        "agent_timeout_s": foreign.seconds(agent.get("timeout_sec"), AGENT_S, where),
        "verifier_timeout_s": foreign.seconds(verifier.get("timeout_sec"), VERIFIER_S, where),
        "verifier_mode": mode,
        "workdir": workdir,
        "artifacts": _artifacts(document, workdir, where),
        "report": "reward",
        "cpus": environment.get("cpus") or 1.0,
        "memory_mb": environment.get("memory_mb") or _megabytes(environment.get("memory"), where),
        "network": "allowlist" if network == "allowlist" and hosts else "no-network",
        "allowed_hosts": hosts if network == "allowlist" else (),
        "max_turns": 50,
    }
    meta = {
        "title": str(fields["name"]),
        "authors": ", ".join(str(a["name"]) for a in authors if isinstance(a, dict) and a.get("name")),
    }
    return foreign.draft(
        source=foreign.source_of("harbor", where, tree, meta),
        fields=fields,
        instruction=foreign.instruction_of(foreign.text(tree, "instruction.md", where), where),
        files=files,
        executable=tree.executable | {"tests/test.sh"},
        what=where,
    )


def _dockerfile(tree: Tree, environment: Mapping[str, Any], where: str) -> str:
    image = environment.get("docker_image")
    if image is None:
        return foreign.text(tree, "environment/Dockerfile", where)
    if not isinstance(image, str) or not re.match(r"[a-z0-9][A-Za-z0-9._/:@-]{0,250}\Z", image):
        raise SourceError(f"{where}: expected environment.docker_image to name an image, got {image!r}")
    return f"FROM {image}\n"


def _artifacts(document: Mapping[str, Any], workdir: str, where: str) -> list[str]:
    """Paths that cross to the verifier: as declared, and where nothing is declared the working directory."""
    found = []
    for entry in _list(document, "artifacts"):
        place = entry.get("source") if isinstance(entry, dict) else entry
        if isinstance(entry, dict) and entry.get("service") not in (None, "main"):
            raise SourceError(f"{where}: an artifact comes from service {entry['service']!r}; only main is run here")
        if not isinstance(place, str) or not place.startswith("/") or ".." in place.split("/"):
            raise SourceError(f"{where}: expected an artifact to be an absolute path, got {place!r}")
        found.append(place.rstrip("/") or "/")
    return found or [workdir]


def _network(agent: Mapping[str, Any], environment: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """(what the task asks for, the hosts of an allow-list). Public access is noted and not given."""
    asked = agent.get("network_mode") or environment.get("network_mode")
    if asked is None:
        asked = "public" if environment.get("allow_internet", True) else "no-network"
    if asked not in ("public", "no-network", "allowlist"):
        raise SourceError(f"{where}: expected network_mode public, no-network or allowlist, got {asked!r}")
    hosts = tuple(str(host).lower() for host in (*_list(environment, "allowed_hosts"), *_list(agent, "allowed_hosts")))
    for host in hosts if asked == "allowlist" else ():
        if not _HOST.match(host) or re.fullmatch(r"[\d.]+", host):
            raise SourceError(f"{where}: expected allowed_hosts to be names, got {host!r}; addresses are not reached from here")
    return asked, hosts


def _megabytes(given: Any, where: str) -> int:
    if given is None:
        return MEMORY_MB
    match = _SIZE.match(str(given).strip())
    if match is None:
        raise SourceError(f"{where}: expected environment.memory such as 2G, got {given!r}")
    return max(
        16, round(float(match.group(1)) * {"": 1 / 2**20, "K": 1 / 1024, "M": 1, "G": 1024, "T": 2**20}[match.group(2).upper()])
    )


def _table(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key) if key else document
    return found if isinstance(found, dict) else {}


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    found = table.get(key)
    return found if isinstance(found, list) else []


def _strings(table: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    found = table.get(key) or {}
    if not isinstance(found, dict) or not all(isinstance(value, str | int | float) for value in found.values()):
        raise SourceError(f"{where}: expected {key} to be a table of text, got {found!r}"[:300])
    return {str(name): str(value) for name, value in found.items()}
