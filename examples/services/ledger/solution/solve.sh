#!/bin/sh
set -e
python3 - <<'PY'
import sqlite3
from decimal import Decimal

database = sqlite3.connect("/var/lib/ledger/ledger.db", isolation_level=None)
database.execute("BEGIN IMMEDIATE")
rows = database.execute("SELECT id, account, amount FROM entries").fetchall()
database.execute("ALTER TABLE entries RENAME TO before")
database.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, account TEXT NOT NULL, cents INTEGER NOT NULL)")
database.executemany("INSERT INTO entries VALUES (?, ?, ?)", [(n, a, int(Decimal(t) * 100)) for n, a, t in rows])
database.execute("DROP TABLE before")
database.execute("PRAGMA user_version = 2")
database.execute("COMMIT")
PY
