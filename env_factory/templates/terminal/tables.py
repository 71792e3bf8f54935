"""Terminal templates about joins: CSV with CSV, ledgers of JSON lines, pivots."""

from __future__ import annotations

import json
import random

from env_factory.templates.terminal.template import Files, Params, Template


def join_data(rng: random.Random, p: Params) -> Files:
    names = [f"{word.title()}, {rng.choice(['Ltd', 'Inc', 'Co'])}" for word in p["words"]]
    customers = [(100 + i, name, rng.choice(p["regions"][:-1])) for i, name in enumerate(names)]
    rows = ["id,name,region"] + [f'{i},"{name}",{region}' for i, name, region in customers]
    orders = ["order,customer,amount"]
    for number in range(12 + 10 * p["level"]):
        who = rng.choice([*(i for i, _, _ in customers), 900])
        orders.append(f"{number},{who},{rng.randint(1, 400)}.{rng.choice(['05', '10', '99', '5'])}")
    orders.append(f"99,900,{rng.randint(1, 9)}.25")
    rows.append(f'990,"Nobody, {p["words"][0]}",{p["regions"][-1]}')
    return {"customers.csv": "\n".join(rows) + "\n", "orders.csv": "\n".join(orders) + "\n"}


def join_answer(files: Files, p: Params) -> str:
    import csv
    from decimal import Decimal

    region = {row["id"]: row["region"] for row in csv.DictReader(files["customers.csv"].splitlines())}
    total = {name: Decimal(0) for name in region.values()}
    count = dict.fromkeys(total, 0)
    for row in csv.DictReader(files["orders.csv"].splitlines()):
        place = region.get(row["customer"], "unknown")
        total[place] = total.get(place, Decimal(0)) + Decimal(row["amount"])
        count[place] = count.get(place, 0) + 1
    return "".join(f"{place},{count[place]},{amount:.2f}\n" for place, amount in sorted(total.items()))


JOIN = Template(
    name="orders-by-region",
    theme="joins",
    params=lambda rng, words, level: {"words": words[: 4 + level], "regions": words[15:19]},
    data=join_data,
    answer=join_answer,
    text="""
        Add up the orders by region. `/work/data/orders.csv` names customers by number, `/work/data/customers.csv` tells the region of
        each; both are CSV with a header line, and fields may be quoted. Print `REGION,ORDERS,TOTAL` for each region, sorted by
        region as text: how many orders it has and the sum of their amounts with two decimals. Regions without orders are listed
        with 0 and 0.00. Orders of customers that are not in the list belong to the region `unknown`, which is listed only if there
        are any.
    """,
    shell="""
        #!/usr/bin/python3 -I
        import csv, sqlite3, sys
        base = sqlite3.connect(":memory:")
        base.execute("create table c (id, name, region)")
        base.execute("create table o (n, customer, cents integer)")
        rows = lambda name: list(csv.reader(open(f"{sys.argv[1]}/{name}.csv")))[1:]
        base.executemany("insert into c values (?, ?, ?)", rows("customers"))
        base.executemany("insert into o values (?, ?, ?)", [(n, c, round(float(a) * 100)) for n, c, a in rows("orders")])
        asked = "select r, count(cents), total(cents) from (select region r, cents from c left join o on o.customer = c.id union all "
        asked += "select 'unknown', cents from o where customer not in (select id from c)) group by r order by r"
        for region, n, cents in base.execute(asked):
            print(f"{region},{n},{cents / 100:.2f}")
    """,
    wrong={
        "cut-at-commas": """
            #!/bin/sh
            awk -F, 'FNR == 1 {next} FILENAME ~ /customers/ {r[$1] = $3; next}
                {k = ($2 in r) ? r[$2] : "unknown"; n[k]++; s[k] += $3} END {for (k in n) printf "%s,%d,%.2f\\n", k, n[k], s[k]}' \\
                "$1"/customers.csv "$1"/orders.csv | sort
        """,
        "inner-join": """
            #!/bin/sh
            awk -F, 'FNR == 1 {next} FILENAME ~ /customers/ {r[$1] = $NF; next}
                $2 in r {k = r[$2]; n[k]++; s[k] += $3} END {for (k in n) printf "%s,%d,%.2f\\n", k, n[k], s[k]}' \\
                "$1"/customers.csv "$1"/orders.csv | sort
        """,
        "without-empty-regions": """
            #!/bin/sh
            awk -F, 'FNR == 1 {next} FILENAME ~ /customers/ {r[$1] = $NF; next}
                {k = ($2 in r) ? r[$2] : "unknown"; n[k]++; s[k] += $3} END {for (k in n) printf "%s,%d,%.2f\\n", k, n[k], s[k]}' \\
                "$1"/customers.csv "$1"/orders.csv | sort
        """,
    },
)


