"""The generators' acceptance tests: solutions pass, every way around looking fails, in a real shell.

Episodes are run by one `sh` per test in folders of their own. The commands are our own, so no sandbox is needed here.
"""

import random
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from env_factory.posix_tests import cksum
from env_factory.synth.shell import TOOL, ShellTask, draft, make
from env_factory.templates.shell.families import FAMILIES, TRAINED
from env_factory.templates.words import HELD_OUT, TRAIN
from gymsmith.schema import Step
from sandboxes import looking

LEVELS = (1, 2, 3)
INSTANCES = 204
SIMPLE = re.compile(r"[A-Za-z0-9 ._*/-]+")
ECHO = re.compile(r"echo [A-Za-z0-9 ._-]+ > [A-Za-z0-9._-]+")


def instances(family: str, count: int = INSTANCES) -> list[ShellTask]:
    return [make(family, LEVELS[i % 3], i, ("train", "held_out")[i % 2]) for i in range(count)]


def looked(task: ShellTask, transcript: Sequence[tuple[str, str]]) -> bool:
    """Whether every hidden token stood in an output before the first changing command that names it."""
    return looking.looked(task.hidden, [Step(action=command, observation=output) for command, output in transcript]) is True


def play(root: Path, episodes: Iterable[tuple[ShellTask, Sequence[str]]]) -> list[tuple[bool, list[tuple[str, str]]]]:
    """Run each episode and its test; returns (passed, transcript) in order. The verdict is formed here, from `expected`."""
    script = []
    games = list(episodes)
    for i, (task, commands) in enumerate(games):
        script.append(f"mkdir {i}; cd {i}")
        script += [f"printf '%s' '{quoted(body)}' > {path}" for path, body in task.files.items()]
        script += [f"echo @@out; {{ {command}\n}} </dev/null 2>&1" for command in commands]
        script.append(f"echo @@test\n{task.test}cd ..; echo @@end")
    out = subprocess.run(["sh"], input="\n".join(script), cwd=root, capture_output=True, text=True, timeout=120, check=False)
    chunks = out.stdout.split("@@end\n")[:-1]
    assert len(chunks) == len(games), out.stderr
    results = []
    for (task, commands), chunk in zip(games, chunks, strict=True):
        head, _, verdict = chunk.partition("@@test\n")
        outputs = head.split("@@out\n")[1:]
        passed = sorted(verdict.splitlines()) == sorted(f"PASS {name}" for name in task.expected)
        results.append((passed, list(zip(commands, outputs, strict=True))))
    return results


def quoted(body: str) -> str:
    return body.replace("'", "'\\''")


