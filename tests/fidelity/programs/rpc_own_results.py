"""An RPC answered with a result of a class of one's own."""

from postage import messaging
from stage import Answering, Processor, note, producer


class Partial(messaging.MessageResult):
    def __init__(self, value):
        super().__init__(value, 'partial')
        self.body['content']['more'] = True


class Answers(Processor):
    @messaging.RpcHandler('command', 'part')
    def rpc_part(self, content, reply_func):
        reply_func(Partial([1]))


with Answering(Answers):
    reply = producer().rpc_part()
    note(type(reply).__name__, reply.body['content']['value'], reply.body['content']['message'])
