"""The words of a network policy: what is refused before anything starts, and how tasks say it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from gymsmith import taskdir
from gymsmith.errors import PolicyRefused
from gymsmith.schema import Draft, Source, TaskSpec
from gymsmith.taskdir import Task
from sandboxes.network import OFFLINE, NetworkPolicy, policy_of


@pytest.mark.parametrize(
    "make",
    [
        lambda: NetworkPolicy("index"),
        lambda: NetworkPolicy("proxy"),
        lambda: NetworkPolicy("none", hosts=("a.test",)),
        lambda: NetworkPolicy("host"),  # type: ignore[arg-type]
        lambda: NetworkPolicy("proxy", hosts=("127.0.0.1",)),
        lambda: NetworkPolicy("proxy", hosts=("10.0.0.0/8",)),
        lambda: NetworkPolicy("proxy", hosts=("[::1]",)),
        lambda: NetworkPolicy("proxy", hosts=("*",)),
        lambda: NetworkPolicy("proxy", hosts=("a.*.test",)),
        lambda: NetworkPolicy("proxy", hosts=("a.test:0",)),
        lambda: NetworkPolicy("proxy", hosts=("http://a.test",)),
        lambda: NetworkPolicy("index", packages=("a>=1",)),
        lambda: NetworkPolicy("index", packages=("../a",)),
        lambda: NetworkPolicy("index", packages=("a",), max_bytes=0),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(make: Callable[[], NetworkPolicy]) -> None:
    with pytest.raises(PolicyRefused, match="network"):
        make()


def test_tasks_say_it_in_harbors_words(tmp_path: Path) -> None:
    spec = TaskSpec(name="gymsmith/x", kind="shell", network="allowlist", allowed_hosts=("a.test", "*.b.test:8443"))
    assert policy_of(spec) == NetworkPolicy("proxy", hosts=("a.test", "*.b.test:8443"))
    assert policy_of(spec, verifying=True) == OFFLINE
    assert policy_of(spec.model_copy(update={"verifier_network": True}), verifying=True).mode == "proxy"
    assert policy_of(TaskSpec(name="gymsmith/x", kind="shell", packages=("six==1.17.0",))).mode == "index"
    assert policy_of(TaskSpec(name="gymsmith/x", kind="shell")) == OFFLINE
    draft = Draft(Source(uri="shell:x", kind="parametric"), spec, "Do it.", {
        "environment/Dockerfile": b"FROM gymsmith/host\n", "tests/test.sh": b"true\n"})  # fmt: skip
    written = taskdir.write(Task.of(draft), tmp_path / "task")
    assert taskdir.read(tmp_path / "task").spec == spec, written
    document = tomllib.loads((tmp_path / "task" / "task.toml").read_text())
    assert document["environment"]["allowed_hosts"] == document["agent"]["allowed_hosts"] == ["a.test", "*.b.test:8443"]
    assert (document["agent"]["network_mode"], document["verifier"]["network_mode"]) == ("allowlist", "no-network")
    with pytest.raises(ValueError, match="allowed_hosts"):
        TaskSpec(name="gymsmith/x", kind="shell", allowed_hosts=("a.test",))
