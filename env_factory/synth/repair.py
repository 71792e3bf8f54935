"""Break and repair: a healthy service, seeded destructive operators, the health command and what it says now.

The instruction tells the command and its output, never the cause. The verifier asks the service for reports on orders that the
agent has not seen, computed here, and checks what must not change: program, tests, vendored code, and the rows of the stock.
The level says how many operators were at work; `repair:NAME` makes NAME one of them.
"""

from __future__ import annotations

import random

from env_factory.templates.repair import depot
from env_factory.templates.repair.faults import FAULTS, Fault
from env_factory.templates.terminal import box, sent
from env_factory.templates.terminal.template import Files, Params
from env_factory.templates.words import draw
from gymsmith.errors import ConfigError
from gymsmith.schema import Draft, Source, TaskSpec, ToolSpec
from sandboxes.observations import Observation

BY_NAME = {fault.name: fault for fault in FAULTS}
HELD_OUT = frozenset({"port-clash", "stale-lock", "labels-in-latin-1"})
"""Operators of the split "held_out"."""
KEPT = ("lib/", "tests/", "vendor/", "docs/", "data/backup/")
"""Folders whose files stay as they are."""

BOX = """
def depot(arguments, files):
    home = tempfile.mkdtemp()
    try:
        root = os.path.join(home, "depot")
        shutil.copytree("/work/depot", root, symlinks=True)
        lay(home, files)
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": home}
        done = subprocess.run(["bin/depot", *arguments], cwd=root, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=TIMEOUT_S)
        return [done.returncode, tidy(done.stdout.decode(errors="replace"))]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def rows():
    base = sqlite3.connect("file:/work/depot/data/current/stock.db?mode=ro", uri=True)
    try:
        return [list(row) for row in base.execute("select name, cents from stock order by name")]
    finally:
        base.close()
"""


def named(source: str) -> list[str]:
    """The operators that `repair:NAME`, `repair:all` (training) or `repair:unseen` stand for.

    Raises: ConfigError: there is none.
    """
    asked = source.removeprefix("repair:")
    if asked == "all":
        return [name for name in BY_NAME if name not in HELD_OUT]
    if asked == "unseen":
        return sorted(HELD_OUT)
    if asked not in BY_NAME:
        raise ConfigError(f"expected repair:all, repair:unseen or one of {', '.join(sorted(BY_NAME))}, got {source!r}")
    return [asked]


def chosen(name: str, level: int, seed: int, split: str) -> tuple[list[Fault], Params]:
    """The operators of one instance, in the order in which the service meets them, and the facts of the service.

    Raises: ConfigError: unknown operator, or a level out of range.
    """
    if name not in BY_NAME:
        raise ConfigError(f"expected an operator out of {sorted(BY_NAME)}, got {name!r}")
    if not 1 <= level <= 5:
        raise ConfigError(f"expected a level from 1 to 5, got {level}; it is the number of faults")
    rng = random.Random(f"repair/{name}/{level}/{seed}/{split}")
    facts = depot.facts(rng, draw(rng, split, 14))
    faults = [BY_NAME[name]]
    unseen = name in HELD_OUT
    for other in rng.sample(FAULTS, len(FAULTS)):
        # What `check` can tell of one part is one thing, so operators of one part do not meet.
        apart = all(other.place != f.place and (other.part or other.name) != (f.part or f.name) for f in faults)
        if (
            len(faults) < level
            and apart
            and (unseen or other.name not in HELD_OUT)
            and (other.part or all(f.part for f in faults))
        ):
            faults.append(other)
    return sorted(faults, key=lambda fault: (fault.part != "", depot.PARTS.index(fault.part) if fault.part else 0)), facts


def health(faults: list[Fault], p: Params) -> str:
    """What the health command prints while these operators' work is there."""
    if not faults[0].part:
        return faults[0].sign(p)
    said = {fault.part: f"{fault.part} failed: {fault.sign(p)}" for fault in faults}
    return "\n".join(said.get(part, f"{part} ok") for part in depot.PARTS)


