"""A queue of its own for each process, whose name has the process id, without flags.

Better: it is declared durable, and a warning says that it will stay; give it ``exclusive`` or ``auto_delete``, or a
time after which it expires. It went with the broker, and filled until then.
"""

import logging
import os

from postage import messaging
from stage import StageExchange, note

records = []


class Keeping(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())


logging.getLogger('postage').addHandler(Keeping())
name = f'echo-queue-{os.getpid()}somewhere'
consumer = messaging.GenericConsumer([(StageExchange, [(name, 'echo')])], None, None)
note(any(name in record and 'exclusive' in record for record in records))  # true
