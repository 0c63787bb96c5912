"""An AMQP 0-9-1 broker in memory, for development and tests. Production is RabbitMQ.

It behaves as RabbitMQ 4.3 or, if asked to, as 3.10, reply codes and texts included, so that unmodified clients work
with it; :mod:`postage.broker.rules` has what differs between the two. ``python -m postage.broker`` runs it as a
command; a program uses :class:`BrokerServer`, a test :mod:`postage.testing`.

Inside, nothing but :mod:`postage.broker.server` knows sockets, and imports run one way. From the outside in: a
``server`` moves bytes for a ``node``, whose ``connection`` objects cut them into frames (``wire``) and hand them to a
``channel``. Its parts work on the ``exchanges`` and ``queues`` of a ``virtual_host``: ``declaring`` makes them,
``publisher`` sends to them, ``delivering`` takes from them. What all connections share is in ``shared``.

What it knowingly does otherwise: nothing is written to disk, so that "durable" is a flag like others; streams,
plugins and policies do not exist; acknowledgement time-outs are kept to the moment, where RabbitMQ looks once a
minute. Malformed content headers are answered with 502 and unknown methods with 503, where RabbitMQ answers with 541
or hangs up.
"""

from postage.broker.limits import Limits
from postage.broker.server import BrokerServer

__all__ = ['BrokerServer', 'Limits']
