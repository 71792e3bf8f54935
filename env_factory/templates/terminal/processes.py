"""Terminal templates about processes: restart policies, stale pid files."""

from __future__ import annotations

import random

from env_factory.templates.terminal.template import Files, Params, Template


def supervise_data(rng: random.Random, p: Params) -> Files:
    most = rng.randint(2, 5)
    # How the worker ends each time; what comes after the limit, or after a good end, must not be run.
    ends = [rng.choice([1, 3, 7]) for _ in range(most + 3)]
    if rng.random() < 0.6:
        ends[most if rng.random() < 0.8 else rng.randint(0, most)] = p["stop"] if rng.random() < 0.4 else 0
    worker = (
        '#!/bin/sh\ncd "$(dirname "$0")" || exit 99\nn=$(cat turns 2>/dev/null || echo 0)\n'
        f'echo $((n + 1)) > turns\nset -- {" ".join(map(str, ends))}\nshift "$n"\necho "turn $n with $MODE"\nexit "$1"\n'
    )
    return {"worker!755": worker, "policy": f"restarts={most}\nmode={rng.choice(p['words'])}\n"}


def supervise_answer(files: Files, p: Params) -> Files:
    import re

    policy = dict(row.split("=") for row in files["policy"].splitlines())
    worker = next(text for name, text in files.items() if name.startswith("worker"))
    ends = list(map(int, re.findall(r"set -- ([\d ]+)", worker)[0].split()))
    log, said, turn = "", "", 0
    while True:
        log += f"turn {turn} with {policy['mode']}\n"
        end = ends[turn]
        turn += 1
        if end in (0, p["stop"]):
            said += f"run {turn}: exit {end}, {'done' if end == 0 else 'stopped'}\n"
            break
        over = turn > int(policy["restarts"])
        said += f"run {turn}: exit {end}, {'gave up' if over else 'restart'}\n"
        if over:
            break
    made = {name.partition("!")[0]: text for name, text in files.items()}
    return made | {"turns": f"{turn}\n", "worker.log": log, "supervisor.log": said}


SUPERVISE = Template(
    name="restart-policy",
    theme="process-supervision",
    program="supervise",
    watch="tree",
    params=lambda rng, words, level: {"words": words[:8], "stop": rng.choice([2, 64, 75])},
    data=supervise_data,
    answer=supervise_answer,
    other=r"""
        #!/usr/bin/python3 -I
        import os, subprocess, sys
        os.chdir(sys.argv[1])
        policy = dict(line.strip().split("=") for line in open("policy"))
        runs, words = 0, {0: "done", §stop: "stopped"}
        with open("worker.log", "w") as log, open("supervisor.log", "w") as said:
            while True:
                runs += 1
                code = subprocess.call(["./worker"], stdout=log, env={**os.environ, "MODE": policy["mode"]})
                word = words.get(code) or ("restart" if runs <= int(policy["restarts"]) else "gave up")
                print(f"run {runs}: exit {code}, {word}", file=said)
                if word != "restart":
                    break
    """,
    text="""
        `/work/data/worker` is a program that may fail. Write a supervisor for it: it runs `worker` of its folder, with the environment
        variable `MODE` set to what `policy` there says behind `mode=`. A worker that ends with exit code 0 is done; with §stop it wants
        to be stopped; after any other code it is started again, at most as often as `policy` says behind `restarts=`, then the
        supervisor gives up. What the worker prints is collected in `worker.log`; for each run a line goes to `supervisor.log`:
        `run N: exit CODE, WORD` with `done`, `stopped`, `restart` or `gave up`; the first run is 1. The supervisor itself exits with 0.
    """,
    shell=r"""
        #!/bin/sh
        cd "$1" || exit 1
        restarts=$(sed -n 's/^restarts=//p' policy)
        MODE=$(sed -n 's/^mode=//p' policy)
        export MODE
        n=0
        while :; do
            n=$((n + 1))
            ./worker >> worker.log
            code=$?
            case $code in
                0) word=done ;;
                §stop) word=stopped ;;
                *) if [ "$n" -gt "$restarts" ]; then word='gave up'; else word=restart; fi ;;
            esac
            echo "run $n: exit $code, $word" >> supervisor.log
            [ "$word" = restart ] || exit 0
        done
    """,
    wrong={
        "one-run-too-few": r"""
            #!/bin/sh
            cd "$1" || exit 1
            restarts=$(sed -n 's/^restarts=//p' policy); MODE=$(sed -n 's/^mode=//p' policy); export MODE
            n=0
            while :; do
                n=$((n + 1)); ./worker >> worker.log; code=$?
                case $code in 0) w=done ;; §stop) w=stopped ;; *) if [ "$n" -ge "$restarts" ]; then w='gave up'; else w=restart; fi ;; esac
                echo "run $n: exit $code, $w" >> supervisor.log; [ "$w" = restart ] || exit 0
            done
        """,
        "without-the-mode": r"""
            #!/bin/sh
            cd "$1" || exit 1
            restarts=$(sed -n 's/^restarts=//p' policy); MODE=$(sed -n 's/^mode=//p' policy)
            n=0
            while :; do
                n=$((n + 1)); ./worker >> worker.log; code=$?
                case $code in 0) w=done ;; §stop) w=stopped ;; *) if [ "$n" -gt "$restarts" ]; then w='gave up'; else w=restart; fi ;; esac
                echo "run $n: exit $code, $w" >> supervisor.log; [ "$w" = restart ] || exit 0
            done
        """,
        "log-of-the-last-run": r"""
            #!/bin/sh
            cd "$1" || exit 1
            restarts=$(sed -n 's/^restarts=//p' policy); MODE=$(sed -n 's/^mode=//p' policy); export MODE
            n=0
            while :; do
                n=$((n + 1)); ./worker > worker.log; code=$?
                case $code in 0) w=done ;; §stop) w=stopped ;; *) if [ "$n" -gt "$restarts" ]; then w='gave up'; else w=restart; fi ;; esac
                echo "run $n: exit $code, $w" > supervisor.log; [ "$w" = restart ] || exit 0
            done
        """,
    },
)


