python3 - <<'PY'
import sqlite3
database = sqlite3.connect("/var/lib/ledger/ledger.db")
rows = [(n, a, int(float(t) * 100)) for n, a, t in database.execute("SELECT * FROM entries")]
database.executescript("DROP TABLE entries; CREATE TABLE entries (id INTEGER PRIMARY KEY, account TEXT, cents INTEGER); PRAGMA user_version = 2;")
database.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
database.commit()
PY
