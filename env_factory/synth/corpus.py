"""Text for pre-training a small agent: logs of shell sessions, and drills, both in the shape of a chat.

`session` makes up a folder and commands; somebody with a sandbox runs them (one long-lived shell, a folder per session, is
enough) and `document` joins commands and real outputs. `drill` needs no execution: short orders with the command that carries
them out, and listings that have to be read. Neither contains a task of the shell families from its order to its end.

Everything is a function of the `random.Random` that is passed in.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from env_factory.templates.words import WORDS

Role = Literal["task", "act", "obs"]
SUFFIXES = ("", "", "", "", ".conf", ".note")


class Turn(NamedTuple):
    """One message. `learn` is False for text that nothing before it could predict, so a loss on it would be noise."""

    role: Role
    text: str
    learn: bool


class Step(NamedTuple):
    """A command and, where somebody asked for it in words, the request."""

    command: str
    request: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A folder and what is typed in it, one simple command a step."""

    files: dict[str, str]
    steps: tuple[Step, ...]


def number(rng: random.Random) -> str:
    """Three digits."""
    return str(rng.randint(100, 999))


def value(rng: random.Random) -> str:
    """A number or a word."""
    return rng.choice((number(rng), rng.choice(WORDS)))


class Phrase(NamedTuple):
    """A command and the ways to ask for it."""

    command: str
    requests: tuple[str, ...]


def phrase(rng: random.Random, name: str, new: str, said: str) -> Phrase:
    """A random thing to do with the file `name`, the fresh name `new` and the value `said`."""
    write = f"echo {said} > {new}"
    choices = (
        Phrase(f"cat {name}", (f"show {name}", f"read {name}", f"go to {name}", f"look into {name}", f"see {name}")),
        Phrase(f"cat {name}", (f"do what {name} says", f"follow {name}", f"start at {name}")),
        Phrase(f"grep {name} *", (f"search for {name}", f"find {name}", f"same as {name}", f"which files are about {name}")),
        Phrase(f"grep {name} *", (f"find the value of {name}", f"find the setting {name}", f"find each file about {name}")),
        Phrase(f"head -n 1 {name}", (f"the first line of {name}", f"show the first line of {name}")),
        Phrase(f"tail -n 1 {name}", (f"the last line of {name}", f"show the last line of {name}")),
        Phrase(f"wc -l {name}", (f"count the lines of {name}", f"the number of lines of {name}")),
        Phrase(f"mv {name} {new}", (f"rename {name} to {new}", f"move {name} to {new}", f"give {name} the name {new}")),
        Phrase(f"cp {name} {new}", (f"copy {name} to {new}", f"make a copy of {name} named {new}")),
        Phrase(f"rm {name}", (f"delete {name}", f"remove the file {name}", f"{name} must not exist")),
        Phrase(write, (f"write {said} to {new}", f"put {said} into {new}", f"save {said} in {new}")),
        Phrase(write, (f"{new} must contain {said}",)),
        Phrase(f"mkdir {new}", (f"make the folder {new}", f"create a directory named {new}")),
        Phrase(f"touch {new}", (f"create {new}", f"{new} is missing")),
        Phrase("ls", ("list the files", "which files are there")),
        Phrase("sh check.sh", ("run check.sh",)),
    )
    return rng.choice(choices)


def line(rng: random.Random, names: Sequence[str]) -> str:
    """One line of a file: data, a pointer or an order."""
    word, kind = rng.choice(WORDS), rng.randrange(10)
    if kind < 3:
        return f"{word}{rng.choice(('=', ' ', ': '))}{value(rng)}"
    if kind == 3:
        return f"code {number(rng)}"
    if kind == 4:
        return rng.choice((f"go to {rng.choice(names)}", f"log {rng.choice(names)}"))
    if kind == 5:
        return f"{word} owner {rng.choice(WORDS)}"
    if kind == 6:
        return rng.choice(phrase(rng, rng.choice(names), word, value(rng)).requests)
    if kind == 7:
        return f"{word}=same as {rng.choice(WORDS)}"
    return value(rng)


def script(rng: random.Random, names: Sequence[str]) -> str:
    """A check of one or two conditions, each with its complaint."""
    lines = []
    for _ in range(rng.randint(1, 2)):
        name, word = rng.choice(names), rng.choice(WORDS)
        lines.append(
            rng.choice(
                (
                    f"[ -f {name} ] || {{ echo {name} is missing; exit 1; }}",
                    f"[ -d {name} ] || {{ echo make the folder {name}; exit 1; }}",
                    f'read x < {name}; [ "$x" = {word} ] || {{ echo {name} must contain {word}; exit 1; }}',
                    f"[ -f {word} ] || {{ echo rename {name} to {word}; exit 1; }}",
                )
            )
        )
    return "".join(f"{entry}\n" for entry in (*lines, "echo OK"))


