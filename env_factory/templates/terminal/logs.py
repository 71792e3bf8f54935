"""Terminal templates about logs: who asked most, how slow it was, how long people stayed."""

from __future__ import annotations

import random
import zlib

from env_factory.templates.terminal.template import Files, Params, Template


def packed(data: bytes) -> bytes:
    """A gzip file of stored blocks, the same bytes with every version of zlib."""
    out = bytearray(b"\x1f\x8b\x08\0\0\0\0\0\0\xff")
    blocks = [data[i : i + 60_000] for i in range(0, len(data), 60_000)] or [b""]
    for number, block in enumerate(blocks):
        size = len(block)
        out += bytes([number == len(blocks) - 1]) + size.to_bytes(2, "little") + (size ^ 0xFFFF).to_bytes(2, "little") + block
    return bytes(out + zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little"))


def clock(second: int) -> str:
    """A time of one March day and the days after it, ISO 8601."""
    day, rest = divmod(second, 86_400)
    return f"2025-03-{10 + day:02d}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}Z"


def clients_data(rng: random.Random, p: Params) -> Files:
    hosts = [f"10.{rng.randint(0, 9)}.{rng.randint(0, 99)}.{i}" for i in rng.sample(range(1, 250), 4 + 2 * p["top"])]
    other = [code for code in (200, 301, 404, 500, 502, 503) if code != p["status"]]
    rows: list[tuple[str, int, str]] = []
    for rank, host in enumerate(hosts):
        # Two hosts share each count, so that ties have to be broken, at the cut as well.
        rows += [(host, p["status"], rng.choice(p["paths"]))] * (1 + rank // 2)
        rows += [(host, rng.choice(other), rng.choice(p["paths"])) for _ in range(rng.randint(1, 3 * p["level"]))]
        rows += [(host, p["status"], p["skip"])] * rng.randint(1, 6)
    rng.shuffle(rows)
    lines = [
        f'{host} - - [10/Mar/2025:{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d} +0000] "GET {path} HTTP/1.1" {status} '
        f"{p['status'] if rng.random() < 0.2 else rng.randint(200, 9999)}\n"
        for i, (host, status, path) in enumerate(rows)
    ]
    cut = len(lines) // 3
    return {
        "access.log": "".join(lines[2 * cut :]),
        "access.log.1": "".join(lines[cut : 2 * cut]),
        "access.log.2.gz": packed("".join(lines[:cut]).encode()),
    }


def clients_answer(files: Files, p: Params) -> str:
    import gzip

    count: dict[str, int] = {}
    for data in files.values():
        text = data if isinstance(data, str) else gzip.decompress(data).decode()
        for line in text.splitlines():
            words = line.split()
            if int(words[8]) == p["status"] and words[6] != p["skip"]:
                count[words[0]] = count.get(words[0], 0) + 1
    best = sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))[: p["top"]]
    return "".join(f"{n} {host}\n" for host, n in best)


CLIENTS = Template(
    name="top-clients",
    theme="log-analytics",
    params=lambda rng, words, level: {
        "status": rng.choice([404, 500, 502, 503]),
        "top": 2 + level,
        "skip": f"/{words[0]}",
        "paths": [f"/{word}" for word in words[1 : 4 + level]],
    },
    data=clients_data,
    answer=clients_answer,
    text="""
        `/work/data` holds a web server's access logs: the present one, `access.log`, and older ones, some of them packed with gzip
        (`*.gz`). Find out which clients received status §status most often. Requests for `§skip` do not count. The answer has
        one line for each of the §top clients with the most such requests, `COUNT ADDRESS`, the highest count first; clients with
        the same count are in the order of their addresses as text.
    """,
    shell="""
        #!/bin/sh
        for f in "$1"/access.log*; do
            case $f in *.gz) gzip -dc "$f" ;; *) cat "$f" ;; esac
        done | awk '$9 == §status && $7 != "§skip" {n[$1]++} END {for (h in n) print n[h], h}' | sort -k1,1nr -k2,2 | head -n §top
    """,
    wrong={
        "text-anywhere": """
            #!/bin/sh
            (cat "$1"/access.log "$1"/access.log.1; gzip -dc "$1"/*.gz) | grep -v "§skip " | grep " §status" | cut -d" " -f1 |
                sort | uniq -c | sort -k1,1nr -k2,2 | head -n §top | awk '{print $1, $2}'
        """,
        "not-the-packed": """
            #!/bin/sh
            cat "$1"/access.log "$1"/access.log.1 | awk '$9 == §status && $7 != "§skip" {n[$1]++} END {for (h in n) print n[h], h}' |
                sort -k1,1nr -k2,2 | head -n §top
        """,
        "ties-backwards": """
            #!/bin/sh
            (cat "$1"/access.log "$1"/access.log.1; gzip -dc "$1"/*.gz) |
                awk '$9 == §status && $7 != "§skip" {n[$1]++} END {for (h in n) print n[h], h}' | sort -rn | head -n §top
        """,
    },
)


