"""Terminal templates about database servers: a journal replayed, settings in force."""

from __future__ import annotations

import random

from env_factory.templates.terminal.template import Files, Params, Template


def journal_data(rng: random.Random, p: Params) -> Files:
    state = {word: str(rng.randint(1, 99)) for word in p["words"][:4]}
    at = rng.randint(10, 500)
    snapshot = [f"at {at}"] + [f"{key}={value}" for key, value in state.items()]
    rows = []
    for number in range(at - 3, at + 8 + 4 * p["level"]):
        key = rng.choice(p["words"][1:])
        # What is in the snapshot already must not be added again.
        key, order = (p["words"][0], "add") if number == at else (key, rng.choice(["set", "set", "delete", "add"]))
        body = f"{number} {order} {key}" + (f" {rng.randint(1, 99)}" if order != "delete" else "")
        rows.append(f"{len(body)} {body}")
    # The machine stopped here: a line is torn, and what follows was left over from an older journal.
    body = f"{at + 8 + 4 * p['level']} set {p['words'][0]} 12345"
    rows.append(f"{len(body)} {body[:-2]}")
    old = f"{at + 9 + 4 * p['level']} set {p['words'][1]} 77777"
    rows.append(f"{len(old)} {old}")
    return {"snapshot.txt": "\n".join(snapshot) + "\n", "journal.txt": "\n".join(rows) + "\n"}


def journal_answer(files: Files, p: Params) -> str:
    head, *rows = files["snapshot.txt"].splitlines()
    at = int(head.split()[1])
    state = dict(row.split("=") for row in rows)
    for row in files["journal.txt"].splitlines():
        size, _, body = row.partition(" ")
        if len(body) != int(size):
            break
        number, order, key, *value = body.split(" ")
        if int(number) <= at:
            continue
        if order == "delete":
            state.pop(key, None)
        elif order == "set":
            state[key] = value[0]
        else:
            state[key] = str(int(state.get(key, "0")) + int(value[0]))
    return "".join(f"{key}={value}\n" for key, value in sorted(state.items()))


JOURNAL = Template(
    name="journal-replay",
    theme="database-configuration",
    program="recover",
    params=lambda rng, words, level: {"words": words[: 5 + level]},
    data=journal_data,
    answer=journal_answer,
    text="""
        A key-value store crashed. `/work/data/snapshot.txt` is its last snapshot: `at N`, the number of the last order that is in it, then
        `key=value` lines. `journal.txt` has the orders: on each line the length of the rest of the line (after one blank) in
        characters, then number, order, key and, except for `delete`, a whole number: `set`, `delete`, `add` (a key that is not there counts
        as 0). A line of which the length is wrong was being written when the store crashed; it and all that follows does not count. Print
        the state after the last order that counts, as `key=value` lines sorted by key.
    """,
    shell=r"""
        #!/bin/sh
        awk '
            FILENAME ~ /snapshot/ { if (FNR == 1) at = $2; else { i = index($0, "="); v[substr($0, 1, i - 1)] = substr($0, i + 1) } next }
            { body = substr($0, length($1) + 2); if (length(body) != $1) exit }
            $2 <= at { next }
            $3 == "set" { v[$4] = $5 }
            $3 == "add" { v[$4] += $5 }
            $3 == "delete" { delete v[$4] }
            END { for (k in v) print k "=" v[k] }' "$1"/snapshot.txt "$1"/journal.txt | sort -t= -k1,1
    """,
    wrong={
        "from-the-beginning": r"""
            #!/bin/sh
            awk 'FILENAME ~ /snapshot/ { if (FNR > 1) { split($0, a, "="); v[a[1]] = a[2] } next }
                { body = substr($0, length($1) + 2); if (length(body) != $1) exit }
                $3 == "set" { v[$4] = $5 } $3 == "add" { v[$4] += $5 } $3 == "delete" { delete v[$4] }
                END { for (k in v) print k "=" v[k] }' "$1"/snapshot.txt "$1"/journal.txt | sort -t= -k1,1
        """,
        "torn-line-left-out": r"""
            #!/bin/sh
            awk 'FILENAME ~ /snapshot/ { if (FNR == 1) at = $2; else { split($0, a, "="); v[a[1]] = a[2] } next }
                { body = substr($0, length($1) + 2); if (length(body) != $1 || $2 <= at) next }
                $3 == "set" { v[$4] = $5 } $3 == "add" { v[$4] += $5 } $3 == "delete" { delete v[$4] }
                END { for (k in v) print k "=" v[k] }' "$1"/snapshot.txt "$1"/journal.txt | sort -t= -k1,1
        """,
        "torn-line-believed": r"""
            #!/bin/sh
            awk 'FILENAME ~ /snapshot/ { if (FNR == 1) at = $2; else { split($0, a, "="); v[a[1]] = a[2] } next }
                $2 <= at { next }
                $3 == "set" { v[$4] = $5 } $3 == "add" { v[$4] += $5 } $3 == "delete" { delete v[$4] }
                END { for (k in v) print k "=" v[k] }' "$1"/snapshot.txt "$1"/journal.txt | sort -t= -k1,1
        """,
    },
)


