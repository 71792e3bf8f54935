"""The level "admission": wrong work is noticed or the tests are weak, and what gives the solution away is found where it lies."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from env_factory.build import build
from env_factory.gates import admission, git_objects, leaks
from env_factory.gates.mutants import Rules, script_steps
from env_factory.gates.trial import Trial
from gymsmith.schema import Draft
from tests.env_factory.test_gates import DOCKERFILE, FILES, GOOD, TEST, proved
from tests.sandboxes.graded import RING_SOLUTION, RING_TESTS, ring_task

TWO = replace(
    GOOD,
    instruction="Write the sum of a.txt and b.txt into sum.txt, and the larger of the two numbers into max.txt.",
    files=FILES | {"solution/solve.sh": FILES["solution/solve.sh"] + b"echo 417 > max.txt\n"},
    alternatives=(),
    spec=GOOD.spec.model_copy(update={"hidden": ()}),
)


def ring(**files: bytes) -> Draft:
    task = ring_task(observed=False)
    members = {"solution/solve.sh": RING_SOLUTION.encode()} | {f"environment/{name}": data for name, data in files.items()}
    return replace(task.draft, files=task.files | members, instruction="Ring.at(3) of three items is an error; repair it.")


def image_gate(doorway: Any, draft: Draft) -> str:
    """What the gate found that looks into the image."""

    async def work() -> str:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        trial = Trial(draft, await build(draft, images), provider)
        trial.nothing = await trial.control(None)
        await admission.inspect(trial)
        return trial.gates[0].detail

    found: str = doorway.worker.run(work())
    return found


def test_tests_that_check_a_part_fall_by_the_other_part(doorway: Any) -> None:
    proof = proved(doorway, TWO, "admission")
    assert proof.reason == "half-passes" and "without /work/max.txt" in proof.detail, proof
    both = TEST.replace("if [", 'if [ "$(cat max.txt 2>/dev/null)" = 417 ] && [').encode()
    assert proved(doorway, replace(TWO, files={**TWO.files, "tests/test.sh": both}), "admission").reason == ""
    unasked = replace(TWO, instruction=GOOD.instruction)
    assert proved(doorway, unasked, "admission").reason == "", "what no text asks for is the solution's own affair"


def test_tests_that_look_at_the_shape_alone_are_weak(doorway: Any) -> None:
    shape = b"#!/bin/sh\ngrep -qxE '5[0-9]{2}' sum.txt 2>/dev/null && echo PASS sum || echo FAIL sum\n"
    careless = replace(GOOD, files=FILES | {"tests/test.sh": shape}, cheats=())
    proof = proved(doorway, careless, "admission")
    assert proof.reason == "weak-tests" and "another number" in proof.detail, proof
    tolerant = proved(doorway, careless, "admission", Rules(mutants=0.5))
    assert tolerant.reason == "", tolerant


def test_steps_of_a_script_are_left_out_whole() -> None:
    script = "#!/bin/sh\ncd /work\nfor f in *; do\n  echo $f > a\ndone\nif [ -e a ]; then rm a; fi\n"
    script += "cat > b <<'E'\nfor x in 1\nE\nf() {\n  x\n}\na | \\\n  b\n"
    steps = script_steps(script)
    assert "".join(steps) == script
    assert [step.split("\n")[0] for step in steps] == [
        "#!/bin/sh", "cd /work", "for f in *; do", "if [ -e a ]; then rm a; fi", "cat > b <<'E'", "f() {", "a | \\",
    ]  # fmt: skip


HEALED = ring_task(observed=False).files["environment/src/ring/core.py"].replace(b"(len(self.items) + 1)", b"len(self.items)")
GIT = "git -c user.name=a -c user.email=a@b -c safe.directory='*'"
COMMITTED = f"cp /src/core.py a.py; {GIT} add .; {GIT} commit -qm x; rm a.py; {GIT} add .; {GIT} commit -qm y"
SPREAD = {
    "a copy under another name": ("RUN cp /src/core.py /opt/old.txt", "/opt/old.txt holds the repaired /work/src/ring/core.py"),
    "a wheel": ("RUN cd /src && mkdir ring && mv core.py ring && python3 -m zipfile -c /opt/ring.whl ring", "ring.whl holds"),
    "bytecode": ("RUN python3 -c \"import py_compile as p; p.compile('/src/core.py', '/opt/ring/core.pyc')\"", "compiled"),
    "a commit that was taken back": (f"RUN cd /work && git init -q . && {COMMITTED}", "an object of /work/.git"),
    "a packed object": (f"RUN cd /work && git init -q . && {COMMITTED} && {GIT} gc -q", "an object of /work/.git"),
    "a hidden test": ("COPY t.py /work/src/ring/checks.py\n", "holds the hidden test test_ring.py::test_at"),
    "the ids of tests": ("RUN echo test_ring.py::test_turn > /work/.todo", "/work/.todo names a hidden test"),
    "a cache": ("RUN mkdir -p /work/.pytest_cache/v && touch /work/.pytest_cache/v/x", "is a cache"),
    "nothing: deleted by a later layer": ("RUN cp /src/core.py /opt/old.txt\nRUN rm /opt/old.txt", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", SPREAD)
def test_what_gives_a_repair_away(doorway: Any, case: str) -> None:
    line, words = SPREAD[case]
    draft = ring(**{"healed.py": HEALED, "t.py": RING_TESTS.encode()})
    text = draft.files["environment/Dockerfile"].decode()
    maker = "FROM gymsmith/host AS maker\nCOPY healed.py /src/core.py\n"
    hidden = f"{maker}{text}COPY --from=maker /src /src\nUSER root\n{line}\nRUN rm -rf /src\n"
    found = image_gate(doorway, replace(draft, files={**draft.files, "environment/Dockerfile": hidden.encode()}))
    assert words in found if words else not found, found


SAID = {
    "a file nobody speaks of": ("RUN mkdir /opt/x && echo 502 > /opt/x/y", "", "/opt/x/y is what the solution makes"),
    "a variable": ("ENV HINT=502", "", "the variable HINT"),
    "an answer in the task's own folder": ("RUN echo 502 > /work/.answer", "", ".answer is what the solution makes"),
    "nothing: the text leads there": ("RUN mkdir /opt/x && echo 502 > /opt/x/y", " A copy may be in /opt/x/y.", ""),
    "nothing: data of the task": ("RUN echo 502 > /work/c.txt", "", ""),
}


@pytest.mark.parametrize("case", SAID)
def test_what_gives_an_answer_away(doorway: Any, case: str) -> None:
    line, more, words = SAID[case]
    files = FILES | {"environment/Dockerfile": f"{DOCKERFILE}{line}\n".encode()}
    found = image_gate(doorway, replace(GOOD, files=files, instruction=GOOD.instruction + more))
    assert words in found if words else not found, found


def test_every_object_of_a_history_is_read(tmp_path: Path) -> None:
    """Loose, packed as deltas by offset, and packed as deltas by name: the same objects each time, lost ones among them."""

    def git(*words: str, **more: Any) -> bytes:
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, **more).stdout

    git("init", "-q")
    for n in range(1, 16):
        (tmp_path / "a").write_text("".join(f"line {i}\n" for i in range(40 * n)) + f"secret {n}\n")
        git("add", "a")
        git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", f"c{n}")
    git("reset", "-q", "--hard", "HEAD~9")
    folder = tmp_path / ".git"

    def secrets() -> set[str]:
        return {data.decode().splitlines()[-1] for kind, data in git_objects.objects(folder) if kind == "blob"}

    everything = {f"secret {n}" for n in range(1, 16)}
    assert secrets() == everything
    git("repack", "-q", "-adk")
    git("prune-packed")
    assert not list((folder / "objects").glob("??/*")) and secrets() == everything
    by_name = git("pack-objects", "-q", "--all", "--reflog", "--stdout", "--no-reuse-delta", input=b"")
    for path in (folder / "objects/pack").iterdir():
        path.unlink()
    (folder / "objects/pack/pack-x.pack").write_bytes(by_name)
    assert secrets() == everything
    (folder / "objects/pack/pack-x.pack").write_bytes(by_name[: len(by_name) // 2])
    assert secrets() < everything, "damage is passed over"
    assert leaks.windows(["a", "b"]) == set()
