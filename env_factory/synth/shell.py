"""Parametric shell tasks: `make(family, level, seed, split)` is a pure function to a `ShellTask`, `draft` wraps it up.

The families are in `templates/shell/`. Here a scene gets its verifier (a POSIX script that compares the whole folder with the
folder of a solved task, from `cksum` and shell built-ins alone) and the tool that it is played with. Nothing is executed here.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from env_factory.posix_tests import HARBOR, cksum
from env_factory.templates.shell.families import FAMILIES, TRAINED, UNSEEN
from env_factory.templates.shell.scene import Change, Kind
from env_factory.templates.words import draw
from gymsmith.errors import ConfigError
from gymsmith.schema import Draft, Source, TaskSpec, ToolSpec

TOOL = ToolSpec(
    name="simple_command",
    allow=("ls", "cat", "grep", "head", "tail", "wc", "echo", "rm", "mv", "cp", "mkdir", "touch", "sort", "sh"),
    redirect=("echo",),
    timeout_s=5.0,
    max_output_bytes=4096,
)
"""One command per action and no operators, so that a value can only travel from a file to another through the agent."""


@dataclass(frozen=True, slots=True)
class ShellTask:
    """One instance. Commands are run in the working folder, which starts with exactly `files`."""

    family: str
    level: int
    seed: int
    split: str
    instruction: str
    files: Mapping[str, str]
    test: str
    """POSIX sh, run in the working folder after the episode; prints `PASS id` or `FAIL id` for each of `expected`."""
    expected: tuple[str, ...]
    solution: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...]
    memorised: tuple[tuple[str, ...], ...]
    """Command lists that know the family and the instruction but not the files; each must fail."""
    hidden: tuple[str, ...]
    """Tokens that must have been seen in an output before the command that uses them."""
    changes: tuple[Change, ...]
    tool: ToolSpec = TOOL

    @property
    def name(self) -> str:
        """A slug that is unique over all parameters."""
        return f"shell-{self.family}-{self.level}-{self.seed}-{self.split.replace('_', '-')}"


def named(source: str) -> list[str]:
    """The families that `shell:NAME`, `shell:all` (training) or `shell:unseen` stand for.

    Raises: ConfigError: there is none.
    """
    name = source.removeprefix("shell:")
    families = sorted(TRAINED) if name == "all" else sorted(UNSEEN) if name == "unseen" else [name]
    if families[0] not in FAMILIES:
        raise ConfigError(f"expected shell:all, shell:unseen or one of {', '.join(sorted(FAMILIES))}, got {name!r}")
    return families


def make(family: str, level: int, seed: int, split: str = "train") -> ShellTask:
    """The task of these four coordinates; the same arguments give the same task on every machine.

    Raises:
        ConfigError: unknown family or split, or a level below 1.
    """
    if family not in FAMILIES:
        raise ConfigError(f"expected a family out of {sorted(FAMILIES)}, got {family!r}")
    if level < 1:
        raise ConfigError(f"expected level >= 1, got {level}; level 1 is one look")
    rng = random.Random(f"{family}/{level}/{seed}/{split}")
    scene = FAMILIES[family](rng, partial(draw, rng, split), level)
    test, expected = verifier(scene.files, scene.changes)
    return ShellTask(
        family=family,
        level=level,
        seed=seed,
        split=split,
        instruction=scene.instruction,
        files=scene.files,
        test=test,
        expected=expected,
        solution=scene.solution,
        alternatives=scene.alternatives,
        memorised=scene.memorised,
        hidden=scene.hidden,
        changes=scene.changes,
    )


def verifier(files: Mapping[str, str], changes: Sequence[Change]) -> tuple[str, tuple[str, ...]]:
    """The test script and the ids it reports: one per change, `kept` for all other files, `only` for nothing else there."""
    end = {path: Change(path, Kind.TEXT, body) for path, body in files.items()}
    end.update((change.path, change) for change in changes)
    touched = {change.path for change in changes}
    sums = {path: f"{cksum(change.text.encode())} {path}" for path, change in end.items() if change.kind is Kind.TEXT}
    lines = [
        "LC_ALL=C; export LC_ALL; nl='\n'",
        f'sums="$nl$(cksum {" ".join(sorted(sums))} 2>/dev/null)$nl"' if sums else 'sums=""',
        "say() { if [ $? = 0 ]; then echo PASS $1; else echo FAIL $1; bad=1; fi; }",
        'holds() { case "$sums" in *"$nl$1$nl"*) return 0;; *) return 1;; esac; }',
    ]
    for change in changes:
        check = {
            Kind.TEXT: f"[ -f {change.path} ] && holds '{sums.get(change.path, '')}'",
            Kind.ABSENT: f"! [ -e {change.path} ]",
            Kind.FOLDER: f"[ -d {change.path} ]",
            Kind.ANY: f"[ -f {change.path} ]",
        }[change.kind]
        lines.append(f"{check}; say {change.path}")
    kept = [f"holds '{sums[path]}'" for path in sorted(files) if path not in touched]
    lines.append(f"{' && '.join(kept) or 'true'}; say kept")
    names = " ".join(sorted(path for path, change in end.items() if change.kind is not Kind.ABSENT))
    lines.append(f'set -- *; [ "$*" = "{names}" ]; say only')
    lines.append(HARBOR)
    return "\n".join(lines) + "\n", (*(change.path for change in changes), "kept", "only")


def draft(task: ShellTask) -> Draft:
    """The task as a draft of the factory: a folder in Harbor's format on the host's own /usr."""
    script = "cd /work\n" + "".join(f"{command}\n" for command in task.solution)
    files = {f"environment/work/{path}": body.encode() for path, body in task.files.items()}
    files["environment/Dockerfile"] = b"FROM gymsmith/host\nWORKDIR /work\nCOPY --chown=1000:1000 work/ /work/\n"
    files["tests/test.sh"] = f"#!/bin/sh\ncd /work || exit 1\n{task.test}".encode()
    files["solution/solve.sh"] = f"#!/bin/sh\n{script}".encode()
    return Draft(
        source=Source(uri=f"shell:{task.family}", kind="parametric", licence="Apache-2.0", meta={"seed": str(task.seed)}),
        spec=TaskSpec(
            name=f"gymsmith/{task.name}",
            kind="shell",
            description=f"Shell family {task.family}, level {task.level}",
            keywords=("shell", task.family),
            labels={"family": task.family, "level": str(task.level), "seed": str(task.seed), "split": task.split},
            tool=task.tool,
            max_turns=max(8, len(task.solution) + 3),
            expected=task.expected,
            hidden=task.hidden,
            memory_mb=128,
            pids=32,
        ),
        instruction=task.instruction,
        files=files,
        alternatives=tuple(f"#!/bin/sh\ncd /work\n{chr(10).join(way)}\n" for way in task.alternatives),
        cheats=tuple((f"memorised-{i}", f"#!/bin/sh\ncd /work\n{chr(10).join(way)}\n") for i, way in enumerate(task.memorised)),
        executable=frozenset(("tests/test.sh", "solution/solve.sh")),
    )
