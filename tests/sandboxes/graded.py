"""What the tests of grading share: tasks of every kind that is bundled, and a provider with their images."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from env_factory.lessons import state
from env_factory.lessons.state import Node
from env_factory.synth import shell
from gymsmith import taskdir
from gymsmith.schema import Reward, Source, TaskSpec
from gymsmith.taskdir import Task
from sandboxes import grade, observations
from sandboxes.base import Image
from sandboxes.image.images import ImageStore
from sandboxes.namespace import NamespaceProvider
from sandboxes.observations import Observation

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(grade.__file__).with_name("verifier") / "pytest_runner.py"
SOURCE = Source(uri="shell:test", kind="parametric")
WORKERS = 4
"""Attempts under way at once."""


class Bench:
    """A provider, the images of the tasks it has met, on one event loop."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.images = ImageStore(root / "images")
        self.provider: Any = self.run(NamespaceProvider.start(self.images, root / "sandboxes"))
        self.images.provider = self.provider
        self._built: dict[str, Image] = {}

    def needs_users(self) -> None:
        """Skip where this user has one id only: root, agent and tester are then the same inside."""
        if not self.provider.capabilities.users:
            pytest.skip("this user has one id only, so root, agent and tester are the same inside")

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def image(self, task: Task) -> Image:
        key = repr(sorted(task.under("environment").items()))
        if key not in self._built:
            self._built[key] = self.run(self.images.build(task.dockerfile, task.under("environment")))
        return self._built[key]

    def attempt(self, script: str | None, task: Task | None = None, image: Image | None = None) -> Reward:
        task = task or note_task()
        reward: Reward = self.run(grade.attempt_script(self.provider, image or self.image(task), task, script))
        return reward

    def attempts(self, scripts: dict[str, str | None], task: Task) -> dict[str, Reward]:
        """The rewards of several scripts, some at once."""
        image, gate = self.image(task), asyncio.Semaphore(WORKERS)

        async def one(script: str | None) -> Reward:
            async with gate:
                return await grade.attempt_script(self.provider, image, task, script)

        async def all_of_them() -> list[Reward]:
            return list(await asyncio.gather(*(one(script) for script in scripts.values())))

        return dict(zip(scripts, self.run(all_of_them()), strict=True))

    def close(self) -> None:
        self.run(self.provider.close())
        self.loop.close()


def task_of(files: dict[str, str | bytes], expected: tuple[str, ...], **spec: Any) -> Task:
    members = {name: data if isinstance(data, bytes) else data.encode() for name, data in files.items()}
    limits = {"verifier_timeout_s": 20.0, "agent_timeout_s": 20.0, **spec}
    return Task(TaskSpec(name="gymsmith/test", kind="test", expected=expected, **limits), SOURCE, "Do it.", members)


def changed(task: Task, **spec: Any) -> Task:
    """The task with other values in its spec."""
    return replace(task, spec=task.spec.model_copy(update=spec))


def note_task() -> Task:
    """Find the one note that names a port, write the port to answer.txt, remove the note, keep the rest."""
    notes: dict[str, str | bytes] = {f"environment/work/n{i:02d}.txt": f"nothing here {i}\n" for i in range(12)}
    notes["environment/work/n07.txt"] = "the port is 4711\n"
    test = """cd /work
if [ "$(cat answer.txt 2>/dev/null)" = 4711 ]; then echo "PASS answer"; else echo "FAIL answer wrong or missing"; fi
if [ -e n07.txt ]; then echo "FAIL removed still there"; else echo "PASS removed"; fi
good=1
for i in 00 01 02 03 04 05 06 08 09 10 11; do [ "$(cat n$i.txt 2>/dev/null)" = "nothing here $((${i#0}))" ] || good=0; done
if [ $good = 1 ]; then echo "PASS others"; else echo "FAIL others"; fi
"""
    dockerfile = "FROM gymsmith/host\nCOPY --chown=agent:agent work/ /work/\n"
    files = {"environment/Dockerfile": dockerfile, **notes, "tests/test.sh": test, "tests/expected.txt": "4711\n"}
    return task_of(files, ("answer", "removed", "others"))


NOTE_SOLUTION = "cd /work && grep -ho '[0-9]*$' n07.txt > answer.txt && rm n07.txt"

RING = """class Ring:
    def __init__(self, *items):
        self.items = list(items)

    def at(self, index):
        return self.items[index % (len(self.items) + 1)]

    def turn(self, steps):
        return Ring(*[self.at(i + steps) for i in range(len(self.items))])


def spread(*items):
    return [Ring(*items).at(i) for i in range(2 * len(items))]
"""
RING_TESTS = """import unittest

import pytest
from ring import Ring, spread


@pytest.mark.parametrize('index, item', [(0, 'a'), (2, 'c'), (3, 'a'), (7, 'b')])
def test_at(index, item):
    assert Ring('a', 'b', 'c').at(index) == item


def test_turn():
    assert Ring(1, 2, 3).turn(1).items == [2, 3, 1]


class TestSpread(unittest.TestCase):
    def test_spread(self):
        self.assertEqual(spread(1, 2), [1, 2, 1, 2])


def test_left_out():
    assert 0, 'not selected'
"""
RING_EXPECTED = (
    *(f"test_ring.py::test_at[{c}]" for c in ("0-a", "2-c", "3-a", "7-b")),
    "test_ring.py::test_turn",
    "test_ring.py::TestSpread::test_spread",
)
RING_SOLUTION = "sed -i 's/(len(self.items) + 1)/len(self.items)/' /work/src/ring/core.py"
RING_OTHER = """cat > /tmp/edit.py <<'PY'
path = "/work/src/ring/core.py"
text = open(path).read()
old = "        return self.items[index % (len(self.items) + 1)]"
new = "        _, place = divmod(index, len(self.items))\\n        return self.items[place]"
open(path, "w").write(text.replace(old, new))
PY
python3 /tmp/edit.py"""
RING_OBSERVATIONS = [
    Observation("observed-1", "spread(7, 8, 9)", "[7, 8, 9, 7, 8, 9]", imports=(("spread", "ring.core:spread"),)),
    Observation("observed-2", "r.at(5)", "'z'", setup=("r = Ring('x', 'y', 'z')",), imports=(("Ring", "ring:Ring"),)),
]


