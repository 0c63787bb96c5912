"""An RPC handler that answers twice.

Better: the first answer counts, and the log tells of the second, which was sent, too.
"""

from postage import messaging
from stage import Answering, Processor, note, producer


class Answers(Processor):
    @messaging.RpcHandler('command', 'twice')
    def rpc_twice(self, content, reply_func):
        reply_func(1)
        reply_func(2)


with Answering(Answers):
    note(producer().rpc_twice().body['content']['value'])  # 1
