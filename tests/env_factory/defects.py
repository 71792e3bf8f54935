# ruff: noqa: E501 (a task is read as a whole)
"""A labelled set of tasks in Harbor's format: sound ones, and ones with a known defect, each written by hand.

`write(folder)` makes what `gymsmith env judge` reads; `python -m tests.env_factory.defects FOLDER` does so from a terminal.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from pathlib import Path

SET: dict[str, tuple[str, dict[str, str]]] = {}
"""Name -> (label, files of the folder)."""
SUM = {"environment/app/a.txt": "417\n", "environment/app/b.txt": "85\n"}
ADD = "cd /app\necho $(( $(cat a.txt) + $(cat b.txt) )) > sum.txt\n"
ASKED = "Write the sum of the numbers in /app/a.txt and /app/b.txt into /app/sum.txt."
IS_502 = '[ "$(cat sum.txt)" = 502 ]'


def task(
    name: str,
    label: str,
    instruction: str,
    solve: str,
    check: str,
    files: Mapping[str, str] = SUM,
    docker: str = "",
    test: str = "",
) -> None:
    """Add one. check: lines that must all succeed in /app. test: the whole test.sh, in place of one made of `check`."""
    test = test or (
        f"#!/bin/bash\nmkdir -p /logs/verifier\ncd /app\n(\nset -e\n{check}\n)\n"
        "if [ $? = 0 ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n"
    )
    members = {
        "task.toml": 'version = "1.0"\n[metadata]\ndifficulty = "easy"\n[verifier]\ntimeout_sec = 60.0\n[agent]\ntimeout_sec = 60.0\n',
        "instruction.md": instruction + "\n",
        "environment/Dockerfile": f"FROM gymsmith/host\nCOPY app /app\nWORKDIR /app\n{docker}",
        "solution/solve.sh": f"#!/bin/bash\nset -e\n{solve}",
        "tests/test.sh": test,
        **files,
    }
    SET[name] = (label, members)


def sound(name: str, instruction: str, solve: str, check: str, files: Mapping[str, str] = SUM, docker: str = "") -> None:
    """Add one without a defect."""
    task(name, "sound", instruction, solve, check, files, docker)


def write(folder: Path) -> Path:
    """The folder, with every task and labels.toml."""
    for name, (_, files) in SET.items():
        for member, text in files.items():
            path = folder / name / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(text[4:]) if text.startswith("b64:") else text.encode())
            path.chmod(0o755 if member.endswith(".sh") else 0o644)
    lines = [f'{name} = "{label}"\n' for name, (label, _) in SET.items()]
    (folder / "labels.toml").write_text("".join(lines))
    return folder


# ---------------------------------------------------------------- sound

sound("adds-two-numbers", ASKED, ADD, IS_502)
SALES = {"environment/app/sales.csv": "region,amount\nnorth,120\nsouth,75\nnorth,30\neast,44\nsouth,25\n"}
sound(
    "totals-as-json",
    "The file /app/sales.csv has the columns region and amount. Write /app/totals.json: a JSON object with the total amount of each region.",
    "cd /app\npython3 - <<'PY'\nimport csv, json\nt = {}\nfor row in csv.DictReader(open('sales.csv')):\n"
    "    t[row['region']] = t.get(row['region'], 0) + int(row['amount'])\njson.dump(t, open('totals.json', 'w'))\nPY\n",
    "python3 -I -c \"import json; assert json.load(open('/app/totals.json')) == {'north': 150, 'south': 100, 'east': 44}\"",
    SALES,
)
sound(
    "sorts-descending",
    "Sort the numbers in /app/n.txt in descending order, one per line, into /app/sorted.txt.",
    "cd /app\nsort -nr n.txt > sorted.txt\n",
    'printf "90\\n31\\n7\\n2\\n" | cmp - sorted.txt',
    {"environment/app/n.txt": "7\n90\n2\n31\n"},
)
COUNT = '#!/bin/sh\n# Prints how many lines of the file $1 hold the word $2.\ngrep -o "$2" "$1" | wc -l\n'
sound(
    "repairs-a-script",
    "/app/count.sh FILE WORD should print how many lines of FILE hold WORD. It counts a line twice when WORD stands in it twice. Repair it.",
    "sed -i 's/grep -o \\(.*\\) | wc -l/grep -c \\1 || true/' /app/count.sh\n",
    'printf \'a a\\nb\\na\\n\' > /tmp/x; [ "$(sh count.sh /tmp/x a)" = 2 ]; [ "$(sh count.sh /tmp/x b)" = 1 ]; '
    '[ "$(sh count.sh /tmp/x q)" = 0 ]',
    {"environment/app/count.sh": COUNT},
)
GIT = "git -c user.name=a -c user.email=a@b"
sound(
    "recovers-from-history",
    "Somebody deleted notes.txt from the git repository /app in an earlier commit. Restore /app/notes.txt as it was before.",
    "cd /app\ngit -c safe.directory=/app show HEAD~1:notes.txt > notes.txt\n",
    '[ "$(sha256sum < notes.txt)" = "$(printf "buy 12 lamps\\ncall Ida\\n" | sha256sum)" ]',
    {"environment/app/readme.txt": "notes of the shop\n"},
    f"RUN git init -q . && printf 'buy 12 lamps\\ncall Ida\\n' > notes.txt && git add . && {GIT} commit -qm one && rm notes.txt && "
    f"{GIT} commit -qam two\n",
)
sound(
    "sets-modes",
    "Make /app/key.pem readable and writable for its owner alone (mode 600), and /app/run.sh executable for everybody (mode 755).",
    "cd /app\nchmod 600 key.pem\nchmod 755 run.sh\n",
    '[ "$(stat -c %a key.pem)" = 600 ] && [ "$(stat -c %a run.sh)" = 755 ]',
    {"environment/app/key.pem": "k\n", "environment/app/run.sh": "#!/bin/sh\necho\n"},
    "RUN chmod 644 /app/key.pem /app/run.sh\n",
)
sound(
    "renames-files",
    "Rename every .txt file in /app/docs so that it ends in .md; contents stay as they are.",
    'cd /app/docs\nfor f in *.txt; do mv "$f" "${f%.txt}.md"; done\n',
    '[ "$(cat docs/one.md)" = 1 ] && [ "$(cat docs/two.md)" = 2 ] && [ "$(ls docs | wc -l)" = 2 ]',
    {"environment/app/docs/one.txt": "1\n", "environment/app/docs/two.txt": "2\n"},
)
CONF = "[server]\nhost = local\nport = 8080\nworkers = 4\n"
sound(
    "edits-a-setting",
    "In /app/app.conf set port to 9090. Leave everything else as it is.",
    "sed -i 's/port = 8080/port = 9090/' /app/app.conf\n",
    f"printf '{CONF.replace('8080', '9090')}' | cmp - app.conf",
    {"environment/app/app.conf": CONF},
)
sound(
    "unpacks-an-archive",
    "Extract /app/bundle.tar.gz into the folder /app/out, which does not exist yet.",
    "cd /app\nmkdir out\ntar -xzf bundle.tar.gz -C out\n",
    '[ "$(cat out/x/one)" = "first part" ] && [ "$(cat out/x/two)" = "second part" ]',
    {"environment/app/readme.txt": "see the bundle\n"},
    "RUN mkdir x && echo first part > x/one && echo second part > x/two && tar -czf bundle.tar.gz x && rm -r x\n",
)
sound(
    "asks-a-database",
    "/app/shop.db is an SQLite database with a table orders(customer, amount). Write the name of the customer with the largest sum of "
    "amounts into /app/best.txt.",
    "cd /app\npython3 - <<'PY'\nimport sqlite3\nq = 'select customer from orders group by customer order by sum(amount) desc limit 1'\n"
    "open('best.txt', 'w').write(sqlite3.connect('shop.db').execute(q).fetchone()[0] + '\\n')\nPY\n",
    '[ "$(cat best.txt)" = Berta ]',
    {"environment/app/readme.txt": "orders are in shop.db\n"},
    "RUN python3 -c \"import sqlite3; c = sqlite3.connect('shop.db'); c.execute('create table orders(customer, amount)'); "
    "c.executemany('insert into orders values (?, ?)', [('Anna', 50), ('Berta', 40), ('Carl', 10), ('Berta', 30)]); c.commit()\"\n",
)
LOG = "".join(
    f"2024-05-01T{h:02d}:{m:02d} {code} /p{m}\n"
    for h, m, code in [(9, 1, 200), (9, 5, 500), (10, 2, 500), (10, 7, 500), (11, 3, 404)]
)
sound(
    "counts-errors",
    "Each line of /app/access.log begins with a time, then the HTTP status. Write one line `HOUR COUNT` for each hour that has lines with "
    "status 500 into /app/errors.txt, hours as two digits, earliest first.",
    "cd /app\nawk '$2 == 500 {print substr($1, 12, 2)}' access.log | sort | uniq -c | awk '{print $2, $1}' > errors.txt\n",
    "printf '09 1\\n10 2\\n' | cmp - errors.txt",
    {"environment/app/access.log": LOG},
)
ROMAN = (
    "VALUES = {'I': 1, 'V': 5, 'X': 10, 'L': 50, 'C': 100}\n\n\ndef number(text):\n    total = 0\n    for here, following in "
    "zip(text, text[1:] + ' '):\n        value = VALUES[here]\n        if VALUES.get(following, 0) >= value:\n            total -= value\n"
    "        else:\n            total += value\n    return total\n"
)
sound(
    "repairs-a-module",
    "number(text) in /app/roman.py turns a Roman numeral into a number. number('III') gives -1, it should give 3. Repair the module.",
    "sed -i 's/>= value/> value/' /app/roman.py\n",
    'one() { [ "$(cd /app && python3 -c "import roman; print(repr(roman.number(\'$1\')))")" = "$2" ]; }\n'
    "one III 3; one XIV 14; one XC 90; one LVIII 58; one CXXI 121",
    {"environment/app/roman.py": ROMAN},
)
sound(
    "writes-a-tool",
    "Write /app/top.py. `python3 /app/top.py FILE N` prints the N largest of the integers in FILE (one per line), largest first.",
    "cat > /app/top.py <<'PY'\nimport sys\n\nnumbers = sorted((int(line) for line in open(sys.argv[1])), reverse=True)\n"
    "for number in numbers[: int(sys.argv[2])]:\n    print(number)\nPY\n",
    'printf "5\\n-3\\n88\\n41\\n88\\n0\\n" > /tmp/n; [ "$(python3 top.py /tmp/n 3 | tr "\\n" ,)" = 88,88,41, ]; '
    '[ "$(python3 top.py /tmp/n 1)" = 88 ]; [ "$(python3 top.py /tmp/n 6 | tail -n 1)" = -3 ]',
    {"environment/app/sample.txt": "3\n1\n2\n"},
)
sound(
    "drops-repeated-lines",
    "Copy /app/list.txt to /app/unique.txt without lines that stood earlier in the file; the order stays.",
    "cd /app\nawk '!seen[$0]++' list.txt > unique.txt\n",
    "printf 'pear\\nfig\\nplum\\n' | cmp - unique.txt",
    {"environment/app/list.txt": "pear\nfig\npear\nplum\nfig\n"},
)
sound(
    "changes-an-encoding",
    "/app/old.txt is in Latin-1. Write the same text in UTF-8 to /app/new.txt.",
    "cd /app\niconv -f latin1 -t utf-8 old.txt > new.txt\n",
    '[ "$(sha256sum < new.txt)" = "$(printf "gr\\303\\274n und \\303\\266d\\n" | sha256sum)" ]',
    {"environment/app/old.txt": "b64:" + base64.b64encode("grün und öd\n".encode("latin-1")).decode()},
)
sound(
    "links-a-release",
    "Make /app/current a symbolic link to the newest folder below /app/releases, by version number.",
    "cd /app\nln -sfn releases/$(ls releases | sort -V | tail -n 1) current\n",
    '[ -L current ] && [ "$(readlink -f current)" = /app/releases/v1.10 ]',
    {f"environment/app/releases/v1.{n}/id": f"{n}\n" for n in (2, 9, 10)},
)

# ---------------------------------------------------------------- defective

task("always-passes", "the test passes whatever was done", ASKED, ADD, "true")
task("any-file-will-do", "the test looks only whether the file is there", ASKED, ADD, "[ -e sum.txt ]")
task(
    "any-number-will-do",
    "the test looks only at the shape",
    ASKED,
    ADD,
    "grep -qxE '[0-9]+' sum.txt && [ $(cat sum.txt) -gt 99 ]",
)
task("reads-the-solution", "the test compares with the solution", ASKED, ADD, f"[ -e /solution/solve.sh ]\n{IS_502}")
task(
    "answer-in-git", "the answer lies in an earlier commit", ASKED, ADD, IS_502, SUM,
    f"RUN git init -q . && echo 502 > sum.txt && git add . && {GIT} commit -qm one && git rm -q sum.txt && {GIT} commit -qm two\n",
)  # fmt: skip
task(
    "answer-in-lost-commit", "the answer lies in a commit that nothing leads to", ASKED, ADD, IS_502, SUM,
    f"RUN git init -q . && git add . && {GIT} commit -qm a && echo 502 > sum.txt && git add . && {GIT} commit -qm b && "
    "git reset -q --hard HEAD~1\n",
)  # fmt: skip
task(
    "answer-in-the-image",
    "the expected file was left in the image",
    ASKED,
    ADD,
    IS_502,
    SUM,
    "RUN echo 502 > /opt/expected.txt\n",
)
task("solution-in-the-image", "the solution's script was left in the image", ASKED,
     "cd /app\nfirst=$(cat a.txt)\nsecond=$(cat b.txt)\ntotal=$((first + second))\nprintf '%s\\n' \"$total\" > sum.txt\ntest -s sum.txt\n",
     IS_502, {**SUM, "environment/app/.make.sh": "#!/bin/bash\nset -e\ncd /app\nfirst=$(cat a.txt)\nsecond=$(cat b.txt)\n"
              "total=$((first + second))\nprintf '%s\\n' \"$total\" > sum.txt\ntest -s sum.txt\n"})  # fmt: skip
task("expected-beside-the-work", "the test trusts a file that the agent can read and write", ASKED, ADD, "cmp sum.txt .expected_sum",
     {**SUM, "environment/app/.expected_sum": "502\n"})  # fmt: skip
task("throws-dice", "flaky: fails one time in five", ASKED, ADD, f"[ $((RANDOM % 5)) != 0 ]\n{IS_502}")
task("looks-at-the-clock", "flaky: fails in some seconds", ASKED, ADD, f"case $(date +%S) in *[27]) false;; esac\n{IS_502}")
task("races", "flaky: two processes race", ASKED, ADD,
     f"rm -f /tmp/f; (sleep 0.0$((RANDOM % 3)); touch /tmp/f) & sleep 0.01; [ -e /tmp/f ]; wait\n{IS_502}")  # fmt: skip
task("depends-on-the-zone", "the test holds in one time zone only", ASKED, ADD, f'[ "$(date -d @0 +%H)" = 00 ]\n{IS_502}')
task(
    "cannot-be-solved", "the test wants two things that exclude each other", ASKED, ADD, f'{IS_502} && [ "$(cat sum.txt)" = 503 ]'
)
task("no-solution", "there is no solution", ASKED, "", IS_502)
SET["no-solution"][1].pop("solution/solve.sh")
task("lacks-a-program", "the test needs a program that the image has not", ASKED, ADD, f"frobnicate --check sum.txt\n{IS_502}")
task("lacks-a-module", "the test imports a module that the image has not", ASKED, ADD,
     "python3 -c \"import numberwang; assert open('/app/sum.txt').read() == '502\\n'\"")  # fmt: skip
task(
    "needs-the-network",
    "the test installs its tools",
    ASKED,
    ADD,
    f"python3 -m pip install -q --break-system-packages pytest-json\n{IS_502}",
)
task("does-not-build", "the Dockerfile fails", ASKED, ADD, IS_502, SUM, "RUN make -C /app all\n")
task("wrong-solution", "the solution is off by one", ASKED, ADD.replace("))", " + 1 ))"), IS_502)
task("other-file", "text and test name different files", ASKED.replace("sum.txt", "total.txt"), ADD, IS_502)
task("other-order", "the text says descending, the test wants ascending", "Sort the numbers in /app/n.txt in descending order into /app/sorted.txt.",
     "cd /app\nsort -n n.txt > sorted.txt\n", 'printf "2\\n7\\n31\\n90\\n" | cmp - sorted.txt', {"environment/app/n.txt": "7\n90\n2\n31\n"})  # fmt: skip
task("other-number", "the text says one port, the test wants another", "In /app/app.conf set port to 9090.",
     "sed -i 's/port = 8080/port = 9191/' /app/app.conf\n", "grep -qx 'port = 9191' app.conf", {"environment/app/app.conf": CONF})  # fmt: skip
task("forbidden-change", "the text forbids what the test wants",
     "Write the sum of /app/a.txt and /app/b.txt into /app/sum.txt. Do not change a.txt.", ADD + "echo 0 > a.txt\n",
     f'{IS_502} && [ "$(cat a.txt)" = 0 ]')  # fmt: skip
task("half-checked", "the test checks one of two things asked for",
     "Write the sum of /app/a.txt and /app/b.txt into /app/sum.txt and their product into /app/product.txt.",
     ADD + "echo $(( $(cat a.txt) * $(cat b.txt) )) > product.txt\n", IS_502)  # fmt: skip
task("secret-password", "the test wants a word that nobody can know", "Write the password of this month into /app/password.txt.",
     "echo tulip-4417 > /app/password.txt\n", '[ "$(cat password.txt)" = tulip-4417 ]')  # fmt: skip
task("trusts-an-import", "the test imports what the agent wrote and trusts its exit code",
     "number(text) in /app/roman.py turns a Roman numeral into a number. number('III') gives -1, it should give 3. Repair the module.",
     "sed -i 's/>= value/> value/' /app/roman.py\n", "python3 /tests/check.py",
     {"environment/app/roman.py": ROMAN, "tests/check.py": "import sys\nsys.path.insert(0, '/app')\nimport roman\n"
      "assert [roman.number(t) for t in ('III', 'XIV', 'XC', 'LVIII')] == [3, 14, 90, 58]\n"})  # fmt: skip
task("tests-in-the-image", "the hidden test was copied into the image", ASKED, ADD, IS_502,
     {**SUM, "environment/app/test.sh": "PLACEHOLDER"})  # fmt: skip
SET["tests-in-the-image"][1]["environment/app/test.sh"] = SET["tests-in-the-image"][1]["tests/test.sh"]
task("answer-in-the-text", "the text holds the solution", f"{ASKED} For example: `echo $(( $(cat a.txt) + $(cat b.txt) )) > sum.txt`",
     ADD, IS_502)  # fmt: skip

task("wants-the-same-words", "the test wants the solution's own source",
     "Write /app/twice.py: `python3 /app/twice.py N` prints twice the number N.",
     "cat > /app/twice.py <<'PY'\nimport sys\n\n# Twice what was given.\nprint(2 * int(sys.argv[1]))\nPY\n",
     '[ "$(python3 twice.py 21)" = 42 ] && grep -q "Twice what was given" twice.py && [ "$(wc -l < twice.py)" = 4 ]')  # fmt: skip
task("answer-in-a-comment", "a comment tells the answer", ASKED, ADD, IS_502,
     {**SUM, "environment/app/notes.cfg": "# expected: 502\nunit = piece\n"})  # fmt: skip
task("answer-in-a-history", "the author's shell history was left in the image", ASKED, ADD, IS_502, SUM,
     "RUN mkdir -p /home/agent && printf 'ls\\necho $(( $(cat a.txt) + $(cat b.txt) )) > sum.txt\\n' > /home/agent/.bash_history\n")  # fmt: skip

if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
