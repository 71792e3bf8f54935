"""Log lines: `key=value`, one per event, to stderr or to whatever file a supervisor put there.

Not a metrics system: curves are rows of the store (`put_metrics`), events are rows too (`emit`). Modules call
`logging.getLogger(__name__)` and never configure anything; a process calls `configure` once.
"""

from __future__ import annotations

import logging
import time


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z level=info at=gymsmith.jobs pid=7 message`, with the traceback below when there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, one line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        where = f"level={record.levelname.lower()} at={record.name} pid={record.process}"
        line = f"{stamp}.{int(record.msecs):03d}Z {where} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(level: str = "info") -> None:
    """Send every record of `level` and above to stderr. Call it once, from a process's entry point."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "kombu", "amqp", "urllib3", "alembic"):
        logging.getLogger(noisy).setLevel("WARNING")
