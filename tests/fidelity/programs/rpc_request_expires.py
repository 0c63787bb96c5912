"""A request whose time is over, and that no consumer has taken.

Better: it is gone from its queue; it was handled later, for nobody.
"""

import time

from stage import EQK, FINGERPRINT, Consumer, Producer, note


class Impatient(Producer):
    rpc_timeout = 0.2
    max_retry = 0


consumer = Consumer(EQK, None, None)
Impatient(FINGERPRINT).rpc_nobody()
time.sleep(0.3)
note(consumer.channel.queue_declare(queue='stage-queue', passive=True).method.message_count)  # 0