def settings_data(rng: random.Random, p: Params) -> Files:
    keys = [f"{word}_size" for word in p["words"][: 5 + p["level"]]]

    def value() -> str:
        return rng.choice(
            [f"{rng.randint(1, 64)}MB", f"'{rng.randint(1, 900)}kB'", str(rng.randint(1, 9000)), f"{rng.randint(1, 4)} GB"]
        )

    main = [f"{key} = {value()}  # {rng.choice(p['words'])}" for key in keys]
    main.insert(1, "include 'more.conf'")
    main.insert(3, "include 'site/late.conf'")
    main += [f"{keys[0]} = {value()}", f"#{keys[1]} = 1", "include_if_exists 'gone.conf'"]
    more = [f"{key.upper()}={value()}" for key in rng.sample(keys, 3)]
    late = [f"{rng.choice(keys)} {value()}", f"{keys[2]} = {rng.randint(2, 9)}MB", "include 'inner.conf'"]
    inner = [f"{keys[-1]} = {value()}"]
    texts = {
        "server.conf": main,
        "more.conf": more,
        "site/late.conf": late,
        "site/inner.conf": inner,
        "inner.conf": [f"{keys[-1]} = 1"],
    }
    asked = rng.sample(keys, len(keys))
    return {name: "\n".join(rows) + "\n" for name, rows in texts.items()} | {"ask.txt": "\n".join([*asked, "other_size"]) + "\n"}


def settings_answer(files: Files, p: Params) -> str:
    import posixpath
    import re

    values: dict[str, int] = {}
    units = {"": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}

    def read(name: str) -> None:
        for row in files[name].splitlines():
            row = row.partition("#")[0].strip()
            if found := re.match(r"include(_if_exists)?\s+'([^']+)'", row):
                inner = posixpath.join(posixpath.dirname(name), found[2])
                if inner in files:
                    read(inner)
            elif found := re.match(r"(\w+)\s*=?\s*'?(\d+)\s*([kMG]B)?'?$", row, re.I):
                values[found[1].lower()] = int(found[2]) * units[(found[3] or "").lower()]

    read("server.conf")
    return "".join(f"{key} {values.get(key, 'unset')}\n" for key in files["ask.txt"].splitlines())


SETTINGS = Template(
    name="database-settings",
    theme="database-configuration",
    program="settings",
    params=lambda rng, words, level: {"words": words[:12]},
    data=settings_data,
    answer=settings_answer,
    text="""
        `/work/data/server.conf` is a database server's configuration. A line sets a value, `name = value`; the `=` may be missing, names
        are the same in upper and lower case, values may stand in single quotes, `#` begins a comment. `include 'file'` reads another
        file at this place, its path relative to the file that includes it; `include_if_exists` does the same if there is such a file.
        The last value that is read counts. Values are bytes, or whole numbers with the unit kB, MB or GB (powers of 1024, blanks may stand
        before the unit). For each name in `ask.txt`, in that order, print `name BYTES`, or `name unset`.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        flat() {
            local dir; dir=$(dirname "$1")
            while IFS= read -r row; do
                row=${row%%#*}
                case $row in
                    include*) f=$dir/$(printf '%s' "$row" | cut -d"'" -f2); [ ! -f "$f" ] || flat "$f" ;;
                    *) printf '%s\n' "$row" ;;
                esac
            done < "$1"
        }
        flat server.conf | tr '=' ' ' | tr -d "'" | awk '
            FILENAME == "ask.txt" { if ($1 in v) print $1, v[$1]; else print $1, "unset"; next }
            NF { k = tolower($1); x = tolower($2 $3); m = 1
                if (x ~ /kb$/) m = 1024; if (x ~ /mb$/) m = 1048576; if (x ~ /gb$/) m = 1073741824
                v[k] = sprintf("%.0f", (x + 0) * m) }' - ask.txt
    """,
    wrong={
        "includes-at-the-end": r"""
            #!/bin/bash
            cd "$1" || exit 1
            cat server.conf more.conf site/late.conf site/inner.conf | sed 's/#.*//; /^include/d' | tr '=' ' ' | tr -d "'" | awk '
                FILENAME == "ask.txt" { if ($1 in v) print $1, v[$1]; else print $1, "unset"; next }
                NF { k = tolower($1); x = tolower($2 $3); m = 1
                    if (x ~ /kb$/) m = 1024; if (x ~ /mb$/) m = 1048576; if (x ~ /gb$/) m = 1073741824
                    v[k] = sprintf("%.0f", (x + 0) * m) }' - ask.txt
        """,
        "first-value-wins": r"""
            #!/bin/bash
            cd "$1" || exit 1
            sed "s/#.*//; s/^include 'more.conf'/@/" server.conf | sed -e '/^@/{r more.conf' -e 'd}' | sed '/^include/d' | tr '=' ' ' | tr -d "'" | awk '
                FILENAME == "ask.txt" { if ($1 in v) print $1, v[$1]; else print $1, "unset"; next }
                NF { k = tolower($1); x = tolower($2 $3); m = 1
                    if (x ~ /kb$/) m = 1024; if (x ~ /mb$/) m = 1048576; if (x ~ /gb$/) m = 1073741824
                    if (!(k in v)) v[k] = sprintf("%.0f", (x + 0) * m) }' - ask.txt
        """,
        "powers-of-1000": r"""
            #!/usr/bin/python3 -I
            import os, re, sys
            os.chdir(sys.argv[1]); v = {}
            def read(name):
                for row in open(name):
                    row = row.split("#")[0].strip()
                    if m := re.match(r"include\w*\s+'([^']+)'", row):
                        inner = os.path.join(os.path.dirname(name), m[1])
                        if os.path.exists(inner): read(inner)
                    elif m := re.match(r"(\w+)\s*=?\s*'?(\d+)\s*([kMG]B)?", row, re.I):
                        v[m[1].lower()] = int(m[2]) * {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}[(m[3] or "")[:1].lower()]
            read("server.conf")
            for k in open("ask.txt").read().split(): print(k, v.get(k, "unset"))
        """,
    },
)


TEMPLATES = (JOURNAL, SETTINGS)
