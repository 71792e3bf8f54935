"""Terminal templates about schedules: cron, retention of backups, rotation of logs."""

from __future__ import annotations

import random

from env_factory.templates.terminal.logs import packed
from env_factory.templates.terminal.template import Files, Params, Template


def cron_data(rng: random.Random, p: Params) -> Files:
    def field(low: int, high: int) -> str:
        a = rng.randint(low, high - 3)
        return rng.choice(["*", str(a), f"{a},{high}", f"{a}-{a + 2}", f"*/{rng.randint(2, 9)}", f"{a}-{high}/2"])

    rows = ["# minute hour day month weekday command", ""]
    for number in range(2 + p["level"]):
        rows.append(f"{field(0, 59)} {field(0, 23)} * {field(1, 12)} * {p['words'][number]} --quick")
    # Both days given: either is enough. Sunday is 0 and 7.
    rows.append(f"0 {rng.randint(0, 23)} {rng.randint(2, 27)} * {rng.randint(1, 5)} {p['words'][10]}")
    rows.append(f"{rng.randint(0, 59)} 3 * * {rng.choice([0, 7])} {p['words'][11]} now")
    rows.append(f"30 {rng.randint(0, 23)} 29 2 * {p['words'][12]}")
    now = f"{rng.randint(2023, 2026)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d} {rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    return {"crontab": "\n".join(rows) + "\n", "now": now + "\n"}


def cron_answer(files: Files, p: Params) -> str:
    import datetime

    def values(text: str, low: int, high: int) -> set[int]:
        out: set[int] = set()
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
            out |= set(range(int(first), int(last or first) + 1, int(step or 1)))
        return out

    now = datetime.datetime.strptime(files["now"].strip(), "%Y-%m-%d %H:%M")
    rows = []
    for line in files["crontab"].splitlines():
        if not line or line.startswith("#"):
            continue
        minute, hour, day, month, weekday, command = line.split(None, 5)
        minutes, hours, months = values(minute, 0, 59), values(hour, 0, 23), values(month, 1, 12)
        days, weekdays = values(day, 1, 31), {d % 7 for d in values(weekday, 0, 7)}
        date = now.date()
        while True:
            fits = [date.day in days, date.isoweekday() % 7 in weekdays]
            right_day = all(fits) if "*" in (day[0], weekday[0]) else any(fits)
            if date.month in months and right_day:
                times = [datetime.datetime.combine(date, datetime.time(h, m)) for h in sorted(hours) for m in sorted(minutes)]
                if later := [at for at in times if at > now]:
                    rows.append(f"{later[0]:%Y-%m-%d %H:%M} {command}\n")
                    break
            date += datetime.timedelta(days=1)
    return "".join(rows)


CRON = Template(
    name="cron-next-run",
    theme="schedules",
    program="next",
    params=lambda rng, words, level: {"words": words[:13]},
    data=cron_data,
    answer=cron_answer,
    text="""
        `/work/data/crontab` is a crontab with five time fields (`*`, numbers, lists, ranges, steps; Sunday is 0 or 7), `/work/data/now` the
        present time. For each job, in the order of the file, print when it runs next, later than now, and its command:
        `YYYY-MM-DD HH:MM COMMAND`. As in cron, when neither the day of the month nor the day of the week begins with `*`, it is
        enough that one of them fits. Comments and empty lines are no jobs.
    """,
    shell=r"""
        #!/usr/bin/python3 -I
        import calendar, sys
        from datetime import datetime, timedelta
        def fits(text, low, high, value):
            for part in text.split(","):
                span, step = (part.split("/") + ["1"])[:2]
                a, b = (low, high) if span == "*" else (int(span.split("-")[0]), int(span.split("-")[-1]))
                if a <= value <= b and (value - a) % int(step) == 0:
                    return True
            return False
        start = datetime.fromisoformat(open(sys.argv[1] + "/now").read().strip()) + timedelta(minutes=1)
        for row in open(sys.argv[1] + "/crontab"):
            if row.strip() and row[0] != "#":
                mi, ho, da, mo, we, command = row.rstrip("\n").split(" ", 5)
                at = start
                while True:
                    day = fits(da, 1, 31, at.day)
                    week = any(fits(we, 0, 7, w) for w in ([0, 7] if at.isoweekday() == 7 else [at.isoweekday()]))
                    good = (day and week) if da[0] == "*" or we[0] == "*" else (day or week)
                    if not fits(mo, 1, 12, at.month):
                        at = at.replace(day=1, hour=0, minute=0) + timedelta(days=calendar.monthrange(at.year, at.month)[1])
                    elif not good:
                        at = at.replace(hour=0, minute=0) + timedelta(days=1)
                    elif not fits(ho, 0, 23, at.hour):
                        at = at.replace(minute=0) + timedelta(hours=1)
                    elif not fits(mi, 0, 59, at.minute):
                        at += timedelta(minutes=1)
                    else:
                        break
                print(at.strftime("%Y-%m-%d %H:%M"), command)
    """,
    wrong={
        "both-days": """
            #!/usr/bin/python3 -I
            import sys
            from datetime import datetime, timedelta
            def values(t, low, high):
                out = set()
                for part in t.split(","):
                    span, _, step = part.partition("/"); a, _, b = (f"{low}-{high}" if span == "*" else span).partition("-")
                    out |= set(range(int(a), int(b or a) + 1, int(step or 1)))
                return out
            now = datetime.fromisoformat(open(sys.argv[1] + "/now").read().strip())
            for row in open(sys.argv[1] + "/crontab"):
                if row.strip() and row[0] != "#":
                    mi, ho, da, mo, we, command = row.rstrip("\\n").split(" ", 5)
                    mi, ho, da, mo, we = values(mi, 0, 59), values(ho, 0, 23), values(da, 1, 31), values(mo, 1, 12), {w % 7 for w in values(we, 0, 7)}
                    day = now.replace(hour=0, minute=0)
                    for _ in range(20000):
                        if day.month in mo and day.day in da and day.isoweekday() % 7 in we:
                            later = [t for h in sorted(ho) for m in sorted(mi) if (t := day.replace(hour=h, minute=m)) > now]
                            if later: print(later[0].strftime("%Y-%m-%d %H:%M"), command); break
                        day += timedelta(days=1)
        """,
        "now-included": """
            #!/bin/sh
            now=$(cat "$1"/now); grep -v '^#' "$1"/crontab | grep . | while read -r mi ho da mo we c; do
                echo "$(date -d "$now" +'%Y-%m-%d %H:%M') $c"; done
        """,
        "times-of-today": """
            #!/bin/sh
            day=$(cut -d' ' -f1 "$1"/now)
            grep -v '^#' "$1"/crontab | grep . | while read -r mi ho da mo we c; do
                [ "$ho" = '*' ] && ho=0; [ "$mi" = '*' ] && mi=0
                printf '%s %02d:%02d %s\\n' "$day" "$ho" "$mi" "$c" 2> /dev/null; done
        """,
    },
)


