#!/bin/sh
# for: any
# Replaces files by FIFOs, which make a reader wait for ever, and by directories.
cd /work || exit 0
n=0
find . -type f | head -n 40 | while read -r file; do
    n=$((n + 1))
    rm -f "$file"
    if [ $((n % 3)) -eq 0 ]; then mkdir "$file"; else mkfifo "$file"; fi
done
mknod /work/null c 1 3 2>/dev/null
mknod /work/gone c 0 0 2>/dev/null
exit 0
