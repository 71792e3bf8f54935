"""Redis as the broker, through kombu's transport, made to outlive Redis.

When Redis goes away under a running job, kombu 5.7 hands the job's message back, and later acknowledges it, through a channel
that has no connection any more; the AttributeError ends the whole worker with everything it does (measured: Redis restarted
under one running job, three of three times). A message is only a hint to us, so on such a channel both are left out: Redis
delivers it again after the visibility timeout, when the jobs table knows better.
"""

from __future__ import annotations

from typing import Any

import redis as _client  # noqa: F401  where it is missing, kombu's transport says AttributeError instead
from kombu.transport import redis, virtual


class QoS(redis.QoS):  # type: ignore[misc]
    """Unacknowledged messages of one channel."""

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """At the end of a channel: hand back what was not acknowledged, if there is a connection to do so."""
        if self._connected():
            super().restore_unacked_once(stderr)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message, if there is a connection to do so; forget it anyway."""
        if self._connected():
            super().ack(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)

    def _connected(self) -> bool:
        connection = self.channel.connection
        return connection is not None and connection.client is not None


class Channel(redis.Channel):  # type: ignore[misc]
    """kombu's, with our bookkeeping."""

    QoS = QoS


class Transport(redis.Transport):  # type: ignore[misc]
    """kombu's, over `Channel`."""

    Channel = Channel
