"""A terminal template about rights in a database: what follows from grants, revokes and roles, in the order of time."""

from __future__ import annotations

import random

from env_factory.templates.terminal.template import Files, Params, Template


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


TEMPLATES = (RIGHTS,)
