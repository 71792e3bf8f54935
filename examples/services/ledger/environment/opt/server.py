"""A ledger over HTTP. GET /entries, GET /total?account=NAME, POST /entries {"account": ..., "cents": ...}."""

import json
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

DATABASE = "/var/lib/ledger/ledger.db"
SCHEMA = 2
COLUMNS = [("id", "INTEGER"), ("account", "TEXT"), ("cents", "INTEGER")]


def opened() -> sqlite3.Connection:
    database = sqlite3.connect(DATABASE)
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA:
        sys.exit(f"ledger: the database has schema {version} (PRAGMA user_version), this program wants {SCHEMA}")
    columns = [(name, kind) for _, name, kind, *_ in database.execute("PRAGMA table_info(entries)")]
    if columns != COLUMNS:
        sys.exit(f"ledger: table entries must have the columns {COLUMNS}, has {columns}")
    odd = database.execute("SELECT id FROM entries WHERE typeof(cents) != 'integer' LIMIT 1").fetchone()
    if odd:
        sys.exit(f"ledger: the cents of entry {odd[0]} are no whole number")
    return database


class Ledger(BaseHTTPRequestHandler):
    database: sqlite3.Connection

    def do_GET(self) -> None:
        where = urlsplit(self.path)
        if where.path == "/entries":
            rows = self.database.execute("SELECT id, account, cents FROM entries ORDER BY id").fetchall()
            return self.answer(200, rows)
        if where.path == "/total":
            account = parse_qs(where.query).get("account", [""])[0]
            row = self.database.execute("SELECT COALESCE(SUM(cents), 0) FROM entries WHERE account = ?", (account,)).fetchone()
            return self.answer(200, row[0])
        return self.answer(404, "no such place")

    def do_POST(self) -> None:
        try:
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            row = (str(told["account"]), int(told["cents"]))
        except (ValueError, KeyError, TypeError):
            return self.answer(400, 'expected {"account": text, "cents": number}')
        with self.database:
            number = self.database.execute("INSERT INTO entries (account, cents) VALUES (?, ?)", row).lastrowid
        return self.answer(201, number)

    def answer(self, status: int, what: object) -> None:
        body = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    Ledger.database = opened()
    HTTPServer(("127.0.0.1", 7070), Ledger).serve_forever()
