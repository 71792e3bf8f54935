"""Terminal and repair tasks: every template is played in a sandbox; right programs pass and wrong ones fail."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest

from env_factory import tasks
from env_factory.build import build
from env_factory.gates.stages import prove
from env_factory.synth import repair, terminal
from env_factory.synth.terminal import Instance
from env_factory.templates.terminal import box, sent
from gymsmith.errors import ConfigError
from gymsmith.schema import Draft
from sandboxes.base import MIB, Sandbox, SandboxSpec
from sandboxes.observations import Observation, evaluate

RIGHT = ("shell", "reference")
ALL = ("visible", "hidden-1", "hidden-2")


async def judged(box: Sandbox, instance: Instance, programs: dict[str, str]) -> dict[str, list[str]]:
    """The states of each program's observations, all asked of one process, as a verifier asks them."""
    asked: list[Observation] = []
    ends: list[int] = []
    for name, text in programs.items():
        path = f"/work/{instance.template.name}/{name}"
        await box.put(path, text.encode(), 0o755)
        # A wrong program fails on one of the first two data sets already.
        asked += [each for each in instance.observed(path) if each.id in (ALL if name in RIGHT else ALL[:2])]
        ends.append(len(asked))
    states = await evaluate(box, asked, (), (), user="tester", timeout_s=60.0)
    return {name: states[start:end] for name, start, end in zip(programs, [0, *ends], ends, strict=False)}


def test_every_template_tells_right_from_wrong(doorway: Any) -> None:
    """Two right programs of each template pass on seen and unseen data, every other program fails somewhere."""

    async def work() -> list[str]:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        names = sorted(terminal.TEMPLATES)

        async def some(part: list[str]) -> list[str]:
            spec = SandboxSpec(image=images.base().id, user="agent", memory_bytes=512 * MIB, pids=128)
            box = await provider.create(spec)
            said = []
            try:
                for name in part:
                    instance = Instance.of(name, 1 + len(name) % 3, 7)
                    states = await judged(box, instance, instance.programs())
                    said += [
                        f"{name}: {program} is right, got {s}"
                        for program, s in states.items()
                        if program in RIGHT and set(s) != {"passed"}
                    ]
                    said += [
                        f"{name}: {program} is wrong, and passes"
                        for program, s in states.items()
                        if program not in RIGHT and set(s) == {"passed"}
                    ]
                    said += [
                        f"{name}: {program} knows only what is seen"
                        for program, s in states.items()
                        if program == "by-heart" and s[0] != "passed"
                    ]
            finally:
                await box.destroy()
            return said

        parts = await asyncio.gather(some(names[0::2]), some(names[1::2]))
        return [line for part in parts for line in part]

    assert doorway.worker.run(work()) == []


def proved(doorway: Any, draft: Draft) -> tuple[str, str, set[str]]:
    """(reason, detail, names of the gates) of the whole proof."""

    async def work() -> tuple[str, str, set[str]]:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        proof = await prove(draft, await build(draft, images), provider)
        return proof.reason, proof.detail, {gate.name for gate in proof.evidence.gates}

    result: tuple[str, str, set[str]] = doorway.worker.run(work())
    return result


@pytest.mark.parametrize("name", ["latency-percentiles", "permissions-by-policy"])
def test_a_draft_stands_every_gate(doorway: Any, name: str) -> None:
    reason, detail, gates = proved(doorway, terminal.draft(name, 2, 3))
    assert (reason, detail) == ("", "") and {"noop", "oracle", "alternative-1", "cheat:by-heart", "cheat:other-folder"} <= gates


def test_several_faults_at_once_stand_every_gate(doorway: Any) -> None:
    reason, detail, gates = proved(doorway, repair.draft("store-mode", 3, 1))
    assert (reason, detail) == ("", "") and {"oracle", "alternative-1", "cheat:faked-health", "cheat:without-store-mode"} <= gates


