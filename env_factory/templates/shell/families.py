"""The parametric families: small shell tasks whose answer stands in a file that the agent has to look into.

Each family is one pure function `(rng, draw, level) -> Scene`. Level 1 takes one look (a note must be found first), every further
level takes another hop, fault or item. The rules that make looking necessary, checked by `tests/env_factory/test_shell.py`:

- the answer hangs on hidden tokens (words of a list of 60 or 210, numbers out of 900), never on a choice among a few files;
- the environment accepts one simple command per action (`shell.TOOL`), so a value cannot be piped from a file into another;
- no file holds the bare answer, so that `cp` and `mv` cannot stand in for reading;
- the verifier wants the exact contents of the whole folder, so that trying every word is no strategy either.

This file knows nothing of sandboxes, scripts or schema; `synth/shell.py` turns a `Scene` into a task.
"""

import random
from itertools import pairwise
from typing import NamedTuple

from env_factory.templates.shell.scene import Change, Draw, Family, Kind, Scene, number, text, write


def find(rng: random.Random, draw: Draw, level: int) -> Scene:
    """A setting stands in one of three .conf files; from level 2 on its value says which other setting it is the same as."""
    words = draw(level + 3 + 3 + 1)
    keys, noise, names, out = words[:level], words[level : level + 3], words[level + 3 : -1], words[-1]
    files = [f"{name}.conf" for name in names]
    codes = number(rng, 4)
    answer = codes[3]
    values = [rng.choice([code, word]) for code, word in zip(codes, noise, strict=False)]
    lines: dict[str, list[str]] = {name: [f"{noise[(i + 1) % 3]}={values[i]}"] for i, name in enumerate(files)}
    where = [rng.choice(files) for _ in keys]
    for i, key in enumerate(keys):
        value = answer if i == level - 1 else f"same as {keys[i + 1]}"
        lines[where[i]].insert(rng.randint(0, len(lines[where[i]])), f"{key}={value}")
    command, change = write(answer, out)
    key = keys[0]
    return Scene(
        instruction=rng.choice([f"write the value of {key} to {out}", f"find the setting {key} and save its value in {out}"]),
        files={name: text(*lines[name]) for name in files},
        changes=(change,),
        solution=(*(f"grep {k} *" for k in keys), command),
        alternatives=(
            (*(f"cat {name}" for name in files), command),
            ("ls", *(f"grep {k} {name}" for k, name in zip(keys, where, strict=True)), command),
        ),
        hidden=(answer,),
        memorised=(
            (f"grep {key} *", f"echo {key} > {out}"),
            (f"cp {files[0]} {out}",),
            (f"sort -o {out} {files[0]}",),
            (f"echo {rng.randint(100, 999)} > {out}",),
        ),
    )


class Order(NamedTuple):
    """One sentence of a note and what it asks for."""

    sentence: str
    command: str
    otherwise: tuple[str, ...]
    """The same end by other commands."""
    changes: tuple[Change, ...]
    hidden: tuple[str, ...]


def order(rng: random.Random, name: str, new: str, value: str, content: str) -> Order:
    """An order about the file `name`, which holds the line `content`; `new` and `value` are fresh words."""
    body = text(content)
    kind = rng.choice(["rename", "copy", "write", "folder"])
    if kind == "rename":
        changes: tuple[Change, ...] = (Change(name, Kind.ABSENT), Change(new, Kind.TEXT, body))
        return Order(f"rename {name} to {new}", f"mv {name} {new}", (f"cp {name} {new}", f"rm {name}"), changes, (name, new))
    if kind == "copy":
        changes = (Change(new, Kind.TEXT, body),)
        otherwise = (f"cat {name}", f"echo {content} > {new}")
        return Order(f"copy {name} to {new}", f"cp {name} {new}", otherwise, changes, (name, new))
    if kind == "write":
        command, change = write(value, new)
        otherwise = (f"touch {new}", command)
        return Order(f"write {value} to {new}", command, otherwise, (change,), (value, new))
    return Order(f"make the folder {new}", f"mkdir {new}", (f"mkdir -p {new}",), (Change(new, Kind.FOLDER),), (new,))


def note(rng: random.Random, draw: Draw, level: int) -> Scene:
    """A note, to be found among the files by its name, holds as many orders as the level says."""
    words = draw(level * 4 + 3)
    title, bystander = f"{words[-1]}.note", words[-2]
    names = words[:level]
    fresh = [words[level + 3 * i : level + 3 * i + 3] for i in range(level)]
    orders = [order(rng, name, *new) for name, new in zip(names, fresh, strict=True)]
    files = {name: text(new[2]) for name, new in zip(names, fresh, strict=True)}
    files[bystander] = text(words[-3])
    files[title] = text(*(o.sentence for o in orders))
    return Scene(
        instruction=rng.choice(["do what the note says", "follow the note"]),
        files=files,
        changes=tuple(change for o in orders for change in o.changes),
        solution=("ls", f"cat {title}", *(o.command for o in orders)),
        alternatives=(("ls", f"head {title}", *(c for o in orders for c in o.otherwise)),),
        hidden=tuple(token for o in orders for token in o.hidden),
        memorised=(
            (f"sh {title}",),
            (f"rm {names[0]}",),
            (f"mv {names[0]} {bystander}",),
            (f"cp {title} {names[0]}",),
            (f"mkdir {title}d",),
        ),
    )


