"""``rpc_timeout`` and ``max_retry`` are what they are at the call, on the instance or the class."""

import time

from stage import EQK, FINGERPRINT, Consumer, Producer, note


class Late(Producer):
    pass


def ask(producer, **options):
    began = time.monotonic()
    reply = producer.rpc_nobody(1, **options)
    return type(reply).__name__, reply.body['content']['value'], round(time.monotonic() - began)


consumer = Consumer(EQK, None, None)
late = Late(FINGERPRINT)
Late.rpc_timeout = 1
Late.max_retry = 0
note(ask(late))
late.max_retry = 1
note(ask(late))
late.rpc_timeout = 0.7
late.max_retry = 2
note(ask(late))
*reply, seconds = ask(late, _timeout=0.1)
note((*reply, seconds < 2))
consumer.channel.queue_delete(queue='stage-queue')
