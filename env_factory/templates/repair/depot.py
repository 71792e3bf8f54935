"""The healthy service that break/repair tasks begin with: a small stock keeper with configuration, store, schedule and vendored code.

`healthy` is a data set (see `templates/terminal/box.py`) of the folder /work/depot; `report` says what the service must answer. Everything that is
seeded (names, ports, region, times, rows) is a fact of the instance, and `docs/OPERATIONS.md` tells the facts to whoever looks.
"""

from __future__ import annotations

import random

from env_factory.templates.terminal.sqlite import database
from env_factory.templates.terminal.template import Files, Params

LAUNCHER = """#!/bin/sh
# Starts the service's program with the environment of etc/env.
cd "$(dirname "$0")/.." || exit 1
set -a
. ./etc/env
set +a
exec python3 -E -s lib/main.py "$@"
"""

MAIN = '''"""The stock keeper: `check` looks at each part, `report FILE` prices orders (lines of NAME;PIECES)."""

import configparser
import importlib.util
import os
import sqlite3
import sys


def region():
    return os.environ["DEPOT_REGION"]


def locale():
    sys.stdout.reconfigure(encoding=os.environ.get("DEPOT_ENCODING", "utf-8"))
    "Größe".encode(sys.stdout.encoding)
    return sys.stdout.encoding


def table():
    pins = dict(line.strip().split("==") for line in open("etc/pins.txt"))
    path = f"vendor/tablefmt-{pins['tablefmt']}/tablefmt.py"
    spec = importlib.util.spec_from_file_location("tablefmt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.row
    return module


def ports():
    read = configparser.ConfigParser()
    with open("etc/depot.ini", encoding="utf-8") as file:
        read.read_file(file)
    found = [read.getint("http", "port"), read.getint("metrics", "port")]
    if found[0] == found[1]:
        raise ValueError("address already in use")
    return found


def store():
    if os.path.exists("data/lock"):
        raise RuntimeError(f"locked by process {open('data/lock').read().strip()}")
    base = sqlite3.connect("file:data/current/stock.db?mode=ro", uri=True)
    rows = dict(base.execute("select name, cents from stock"))
    if base.execute("pragma integrity_check").fetchone() != ("ok",):
        raise sqlite3.DatabaseError("database disk image is malformed")
    base.close()
    return rows


def schedule():
    jobs = {}
    for number, line in enumerate(open("etc/schedule"), 1):
        if line.strip() and not line.startswith("#"):
            *times, job = line.split()
            if len(times) != 5:
                raise ValueError(f"line {number}: bad entry")
            for text, high in zip(times, (59, 23, 31, 12, 7)):
                if text != "*" and not 0 <= int(text) <= high:
                    raise ValueError(f"line {number}: bad entry")
            jobs[job] = f"{int(times[1]):02d}:{int(times[0]):02d}"
    return jobs


def labels():
    with open("etc/labels.txt", encoding="utf-8") as file:
        return dict(line.rstrip("\\n").split("=") for line in file)


PARTS = (locale, region, table, ports, store, schedule, labels)


def check():
    bad = 0
    for part in PARTS:
        try:
            part()
            print(part.__name__, "ok")
        except Exception as error:
            bad = 1
            said = str(error).encode("ascii", "replace").decode()
            print(f"{part.__name__} failed: {type(error).__name__}: {said}")
    return bad


def report(path):
    names, prices, module, jobs = labels(), store(), table(), schedule()
    locale()
    print(f"{names['title']} {region()} {ports()[0]}/{ports()[1]} {jobs['pack']}")
    for line in open(path, encoding="utf-8"):
        name, pieces = line.strip().split(";")
        print(module.row(name, prices.get(name, 0) * int(pieces)))
    return 0


sys.exit(report(sys.argv[2]) if sys.argv[1] == "report" else check())
'''
TABLES = {
    "1.1": 'def row(name, cents):\n    return f"{name:<12}{cents / 100:8.1f}"\n',
    "1.4": 'def row(name, cents):\n    return f"{name:<12}{cents / 100:10.2f}"\n',
    "2.0": 'def line(cells):\n    return " | ".join(map(str, cells))\n',
}
"""Three releases of the vendored library: an old one that rounds, the right one, a new one with another interface."""
TEST = '''"""The service's own tests; they belong to it and stay as they are."""

import subprocess


def test_check():
    assert subprocess.run(["bin/depot", "check"]).returncode == 0
'''
PARTS = ("locale", "region", "table", "ports", "store", "schedule", "labels")
HEALTHY = "\n".join(f"{part} ok" for part in PARTS)


