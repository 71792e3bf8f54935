"""Terminal templates about database servers: a journal replayed, settings, rights."""

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


def rights_data(rng: random.Random, p: Params) -> Files:
    roles = p["words"][:4]
    users = p["words"][4 : 7 + p["level"]]
    tables = p["words"][-3:]
    rows = [
        f"grant {rng.choice(['select', 'insert', 'update'])} on {rng.choice(tables)} to {role};"
        for role in roles
        for _ in range(2)
    ]
    rows += [f"grant {a} to {b};" for a, b in ((roles[0], roles[1]), (roles[1], roles[2]))]
    for user in users:
        rows.append(f"grant {rng.choice(roles)} to {user};")
        rows.append(f"GRANT SELECT, DELETE ON {rng.choice(tables)} TO {user}, {rng.choice(roles)};")
    rng.shuffle(rows)
    rows.append(f"grant {roles[2]} to {users[0]};")
    rows += [f"revoke select on {tables[0]} from {rng.choice(roles)};", f"revoke {rng.choice(roles[:2])} from {users[1]};"]
    rows += [f"grant update on {tables[1]} to {roles[0]};", f"grant drop on {tables[2]} to {users[0]};"]
    rows.append(f"revoke drop on {tables[2]} from {users[0]};")
    return {"rights.sql": "-- in the order of time\n" + "\n".join(rows) + "\n", "users.txt": "\n".join(users) + "\n"}


def rights_answer(files: Files, p: Params) -> str:
    import re

    direct: dict[str, set[tuple[str, str]]] = {}
    member: dict[str, set[str]] = {}
    for row in files["rights.sql"].lower().splitlines():
        found = re.fullmatch(r"(grant|revoke) (.+?)(?: on (\w+))? (?:to|from) (.+);", row)
        if found is None:
            continue
        for who in found[4].split(", "):
            for what in found[2].split(", "):
                if found[3]:
                    held: set[tuple[str, str]] = direct.setdefault(who, set())
                    (held.add if found[1] == "grant" else held.discard)((found[3], what))
                else:
                    roles: set[str] = member.setdefault(who, set())
                    (roles.add if found[1] == "grant" else roles.discard)(what)
    rows = []
    for user in files["users.txt"].split():
        todo, seen = [user], set()
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += member.get(name, ())
        rights = sorted({right for name in seen for right in direct.get(name, ())})
        rows += [f"{user} {table} {what}\n" for table, what in rights]
    return "".join(rows)


RIGHTS = Template(
    name="effective-rights",
    theme="database-configuration",
    program="rights",
    held_out=True,
    params=lambda rng, words, level: {"words": words[: 11 + level]},
    data=rights_data,
    answer=rights_answer,
    text="""
        `/work/data/rights.sql` holds the grants and revokes of a database in the order in which they were made, one per line: `grant RIGHT,
        ... on TABLE to NAME, ...;` gives rights, `grant ROLE to NAME;` makes a user or a role a member of a role, which has all its rights
        and those of the roles that it is a member of itself; `revoke ... from ...;` takes away what was given directly. Upper and
        lower case are the same. For each user in `users.txt`, in that order, print `USER TABLE RIGHT` for every right the user has in
        the end, in lower case, each once, sorted by table, then right.
    """,
    shell=r"""
        #!/usr/bin/python3 -I
        import sys
        edges, gives = [], []
        for row in open(f"{sys.argv[1]}/rights.sql"):
            words = row.lower().replace(",", " ").replace(";", " ").split()
            if not words or words[0] not in ("grant", "revoke"):
                continue
            end = words.index("to") if "to" in words else words.index("from")
            names, left = words[end + 1 :], words[1:end]
            table = left[left.index("on") + 1] if "on" in left else None
            whats = left[: left.index("on")] if table else left
            for name in names:
                for what in whats:
                    kept = edges if table is None else gives
                    fact = (name, what) if table is None else (name, table, what)
                    if words[0] == "grant":
                        kept.append(fact)
                    else:
                        kept[:] = [f for f in kept if f != fact]
        def all_of(name, above=()):
            out = {g[1:] for g in gives if g[0] == name}
            for member, role in edges:
                if member == name and role not in above:
                    out |= all_of(role, (*above, name))
            return out
        for user in open(f"{sys.argv[1]}/users.txt").read().split():
            for table, what in sorted(all_of(user)):
                print(user, table, what)
    """,
    wrong={
        "one-level-of-roles": r"""
            #!/usr/bin/python3 -I
            import re, sys
            direct, member = {}, {}
            for row in open(f"{sys.argv[1]}/rights.sql").read().lower().splitlines():
                m = re.fullmatch(r"(grant|revoke) (.+?)(?: on (\w+))? (?:to|from) (.+);", row)
                for who in m[4].split(", ") if m else ():
                    for what in m[2].split(", "):
                        s, x = (direct.setdefault(who, set()), (m[3], what)) if m[3] else (member.setdefault(who, set()), what)
                        s.add(x) if m[1] == "grant" else s.discard(x)
            for u in open(f"{sys.argv[1]}/users.txt").read().split():
                for t, r in sorted(set().union(*(direct.get(n, set()) for n in [u, *member.get(u, ())]))): print(u, t, r)
        """,
        "revokes-ignored": r"""
            #!/usr/bin/python3 -I
            import re, sys
            direct, member = {}, {}
            for row in open(f"{sys.argv[1]}/rights.sql").read().lower().splitlines():
                m = re.fullmatch(r"grant (.+?)(?: on (\w+))? to (.+);", row)
                for who in m[3].split(", ") if m else ():
                    for what in m[1].split(", "):
                        if m[2]: direct.setdefault(who, set()).add((m[2], what))
                        else: member.setdefault(who, set()).add(what)
            def every(n): return set(direct.get(n, ())).union(*(every(r) for r in member.get(n, ())))
            for u in open(f"{sys.argv[1]}/users.txt").read().split():
                for t, r in sorted(every(u)): print(u, t, r)
        """,
        "small-letters-only": r"""
            #!/usr/bin/python3 -I
            import re, sys
            direct, member = {}, {}
            for row in open(f"{sys.argv[1]}/rights.sql").read().splitlines():
                m = re.fullmatch(r"(grant|revoke) (.+?)(?: on (\w+))? (?:to|from) (.+);", row)
                for who in m[4].split(", ") if m else ():
                    for what in m[2].split(", "):
                        s, x = (direct.setdefault(who, set()), (m[3], what)) if m[3] else (member.setdefault(who, set()), what)
                        s.add(x) if m[1] == "grant" else s.discard(x)
            def every(n): return set(direct.get(n, ())).union(*(every(r) for r in member.get(n, ())))
            for u in open(f"{sys.argv[1]}/users.txt").read().split():
                for t, r in sorted(every(u)): print(u, t, r)
        """,
    },
)

TEMPLATES = (JOURNAL, SETTINGS, RIGHTS)
