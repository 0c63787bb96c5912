"""An AMQP 0-9-1 broker in memory, for development and tests. Production is RabbitMQ.

It behaves as RabbitMQ 3.10, reply codes and texts included, so that unmodified clients work with it.
``python -m postage.broker`` runs it as a command; a program uses :class:`BrokerServer`, a test :mod:`postage.testing`.

Inside, nothing but :mod:`postage.broker.server` knows sockets. From the outside in: a ``server`` moves bytes for a
``node``, whose ``connection`` objects cut them into frames (``wire``) and hand them to a ``channel``; that works on the
``exchanges`` and ``queues`` of a ``virtual_host``.

What it knowingly does otherwise: nothing is written to disk, so that "durable" is a flag like others; streams, plugins
and policies do not exist; acknowledgement time-outs are kept to the moment, where RabbitMQ looks once a minute.
Malformed content headers are answered with 502 and unknown methods with 503, where RabbitMQ 3.10 answers with 541 or
hangs up. ``strict='4.3'`` follows the changes up to RabbitMQ 4.3, see :mod:`postage.broker.rules`.
"""

from postage.broker.server import BrokerServer

__all__ = ['BrokerServer']