def facts(rng: random.Random, words: list[str]) -> Params:
    """What is seeded about one service."""
    port = rng.randint(82, 97) * 100 + rng.randint(0, 40)
    return {
        "region": words[0],
        "other_region": words[1],
        "port": port,
        "release": rng.randint(5, 9),
        "minute": rng.randint(1, 59),
        "hour": rng.randint(1, 22),
        "title": f"{words[2].title()}größe",
        "items": words[3:13],
        "prices": {word: rng.randint(50, 9000) for word in words[3:13]},
        "later": {word: rng.randint(50, 9000) for word in words[10:13]},
        "pid": rng.randint(3000, 30_000),
    }


def operations(p: Params) -> str:
    """What an operator may look up."""
    return (
        "# Operations\n\n"
        f"- This depot serves the region {p['region']}; `etc/env` sets `DEPOT_REGION`.\n"
        f"- HTTP listens on port {p['port']}, metrics on the next higher one.\n"
        f"- The release in use is number {p['release']}; `data/current` leads to it.\n"
        "- Tables are printed by tablefmt 1.x, from 1.3 on.\n"
        f"- `pack` runs every Monday at {p['hour']:02d}:{p['minute']:02d}, `sweep` every night at 03:30.\n"
        "- `data/backup/stock.sql` is last night's dump of the stock, `journal.sql` what has been booked since.\n"
        "- All texts are UTF-8. A process that works on the stock holds `data/lock` with its number while it runs.\n"
    )


def sql(prices: dict[str, int]) -> str:
    """A dump of a stock."""
    rows = "".join(f"insert into stock values ('{name}', {cents});\n" for name, cents in prices.items())
    return f"create table stock (name text primary key, cents integer);\n{rows}"


def booked(p: Params) -> str:
    """What has been booked since the dump."""
    return "".join(f"update stock set cents = {cents} where name = '{name}';\n" for name, cents in p["later"].items())


def healthy(p: Params) -> Files:
    """The folder /work/depot of a service that runs."""
    release = p["release"]
    stock = database(sql(p["prices"]) + booked(p))
    old = database(sql({name: cents + 100 for name, cents in p["prices"].items()}))
    return {
        "bin/depot!755": LAUNCHER,
        "lib/main.py": MAIN,
        **{f"vendor/tablefmt-{version}/tablefmt.py": code for version, code in TABLES.items()},
        "etc/env": f"DEPOT_REGION={p['region']}\nDEPOT_ENCODING=utf-8\n",
        "etc/pins.txt": "tablefmt==1.4\n",
        "etc/depot.ini": f"[http]\nport = {p['port']}\n\n[metrics]\nport = {p['port'] + 1}\n",
        "etc/schedule": f"# minute hour day month weekday job\n{p['minute']} {p['hour']} * * 1 pack\n30 3 * * * sweep\n",
        "etc/labels.txt": f"title={p['title']}\n",
        "data/current@": f"releases/{release}",
        f"data/releases/{release}/stock.db": stock,
        f"data/releases/{release - 1}/stock.db": old,
        "data/backup/stock.sql": sql(p["prices"]),
        "data/backup/journal.sql": booked(p),
        "tests/test_depot.py": TEST,
        "docs/OPERATIONS.md": operations(p),
    }


def orders(rng: random.Random, p: Params) -> list[tuple[str, int]]:
    """Orders that nobody has seen yet; the articles booked since the dump are among them."""
    names = [*p["items"][-3:], *rng.sample(p["items"], 4), "nothing"]
    return [(name, rng.randint(1, 30)) for name in names]


def report(p: Params, asked: list[tuple[str, int]]) -> str:
    """What `bin/depot report` must print for these orders."""
    prices = p["prices"] | p["later"]
    rows = [f"{p['title']} {p['region']} {p['port']}/{p['port'] + 1} {p['hour']:02d}:{p['minute']:02d}"]
    rows += [f"{name:<12}{prices.get(name, 0) * pieces / 100:10.2f}" for name, pieces in asked]
    return "\n".join(rows)