def ledger_data(rng: random.Random, p: Params) -> Files:
    rows: list[str] = []
    for number in range(15 + 10 * p["level"]):
        giver, taker = rng.sample(p["accounts"], 2)
        entry = {"id": number, "from": giver, "to": taker, "cents": rng.randint(1, 90_000)}
        if number % 5 == 4:
            # Undoes an earlier entry, which may itself have been an undoing.
            entry = {"id": number, "undo": rng.randrange(max(0, number - 9), number)}
        rows.append(json.dumps(entry))
        if rng.random() < 0.2:
            rows.append(rows[-1])
    rows.append(json.dumps({"id": 900, "undo": 14}))
    cut = len(rows) // 2
    return {"a.jsonl": "\n".join(rows[:cut]) + "\n", "b.jsonl": "\n".join(rows[cut:]) + "\n"}


def ledger_answer(files: Files, p: Params) -> str:
    import json

    entries: dict[int, Params] = {}
    for name in sorted(files):
        for line in files[name].splitlines():
            entry = json.loads(line)
            entries.setdefault(entry["id"], entry)
    balance: dict[str, int] = {}

    def book(entry: Params, sign: int) -> None:
        if "undo" in entry:
            book(entries[entry["undo"]], -sign)
        else:
            balance[entry["from"]] = balance.get(entry["from"], 0) - sign * entry["cents"]
            balance[entry["to"]] = balance.get(entry["to"], 0) + sign * entry["cents"]

    for entry in entries.values():
        book(entry, 1)
    return "".join(f"{name} {cents}\n" for name, cents in sorted(balance.items()))


LEDGER = Template(
    name="ledger-balances",
    theme="joins",
    params=lambda rng, words, level: {"accounts": words[: 3 + level]},
    data=ledger_data,
    answer=ledger_answer,
    text="""
        The files `/work/data/*.jsonl`, read in the order of their names, are a ledger: one JSON object per line. An entry with `from`,
        `to` and `cents` moves that amount between two accounts. An entry with `undo` takes back all that the entry of that number
        did; what is undone may be an undoing itself. Some entries were written twice: an `id` counts once. Print `ACCOUNT CENTS`
        for each account that a transfer names, sorted by account, with the balance at the end; all start at 0.
    """,
    shell="""
        #!/usr/bin/python3 -I
        import glob, json, sys
        seen, effect, total = set(), {}, {}
        for path in sorted(glob.glob(glob.escape(sys.argv[1]) + "/*.jsonl")):
            for e in map(json.loads, open(path)):
                if e["id"] in seen:
                    continue
                seen.add(e["id"])
                if "undo" in e:
                    moves = [(name, -cents) for name, cents in effect[e["undo"]]]
                else:
                    moves = [(e["from"], -e["cents"]), (e["to"], e["cents"])]
                effect[e["id"]] = moves
                for name, cents in moves:
                    total[name] = total.get(name, 0) + cents
        for name in sorted(total):
            print(name, total[name])
    """,
    wrong={
        "counted-twice": """
            #!/usr/bin/python3 -I
            import glob, json, sys
            effect, total = {}, {}
            for path in sorted(glob.glob(sys.argv[1] + "/*.jsonl")):
                for e in map(json.loads, open(path)):
                    effect[e["id"]] = [(n, -c) for n, c in effect[e["undo"]]] if "undo" in e else [(e["from"], -e["cents"]), (e["to"], e["cents"])]
                    for name, cents in effect[e["id"]]:
                        total[name] = total.get(name, 0) + cents
            for name in sorted(total):
                print(name, total[name])
        """,
        "undo-ignored": """
            #!/usr/bin/python3 -I
            import glob, json, sys
            entries = {e["id"]: e for path in glob.glob(sys.argv[1] + "/*.jsonl") for e in map(json.loads, open(path))}
            total = {}
            for e in entries.values():
                if "undo" not in e:
                    total[e["from"]] = total.get(e["from"], 0) - e["cents"]
                    total[e["to"]] = total.get(e["to"], 0) + e["cents"]
            for name in sorted(total):
                print(name, total[name])
        """,
        "undo-of-undo-forgotten": """
            #!/usr/bin/python3 -I
            import glob, json, sys
            entries = {e["id"]: e for path in glob.glob(sys.argv[1] + "/*.jsonl") for e in map(json.loads, open(path))}
            gone = {e["undo"] for e in entries.values() if "undo" in e}
            total = {}
            for e in entries.values():
                if "undo" not in e:
                    sign = 0 if e["id"] in gone else 1
                    total[e["from"]] = total.get(e["from"], 0) - sign * e["cents"]
                    total[e["to"]] = total.get(e["to"], 0) + sign * e["cents"]
            for name in sorted(total):
                print(name, total[name])
        """,
    },
)


