#!/bin/sh
# In SQL alone, and with the service left running.
set -e
python3 -c '
import sqlite3
sqlite3.connect("/var/lib/ledger/ledger.db").executescript("""
BEGIN;
CREATE TABLE after (id INTEGER PRIMARY KEY, account TEXT, cents INTEGER);
INSERT INTO after SELECT id, account, CAST(ROUND(CAST(amount AS REAL) * 100) AS INTEGER) FROM entries;
DROP TABLE entries;
ALTER TABLE after RENAME TO entries;
PRAGMA user_version = 2;
COMMIT;
""")'
(setsid python3 /opt/ledger/server.py >/tmp/ledger.log 2>&1 &)
