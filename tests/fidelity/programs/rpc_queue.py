"""``rpc_queue_NAME``.

Better: it is ``rpc_NAME(…, _queue_only=True)``; it could not be reached, for it was taken for a command ``queue_NAME``.
"""

from postage import messaging
from stage import FINGERPRINT, Answering, Processor, Producer, note


class Impatient(Producer):
    rpc_timeout = 1
    max_retry = 0


class Answers(Processor):
    @messaging.RpcHandler('command', 'echo')
    def rpc_echo(self, content, reply_func):
        reply_func(content['parameters'])


with Answering(Answers):
    asking = Impatient(FINGERPRINT)
    queue = asking.rpc_queue_echo('text')
    note(isinstance(queue, str))  # true
