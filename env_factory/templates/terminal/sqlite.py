"""Terminal templates about SQLite: a query with gaps, rows loaded under constraints, migrations."""

from __future__ import annotations

import random
import sqlite3

from env_factory.templates.terminal.template import Files, Params, Template

VERSION = slice(96, 100)
"""Where a database file says which SQLite wrote it; cleared, so that a data set is the same everywhere."""


def database(script: str) -> bytes:
    """A SQLite file that this script makes."""
    base = sqlite3.connect(":memory:")
    base.executescript(script)
    base.commit()
    data = bytearray(base.serialize())
    base.close()
    data[VERSION] = bytes(4)
    return bytes(data)


def loans_data(rng: random.Random, p: Params) -> Files:
    rows = ["create table reader (id integer primary key, name text, town text);"]
    rows.append("create table loan (reader integer, book text, days integer, back text);")
    for number, name in enumerate(p["words"][: 5 + p["level"]]):
        town = "null" if number == 1 else f"'{rng.choice(p['towns'])}'"
        rows.append(f"insert into reader values ({number}, '{name}', {town});")
        for _ in range(0 if number == 2 else rng.randint(1, 3 + p["level"])):
            back = rng.choice(["null", f"'2024-0{rng.randint(1, 9)}-11'"])
            days = rng.choice(["null", str(rng.randint(1, 40)), str(p["limit"]), str(p["limit"] + 1)])
            rows.append(f"insert into loan values ({number}, '{rng.choice(p['words'])}', {days}, {back});")
    rows.append(f"insert into loan values (0, 'late', {p['limit'] + 3}, null);")
    rows.append(f"insert into loan values (1, 'late too', {p['limit'] + 3}, null);")
    rows.append("insert into loan values (3, 'unknown', null, null);")
    rows.append(f"insert into reader values (90, 'nobody', '{p['towns'][0]}');")
    return {"library.db": database("\n".join(rows))}


def loans_answer(files: Files, p: Params) -> str:
    import sqlite3

    base = sqlite3.connect(":memory:")
    base.deserialize(files["library.db"] if isinstance(files["library.db"], bytes) else files["library.db"].encode())
    towns = {key: town or "-" for key, town in base.execute("select id, town from reader")}
    table: dict[str, list[int]] = {town: [0, 0, 0] for town in towns.values()}
    for town in towns.values():
        table[town][0] += 1
    for reader, days, back in base.execute("select reader, days, back from loan"):
        if back is None:
            table[towns[reader]][1] += 1
            table[towns[reader]][2] += days is not None and days > p["limit"]
    base.close()
    return "".join(f"{town}|{'|'.join(map(str, row))}\n" for town, row in sorted(table.items()))


