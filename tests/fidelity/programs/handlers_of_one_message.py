"""All handlers of a message run, in their order; of two RPC handlers of one name, the last."""

from postage import messaging
from stage import Answering, Processor, handle, note, producer


class Many(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_first(self, content):
        note('first', content)

    @messaging.MessageHandlerFullBody('command', 'echo')
    def msg_second(self, body):
        note('second', body['content'])

    @messaging.MessageHandler('status', 'echo')
    def msg_status(self, content):
        note('never')

    @messaging.RpcHandler('command', 'ask')
    def rpc_first(self, content, reply_func):
        note('never')

    @messaging.RpcHandler('command', 'ask')
    def rpc_last(self, content, reply_func):
        reply_func('last')


handle(Many, lambda producer: producer.message_echo('text'), lambda producer: producer.message_unknown())
with Answering(Many):
    note(producer().rpc_ask().body['content'])
