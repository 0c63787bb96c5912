"""``_max_retry`` of a single call.

Better: it counts; it was ignored.
"""

from stage import EQK, FINGERPRINT, Consumer, Producer, note


class Impatient(Producer):
    rpc_timeout = 0.2
    max_retry = 2


consumer = Consumer(EQK, None, None)
reply = Impatient(FINGERPRINT).rpc_nobody(_max_retry=0)
note(type(reply).__name__)  # "MessageResultException"