@cache
def ring_task(*, observed: bool = True) -> Task:
    """SWE: a package with one fault, whose suite runs under our runner, as the mutation synthesizer lays it out.

    pytest comes from this interpreter's own site-packages.
    """
    site = Path(pytest.__file__).parent.parent
    members: dict[str, str | bytes] = {
        "environment/Dockerfile": (
            "FROM gymsmith/host\nCOPY site/ /opt/site/\nRUN python3 -m compileall -q /opt/site\n"
            "COPY --chown=agent:agent src/ /work/src/\nWORKDIR /work\nUSER agent\n"
        ),
        "environment/src/ring/__init__.py": "from ring.core import Ring, spread\n\n__all__ = ['Ring', 'spread']\n",
        "environment/src/ring/core.py": RING,
        "tests/test.sh": (
            "exec /usr/bin/python3 -I -S /tests/run.py --path /work/src --site /opt/site --root /tests/suite "
            "--select /tests/select.txt -- --assert=plain --tb=line /tests/suite\n"
        ),
        "tests/run.py": RUNNER.read_bytes(),
        "tests/suite/test_ring.py": RING_TESTS,
        "tests/select.txt": "\n".join(RING_EXPECTED) + "\n",
    }
    expected = RING_EXPECTED
    if observed:
        members[observations.MEMBER] = observations.member(RING_OBSERVATIONS, ["/work/src"], ["/opt/site"])
        expected += tuple(each.id for each in RING_OBSERVATIONS)
    for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        for path in (site / name).rglob("*.py"):
            members[f"environment/site/{path.relative_to(site)}"] = path.read_bytes()
    members["environment/site/py.py"] = (site / "py.py").read_bytes()
    protected = ("conftest.py", "*.pth", "sitecustomize.py", "usercustomize.py", "pytest.ini", "__pycache__", "*.pyc")
    return task_of(members, expected, protected=protected, pids=64)


def shell_family_task() -> Task:
    """Parametric: one instance of a family of the factory."""
    return Task.of(shell.draft(shell.make("chain", 2, 5)))


def tutorial_task() -> Task:
    """A step of a lesson, with the verifier that the tutorial synthesizer writes."""
    lesson = ROOT / "examples/tutorials/shell-novice/data/Desktop/shell-lesson-data/exercise-data"
    files = {f"alkanes/{path.name}": path.read_bytes() for path in sorted((lesson / "alkanes").glob("*.pdb"))}
    start: dict[str, Node | None] = {"alkanes": Node("dir", 0o755, b"")}
    start |= {name: Node("file", 0o644, data) for name, data in files.items()}
    lengths = "".join(f"{data.count(10)} {name.rpartition('/')[2]}\n" for name, data in sorted(files.items()))
    done: dict[str, Node | None] = {
        "thesis": Node("dir", 0o755, b""),
        "thesis/lengths.txt": Node("file", 0o644, lengths.encode()),
        "alkanes/octane.pdb": None,
    }
    test, expected = state.script(start, done)  # type: ignore[arg-type]
    members: dict[str, str | bytes] = {f"environment/work/{name}": data for name, data in files.items()}
    members["environment/Dockerfile"] = "FROM gymsmith/host\nWORKDIR /work\nCOPY --chown=agent:agent work/ /work/\n"
    members["tests/test.sh"] = test
    return task_of(members, expected)


TUTORIAL_SOLUTIONS = (
    "cd /work/alkanes && mkdir ../thesis && wc -l *.pdb | grep -v total > ../thesis/lengths.txt && rm octane.pdb",
    "cd /work; mkdir thesis; for f in alkanes/*; do n=$(grep -c '' $f); echo $n ${f#alkanes/} >> thesis/lengths.txt; done; "
    "find alkanes -name 'oct*' -delete",
)


def ledger_task() -> Task:
    """Stateful: the bundled service whose database has to be migrated."""
    return taskdir.read(ROOT / "examples/services/ledger")


BUNDLED: dict[str, tuple[Callable[[], Task], tuple[str, ...]]] = {
    "mutation": (ring_task, (RING_SOLUTION, RING_OTHER)),
    "shell": (shell_family_task, ()),
    "tutorial": (tutorial_task, TUTORIAL_SOLUTIONS),
    "service": (ledger_task, ()),
}
"""kind -> (task, honest solutions besides the task's own)."""


def honest(kind: str) -> tuple[Task, list[str]]:
    """A bundled task and its honest solutions, at least two."""
    make, more = BUNDLED[kind]
    task = make()
    own = [task.solution, *task.alternatives] if task.solution else []
    return task, [*own, *more]