def session(rng: random.Random) -> Session:
    """A folder of two to five files and four to seven commands, some of them asked for in words."""
    words = rng.sample(WORDS, 14)
    names = [word + rng.choice(SUFFIXES) for word in words[: rng.randint(2, 5)]]
    files = {name: "".join(f"{line(rng, names)}\n" for _ in range(rng.choice((1, 1, 2, 3)))) for name in names}
    if rng.random() < 0.25:
        files["check.sh"] = script(rng, [*names, words[-1]])
    live, steps = list(files), []
    for _ in range(rng.randint(4, 7)):
        name, new = rng.choice(live), rng.choice(words[5:])
        said = value(rng)
        chosen = phrase(rng, name, new, said)
        if chosen.command.startswith("grep"):
            said = rng.choice(re.findall(r"[a-z0-9]+", files.get(name, name)))
            chosen = Phrase(f"grep {said} *", (f"search for {said}", f"find the value of {said}", f"find {said}"))
        if chosen.command == "sh check.sh" and "check.sh" not in live:
            chosen = Phrase("cat *", ("show all files",))
        steps.append(Step(chosen.command, rng.choice(chosen.requests) if rng.random() < 0.6 else ""))
        verb = chosen.command.split()[0]
        if verb in ("mv", "rm") and len(live) > 1:
            live.remove(name)
        if verb in ("mv", "cp", "touch") or ">" in chosen.command:
            live.append(new)
            if rng.random() < 0.4:
                steps.append(Step(rng.choice((f"cat {new}", "ls"))))
    return Session(files, tuple(steps))


def document(played: Session, outputs: Sequence[str]) -> list[Turn]:
    """The chat of a session: requests, commands and what was really printed, closed by `exit`."""
    turns = []
    for step, output in zip(played.steps, outputs, strict=True):
        if step.request:
            turns.append(Turn("task", step.request, False))
        turns += [Turn("act", step.command, bool(step.request)), Turn("obs", output, True)]
    return [*turns, Turn("act", "exit", True)]


def drill(rng: random.Random) -> list[Turn]:
    """One exercise: orders and their commands, lists of orders, where to look, which file, an answer to use, copying."""
    words = rng.sample(WORDS, 14)
    kind = rng.randrange(13)
    if kind < 2:
        return single(rng, words)
    if kind < 4:
        return several(rng, words)
    if kind < 5:
        return table(rng, words)
    if kind < 7:
        asked, look = question(rng, words[0] + rng.choice(SUFFIXES), words[1])
        return [Turn("task", asked, False), Turn("act", look, True)]
    if kind < 8:
        return listed(rng, words)
    if kind < 10:
        return lookup(rng, words)
    if kind == 12:
        return followed(rng, words)
    entries = [f"{word}{rng.choice(('=', ':', ' '))}{value(rng)}" for word in words[: rng.randint(2, 5)]]
    again = rng.sample(entries, len(entries)) if kind == 10 else entries
    listing, repeat = ("".join(f"{entry}\n" for entry in order) for order in (entries, again))
    return [Turn("obs", listing, False), Turn("obs", repeat, True)]


def single(rng: random.Random, words: Sequence[str]) -> list[Turn]:
    """One to three orders, each followed by its command; half of them were read instead of given."""
    turns = []
    for i in range(rng.randint(1, 3)):
        chosen = phrase(rng, words[2 * i] + rng.choice(SUFFIXES), words[2 * i + 1], rng.choice((words[8], number(rng))))
        role: Role = "task" if rng.random() < 0.5 else "obs"
        text = rng.choice(chosen.requests)
        turns += [Turn(role, text if role == "task" else f"{text}\n", False), Turn("act", chosen.command, True)]
    return turns


def several(rng: random.Random, words: Sequence[str]) -> list[Turn]:
    """Two or three orders at once, in one request or one file, carried out one after the other."""
    orders: list[tuple[str, str]] = []
    while len(orders) < (2 if rng.random() < 0.6 else 3):
        i = 3 * len(orders)
        chosen = phrase(rng, words[i], words[i + 1], rng.choice((words[i + 2], number(rng))))
        if chosen.command.split()[0] in ("mv", "cp", "rm", "echo", "mkdir", "touch"):
            orders.append((rng.choice(chosen.requests), chosen.command))
    if rng.random() < 0.5:
        turns = [Turn("task", " and ".join(request for request, _ in orders), False)]
    else:
        turns = [Turn("obs", "".join(f"{request}\n" for request, _ in orders), False)]
    for _, command in orders:
        turns += [Turn("act", command, True), Turn("obs", "", True)]
    return [*turns, Turn("act", "exit", True)]


