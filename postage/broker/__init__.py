"""An AMQP 0-9-1 broker in memory, for development and tests. Production is RabbitMQ.

It behaves as RabbitMQ 3.10, reply codes and texts included, so that unmodified clients work with it.
``python -m postage.broker`` runs it as a command; a program uses :class:`BrokerServer`.

Inside, nothing but :mod:`postage.broker.server` knows sockets. From the outside in: a ``server`` moves bytes for a
``node``, whose ``connection`` objects cut them into frames (``wire``) and hand them to a ``channel``; that works on the
``exchanges`` and ``queues`` of a ``virtual_host``.

What it knowingly does otherwise: nothing is written to disk, so that "durable" is a flag like others; there is no
TLS, no user has fewer permissions than another, and streams, plugins and ``x-consumer-timeout`` do not exist.
Malformed content headers are answered with 502 and unknown methods with 503, where RabbitMQ 3.10 answers with 541 or
hangs up.
"""

from postage.broker.server import BrokerServer

__all__ = ['BrokerServer']
