"""A producer that overrides ``consume_rpc``, which ``rpc_NAME`` called.

Gone: answers come by direct reply-to, without a queue of their own. Take the queue of ``rpc_queue_NAME`` to it, or wrap
``rpc_NAME``.
"""

from postage import messaging
from stage import FINGERPRINT, Answering, Processor, Producer, note


class Own(Producer):
    def consume_rpc(self, queue, result_len=1, callback=None, timeout=None):
        print('note "own"')
        return super().consume_rpc(queue, result_len, callback, timeout)


class Answers(Processor):
    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content, reply_func):
        reply_func(content['parameters'])


with Answering(Answers):
    note(Own(FINGERPRINT).rpc_echo('text').body['content']['value'])  # "text"