def test_each_fault_gives_the_sign_that_the_instruction_tells(doorway: Any) -> None:
    """Each operator in a sandbox of its image: the health command says what the instruction says; both repairs end that."""

    async def one(name: str, seed: int) -> str:
        provider, images = await doorway.worker.provider(), await doorway.worker.images()
        draft = repair.draft(name, 1, seed)
        faults, facts = repair.chosen(name, 1, seed, "train")
        image = await build(draft, images)
        said = ""
        for script in (draft.files["solution/solve.sh"].decode(), *draft.alternatives):
            box = await provider.create(SandboxSpec(image=image.id, user="agent", workdir="/work/depot"))
            try:
                broken = await box.exec("bin/depot check", user="agent")
                await box.put("/solution/solve.sh", script.encode(), 0o755)
                mended = await box.exec("/solution/solve.sh && bin/depot check", user="agent")
            finally:
                await box.destroy()
            # Which shell complains, and how it names itself, is the machine's.
            wanted, got = (
                re.sub(r"^\S+: (\d+: )?", "", t.strip()) for t in (repair.health(faults, facts), broken.output.decode())
            )
            said += "" if broken.exit_code and wanted == got else f"{name}: expected {wanted!r}, got {got!r}\n"
            said += "" if mended.ok else f"{name}: {mended.output.decode()}\n"
        return said

    async def work() -> str:
        return "".join(await asyncio.gather(*(one(name, seed) for seed, name in enumerate(repair.BY_NAME))))

    assert doorway.worker.run(work()) == ""


def test_the_same_place_gives_the_same_task_and_another_seed_another() -> None:
    one = terminal.draft("cron-next-run", 2, 5)
    assert one.id == terminal.draft("cron-next-run", 2, 5).id != terminal.draft("cron-next-run", 2, 6).id
    assert terminal.draft("git-lost-commits", 1, 1).id != terminal.draft("git-lost-commits", 2, 1).id
    assert repair.draft("wrong-pin", 2, 1).id == repair.draft("wrong-pin", 2, 1).id != repair.draft("wrong-pin", 2, 2).id
    seen, *hidden = (repr(f) for f in (Instance.of("user-sessions", 1, 1).visible, *Instance.of("user-sessions", 1, 1).hidden))
    assert len({seen, *hidden}) == 1 + terminal.HIDDEN


def test_no_part_of_a_draft_follows_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in terminal.TEMPLATES:
        drafts = []
        for second in (1e9, 2e9):
            monkeypatch.setattr(time, "time", lambda second=second: second)
            drafts.append(terminal.draft(name, 2, 5))
        assert drafts[0] == drafts[1], name


def test_the_answers_are_the_hosts_alone() -> None:
    """No answer for unseen data is in the environment, the tests that enter the sandbox, or the instruction."""
    instance = Instance.of("ledger-balances", 2, 1)
    draft = terminal.draft("ledger-balances", 2, 1)
    answers = [instance.wanted(files) for files in instance.hidden]
    inside = [
        data for name, data in draft.files.items() if not name.startswith("solution/") and name != "tests/observations.json"
    ]
    assert not any(answer.encode() in data for answer in answers for data in inside) and draft.instruction.count("\n") > 3


def test_there_are_thirty_templates_and_some_are_held_out() -> None:
    trained, unseen = terminal.named("terminal:all"), terminal.named("terminal:unseen")
    assert len(trained) >= 30 and len(unseen) >= 5 and not {*trained} & {*unseen}
    assert {terminal.draft(name, 1, 1).spec.labels["split"] for name in unseen} == {"held_out"}
    assert len({template.theme for template in terminal.TEMPLATES.values()}) >= 12
    assert set(terminal.named("terminal:git-recovery")) == {"git-lost-commits", "git-leaked-secret"}
    assert len(repair.named("repair:all")) >= 10 and set(repair.named("repair:unseen")) == repair.HELD_OUT
    for source, room in (("terminal:none", terminal), ("repair:none", repair)):
        with pytest.raises(ConfigError, match="expected"):
            room.named(source)


def test_a_data_set_is_laid_down_and_told_alike(tmp_path: Any) -> None:
    files = {"a b/c.txt": "x\n", "run!750": "#!/bin/sh\n", "l@": "a b", "none/": "", "raw": b"\xff\0"}
    box.lay(str(tmp_path), files)
    plain = {name.partition("!")[0]: content for name, content in files.items()}
    assert box.tree(str(tmp_path)) == plain and "run!750" in box.tree(str(tmp_path), True)
    assert box.digest(str(tmp_path)) == sent.digest(files)
    (tmp_path / "run").write_text("x")
    assert box.digest(str(tmp_path)) != sent.digest(files)


def test_orders_take_templates_and_levels_in_turns(doorway: Any) -> None:
    order = {"source": "terminal:schedules", "kind": "terminal", "n": 2, "seed": 3, "levels": [2], "gates": "controls"}
    made = tasks.generate(order, doorway)
    labels = [doorway.store.environment(each).spec.labels for each in made["admitted"]]
    assert [each["level"] for each in labels] == ["2", "2"] and len({each["family"] for each in labels}) == 2
    with pytest.raises(ConfigError, match="expected kind terminal"):
        tasks.generate(order | {"kind": "tutorial"}, doorway)