LOANS = Template(
    name="library-overview",
    theme="sqlite",
    params=lambda rng, words, level: {
        "words": words[:14],
        "towns": [w.title() for w in words[14:17]],
        "limit": rng.randint(14, 30),
    },
    data=loans_data,
    answer=loans_answer,
    text="""
        `/work/data/library.db` is a SQLite database with the tables `reader` (id, name, town) and `loan` (reader, book, days, back; `back`
        is empty, that is NULL, as long as the book is out). Print one line per town, sorted by town as text: `TOWN|READERS|OUT|LATE`
        with the number of readers who live there, of books that they have out, and of those among them with more than §limit days.
        Readers without a town count under `-`. Loans whose days are not known are not late.
    """,
    shell=r"""
        #!/usr/bin/python3 -I
        import sqlite3, sys
        base = sqlite3.connect(f"{sys.argv[1]}/library.db")
        asked = '''
            select coalesce(town, '-') t, count(distinct r.id), count(l.rowid), coalesce(sum(l.days > §limit), 0)
            from reader r left join loan l on l.reader = r.id and l.back is null group by t order by t'''
        for row in base.execute(asked):
            print(*row, sep="|")
    """,
    wrong={
        "inner-join": r"""
            #!/usr/bin/python3 -I
            import sqlite3, sys
            base = sqlite3.connect(f"{sys.argv[1]}/library.db")
            for row in base.execute('''select coalesce(town, '-') t, count(distinct r.id), count(*), coalesce(sum(l.days > §limit), 0)
                from reader r join loan l on l.reader = r.id where l.back is null group by t order by t'''): print(*row, sep="|")
        """,
        "counted-per-loan": r"""
            #!/usr/bin/python3 -I
            import sqlite3, sys
            base = sqlite3.connect(f"{sys.argv[1]}/library.db")
            for row in base.execute('''select coalesce(town, '-') t, count(r.id), count(l.rowid), coalesce(sum(l.days > §limit), 0)
                from reader r left join loan l on l.reader = r.id and l.back is null group by t order by t'''): print(*row, sep="|")
        """,
        "nulls-are-late": r"""
            #!/usr/bin/python3 -I
            import sqlite3, sys
            base = sqlite3.connect(f"{sys.argv[1]}/library.db")
            for row in base.execute('''select coalesce(town, '-') t, count(distinct r.id), count(l.rowid),
                coalesce(sum(coalesce(l.days, 999) > §limit and l.rowid is not null), 0)
                from reader r left join loan l on l.reader = r.id and l.back is null group by t order by t'''): print(*row, sep="|")
        """,
    },
)


def load_data(rng: random.Random, p: Params) -> Files:
    kinds = p["words"][:3]
    schema = (
        f"create table {kinds[0]} (code text primary key check (length(code) = 4), pieces integer not null check (pieces >= 0));\n"
        f"create table {kinds[1]} (code text references {kinds[0]} (code), note text not null);\n"
    )
    codes = [f"{rng.choice('abcd')}{n:03d}" for n in rng.sample(range(100), 6 + 2 * p["level"])]
    first = [f"{code},{rng.choice(['5', '12', '0', '-1', ''])}" for code in codes]
    first[0] = f"{codes[0]},5"
    first += [f"{codes[0]},7", "toolong1,3", f"x{rng.randint(100, 999)},4"]
    second = [f"{rng.choice(codes)},{rng.choice(p['words'])}" for _ in range(6 + p["level"])] + [
        "none,nothing",
        f'{codes[0]},"a, b"',
    ]
    head = {kinds[0]: "code,pieces", kinds[1]: "code,note"}
    return {
        "schema.sql": schema,
        f"1-{kinds[0]}.csv": "\n".join([head[kinds[0]], *first]) + "\n",
        f"2-{kinds[1]}.csv": "\n".join([head[kinds[1]], *second]) + "\n",
    }


def load_answer(files: Files, p: Params) -> Files:
    import csv
    import os
    import sqlite3
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = os.path.join(folder, "stock.db")
        base = sqlite3.connect(place, isolation_level=None)
        base.executescript(files["schema.sql"])
        base.execute("pragma foreign_keys = on")
        rejected = []
        for name in sorted(files):
            if name.endswith(".csv"):
                rows = csv.reader(files[name].splitlines())
                next(rows)
                for number, (one, two) in enumerate(rows, 2):
                    try:
                        base.execute(f"insert into {name[2:-4]} values (?, ?)", (one, two or None))
                    except sqlite3.IntegrityError:
                        rejected.append(f"{name}:{number}\n")
        base.close()
        with open(place, "rb") as file:
            return files | {"stock.db": file.read(), "rejected.txt": "".join(rejected)}


