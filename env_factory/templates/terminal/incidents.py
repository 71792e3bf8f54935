"""Terminal templates about incidents in logs: bursts of errors, requests that never ended."""

from __future__ import annotations

import random

from env_factory.templates.terminal.logs import clock
from env_factory.templates.terminal.template import Files, Params, Template


def bursts_data(rng: random.Random, p: Params) -> Files:
    rows = []
    for minute in rng.sample(range(60, 1200), 8 + 4 * p["level"]):
        # Some minutes reach the limit only with what is no error, some have exactly as many as are wanted.
        errors = rng.choice([0, p["limit"] - 1, p["limit"], p["limit"] + 2])
        for number in range(errors + 3):
            level = "ERROR" if number < errors else rng.choice(["INFO", "WARN"])
            said = rng.choice(["timeout", "retry", "no ERROR seen", "refused"])
            more = "    at ERROR handler\n" * rng.randint(0, 2) if level == "ERROR" else ""
            rows.append((minute * 60 + rng.randrange(60), f"{level} {rng.choice(p['parts'])}: {said}\n{more}"))
    rows.sort()
    cut = len(rows) // 2
    texts = ["".join(f"{clock(at)} {line}" for at, line in part) for part in (rows[:cut], rows[cut:])]
    return {f"{p['parts'][0]}.log": texts[0], f"{p['parts'][1]}.log": texts[1]}


def bursts_answer(files: Files, p: Params) -> str:
    import re

    count: dict[str, int] = {}
    for text in files.values():
        for line in text.splitlines():
            if found := re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d):\d\dZ ERROR ", line):
                count[found[1]] = count.get(found[1], 0) + 1
    return "".join(f"{minute} {n}\n" for minute, n in sorted(count.items()) if n >= p["limit"])


BURSTS = Template(
    name="error-bursts",
    theme="log-analytics",
    params=lambda rng, words, level: {"parts": words[:4], "limit": rng.randint(3, 6)},
    data=bursts_data,
    answer=bursts_answer,
    text="""
        The `*.log` files of `/work/data` have entries that begin with a time, a level (INFO, WARN, ERROR) and a component; an
        entry may go on in indented lines. Find the minutes with at least §limit entries of level ERROR, all files taken together.
        Print each as `YYYY-MM-DDTHH:MM COUNT`, in the order of time.
    """,
    shell="""
        #!/bin/sh
        cat "$1"/*.log | awk '/^[0-9]/ && $2 == "ERROR" {n[substr($1, 1, 16)]++} END {for (m in n) if (n[m] >= §limit) print m, n[m]}' | sort
    """,
    wrong={
        "word-anywhere": """
            #!/bin/sh
            cat "$1"/*.log | grep ERROR | grep '^2' | cut -c1-16 | sort | uniq -c | awk '$1 >= §limit {print $2, $1}'
        """,
        "more-than": """
            #!/bin/sh
            cat "$1"/*.log | awk '$2 == "ERROR" {n[substr($1, 1, 16)]++} END {for (m in n) if (n[m] > §limit) print m, n[m]}' | sort
        """,
        "file-by-file": """
            #!/bin/sh
            for f in "$1"/*.log; do
                awk '$2 == "ERROR" {n[substr($1, 1, 16)]++} END {for (m in n) if (n[m] >= §limit) print m, n[m]}' "$f" | sort | head -n 3
            done
        """,
    },
)


def lost_data(rng: random.Random, p: Params) -> Files:
    gate, work = [], []
    for number in range(10 + 8 * p["level"]):
        name = f"{rng.choice(p['words'])}-{rng.randrange(16**4):04x}{number:02x}"
        at = 1000 + 97 * number
        gate.append(f"{clock(at)} accepted request={name} route=/{rng.choice(p['words'])}\n")
        tries = rng.randint(1, 3)
        for turn in range(1, tries + 1):
            work.append((at + 5 * turn, f"started request={name} try={turn}"))
            end = rng.choice(["failed", "done"]) if turn == tries else "failed"
            if turn < tries or rng.random() < 0.7:
                work.append((at + 5 * turn + 3, f"{end} request={name} try={turn}"))
        if rng.random() < 0.2:
            work = [row for row in work if name not in row[1]]
    work.sort()
    return {"gate.log": "".join(gate), "worker.log": "".join(f"{clock(at)} {text}\n" for at, text in work)}


def lost_answer(files: Files, p: Params) -> str:
    last: dict[str, str] = {}
    for line in files["worker.log"].splitlines():
        _, what, request, _ = line.split()
        last[request] = what
    said = {"started": "running", "failed": "failed"}
    rows = []
    for line in files["gate.log"].splitlines():
        request = line.split()[2]
        if last.get(request) != "done":
            rows.append(f"{request.removeprefix('request=')} {said.get(last.get(request, ''), 'lost')}\n")
    return "".join(sorted(rows))


LOST = Template(
    name="lost-requests",
    theme="log-analytics",
    params=lambda rng, words, level: {"words": words[:6]},
    data=lost_data,
    answer=lost_answer,
    held_out=True,
    text="""
        `/work/data/gate.log` tells which requests were accepted, `/work/data/worker.log` in the order of time what a worker did with
        them: `started`, then `failed` or `done`; what failed may be tried again. Print the accepted requests that were not done in
        the end, each with one word, sorted as text: `NAME lost` if no worker ever started it, `NAME failed` if the last thing that
        is known of it is a failure, `NAME running` if it is a start.
    """,
    shell="""
        #!/bin/sh
        awk '{sub(/^request=/, "", $3)}
            FILENAME ~ /worker.log$/ {state[$3] = $2; next}
            {s = state[$3]; if (s != "done") print $3, (s == "" ? "lost" : s == "failed" ? "failed" : "running")}' \\
            "$1"/worker.log "$1"/gate.log | sort
    """,
    wrong={
        "only-lost": """
            #!/bin/sh
            sed 's/.*request=\\([^ ]*\\).*/\\1/' "$1"/gate.log | while read -r r; do
                grep -q "request=$r " "$1"/worker.log || echo "$r lost"
            done | sort
        """,
        "ever-failed": """
            #!/bin/sh
            awk '{sub(/^request=/, "", $3)} FILENAME ~ /worker.log$/ {seen[$3] = 1; if ($2 != "started") s[$3] = s[$3] $2; next}
                !seen[$3] {print $3, "lost"; next} s[$3] == "" {print $3, "running"; next} s[$3] ~ /failed/ {print $3, "failed"}' \\
                "$1"/worker.log "$1"/gate.log | sort
        """,
        "worker-alone": """
            #!/bin/sh
            awk '{sub(/^request=/, "", $3); s[$3] = $2} END {for (r in s) if (s[r] != "done") print r, (s[r] == "failed" ? "failed" : "running")}' \\
                "$1"/worker.log | sort
        """,
    },
)

TEMPLATES = (BURSTS, LOST)
