"""Terminal templates about services that depend on one another: start order, routes of requests."""

from __future__ import annotations

import random

from env_factory.templates.terminal.template import Files, Params, Template


def units_data(rng: random.Random, p: Params) -> Files:
    names = p["words"][: 5 + 2 * p["level"]]
    order = rng.sample(names, len(names))
    files: Files = {}
    for place, name in enumerate(order):
        before = rng.sample(order[:place], min(place, rng.randint(0, 2)))
        rows = ["[Unit]", f"Description=The {name}"]
        rows += [f"After={' '.join(f'{b}.service' for b in before)}"] if before else []
        if place + 1 < len(order) and rng.random() < 0.4:
            rows.append(f"Before={order[-1]}.service elsewhere.service")
        rows += ["[Service]", f"ExecStart=/usr/bin/{name} After=none"]
        files[f"{name}.service"] = "\n".join(rows) + "\n"
    files[f"{order[0]}.service"] = files[f"{order[0]}.service"].replace("[Service]", "After=network.target\n[Service]")
    files[f"{order[1]}.service"] = files[f"{order[1]}.service"].replace("[Service]", f"Before={order[2]}.service\n[Service]")
    return files


def units_answer(files: Files, p: Params) -> str:
    import heapq

    names = {name.removesuffix(".service") for name in files}
    after: dict[str, set[str]] = {name: set() for name in names}
    for name in names:
        for row in files[f"{name}.service"].splitlines():
            key, _, units = row.partition("=")
            others = {unit.removesuffix(".service") for unit in units.split()} & names
            if key == "After":
                after[name] |= others
            elif key == "Before":
                for other in others:
                    after[other].add(name)
    ready = sorted(name for name in names if not after[name])
    out = []
    while ready:
        name = heapq.heappop(ready)
        out.append(name)
        for other in names:
            if name in after[other]:
                after[other].discard(name)
                if not after[other]:
                    heapq.heappush(ready, other)
    return "".join(f"{name}\n" for name in out)


UNITS = Template(
    name="start-order",
    theme="service-configuration",
    program="order",
    params=lambda rng, words, level: {"words": words[: 8 + 2 * level]},
    data=units_data,
    answer=units_answer,
    text="""
        The files `NAME.service` of `/work/data` are unit files. `After=` lists the units that must have been started before this one,
        `Before=` those that must be started later; both may be missing or stand several times, and units that have no file here do not
        matter. Print the names, without `.service`, one per line, in the order in which they are started one after the other: at
        each step, of all units that may be started, the one whose name comes first as text.
    """,
    shell=r"""
        #!/bin/sh
        cd "$1" || exit 1
        awk '
            FNR == 1 { n = FILENAME; sub(/\.service$/, "", n); unit[n] }
            /^(After|Before)=/ {
                k = substr($0, 1, 1)
                sub(/^[^=]*=/, "")
                for (i = 1; i <= NF; i++) {
                    o = $i
                    if (sub(/\.service$/, "", o)) { m++; a[m] = k == "A" ? o : n; b[m] = k == "A" ? n : o }
                }
            }
            END {
                for (;;) {
                    best = ""
                    for (u in unit) {
                        good = 1
                        for (i = 1; i <= m; i++) if (b[i] == u && (a[i] in unit)) good = 0
                        if (good && (best == "" || u < best)) best = u
                    }
                    if (best == "") exit
                    print best
                    delete unit[best]
                }
            }' *.service
    """,
    wrong={
        "alphabet-alone": r"""
            #!/bin/sh
            cd "$1" && ls *.service | sed 's/\.service$//' | sort
        """,
        "after-alone": r"""
            #!/usr/bin/python3 -I
            import os, sys
            os.chdir(sys.argv[1])
            left = {f[:-8]: {u[:-8] for r in open(f) if r.startswith("After=") for u in r[6:].split()} for f in os.listdir(".")}
            while left:
                ready = sorted(n for n in left if not left[n] & left.keys())
                if not ready: break
                print(ready[0]); del left[ready[0]]
        """,
        "layer-by-layer": r"""
            #!/usr/bin/python3 -I
            import os, sys
            os.chdir(sys.argv[1])
            names = {f[:-8] for f in os.listdir(".")}
            after = {n: set() for n in names}
            for n in names:
                for r in open(n + ".service"):
                    us = {u[:-8] for u in r.partition("=")[2].split()} & names
                    if r.startswith("After="): after[n] |= us
                    if r.startswith("Before="):
                        for u in us: after[u].add(n)
            while after:
                ready = sorted(n for n in after if not after[n] & after.keys())
                if not ready: break
                print(*ready, sep="\n")
                for n in ready: del after[n]
            print()
        """,
    },
)