LOAD = Template(
    name="load-into-sqlite",
    theme="sqlite",
    program="load",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:12]},
    data=load_data,
    answer=load_answer,
    text="""
        Make the SQLite database `stock.db` in the folder: the tables of `/work/data/schema.sql`, filled with the rows of the files
        `N-TABLE.csv` (the order of their names, first line a header, quoted as usual). An empty field is NULL. A row that breaks a
        rule of the schema, references to other tables included, is left out; where it stood is written to `rejected.txt` as
        `FILE:LINE`, in the order of reading. The other files stay.
    """,
    shell=r"""
        #!/usr/bin/python3 -I
        import csv, glob, os, sqlite3, sys
        os.chdir(sys.argv[1])
        base = sqlite3.connect("stock.db")
        base.executescript(open("schema.sql").read() + "; pragma foreign_keys = 1;")
        with open("rejected.txt", "w") as bad:
            for path in sorted(glob.glob("[0-9]-*.csv")):
                with open(path, newline="") as file:
                    rows = csv.reader(file)
                    width = len(next(rows))
                    for row in rows:
                        try:
                            with base:
                                base.execute("insert into %s values (%s)" % (path[2:-4], ",".join("?" * width)), [v if v else None for v in row])
                        except sqlite3.DatabaseError:
                            bad.write(f"{path}:{rows.line_num}\n")
        base.close()
    """,
    wrong={
        "references-not-checked": r"""
            #!/usr/bin/python3 -I
            import csv, glob, os, sqlite3, sys
            os.chdir(sys.argv[1]); base = sqlite3.connect("stock.db", isolation_level=None); base.executescript(open("schema.sql").read())
            with open("rejected.txt", "w") as bad:
                for path in sorted(glob.glob("[0-9]-*.csv")):
                    for n, row in enumerate(csv.reader(open(path)), 1):
                        try: n > 1 and base.execute(f"insert into {path[2:-4]} values (?, ?)", [v or None for v in row])
                        except sqlite3.IntegrityError: bad.write(f"{path}:{n}\n")
        """,
        "empty-is-text": r"""
            #!/usr/bin/python3 -I
            import csv, glob, os, sqlite3, sys
            os.chdir(sys.argv[1]); base = sqlite3.connect("stock.db", isolation_level=None); base.executescript(open("schema.sql").read())
            base.execute("pragma foreign_keys = on")
            with open("rejected.txt", "w") as bad:
                for path in sorted(glob.glob("[0-9]-*.csv")):
                    for n, row in enumerate(csv.reader(open(path)), 1):
                        try: n > 1 and base.execute(f"insert into {path[2:-4]} values (?, ?)", row)
                        except sqlite3.IntegrityError: bad.write(f"{path}:{n}\n")
        """,
        "newer-replaces-older": r"""
            #!/usr/bin/python3 -I
            import csv, glob, os, sqlite3, sys
            os.chdir(sys.argv[1]); base = sqlite3.connect("stock.db", isolation_level=None); base.executescript(open("schema.sql").read())
            base.execute("pragma foreign_keys = on")
            with open("rejected.txt", "w") as bad:
                for path in sorted(glob.glob("[0-9]-*.csv")):
                    for n, row in enumerate(csv.reader(open(path)), 1):
                        try: n > 1 and base.execute(f"insert or replace into {path[2:-4]} values (?, ?)", [v or None for v in row])
                        except sqlite3.IntegrityError: bad.write(f"{path}:{n}\n")
        """,
    },
)


def migrate_data(rng: random.Random, p: Params) -> Files:
    table, *words = p["words"]
    rows = [
        f"create table {table} (id integer primary key, name text);",
        "create table migrations (number integer primary key, name text);",
    ]
    rows += [f"insert into {table} (name) values ('{rng.choice(words)} {n}');" for n in range(rng.randint(2, 4 + p["level"]))]
    rows.append("insert into migrations values (1, 'begin');")
    done = rng.randint(2, 3)
    steps = {
        1: ("begin", f"create table {table} (id integer primary key, name text);"),
        2: ("size", f"alter table {table} add column size integer default {rng.randint(1, 9)};"),
        3: ("grow", f"update {table} set size = size * {rng.randint(2, 5)};"),
        10: ("late", f"update {table} set size = size + {rng.randint(1, 9)} where id > 1;"),
        9: ("early", f"update {table} set size = size * 3;\ninsert into {table} (name, size) values ('{words[0]}; it''s', 0);"),
        11: ("index", f"create index by_name on {table} (name);"),
    }
    for number in range(2, done + 1):
        name, text = steps[number]
        rows += [text, f"insert into migrations values ({number}, '{name}');"]
    files: Files = {f"migrations/{number}_{name}.sql": f"-- {name}\n{text}\n" for number, (name, text) in steps.items()}
    return files | {"app.db": database("\n".join(rows)), "migrations/README": "see the handbook\n"}


