#!/bin/sh
# The report goes to descriptor 3 where there is one; Harbor reads the reward file.
exec python3 -I -S /tests/check.py
