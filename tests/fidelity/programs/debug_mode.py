"""``messaging.debug_mode = True``, or ``POSTAGE_DEBUG_MODE=true``.

Better: every declare, publish and delivery goes to ``logging``, under the name ``postage``; they were printed.
"""

import logging

from postage import messaging
from stage import Processor, handle, note

records = []


class Keeping(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())


class Echo(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        pass


logging.getLogger('postage').addHandler(Keeping())
messaging.debug_mode = True
handle(Echo, lambda producer: producer.message_echo('text'))


def logged(*words):
    return any(all(word in record for word in words) for record in records)


note(logged('exchange', 'stage-exchange'))  # true
note(logged('queue', 'stage-queue'))  # true
note(logged('bind', 'stage-queue', 'stage-rk'))  # true
note(logged('publish', 'stage-rk', 'text'))  # true
note(logged('deliver', 'stage-queue', 'text'))  # true