def pivot_data(rng: random.Random, p: Params) -> Files:
    months = [f"2024-{m:02d}" for m in sorted(rng.sample(range(1, 13), 3 + p["level"]))]
    rows = []
    for month in months:
        for product in rng.sample(p["products"], len(p["products"]) - 1):
            rows += [f"{month}-{rng.randint(1, 28):02d};{product};{rng.randint(1, 60)}" for _ in range(rng.randint(1, 3))]
    rng.shuffle(rows)
    return {"sales.csv": "day;product;pieces\n" + "\n".join(rows) + "\n"}


def pivot_answer(files: Files, p: Params) -> str:
    cells: dict[tuple[str, str], int] = {}
    for line in files["sales.csv"].splitlines()[1:]:
        day, product, pieces = line.split(";")
        cells[product, day[:7]] = cells.get((product, day[:7]), 0) + int(pieces)
    months = sorted({month for _, month in cells})
    rows = ["\t".join(["product", *months, "total"])]
    for product in sorted({product for product, _ in cells}):
        row = [cells.get((product, month), 0) for month in months]
        rows.append("\t".join([product, *map(str, row), str(sum(row))]))
    return "\n".join(rows) + "\n"


PIVOT = Template(
    name="sales-pivot",
    theme="joins",
    params=lambda rng, words, level: {"products": words[: 4 + level]},
    data=pivot_data,
    answer=pivot_answer,
    text="""
        Turn the list `/work/data/sales.csv` (day, product and pieces, separated by semicolons, with a header) into a table, fields
        separated by one tab: a header with `product`, every month that occurs as `YYYY-MM` in ascending order, and `total`; then one
        row per product, in ascending order as text, with the pieces sold in each month, 0 where there were none, and their sum.
    """,
    shell="""
        #!/bin/sh
        tail -n +2 "$1"/sales.csv | awk -F';' '{print $2, substr($1, 1, 7), $3}' | sort | awk '
            {
                n[$1, $2] += $3; if (!($2 in m)) { m[$2]; month[++k] = $2 } if ($1 != last) { last = product[++r] = $1 }
            }
            END {
                for (i = 1; i <= k; i++) for (j = i + 1; j <= k; j++) if (month[j] < month[i]) { t = month[i]; month[i] = month[j]; month[j] = t }
                printf "product"; for (i = 1; i <= k; i++) printf "\\t%s", month[i]; print "\\ttotal"
                for (j = 1; j <= r; j++) {
                    printf "%s", product[j]; sum = 0
                    for (i = 1; i <= k; i++) { printf "\\t%d", n[product[j], month[i]]; sum += n[product[j], month[i]] }
                    print "\\t" sum
                }
            }'
    """,
    wrong={
        "gaps": """
            #!/usr/bin/python3 -I
            import sys
            cells = {}
            for line in list(open(sys.argv[1] + "/sales.csv"))[1:]:
                day, product, pieces = line.split(";")
                cells.setdefault(product, {}).setdefault(day[:7], []).append(int(pieces))
            months = sorted({m for row in cells.values() for m in row})
            print("product", *months, "total", sep="\\t")
            for product in sorted(cells):
                row = [sum(v) for _, v in sorted(cells[product].items())]
                print(product, *row, sum(row), sep="\\t")
        """,
        "last-one-wins": """
            #!/usr/bin/python3 -I
            import sys
            cells = {}
            for line in list(open(sys.argv[1] + "/sales.csv"))[1:]:
                day, product, pieces = line.split(";")
                cells.setdefault(product, {})[day[:7]] = int(pieces)
            months = sorted({m for row in cells.values() for m in row})
            print("product", *months, "total", sep="\\t")
            for product in sorted(cells):
                row = [cells[product].get(m, 0) for m in months]
                print(product, *row, sum(row), sep="\\t")
        """,
        "no-total": """
            #!/usr/bin/python3 -I
            import sys
            cells = {}
            for line in list(open(sys.argv[1] + "/sales.csv"))[1:]:
                day, product, pieces = line.split(";")
                row = cells.setdefault(product, {})
                row[day[:7]] = row.get(day[:7], 0) + int(pieces)
            months = sorted({m for row in cells.values() for m in row})
            print("product", *months, sep="\\t")
            for product in sorted(cells):
                print(product, *(cells[product].get(m, 0) for m in months), sep="\\t")
        """,
    },
)

TEMPLATES = (JOIN, LEDGER, PIVOT)