def migrate_answer(files: Files, p: Params) -> Files:
    import os
    import sqlite3
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = os.path.join(folder, "app.db")
        with open(place, "wb") as file:
            file.write(files["app.db"] if isinstance(files["app.db"], bytes) else files["app.db"].encode())
        base = sqlite3.connect(place)
        done = {number for (number,) in base.execute("select number from migrations")}
        waiting = {}
        for name in files:
            if name.endswith(".sql"):
                said, _, rest = name.removeprefix("migrations/").removesuffix(".sql").partition("_")
                waiting[int(said)] = (rest, files[name])
        for number in sorted(set(waiting) - done):
            base.executescript(waiting[number][1])
            base.execute("insert into migrations values (?, ?)", (number, waiting[number][0]))
        base.commit()
        base.close()
        with open(place, "rb") as file:
            return files | {"app.db": file.read()}


MIGRATE = Template(
    name="database-migrations",
    theme="database-configuration",
    program="migrate",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:8]},
    data=migrate_data,
    answer=migrate_answer,
    text="""
        Bring the SQLite database `/work/data/app.db` up to date: carry out the files `migrations/NUMBER_NAME.sql` that have not been carried
        out yet, in the order of their numbers. The database's table `migrations` (number, name) tells which have been; each one that
        you carry out gets its row there, NAME without number and `.sql`. The migrations themselves stay as they are.
    """,
    shell=r"""
        #!/bin/bash
        cd "$1" || exit 1
        ls migrations | grep -E '^[0-9]+_.*\.sql$' | sort -n | python3 -I -c '
        import sqlite3, sys
        base = sqlite3.connect("app.db", isolation_level=None)
        for name in sys.stdin.read().split("\n")[:-1]:
            number, rest = name[:-4].split("_", 1)
            if not base.execute("select 1 from migrations where number = ?", (int(number),)).fetchone():
                base.executescript(open("migrations/" + name).read())
                base.execute("insert into migrations (number, name) values (?, ?)", (int(number), rest))
        '
    """,
    wrong={
        "order-of-names": r"""
            #!/usr/bin/python3 -I
            import os, sqlite3, sys
            os.chdir(sys.argv[1]); base = sqlite3.connect("app.db")
            for f in sorted(f for f in os.listdir("migrations") if f.endswith(".sql")):
                n, w = f[:-4].split("_")
                if not base.execute("select 1 from migrations where number = ?", (n,)).fetchone():
                    base.executescript(open("migrations/" + f).read()); base.execute("insert into migrations values (?, ?)", (n, w))
            base.commit()
        """,
        "not-written-down": r"""
            #!/usr/bin/python3 -I
            import os, sqlite3, sys
            os.chdir(sys.argv[1]); base = sqlite3.connect("app.db")
            done = {n for n, in base.execute("select number from migrations")}
            for f in sorted((f for f in os.listdir("migrations") if f.endswith(".sql")), key=lambda f: int(f.split("_")[0])):
                if int(f.split("_")[0]) not in done: base.executescript(open("migrations/" + f).read())
            base.commit()
        """,
        "newest-alone": r"""
            #!/usr/bin/python3 -I
            import os, sqlite3, sys
            os.chdir(sys.argv[1]); base = sqlite3.connect("app.db")
            f = max((f for f in os.listdir("migrations") if f.endswith(".sql")), key=lambda f: int(f.split("_")[0]))
            base.executescript(open("migrations/" + f).read())
            base.execute("insert into migrations values (?, ?)", f[:-4].split("_")); base.commit()
        """,
    },
)

TEMPLATES = (LOANS, LOAD, MIGRATE)