def chain(rng: random.Random, draw: Draw, level: int) -> Scene:
    """A trail of files, each naming the next, `level - 1` hops long; the last one holds a code. Other codes lie around."""
    words = draw(level + 3)
    trail, decoys, out = words[:level], words[level : level + 2], words[-1]
    codes = number(rng, 3)
    files = {name: text(f"go to {after}") for name, after in pairwise(trail)}
    files[trail[-1]] = text(f"code {codes[0]}")
    files.update({name: text(f"code {code}") for name, code in zip(decoys, codes[1:], strict=True)})
    command, change = write(codes[0], out)
    start = trail[0]
    return Scene(
        instruction=rng.choice(
            [
                f"start at {start} and write the code to {out}",
                f"follow the files from {start} and save the code in {out}",
            ]
        ),
        files=files,
        changes=(change,),
        solution=(*(f"cat {name}" for name in trail), command),
        alternatives=(("ls", *(f"head {name}" for name in trail), command),),
        hidden=(codes[0],),
        memorised=(
            (f"cp {start} {out}",),
            (f"mv {start} {out}",),
            (f"echo code > {out}",),
            (f"echo {rng.randint(100, 999)} > {out}",),
            (f"sort -o {out} {start}",),
        ),
    )


def fix(rng: random.Random, draw: Draw, level: int) -> Scene:
    """`check.sh` reports the first of `level` faults and stops; every fault names words that stand nowhere else."""
    words = draw(level * 3 + 3)
    files: dict[str, str] = {name: text(words[-3]) for name in words[-2:]}
    script: list[str] = []
    commands: list[str] = []
    changes: list[Change] = []
    hidden: list[str] = []
    for i in range(level):
        name, new, old = words[3 * i : 3 * i + 3]
        kind = rng.choice(["contain", "missing", "folder", "rename"])
        if kind == "contain":
            files[name] = text(old)
            said, test = f"{name} must contain {new}", f'read x < {name}; [ "$x" = {new} ]'
            command, change = write(new, name)
            changes.append(change)
            hidden += [name, new]
        elif kind == "missing":
            said, test, command = f"{name} is missing", f"[ -f {name} ]", f"touch {name}"
            changes.append(Change(name, Kind.ANY))
            hidden.append(name)
        elif kind == "folder":
            said, test, command = f"make the folder {name}", f"[ -d {name} ]", f"mkdir {name}"
            changes.append(Change(name, Kind.FOLDER))
            hidden.append(name)
        else:
            files[name] = text(old)
            said, test, command = f"rename {name} to {new}", f"[ -f {new} ]", f"mv {name} {new}"
            changes += [Change(name, Kind.ABSENT), Change(new, Kind.TEXT, text(old))]
            hidden += [name, new]
        script.append(f"{test} || {{ echo {said}; exit 1; }}")
        commands.append(command)
    files["check.sh"] = text(*script, "echo OK")
    run = "sh check.sh"
    return Scene(
        instruction=rng.choice(["make check.sh pass", "run check.sh and fix what fails"]),
        files=files,
        changes=tuple(changes),
        solution=(run, *(step for command in commands for step in (command, run))),
        alternatives=(("cat check.sh", *commands), ("ls", run, *(step for command in commands for step in (command, run)))),
        hidden=tuple(hidden),
        memorised=(
            (run,),
            ("rm check.sh",),
            ("echo echo OK > check.sh", run),
            ("touch check", run),
            (f"echo OK > {words[-1]}", run),
        ),
    )


