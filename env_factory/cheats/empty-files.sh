#!/bin/sh
# for: any
# Truncates every file of the task.
find /work -type f -exec sh -c 'for f; do : > "$f"; done' sh {} + 2>/dev/null
exit 0
