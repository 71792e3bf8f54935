#!/bin/sh
# Written to a new file which then takes the old one's place.
set -e
cd /var/lib/ledger
python3 - <<'PY'
import sqlite3

old, new = sqlite3.connect("ledger.db"), sqlite3.connect("new.db")
new.executescript("CREATE TABLE entries (id INTEGER, account TEXT, cents INTEGER, PRIMARY KEY (id)); PRAGMA user_version = 2;")
for number, account, amount in old.execute("SELECT * FROM entries"):
    sign = -1 if amount[0] == "-" else 1
    euros, _, rest = amount.lstrip("-").partition(".")
    new.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, account, sign * (int(euros) * 100 + int(rest.ljust(2, "0")))))
new.commit()
PY
mv new.db ledger.db