def latency_data(rng: random.Random, p: Params) -> Files:
    rows = []
    for path in p["paths"]:
        for _ in range(rng.randint(7, 9) + 12 * p["level"]):
            ms = rng.choice([rng.randint(3, 99), rng.randint(100, 999)])
            # A second in three is told in seconds, and is longer than every other answer.
            said = f"{rng.randint(1, 9)}.{rng.randint(0, 999):03d}s" if rng.random() < 0.3 else f"{ms}ms"
            rows.append(f"{clock(rng.randrange(80_000))} GET {path} {rng.choice([200, 200, 304, 500])} {said}\n")
    rng.shuffle(rows)
    return {"requests.log": "".join(rows)}


def latency_answer(files: Files, p: Params) -> str:
    took: dict[str, list[int]] = {}
    for line in files["requests.log"].splitlines():
        _, _, path, status, said = line.split()
        if int(status) < 500:
            ms = int(said[:-2]) if said.endswith("ms") else round(float(said[:-1]) * 1000)
            took.setdefault(path, []).append(ms)
    rows = []
    for path in sorted(took):
        every = sorted(took[path])
        ranks = [every[-(-q * len(every) // 100) - 1] for q in p["quantiles"]]
        rows.append(" ".join([path, str(len(every)), *map(str, ranks)]))
    return "\n".join(rows) + "\n"


LATENCY = Template(
    name="latency-percentiles",
    theme="log-analytics",
    params=lambda rng, words, level: {
        "paths": [f"/{word}" for word in words[: 2 + level]],
        "quantiles": [50, (q := rng.choice([90, 95, 99]))],
        "high": q,
    },
    data=latency_data,
    answer=latency_answer,
    text="""
        `/work/data/requests.log` has one request per line: time, method, path, status, and how long the answer took, in
        milliseconds (`87ms`) or seconds (`1.250s`). Leave out requests with a status of 500 or more. For each path, in the order of
        the paths as text, print one line: the path, the number of its requests, their 50th and their §{high}th percentile in
        whole milliseconds, separated by one blank. Percentiles are by nearest rank: of n values in ascending order the one at
        position n times the percentage, rounded up.
    """,
    shell="""
        #!/bin/sh
        awk '$4 < 500 {
            t = $5
            if (t ~ /ms$/) sub(/ms$/, "", t); else { sub(/s$/, "", t); t = int(t * 1000 + 0.5) }
            print $3, t
        }' "$1"/requests.log | sort -k1,1 -k2,2n | awk '
            function out(   a, b) { if (n) { a = int((50 * n + 99) / 100); b = int((§high * n + 99) / 100); print path, n, v[a], v[b] } }
            $1 != path { out(); path = $1; n = 0 }
            { v[++n] = $2 }
            END { out() }'
    """,
    wrong={
        "as-text": """
            #!/bin/sh
            awk '$4 < 500 && $5 ~ /ms$/ {sub(/ms/, "", $5); print $3, $5}' "$1"/requests.log | sort | awk '
                function out() { if (n) print path, n, v[int((50 * n + 99) / 100)], v[int((§high * n + 99) / 100)] }
                $1 != path { out(); path = $1; n = 0 } { v[++n] = $2 } END { out() }'
        """,
        "all-statuses": """
            #!/bin/sh
            awk '{t = $5; if (t ~ /ms$/) sub(/ms$/, "", t); else { sub(/s$/, "", t); t = int(t * 1000 + 0.5) } print $3, t}' "$1"/requests.log |
                sort -k1,1 -k2,2n | awk '
                function out() { if (n) print path, n, v[int((50 * n + 99) / 100)], v[int((§high * n + 99) / 100)] }
                $1 != path { out(); path = $1; n = 0 } { v[++n] = $2 } END { out() }'
        """,
        "rank-rounded-down": """
            #!/usr/bin/python3 -I
            import sys
            took = {}
            for line in open(sys.argv[1] + "/requests.log"):
                _, _, path, status, said = line.split()
                if int(status) < 500:
                    took.setdefault(path, []).append(int(said[:-2]) if said.endswith("ms") else round(float(said[:-1]) * 1000))
            for path, all in sorted(took.items()):
                all.sort()
                print(path, len(all), all[len(all) * 50 // 100], all[min(len(all) * §high // 100, len(all) - 1)])
        """,
    },
)


def sessions_data(rng: random.Random, p: Params) -> Files:
    rows = []
    for user in p["users"]:
        at = rng.randrange(1_700_000_000, 1_700_080_000)
        for _ in range(6 + 4 * p["level"]):
            rows.append((at, user))
            # A pause of exactly the limit does not end a session.
            at += rng.choice([p["gap"], p["gap"] + 1, rng.randint(1, p["gap"] - 1), rng.randint(1, 30), 3 * p["gap"]])
    rng.shuffle(rows)
    return {"clicks.txt": "".join(f"{at} {user} /{rng.choice(p['pages'])}\n" for at, user in rows)}


def sessions_answer(files: Files, p: Params) -> str:
    times: dict[str, list[int]] = {}
    for line in files["clicks.txt"].splitlines():
        at, user, _ = line.split()
        times.setdefault(user, []).append(int(at))
    rows = []
    for user, every in sorted(times.items()):
        every.sort()
        begins = [every[0]]
        longest = 0
        for before, now in zip(every, every[1:]):  # noqa: RUF007, B905
            if now - before > p["gap"]:
                begins.append(now)
            longest = max(longest, now - begins[-1])
        rows.append(f"{user} {len(begins)} {longest}\n")
    return "".join(rows)


SESSIONS = Template(
    name="user-sessions",
    theme="log-analytics",
    params=lambda rng, words, level: {
        "users": words[: 2 + level],
        "pages": words[12:18],
        "gap": 60 * rng.randint(10, 40),
    },
    data=sessions_data,
    answer=sessions_answer,
    text="""
        `/work/data/clicks.txt` lists page views in no particular order: seconds since 1970, user, page. A user's views belong to one
        session as long as no more than §gap seconds lie between one view and the next. Print one line per user, sorted by user:
        the user, the number of sessions, and the length of the longest session in seconds (from its first view to its last).
    """,
    shell="""
        #!/bin/sh
        sort -k2,2 -k1,1n "$1"/clicks.txt | awk '
            function out() { if (user != "") print user, n, longest }
            $2 != user { out(); user = $2; n = 0; longest = 0; last = -1 }
            last < 0 || $1 - last > §gap { n++; start = $1 }
            { last = $1; if (last - start > longest) longest = last - start }
            END { out() }'
    """,
    wrong={
        "unsorted": """
            #!/bin/sh
            sort -s -k2,2 "$1"/clicks.txt | awk '
                $2 != user { if (user != "") print user, n, longest; user = $2; n = 0; longest = 0; last = -1 }
                last < 0 || $1 - last > §gap { n++; start = $1 } { last = $1; if (last - start > longest) longest = last - start }
                END { print user, n, longest }'
        """,
        "limit-included": """
            #!/bin/sh
            sort -k2,2 -k1,1n "$1"/clicks.txt | awk '
                $2 != user { if (user != "") print user, n, longest; user = $2; n = 0; longest = 0; last = -1 }
                last < 0 || $1 - last >= §gap { n++; start = $1 } { last = $1; if (last - start > longest) longest = last - start }
                END { print user, n, longest }'
        """,
        "from-the-start": """
            #!/bin/sh
            sort -k2,2 -k1,1n "$1"/clicks.txt | awk '
                $2 != user { if (user != "") print user, n, longest; user = $2; n = 0; longest = 0; start = -1 }
                start < 0 || $1 - start > §gap { n++; start = $1 } { if ($1 - start > longest) longest = $1 - start }
                END { print user, n, longest }'
        """,
    },
)

TEMPLATES = (CLIENTS, LATENCY, SESSIONS)