def draft(name: str, level: int, seed: int, split: str = "train") -> Draft:
    """The task of these four coordinates; the same arguments give the same task on every machine.

    Raises: ConfigError: see `chosen`.
    """
    faults, p = chosen(name, level, seed, split)
    rng = random.Random(f"orders/{name}/{level}/{seed}/{split}")
    files = depot.healthy(p)
    sound = dict(files)
    for fault in faults:
        files = fault.breaks(files, p)
    asked = observed(rng, sound, p)
    members = sent.context(files, "depot") | sent.tests(asked)
    members["environment/Dockerfile"] = sent.dockerfile(files, (), "/work/depot").encode()
    repair = script([fault.repair(p) for fault in faults])
    members["solution/solve.sh"] = repair.encode()
    return Draft(
        source=Source(uri=f"repair:{name}", kind="parametric", licence="Apache-2.0", meta={"seed": str(seed)}),
        spec=TaskSpec(
            name=f"gymsmith/repair-{name}-{level}-{seed}-{split.replace('_', '-')}",
            kind="repair",
            description=f"Repair of a service: {', '.join(fault.name for fault in faults)}",
            keywords=("terminal", "repair"),
            labels={
                "family": name,
                "faults": ",".join(fault.name for fault in faults),
                "level": str(level),
                "seed": str(seed),
                "split": "held_out" if name in HELD_OUT else split,
            },
            tool=ToolSpec(name="shell", timeout_s=30.0),
            max_turns=30,
            workdir="/work/depot",
            expected=tuple(each.id for each in asked),
            verifier_timeout_s=120.0,
            memory_mb=256,
            pids=64,
        ),
        instruction=instruction(faults, p),
        files=members,
        alternatives=(script([fault.other(p) for fault in faults]),),
        cheats=tuple(cheats(faults, p)),
        executable=frozenset({"tests/test.sh", "solution/solve.sh", "environment/work/depot/bin/depot"}),
    )


def instruction(faults: list[Fault], p: Params) -> str:
    """The health command, what it says, and what stays as it is."""
    said = "\n".join(f"    {line}" for line in health(faults, p).splitlines())
    return (
        "The service in `/work/depot` is out of order. Run there, its health command `bin/depot check` now says:\n\n"
        f"{said}\n\n"
        "Bring the service back into order: the command must report every part as ok and exit with code 0, and `bin/depot "
        "report FILE` must price orders as before, with the stock as it was before the trouble. One trouble may hide "
        "another. What is right for this service is written in its folder. The folders `lib`, `tests`, `vendor`, `docs` and "
        "`data/backup` are not to be blamed: files there stay as they are.\n"
    )


def observed(rng: random.Random, sound: Files, p: Params) -> list[Observation]:
    """What the host asks, with the answers."""
    setup = (sent.box_text() + BOX,)
    watched = sorted((name.partition("!")[0], text) for name, text in sound.items() if name.startswith(KEPT))
    names = [name for name, _ in watched]
    kept = [
        Observation("kept", f"[open('/work/depot/' + n).read() for n in {names!r}]", repr([text for _, text in watched]), setup)
    ]
    stock = sorted((p["prices"] | p["later"]).items())
    kept.append(Observation("rows", "rows()", repr([list(row) for row in stock]), setup))
    kept.append(Observation("health", "depot(['check'], {})", repr([0, depot.HEALTHY]), setup))
    for number in (1, 2):
        asked = depot.orders(rng, p)
        text = "".join(f"{name};{pieces}\n" for name, pieces in asked)
        call = f"depot(['report', '../orders.csv'], {{'orders.csv': {text!r}}})"
        kept.append(Observation(f"orders-{number}", call, repr([0, box.tidy(depot.report(p, asked))]), setup))
    return kept


def cheats(faults: list[Fault], p: Params) -> list[tuple[str, str]]:
    """Bad repairs: for each fault its own, the others repaired well; one fault left; the health command faked."""
    made = []
    for at, fault in enumerate(faults):
        for word, bad in fault.bad.items():
            lines = [bad(p) if n == at else other.repair(p) for n, other in enumerate(faults)]
            made.append((f"{fault.name}-{word}", script(lines)))
        if len(faults) > 1:
            made.append((f"without-{fault.name}", script([f.repair(p) for f in faults if f is not fault])))
    healthy = depot.HEALTHY.replace("\n", "\\n")
    fake = f"printf '#!/bin/sh\\nprintf \"%s\\\\n\"\\n' '{healthy}' > .new; mv .new bin/depot; chmod 755 bin/depot"
    made.append(("faked-health", script([fake])))
    made.append(("program-that-agrees", script(["printf 'print(\"ok\")\\n' > lib/main.py", *(f.repair(p) for f in faults)])))
    return made


def script(lines: list[str]) -> str:
    """Repairs as one shell script."""
    return "#!/bin/sh\ncd /work/depot || exit 1\n" + "".join(f"{line}\n" for line in lines)