def table(rng: random.Random, words: Sequence[str]) -> list[Turn]:
    """One to three rows of old and new names, carried out row by row."""
    verb, command = rng.choice((("rename", "mv"), ("copy", "cp"), ("move", "mv")))
    form = rng.choice(
        ("{} {}", "{}={}", "{}: {}", "{} to {}", "{}:" + words[12] + " {}", "{}:" + words[12] + " " + words[13] + " {}")
    )
    rows = [(words[2 * i], words[2 * i + 1]) for i in range(rng.randint(1, 3))]
    asked = rng.choice((f"{verb} the files of this list", f"{verb} each file to its {words[13]}", f"{verb} what is in the list"))
    turns = [Turn("task", asked, False), Turn("obs", "".join(form.format(*row) + "\n" for row in rows), False)]
    for old, new in rows:
        turns += [Turn("act", f"{command} {old} {new}", True), Turn("obs", "", True)]
    return [*turns, Turn("act", "exit", True)]


def listed(rng: random.Random, words: Sequence[str]) -> list[Turn]:
    """What `ls` prints, and the file of it that was asked for by its ending or its beginning."""
    endings = rng.sample(("note", "conf", "txt", "sh"), 2)
    names = [f"{words[0]}.{endings[0]}"] + [
        word + rng.choice(("", "", f".{endings[1]}")) for word in words[1 : rng.randint(2, 6)]
    ]
    verb, command = rng.choice((("show", "cat"), ("read", "cat"), ("delete", "rm"), ("look into", "cat")))
    asked = rng.choice((f"{verb} the {endings[0]}", f"{verb} the {endings[0]} file", f"{verb} the file {words[0]}"))
    turns = [Turn("task", asked, False)]
    if rng.random() < 0.5:
        turns.append(Turn("act", "ls", True))
    return [
        *turns,
        Turn("obs", "".join(f"{name}\n" for name in sorted(names)), False),
        Turn("act", f"{command} {names[0]}", True),
    ]


def question(rng: random.Random, name: str, out: str, keep: bool = False) -> tuple[str, str]:
    """A request about `name` and the command that looks for it; with `keep` the request is to write something to `out`."""
    thing, look = rng.choice(
        (
            (f"the value of {name}", f"grep {name} *"),
            (f"the setting {name}", f"grep {name} *"),
            (f"the owner of {name}", f"grep {name} *"),
            (f"the code in {name}", f"cat {name}"),
            (f"the text of {name}", f"cat {name}"),
            (f"the file in {name}", f"cat {name}"),
            (f"the first word of the list in {name}", f"cat {name}"),
            (f"the size of the log in {name}", f"cat {name}"),
            (f"the first line of {name}", f"head -n 1 {name}"),
            (f"the last line of {name}", f"tail -n 1 {name}"),
            (f"the number of lines of {name}", f"wc -l {name}"),
        )
    )
    kept = (
        f"write {thing} to {out}",
        f"save {thing} in {out}",
        f"put {thing} into {out}",
        f"find {thing} and save it in {out}",
        f"look up {thing} and write it to {out}",
    )
    if not keep and rng.random() < 0.3:
        return rng.choice(
            (f"show {thing}", f"see {thing} and do the same with {out}", f"make a copy of {thing} named {out}")
        ), look
    return rng.choice(kept), look


def followed(rng: random.Random, words: Sequence[str]) -> list[Turn]:
    """A command whose output says that another name is as good, and the same command about that name."""
    form = rng.choice(("cat {}", "grep {} *", "head -n 1 {}", "tail -n 1 {}", "wc -l {}"))
    first, second = (form.format(word) for word in words[:2])
    before = rng.choice(("", "", f"{words[3]}:", f"{words[3]}.conf:{words[0]}="))
    return [Turn("act", first, False), Turn("obs", f"{before}same as {words[1]}\n", False), Turn("act", second, True)]


def lookup(rng: random.Random, words: Sequence[str]) -> list[Turn]:
    """A question, what a command printed about it, and the command that uses the answer."""
    keys, out = words[:3], words[3]
    pairs = [(key, rng.choice((word, number(rng)))) for key, word in zip(keys, words[4:7], strict=True)]
    pairs = pairs[: rng.randint(1, 3)]
    key, found = rng.choice(pairs)
    sign = rng.choice(("=", " ", ": ", ":"))
    if len(pairs) == 1 and rng.random() < 0.6:
        listing = rng.choice((f"{found}\n", f"code {found}\n", f"{words[7]}.conf:{key}={found}\n", f"{found} {key}\n"))
    else:
        if rng.random() < 0.2:
            pairs.insert(rng.randint(0, len(pairs)), (words[8], f"same as {key}"))
        place = rng.choice(("", f"{words[7]}:", f"{words[7]}.conf:"))
        listing = "".join(f"{place}{k}{sign}{v}\n" for k, v in pairs)
    asked, _ = question(rng, key, out, keep=True)
    return [Turn("task", asked, False), Turn("obs", listing, False), Turn("act", f"echo {found} > {out}", True)]
