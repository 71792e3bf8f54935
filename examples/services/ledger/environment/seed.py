"""Makes the database as it was before the upgrade. Part of the image's making, not of the image."""

import random
import sqlite3

rng = random.Random(7070)
accounts = ["rent", "food", "books", "travel", "gifts"]
database = sqlite3.connect("/var/lib/ledger/ledger.db")
database.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, account TEXT NOT NULL, amount TEXT NOT NULL)")
number = 0
for _ in range(400):
    number += rng.randint(1, 4)
    cents = rng.randint(-99_999, 199_999)
    text = f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02d}"
    text = text.removesuffix("0") if rng.random() < 0.5 else text
    database.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, rng.choice(accounts), text.removesuffix(".0")))
database.execute("PRAGMA user_version = 1")
database.commit()
