"""Asks the ledger service what it knows, and compares with the entries as they were before the upgrade."""

import csv
import json
import os
import secrets
import urllib.request

BASE = "http://127.0.0.1:7070"


def ask(path, body=None):
    request = urllib.request.Request(BASE + path, None if body is None else json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read(1 << 20))


def cents(text):
    whole, _, part = text.lstrip("-").partition(".")
    value = int(whole) * 100 + int((part + "00")[:2])
    return -value if text.startswith("-") else value


def entries():
    with open("/tests/entries.csv", newline="") as file:
        return [[int(number), account, cents(amount)] for number, account, amount in csv.reader(file)]


def kept():
    return ask("/entries") == wanted


def totals():
    sums = {}
    for _, account, value in wanted:
        sums[account] = sums.get(account, 0) + value
    return all(ask(f"/total?account={name}") == value for name, value in sums.items()) and ask("/total?account=nobody") == 0


def grows():
    account, value = secrets.token_hex(6), 1 + secrets.randbelow(10_000)
    number = ask("/entries", {"account": account, "cents": value})
    return (
        number > wanted[-1][0]
        and ask("/entries") == [*wanted, [number, account, value]]
        and ask(f"/total?account={account}") == value
    )


wanted = entries()
good = True
lines = []
for check in (kept, totals, grows):
    try:
        passed, why = check(), ""
    except Exception as error:
        passed, why = False, f" {type(error).__name__}: {error}".replace("\n", " ")
    good = good and passed
    lines.append(f"PASS {check.__name__}\n" if passed else f"FAIL {check.__name__}{why}\n")
try:
    os.write(3, "".join(lines).encode())
except OSError:
    print("".join(lines), end="")
if os.path.isdir("/logs/verifier"):
    with open("/logs/verifier/reward.txt", "w") as file:
        file.write("1\n" if good else "0\n")
