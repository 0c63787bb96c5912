"""An exchange in ``_eks`` that no program has declared.

Better: it is declared before its first use; the channel was closed, and what was sent after that was an error.
"""

import time

from postage import messaging
from stage import note, producer, raised


class Undeclared(messaging.Exchange):
    name = 'undeclared'


sending = producer()
sending.message_echo(_eks=[(Undeclared, 'key')])
time.sleep(0.5)
note(raised(lambda: sending.message_echo() and None))  # null
