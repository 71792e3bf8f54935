"""What can go wrong with the depot: destructive operators, each with the sign it gives, two honest repairs and bad ones.

An operator touches one place of the service (`place`), and no two of one instance touch the same, so that the repairs of several are
the repairs of each, one after the other. Repairs and bad repairs are shell lines, run in /work/depot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from env_factory.templates.terminal.template import Files, Params

Lines = Callable[[Params], str]


@dataclass(frozen=True, slots=True)
class Fault:
    """One destructive operator."""

    name: str
    place: str
    breaks: Callable[[Files, Params], Files]
    """The broken folder, from a healthy one."""
    part: str
    """The part that `check` then reports, or "" where the program does not even start."""
    sign: Lines
    """What is printed about it: behind `PART failed: `, or instead of everything."""
    repair: Lines
    other: Lines
    bad: Mapping[str, Lines]
    """Plausible repairs that must fail."""


def _swap(path: str, new: Lines | None, to: str = "") -> Callable[[Files, Params], Files]:
    """The operator that replaces a file's content, or its name, by another."""

    def breaks(files: Files, p: Params) -> Files:
        made = {name: content for name, content in files.items() if name != path}
        if to or new is not None:
            made[to or path] = new(p) if new is not None else files[path]
        return made

    return breaks


def _truncate(files: Files, p: Params) -> Files:
    path = f"data/releases/{p['release']}/stock.db"
    return files | {path: files[path][: len(files[path]) * 2 // 3]}


def _closed(files: Files, p: Params) -> Files:
    path = f"data/releases/{p['release']}/stock.db"
    return {name: content for name, content in files.items() if name != path} | {f"{path}!200": files[path]}


def _latin(files: Files, p: Params) -> Files:
    return files | {"etc/labels.txt": f"title={p['title']}\n".encode("latin-1")}


def _undecodable(p: Params) -> str:
    at = f"title={p['title']}".index("ö")
    return f"UnicodeDecodeError: 'utf-8' codec can't decode byte 0xf6 in position {at}: invalid start byte"


def _python(program: str) -> str:
    return f"python3 -I - <<'PY'\n{program}\nPY"


FAULTS = (
    Fault(
        name="launcher-mode",
        place="bin",
        breaks=_swap("bin/depot!755", None, "bin/depot!644"),
        part="",
        sign=lambda p: "sh: 1: bin/depot: Permission denied",
        repair=lambda p: "chmod 755 bin/depot",
        other=lambda p: "cp bin/depot .new && chmod u+x,go+rx .new && mv .new bin/depot",
        bad={
            "starts-another-shell": lambda p: "echo 'sh bin/depot \"$@\"' > depot.sh; chmod 755 depot.sh",
            "answers-itself": lambda p: (
                "mv bin/depot bin/x; printf '#!/bin/sh\\nprintf \"ok\\\\n\"\\n' > bin/depot; chmod 755 bin/depot"
            ),
        },
    ),
    Fault(
        name="launcher-line-ends",
        place="bin",
        breaks=lambda files, p: files | {"bin/depot!755": files["bin/depot!755"].replace("\n", "\r\n")},
        part="",
        sign=lambda p: "sh: 1: bin/depot: not found",
        repair=lambda p: "sed -i 's/\\r$//' bin/depot",
        other=lambda p: "tr -d '\\r' < bin/depot > .new && cat .new > bin/depot && rm .new",
        bad={
            "first-line-alone": lambda p: "sed -i '1s/\\r$//' bin/depot",
            "mode": lambda p: "chmod 777 bin/depot",
        },
    ),
    Fault(
        name="region-unset",
        place="env-region",
        breaks=lambda files, p: files | {"etc/env": files["etc/env"].replace(f"DEPOT_REGION={p['region']}\n", "")},
        part="region",
        sign=lambda p: "KeyError: 'DEPOT_REGION'",
        repair=lambda p: f"echo DEPOT_REGION={p['region']} >> etc/env",
        other=lambda p: f"printf 'DEPOT_REGION={p['region']}\\n' | cat - etc/env > .new && mv .new etc/env",
        bad={
            "empty": lambda p: "echo DEPOT_REGION= >> etc/env",
            "another-one": lambda p: f"echo DEPOT_REGION={p['other_region']} >> etc/env",
        },
    ),
    Fault(
        name="locale-ascii",
        place="env-locale",
        breaks=lambda files, p: files | {"etc/env": files["etc/env"].replace("utf-8", "ascii")},
        part="locale",
        sign=lambda p: "UnicodeEncodeError: 'ascii' codec can't encode characters in position 2-3: ordinal not in range(128)",
        repair=lambda p: "sed -i 's/ascii/utf-8/' etc/env",
        other=lambda p: "grep -v DEPOT_ENCODING etc/env > .new; mv .new etc/env",
        bad={
            "latin": lambda p: "sed -i 's/ascii/latin-1/' etc/env",
            "title-without-umlauts": lambda p: "sed -i 's/gr.*/groesse/' etc/labels.txt",
        },
    ),
    Fault(
        name="wrong-pin",
        place="pins",
        breaks=_swap("etc/pins.txt", lambda p: "tablefmt==2.0\n"),
        part="table",
        sign=lambda p: "AttributeError: module 'tablefmt' has no attribute 'row'",
        repair=lambda p: "echo tablefmt==1.4 > etc/pins.txt",
        other=lambda p: "sed -i 's/2[.]0/1.4/' etc/pins.txt",
        bad={
            "too-old": lambda p: "echo tablefmt==1.1 > etc/pins.txt",
            "patched-instead": lambda p: (
                "printf 'def row(name, cents):\\n    return line([name, cents])\\n' >> vendor/tablefmt-2.0/tablefmt.py"
            ),
        },
    ),
    Fault(
        name="pin-not-there",
        place="pins",
        breaks=_swap("etc/pins.txt", lambda p: "tablefmt==1.3.9\n"),
        part="table",
        sign=lambda p: "FileNotFoundError: [Errno 2] No such file or directory: '/work/depot/vendor/tablefmt-1.3.9/tablefmt.py'",
        repair=lambda p: "echo tablefmt==1.4 > etc/pins.txt",
        other=lambda p: "ln -s tablefmt-1.4 vendor/tablefmt-1.3.9",
        bad={
            "too-old": lambda p: "ln -s tablefmt-1.1 vendor/tablefmt-1.3.9",
            "newest": lambda p: "echo tablefmt==2.0 > etc/pins.txt",
        },
    ),
    Fault(
        name="broken-header",
        place="ini",
        breaks=lambda files, p: files | {"etc/depot.ini": files["etc/depot.ini"].replace("[metrics]", "metrics]")},
        part="ports",
        sign=lambda p: (
            "DuplicateOptionError: While reading from 'etc/depot.ini' [line  5]: option 'port' in section 'http' already exists"
        ),
        repair=lambda p: "sed -i 's/^metrics]/[metrics]/' etc/depot.ini",
        other=lambda p: f"printf '[http]\\nport={p['port']}\\n[metrics]\\nport={p['port'] + 1}\\n' > etc/depot.ini",
        bad={
            "line-removed": lambda p: "sed -i '/^metrics]/d' etc/depot.ini",
            "made-up-ports": lambda p: "printf '[http]\\nport=8000\\n[metrics]\\nport=8001\\n' > etc/depot.ini",
        },
    ),
    Fault(
        name="port-clash",
        place="ini",
        breaks=lambda files, p: files | {"etc/depot.ini": files["etc/depot.ini"].replace(str(p["port"] + 1), str(p["port"]))},
        part="ports",
        sign=lambda p: "ValueError: address already in use",
        repair=lambda p: f"sed -i '/metrics/,$s/{p['port']}/{p['port'] + 1}/' etc/depot.ini",
        other=lambda p: f"printf '[metrics]\\nport = {p['port'] + 1}\\n[http]\\nport = {p['port']}\\n' > etc/depot.ini",
        bad={
            "the-other-one-moved": lambda p: f"sed -i '1,/metrics/s/{p['port']}/{p['port'] - 1}/' etc/depot.ini",
            "any-free-port": lambda p: f"sed -i '/metrics/,$s/{p['port']}/{p['port'] + 50}/' etc/depot.ini",
        },
    ),
    Fault(
        name="broken-link",
        place="link",
        breaks=lambda files, p: files | {"data/current@": f"releases/{p['release'] + 10}"},
        part="store",
        sign=lambda p: "OperationalError: unable to open database file",
        repair=lambda p: f"ln -sfn releases/{p['release']} data/current",
        other=lambda p: f"rm data/current; ln -s ../data/releases/{p['release']} data/current",
        bad={
            "older-release": lambda p: f"ln -sfn releases/{p['release'] - 1} data/current",
            "empty-store": lambda p: (
                f"mkdir data/releases/{p['release'] + 10}; "
                + _python("import sqlite3\nsqlite3.connect('data/current/stock.db').execute('create table stock (name, cents)')")
            ),
        },
    ),
    Fault(
        name="store-mode",
        place="db",
        breaks=_closed,
        part="store",
        sign=lambda p: "OperationalError: unable to open database file",
        repair=lambda p: "chmod 644 data/current/stock.db",
        other=lambda p: f"chmod u+r data/releases/{p['release']}/stock.db",
        bad={
            "older-copy": lambda p: f"cp data/releases/{p['release'] - 1}/stock.db .new; mv -f .new data/current/stock.db",
            "dump-alone": lambda p: "rm -f data/current/stock.db; " + _rebuild("data/current/stock.db", journal=False),
        },
    ),
    Fault(
        name="truncated-store",
        place="db",
        breaks=_truncate,
        part="store",
        sign=lambda p: "DatabaseError: database disk image is malformed",
        repair=lambda p: "rm data/current/stock.db\n" + _rebuild("data/current/stock.db"),
        other=lambda p: _rebuild("fresh.db") + f"\ncat fresh.db > data/releases/{p['release']}/stock.db && rm fresh.db",
        bad={
            "dump-alone": lambda p: "rm data/current/stock.db\n" + _rebuild("data/current/stock.db", journal=False),
            "older-copy": lambda p: f"cp data/releases/{p['release'] - 1}/stock.db data/current/stock.db",
        },
    ),
    Fault(
        name="bad-schedule",
        place="schedule",
        breaks=lambda files, p: (
            files
            | {"etc/schedule": files["etc/schedule"].replace(f"{p['minute']} {p['hour']} *", f"{p['hour']} {p['minute'] + 24} *")}
        ),
        part="schedule",
        sign=lambda p: "ValueError: line 2: bad entry",
        repair=lambda p: f"sed -i '2s/.*/{p['minute']} {p['hour']} * * 1 pack/' etc/schedule",
        other=lambda p: f"printf '30 3 * * * sweep\\n{p['minute']} {p['hour']} * * 1 pack\\n' > etc/schedule",
        bad={
            "line-removed": lambda p: "sed -i 2d etc/schedule",
            "some-time": lambda p: f"sed -i '2s/.*/{(p['minute'] + 1) % 60} {p['hour']} * * 1 pack/' etc/schedule",
        },
    ),
    Fault(
        name="stale-lock",
        place="lock",
        breaks=lambda files, p: files | {"data/lock": f"{p['pid']}\n"},
        part="store",
        sign=lambda p: f"RuntimeError: locked by process {p['pid']}",
        repair=lambda p: "rm data/lock",
        other=lambda p: "mv data/lock data/lock.old",
        bad={
            "emptied": lambda p: ": > data/lock",
            "program-changed": lambda p: "sed -i 's/data.lock/data\\/nolock/' lib/main.py",
        },
    ),
    Fault(
        name="labels-in-latin-1",
        place="labels",
        breaks=_latin,
        part="labels",
        sign=_undecodable,
        repair=lambda p: "iconv -f ISO-8859-1 -t UTF-8 etc/labels.txt > .new && mv .new etc/labels.txt",
        other=lambda p: f"printf 'title={p['title']}\\n' > etc/labels.txt",
        bad={
            "characters-dropped": lambda p: "iconv -c -f UTF-8 -t UTF-8 etc/labels.txt > .new; mv .new etc/labels.txt",
            "questions": lambda p: "tr '\\200-\\377' '?' < etc/labels.txt > .new; mv .new etc/labels.txt",
        },
    ),
)
"""Every operator; the last three of each eight stay out of training (`repair.HELD_OUT`)."""


def _rebuild(path: str, journal: bool = True) -> str:
    """Shell lines that make a stock out of the backups."""
    more = "\nbase.executescript(open('data/backup/journal.sql').read())" if journal else ""
    return _python(
        f"import sqlite3\nbase = sqlite3.connect({path!r})\nbase.executescript(open('data/backup/stock.sql').read()){more}\nbase.commit()"
    )