def routes_data(rng: random.Random, p: Params) -> Files:
    words = p["words"]
    rows = ["# location  target"]
    paths = ["/"] + [f"/{w}/" for w in words[:3]] + [f"/{words[0]}/{words[1]}/", f"/{words[0]}/{words[1]}/{words[2]}/"]
    rows += [f"prefix {path} {rng.choice(words)}:{rng.randint(8000, 8999)}" for path in rng.sample(paths, len(paths))]
    rows.append(f"exact /{words[0]}/ {words[5]}:1")
    rows.insert(2, f"suffix .{words[4][:3]} {words[6]}:2")
    rows.insert(4, f"suffix .tar.{words[4][:3]} {words[7]}:3")
    asked = []
    for _ in range(8 + 4 * p["level"]):
        path = rng.choice(paths) + rng.choice(
            ["", "x", f"{words[1]}", f"{words[2]}/y", f"a.{words[4][:3]}", f"a.tar.{words[4][:3]}"]
        )
        asked.append(path + rng.choice(["", "", f"?q=a.{words[4][:3]}", "?/"]))
    asked += [f"/{words[0]}/", f"/{words[0]}/a.tar.{words[4][:3]}", f"/{words[0]}/{words[1]}/{words[2]}/z", f"/{words[0]}/?q"]
    return {"routes.conf": "\n".join(rows) + "\n", "requests.txt": "\n".join(asked) + "\n"}


def routes_answer(files: Files, p: Params) -> str:
    rules = [row.split() for row in files["routes.conf"].splitlines() if not row.startswith("#")]
    rows = []
    for request in files["requests.txt"].splitlines():
        path = request.partition("?")[0]
        exact = [target for kind, rule, target in rules if kind == "exact" and path == rule]
        suffix = [target for kind, rule, target in rules if kind == "suffix" and path.endswith(rule)]
        prefix = sorted((len(rule), target) for kind, rule, target in rules if kind == "prefix" and path.startswith(rule))
        rows.append(f"{request} {(exact + suffix + [target for _, target in prefix[-1:]])[0]}\n")
    return "".join(rows)


ROUTES = Template(
    name="request-routes",
    theme="service-configuration",
    program="route",
    params=lambda rng, words, level: {"words": words[:10]},
    data=routes_data,
    answer=routes_answer,
    text="""
        `/work/data/routes.conf` says where a web server sends requests; each line is a kind, a text and a target. The query of a request
        (what follows `?`) plays no part. A rule `exact` that equals the path wins; otherwise the first rule `suffix`, in the order of
        the file, with which the path ends; otherwise the longest rule `prefix` with which it begins. Lines that begin with `#` are comments.
        Print each request of `requests.txt` as it is, a blank, and its target.
    """,
    shell=r"""
        #!/bin/sh
        awk '
            FILENAME ~ /routes.conf$/ { if ($1 !~ /^#/) { k[++n] = $1; t[n] = $2; to[n] = $3 } next }
            {
                path = $0; sub(/\?.*/, "", path); best = ""; rank = 0
                for (i = 1; i <= n; i++) {
                    if (k[i] == "exact" && path == t[i]) r = 1000000
                    else if (k[i] == "suffix" && length(path) >= length(t[i]) && substr(path, length(path) - length(t[i]) + 1) == t[i]) r = 900000 - i
                    else if (k[i] == "prefix" && index(path, t[i]) == 1) r = length(t[i])
                    else r = 0
                    if (r > rank) { rank = r; best = to[i] }
                }
                print $0, best
            }' "$1"/routes.conf "$1"/requests.txt
    """,
    wrong={
        "first-prefix": r"""
            #!/usr/bin/python3 -I
            import sys
            rules = [r.split() for r in open(sys.argv[1] + "/routes.conf") if r[0] != "#"]
            for q in open(sys.argv[1] + "/requests.txt").read().split():
                path = q.split("?")[0]
                print(q, ([t for k, x, t in rules if k == "exact" and path == x] + [t for k, x, t in rules if k == "suffix" and path.endswith(x)] +
                    [t for k, x, t in rules if k == "prefix" and path.startswith(x)])[0])
        """,
        "query-counts": r"""
            #!/usr/bin/python3 -I
            import sys
            rules = [r.split() for r in open(sys.argv[1] + "/routes.conf") if r[0] != "#"]
            for q in open(sys.argv[1] + "/requests.txt").read().split():
                print(q, ([t for k, x, t in rules if k == "exact" and q == x] + [t for k, x, t in rules if k == "suffix" and q.endswith(x)] +
                    [t for _, t in sorted((len(x), t) for k, x, t in rules if k == "prefix" and q.startswith(x))[-1:]])[0])
        """,
        "prefix-before-suffix": r"""
            #!/usr/bin/python3 -I
            import sys
            rules = [r.split() for r in open(sys.argv[1] + "/routes.conf") if r[0] != "#"]
            for q in open(sys.argv[1] + "/requests.txt").read().split():
                path = q.split("?")[0]
                print(q, ([t for k, x, t in rules if k == "exact" and path == x] +
                    [t for _, t in sorted((len(x), t) for k, x, t in rules if k == "prefix" and path.startswith(x))[-1:]])[0])
        """,
    },
)

TEMPLATES = (UNITS, ROUTES)