def rotation_data(rng: random.Random, p: Params) -> Files:
    import datetime

    start = datetime.date(2024, rng.randint(1, 10), rng.randint(1, 28))
    days = sorted(rng.sample(range(130), 40 + 10 * min(p["level"], 5)))
    names = [f"{p['name']}-{start + datetime.timedelta(days=day):%Y-%m-%d}.tgz" for day in days]
    rng.shuffle(names)
    return {"backups.txt": "\n".join([*names, f"{p['name']}-latest.tgz", "README"]) + "\n"}


def rotation_answer(files: Files, p: Params) -> str:
    import datetime
    import re

    found = re.findall(rf"^{p['name']}-(\d+-\d+-\d+)\.tgz$", files["backups.txt"], re.M)
    days = sorted((datetime.date.fromisoformat(day) for day in found), reverse=True)
    keep = set(days[: p["daily"]])
    for size, key in ((p["weekly"], "%G-%V"), (p["monthly"], "%Y-%m")):
        newest: dict[str, datetime.date] = {}
        for day in days:
            newest.setdefault(day.strftime(key), day)
        keep |= set(list(newest.values())[:size])
    return "".join(f"{p['name']}-{day}.tgz\n" for day in sorted(days) if day not in keep)


ROTATION = Template(
    name="backup-retention",
    theme="schedules",
    program="expired",
    params=lambda rng, words, level: {
        "name": words[0],
        "daily": rng.randint(3, 7),
        "weekly": rng.randint(3, 5),
        "monthly": rng.randint(2, 4),
    },
    data=rotation_data,
    answer=rotation_answer,
    text="""
        `/work/data/backups.txt` lists backups, one name per line: `§name-YYYY-MM-DD.tgz`; other lines are none of ours. To be kept are the
        §daily newest backups; the newest backup of each of the §weekly latest weeks that have one (weeks begin on Monday, ISO 8601);
        and the newest backup of each of the §monthly latest months that have one. A backup may be kept for several reasons. Print the
        names of those that need not be kept, the oldest first.
    """,
    shell=r"""
        #!/bin/bash
        grep -E '^§name-[0-9]{4}-[0-9]{2}-[0-9]{2}\.tgz$' "$1"/backups.txt | sort -r | while IFS= read -r f; do
            d=${f#§name-}; d=${d%.tgz}; echo "$f $(date -d "$d" +'%G-%V %Y-%m')"
        done | awk '
            { keep = NR <= §daily }
            !($2 in w) { w[$2]; if (++weeks <= §weekly) keep = 1 }
            !($3 in m) { m[$3]; if (++months <= §monthly) keep = 1 }
            !keep { print $1 }' | sort
    """,
    wrong={
        "weeks-after-days": r"""
            #!/bin/bash
            grep -E '^§name-[0-9]{4}-[0-9]{2}-[0-9]{2}\.tgz$' "$1"/backups.txt | sort -r | while IFS= read -r f; do
                d=${f#§name-}; d=${d%.tgz}; echo "$f $(date -d "$d" +'%G-%V %Y-%m')"
            done | awk '
                NR <= §daily { next }
                !($2 in w) && weeks < §weekly { w[$2]; weeks++; next }
                !($3 in m) && months < §monthly { m[$3]; months++; next }
                { print $1 }' | sort
        """,
        "daily-alone": r"""
            #!/bin/bash
            grep -E '^§name-[0-9]{4}-[0-9]{2}-[0-9]{2}\.tgz$' "$1"/backups.txt | sort -r | tail -n +$((§daily + 1)) | sort
        """,
        "first-of-the-month": r"""
            #!/bin/bash
            grep -E '^§name-[0-9]{4}-[0-9]{2}-[0-9]{2}\.tgz$' "$1"/backups.txt | sort -r | while IFS= read -r f; do
                d=${f#§name-}; d=${d%.tgz}; echo "$f $(date -d "$d" +'%G-%V %Y-%m %d')"
            done | awk '
                { keep = NR <= §daily }
                !($2 in w) { w[$2]; if (++weeks <= §weekly) keep = 1 }
                $4 == "01" { if (++months <= §monthly) keep = 1 }
                !keep { print $1 }' | sort
        """,
    },
)


