"""Missive: ``RabbitMQAdapter`` on a connection of kombu, with ``disable_shutdown_handler``, ended by ``set_flag()``."""

import os
import threading

from postage import missive
from postage.missive.adapters.rabbitmq import RabbitMQAdapter
from stage import FINGERPRINT, Consumer, Producer, StageExchange, note

try:
    from kombu import Connection
except ImportError:  # it need not be installed: one is known by what it has

    class Connection:
        def __init__(self, uri):
            self.uri = uri

        def as_uri(self, include_password):
            return self.uri


processor = missive.Processor()


@processor.handle_for(lambda message: True)
def handle(message, ctx):
    note(message.get_json()['content'])
    ctx.ack()
    threading.Timer(0.3, adapter.shutdown_handler.set_flag).start()


queue = {'name': 'stage-queue', 'flags': {'durable': True}}
consumer = Consumer([(StageExchange, [(queue, 'stage-rk')])], None, None)
Producer(FINGERPRINT).message_echo('text')
uri = 'amqp://guest:guest@localhost:{POSTAGE_PORT}/{POSTAGE_VHOST}'.format(**os.environ)
connection = Connection(uri)
adapter = RabbitMQAdapter(missive.JSONMessage, processor, ['stage-queue'], connection, True, 1)
note(adapter.disable_shutdown_handler, adapter.drain_timeout, list(adapter.queues))
adapter.run()
note('ended')
