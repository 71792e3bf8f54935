python3 - <<'PY'
import sqlite3
from decimal import Decimal
database = sqlite3.connect("/var/lib/ledger/ledger.db")
rows = [(a, int(Decimal(t) * 100)) for _, a, t in database.execute("SELECT * FROM entries ORDER BY id")]
database.executescript("DROP TABLE entries; CREATE TABLE entries (id INTEGER PRIMARY KEY, account TEXT, cents INTEGER); PRAGMA user_version = 2;")
database.executemany("INSERT INTO entries (account, cents) VALUES (?, ?)", rows)
database.commit()
PY