def rotate_data(rng: random.Random, p: Params) -> Files:
    files: Files = {}
    for number, word in enumerate(p["words"][: 3 + p["level"]]):
        size = [p["limit"] + 1, p["limit"], p["limit"] - 1][number % 3] + (rng.randint(0, 5) if number > 2 else 0)
        files[f"{word}.log"] = ("x" * rng.randint(1, size - 1)).ljust(size - 1, "y") + "\n"
        for old in range(1, 1 + rng.randint(0 if number else p["keep"], p["keep"])):
            files[f"{word}.log.{old}.gz"] = packed(f"{word} {old} {rng.randint(1, 99)}\n".encode())
    return files | {f"{p['words'][0]}.txt": "z" * 2 * p["limit"]}


def rotate_answer(files: Files, p: Params) -> Files:
    import gzip

    made = dict(files)
    for name, text in files.items():
        if name.endswith(".log") and len(text) > p["limit"]:
            for number in range(p["keep"], 0, -1):
                older = made.pop(f"{name}.{number}.gz", None)
                if older is not None and number < p["keep"]:
                    made[f"{name}.{number + 1}.gz"] = older
            made[f"{name}.1.gz"] = gzip.compress(text.encode(), mtime=0)
            made[name] = ""
    return made


ROTATE = Template(
    name="log-rotation",
    theme="schedules",
    program="rotate",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:14], "limit": rng.randint(40, 90), "keep": rng.randint(3, 5)},
    data=rotate_data,
    answer=rotate_answer,
    text="""
        Rotate the logs of `/work/data`: every `*.log` of more than §limit bytes. A rotated log is left empty; what was in it is then
        in `NAME.log.1.gz`, packed with gzip, what was in `NAME.log.1.gz` before in `NAME.log.2.gz`, and so on. Not more than §keep
        packed files are kept for a log; the oldest goes. All other files stay as they are.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        for f in *.log; do
            [ "$(wc -c < "$f")" -gt §limit ] || continue
            rm -f "$f.§keep.gz"
            for ((n = §keep - 1; n > 0; n--)); do
                [ ! -f "$f.$n.gz" ] || mv "$f.$n.gz" "$f.$((n + 1)).gz"
            done
            gzip -nc "$f" > "$f.1.gz"
            : > "$f"
        done
    """,
    wrong={
        "overwritten": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for f in *.log; do
                [ "$(wc -c < "$f")" -gt §limit ] || continue
                for ((n = 1; n < §keep; n++)); do [ ! -f "$f.$n.gz" ] || cp "$f.$n.gz" "$f.$((n + 1)).gz"; done
                gzip -nc "$f" > "$f.1.gz"; : > "$f"
            done
        """,
        "limit-included": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for f in *.log; do
                [ "$(wc -c < "$f")" -ge §limit ] || continue
                rm -f "$f.§keep.gz"
                for ((n = §keep - 1; n > 0; n--)); do [ ! -f "$f.$n.gz" ] || mv "$f.$n.gz" "$f.$((n + 1)).gz"; done
                gzip -nc "$f" > "$f.1.gz"; : > "$f"
            done
        """,
        "all-kept": r"""
            #!/bin/bash
            cd "$1" || exit 1
            for f in *.log; do
                [ "$(wc -c < "$f")" -gt §limit ] || continue
                for ((n = 9; n > 0; n--)); do [ ! -f "$f.$n.gz" ] || mv "$f.$n.gz" "$f.$((n + 1)).gz"; done
                gzip -nc "$f" > "$f.1.gz"; : > "$f"
            done
        """,
    },
)

TEMPLATES = (CRON, ROTATION, ROTATE)