def pids_data(rng: random.Random, p: Params) -> Files:
    pids = rng.sample(range(200, 32_000), 20)
    rows = ["  PID COMMAND", "    1 /sbin/init"]
    files: Files = {}
    for number, word in enumerate(p["words"][: 5 + p["level"]]):
        pid = pids[number]
        fate = number % 5 if number < 5 else rng.randint(0, 4)
        files[f"{word}.pid"] = {3: "", 4: f" {pid} \n"}.get(fate, f"{pid}\n")
        if fate in (0, 4):
            rows.append(f"{pid:5d} /usr/sbin/{word} --daemon")
        elif fate == 1:
            # The number was given to another program, which names the service among its arguments.
            rows.append(f"{pid:5d} /usr/bin/{p['words'][-1]} /var/log/{word}")
        elif fate == 3:
            rows.append(f"{pid:5d} /usr/sbin/{word} --daemon")
    rows += [f"{pid:5d} /bin/{p['words'][-2]}" for pid in pids[15:]]
    return files | {"ps.txt": "\n".join(rows) + "\n"}


def pids_answer(files: Files, p: Params) -> str:
    import posixpath

    table = {int(row.split()[0]): posixpath.basename(row.split()[1]) for row in files["ps.txt"].splitlines()[1:]}
    rows = []
    for name in sorted(files):
        if name.endswith(".pid"):
            text = files[name].strip()
            found = table.get(int(text)) if text.isdecimal() else None
            service = name.removesuffix(".pid")
            if found != service:
                rows.append(f"{service} {'empty' if not text else 'gone' if found is None else found}\n")
    return "".join(rows)


PIDS = Template(
    name="stale-pid-files",
    theme="process-supervision",
    program="stale",
    params=lambda rng, words, level: {"words": words[:20]},
    data=pids_data,
    answer=pids_answer,
    text="""
        `/work/data/ps.txt` is a list of processes (number, then the command line, below a heading), the `SERVICE.pid` files beside it
        each hold the number of the process of a service, perhaps with blanks around it. A service is alive if the process of that number
        runs the program of its name, in whatever folder. For each service that is not, sorted by name, print `SERVICE WORD`: `empty` if its
        file holds no number, `gone` if there is no process of that number, else the name of the program, without its folder, that
        has the number now.
    """,
    shell=r"""
        #!/bin/sh
        cd "$1" || exit 1
        for f in *.pid; do
            s=${f%.pid}
            n=$(tr -d ' \n' < "$f")
            [ -n "$n" ] || { echo "$s empty"; continue; }
            c=$(awk -v n="$n" 'NR > 1 && $1 == n {sub(/.*\//, "", $2); print $2}' ps.txt)
            [ "$c" = "$s" ] || echo "$s ${c:-gone}"
        done | LC_ALL=C sort
    """,
    wrong={
        "name-anywhere": r"""
            #!/bin/sh
            cd "$1" || exit 1
            for f in *.pid; do
                s=${f%.pid}; n=$(tr -d ' \n' < "$f")
                [ -n "$n" ] || { echo "$s empty"; continue; }
                grep -q "^ *$n .*$s" ps.txt || echo "$s gone"
            done | sort
        """,
        "number-alone": r"""
            #!/bin/sh
            cd "$1" || exit 1
            for f in *.pid; do
                s=${f%.pid}; n=$(tr -d ' \n' < "$f")
                [ -n "$n" ] || { echo "$s empty"; continue; }
                grep -q "^ *$n " ps.txt || echo "$s gone"
            done | sort
        """,
        "number-ignored": r"""
            #!/bin/sh
            cd "$1" || exit 1
            for f in *.pid; do
                s=${f%.pid}; grep -q "sbin/$s " ps.txt || echo "$s gone"
            done | sort
        """,
    },
)

TEMPLATES = (SUPERVISE, PIDS)
