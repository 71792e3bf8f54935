python3 -c '
import sqlite3
sqlite3.connect("/var/lib/ledger/ledger.db").executescript(
    "DROP TABLE entries; CREATE TABLE entries (id INTEGER PRIMARY KEY, account TEXT, cents INTEGER); PRAGMA user_version = 2;")'
