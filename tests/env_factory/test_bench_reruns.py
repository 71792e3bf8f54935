"""Solutions run again: draws that anybody can repeat, a journal that goes on, and a flaky one that is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from env_factory.bench import reruns
from env_factory.bench.reruns import drawn, rerun, rerun_rows
from gymsmith import taskdir
from gymsmith.schema import Draft, Environment, Evidence, Gate, Status
from tests.env_factory.test_gates import FILES, GOOD


def admitted(doorway: Any, draft: Draft, gates: tuple[Gate, ...] = ()) -> str:
    folder = taskdir.folder_of(doorway.settings.tasks_dir, draft.id)
    taskdir.write(draft, folder)
    path = folder.relative_to(doorway.settings.home).as_posix()
    status = Status.VERIFIED
    made = Environment(id=draft.id, source=draft.source, spec=draft.spec, instruction=draft.instruction, status=status, path=path)
    doorway.store.put_environment(made, Evidence(environment_id=draft.id, gates=gates, image_id="") if gates else None)
    return draft.id


def test_draws_follow_from_the_seed_and_what_depends_on_the_zone_is_seen(doorway: Any) -> None:
    ids = [f"{n}" for n in range(50)]
    draws = [drawn(ids, n) for n in range(200)]
    assert draws == [drawn(ids, n) for n in range(200)] != [drawn(ids, n, seed=1) for n in range(200)]
    assert len({chosen for chosen, _ in draws}) > 40 and len({condition.hash_seed for _, condition in draws}) == 200
    assert {condition.cpu_share for _, condition in draws} == {1.0, 0.5} and {c.zone for _, c in draws} == set(reruns.ZONES)

    sound = admitted(doorway, GOOD)
    first = rerun(doorway.settings, doorway.store, 3, seed=7, among=[sound])
    again = rerun(doorway.settings, doorway.store, 5, seed=7, among=[sound])
    assert again[:3] == first and [line["number"] for line in again[3:]] and len(again) == 5, "it goes on where it was"
    assert all(row.ok is not False for row in rerun_rows(again, 5)) and not rerun_rows(again, 6)[0].ok

    zoned = b'[ "$(date +%z)" = +0000 ] && cd /work && echo 502 > sum.txt\n'
    spec = GOOD.spec.model_copy(update={"name": "gymsmith/zoned"})
    flaky = admitted(doorway, replace(GOOD, spec=spec, files=FILES | {"solution/solve.sh": zoned}))
    lines = rerun(doorway.settings, doorway.store, 6, seed=8, among=[flaky])
    away = [line for line in lines if line["condition"]["zone"]]
    assert (
        away and all(line["reward"] == 0.0 for line in away) and sum(line["reward"] for line in lines) == len(lines) - len(away)
    )
    assert rerun_rows(lines, 6)[2].ok is False


def test_cheats_are_counted_out_of_the_evidence(elsewhere: Any) -> None:
    gates = (Gate(name="noop", passed=True, rewards=(0.0,)), Gate(name="cheat:a", passed=True, rewards=(0.0,)))
    admitted(elsewhere, GOOD, gates)
    rows = {row.metric: row for row in reruns.cheat_rows(elsewhere.store)}
    assert rows["cheats tried on them"].ours == 1 and rows["cheats that scored"].ok
    admitted(elsewhere, GOOD, (*gates, Gate(name="cheat:without-step-1", passed=False, rewards=(1.0,))))
    rows = {row.metric: row for row in reruns.cheat_rows(elsewhere.store)}
    assert rows["of these, the solution without one step"].ours == 1
    assert rows["cheats that scored"].ours == 1 and rows["cheats that scored"].ok is False