def owner(rng: random.Random, draw: Draw, level: int) -> Scene:
    """`level` of the files are about a word; each is to be renamed to the owner that it names."""
    words = draw(1 + 2 * level + 5)
    topic, names, owners = words[0], words[1 : 1 + level], words[1 + level : 1 + 2 * level]
    other, stranger = words[-5:-3], words[-3:-1]
    body = {name: text(f"{topic} owner {to}") for name, to in zip(names, owners, strict=True)}
    files = body | {name: text(f"{words[-1]} owner {to}") for name, to in zip(other, stranger, strict=True)}
    pairs = sorted(zip(names, owners, strict=True))
    changes = [Change(name, Kind.ABSENT) for name in names]
    changes += [Change(to, Kind.TEXT, body[name]) for name, to in pairs]
    return Scene(
        instruction=rng.choice(
            [f"rename each file about {topic} to its owner", f"give every file about {topic} the name of its owner"]
        ),
        files=files,
        changes=tuple(changes),
        solution=(f"grep {topic} *", *(f"mv {name} {to}" for name, to in pairs)),
        alternatives=(
            ("ls", *(f"cat {name}" for name in sorted(files)), *(f"mv {name} {to}" for name, to in reversed(pairs))),
            (f"grep {topic} *", *(step for name, to in pairs for step in (f"cp {name} {to}", f"rm {name}"))),
        ),
        hidden=tuple(token for pair in pairs for token in pair),
        memorised=(
            (f"mv {topic} owner",),
            (f"mkdir {topic}", f"mv * {topic}"),
            (f"mv {sorted(files)[0]} {topic}",),
            (f"mv {sorted(files)[0]} owner",),
            (f"touch {topic}",),
        ),
    )


def ends(rng: random.Random, draw: Draw, level: int) -> Scene:
    """The first or last line of a log is to be saved; from level 2 on that line says which other log's it is the same as."""
    sizes = [rng.randint(4, 7) for _ in range(level + 1)]
    words = draw(level + 2 + sum(sizes))
    logs, other, out = words[:level], words[level], words[level + 1]
    end = rng.choice(["first", "last"])
    at = 0 if end == "first" else -1
    lines = words[level + 2 :]
    bodies: list[list[str]] = []
    for size in sizes:
        bodies.append(lines[:size])
        lines = lines[size:]
    for body, target in zip(bodies, logs[1:], strict=False):
        body[at] = f"same as {target}"
    answer = bodies[level - 1][at]
    command, change = write(answer, out)
    show = "head -n 1" if end == "first" else "tail -n 1"
    start = logs[0]
    return Scene(
        instruction=rng.choice([f"write the {end} line of {start} to {out}", f"save the {end} line of {start} in {out}"]),
        files={name: text(*body) for name, body in zip([*logs, other], bodies, strict=True)},
        changes=(change,),
        solution=(*(f"{show} {log}" for log in logs), command),
        alternatives=((*(f"cat {log}" for log in logs), command),),
        hidden=(answer,),
        memorised=(
            (f"cp {start} {out}",),
            (f"sort -o {out} {start}",),
            (f"sort -u -o {out} {start}",),
            (f"mv {start} {out}",),
            (f"echo {start} > {out}",),
            (f"echo {end} > {out}",),
        ),
    )


def count(rng: random.Random, draw: Draw, level: int) -> Scene:
    """How many lines a log has (10 to 99). Level 2: an index names the log; level 3: it names two. Never trained on."""
    pool = draw(12)
    logs, listing, outs, filler = pool[:2], pool[2], pool[3:5], pool[5:]
    sizes = rng.sample(range(10, 100), 2)
    files = {log: text(*(filler[i % len(filler)] for i in range(size))) for log, size in zip(logs, sizes, strict=True)}
    asked = 2 if level >= 3 else 1
    looks: tuple[str, ...] = ()
    of, before = logs[0], ""
    if level >= 2:
        files[listing] = text(*(f"log {log}" for log in logs[:asked]))
        looks = (f"cat {listing}",)
        of, before = "its log", f"read {listing} and "
    writes = [write(str(size), out) for size, out in zip(sizes[:asked], outs, strict=False)]
    after = f" and of the other to {outs[1]}" if asked > 1 else ""
    told = [
        f"{before}write the number of lines of {of} to {outs[0]}{after}",
        f"{before}save the number of lines of {of} in {outs[0]}{after.replace(' to ', ' in ')}",
    ]
    start = logs[0] if level == 1 else listing
    return Scene(
        instruction=rng.choice(told),
        files=files,
        changes=tuple(change for _, change in writes),
        solution=(*looks, *(step for log, w in zip(logs, writes, strict=False) for step in (f"wc -l {log}", w[0]))),
        alternatives=((*looks, *(f"grep -c . {log}" for log in logs[:asked]), *(command for command, _ in writes)),),
        hidden=tuple(str(size) for size in sizes[:asked]),
        memorised=(
            (f"cp {start} {outs[0]}",),
            (f"echo {rng.randint(10, 99)} > {outs[0]}",),
            (f"echo 1 > {outs[0]}",),
            (f"wc -l {start}", f"touch {outs[0]}"),
            (f"sort -o {outs[0]} {start}",),
        ),
    )


TRAINED: dict[str, Family] = {"find": find, "note": note, "chain": chain, "fix": fix, "owner": owner, "ends": ends}
"""The families of the training mix."""

UNSEEN: dict[str, Family] = {"count": count}
"""Held-out families: evaluated, never trained on."""

FAMILIES: dict[str, Family] = TRAINED | UNSEEN