def attacks(task: ShellTask, rng: random.Random) -> dict[str, list[str]]:
    """Policies that look at nothing, or only at `ls`."""
    names = sorted(task.files)
    target = re.search(r"(?:to|in) (\w+)$", task.instruction)
    to = target[1] if target else rng.choice(TRAIN)

    def use(name: str) -> list[str]:
        if task.family in ("find", "chain", "ends", "count"):
            return [f"cp {name} {to}"]
        return [f"mv {name} {to}"]

    return {
        "nothing": [],
        "first file": [*use(names[0])],
        "last file": [*use(names[-1])],
        "random file": [*use(rng.choice(names))],
        "all at once": [*(step for name in names for step in use(name))],
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_solutions_pass_and_look(family: str, tmp_path: Path) -> None:
    tasks = instances(family, 90)
    ways = [(task, way) for task in tasks for way in (task.solution, *task.alternatives)]
    for (task, _), (passed, transcript) in zip(ways, play(tmp_path, ways), strict=True):
        assert passed, (task, transcript)
        assert looked(task, transcript), (task, transcript)
    assert all(len(task.alternatives) >= 1 and len(set(task.alternatives) | {task.solution}) >= 2 for task in tasks)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_way_around_looking(family: str, tmp_path: Path) -> None:
    """Each memorised line and each blind policy passes at most 5% of the instances."""
    tasks = instances(family)
    rng = random.Random(0)
    episodes: list[tuple[str, ShellTask, Sequence[str]]] = []
    for task in tasks:
        episodes += [(name, task, commands) for name, commands in attacks(task, rng).items()]
        assert len(task.memorised) >= 5 or family == "find"
        episodes += [(f"memorised {i}", task, way) for i, way in enumerate(task.memorised)]
    passes: dict[str, int] = {}
    for (name, task, _), (passed, transcript) in zip(episodes, play(tmp_path, [e[1:] for e in episodes]), strict=True):
        passes[name] = passes.get(name, 0) + passed
        assert not (passed and looked(task, transcript) is True), "an attack cannot have seen the answer"
    assert max(passes.values()) <= 0.05 * INSTANCES, passes


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_hidden_and_spread(family: str) -> None:
    """No hidden token that the prompt gives away, and no single answer that is right in more than 5% of the instances."""
    tasks = instances(family)
    answers: dict[tuple[str, ...], int] = {}
    for task in tasks:
        assert task.hidden
        words = set(re.findall(r"[A-Za-z0-9]+", task.instruction))
        assert not words & set(task.hidden), task
        answers[task.hidden] = answers.get(task.hidden, 0) + 1
    assert max(answers.values()) <= 0.05 * INSTANCES


def test_looked_tells_a_guess_from_a_look() -> None:
    task = make("chain", 1, 0)
    code, start = task.hidden[0], next(iter(task.files))
    answer = task.solution[-1]
    seen = (f"cat {start}", f"code {code}\n")
    assert looked(task, [seen, (answer, "")])
    assert not looked(task, [(answer, "")])
    assert not looked(task, [(answer, ""), seen])
    assert not looked(task, [(f"cat {start}", f"code {code}0\n"), (answer, "")])


def test_survivors_and_strangers_count(tmp_path: Path) -> None:
    """A right answer does not excuse a damaged file, a missing one or one too many."""
    tasks = [make(family, 1, 3) for family in TRAINED]
    spoils = [["rm {0}"], ["echo x > {0}"], ["touch stranger"], ["mkdir stranger"]]
    episodes = []
    for task in tasks:
        kept = sorted(set(task.files) - {change.path for change in task.changes})
        episodes += [(task, [*task.solution, *(s.format(kept[0]) for s in spoil)]) for spoil in spoils]
    assert not any(passed for passed, _ in play(tmp_path, episodes))


def test_pure_counters_and_disjoint_words() -> None:
    assert make("find", 2, 7) == make("find", 2, 7)
    assert make("find", 2, 7).instruction != make("find", 2, 8).instruction
    assert not set(TRAIN) & set(HELD_OUT)
    assert len(HELD_OUT) == 60
    assert len(TRAIN) == 210
    for family in FAMILIES:
        held = make(family, 3, 1, "held_out")
        said = set(re.findall(r"[a-z]+", held.instruction + " ".join(held.files) + " ".join(held.files.values())))
        assert not said & set(TRAIN)


def test_every_command_is_simple() -> None:
    for family in FAMILIES:
        for task in instances(family, 60):
            for command in (c for way in (task.solution, *task.alternatives, *task.memorised) for c in way):
                assert ECHO.fullmatch(command) or SIMPLE.fullmatch(command), command
                assert command.split()[0] in TOOL.allow


def test_mix_takes_three_commands() -> None:
    lengths = [len(make(family, level, seed).solution) for family in TRAINED for level in LEVELS for seed in range(5)]
    assert sum(lengths) / len(lengths) >= 3


def test_chain_reaches_eight_hops(tmp_path: Path) -> None:
    task = make("chain", 9, 0)
    assert sum(command.startswith("cat") for command in task.solution) == 9
    assert play(tmp_path, [(task, task.solution)])[0][0]


def test_cksum_is_posix(tmp_path: Path) -> None:
    for size in (0, 1, 255, 256, 4096):
        data = random.Random(size).randbytes(size)
        (tmp_path / "f").write_bytes(data)
        said = subprocess.run(["cksum", "f"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        assert said.split()[:2] == cksum(data).split()


def test_draft_is_stable_and_complete() -> None:
    one = draft(make("fix", 2, 1))
    assert one.id == draft(make("fix", 2, 1)).id
    assert one.spec.tool == TOOL
    assert {"environment/Dockerfile", "tests/test.sh", "solution/solve.sh"} <= set(one.files)
    assert len(one.cheats) >= 5
    assert one.alternatives
