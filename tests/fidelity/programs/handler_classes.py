"""A handler is a class with ``call``, which may have a constructor, or do its work in that."""

from postage import messaging
from stage import Answering, Processor, handle, note, producer


class Classes(Processor):
    @messaging.MessageHandler('command', 'echo')
    class Echo(messaging.Handler):
        def call(self):
            note('echo', self.data, self.reply_func, type(self.processor).__name__)

    @messaging.MessageHandler('command', 'greet')
    class Greet(messaging.Handler):
        def __init__(self, processor, data, reply_func=None):
            self.greeting = 'hello'
            super().__init__(processor, data, reply_func)

        def call(self):
            note(self.greeting, self.data)

    @messaging.MessageHandler('command', 'whole')
    class Whole(messaging.Handler):
        def __init__(self, processor, data, reply_func=None):
            note('whole', data)

    @messaging.RpcHandler('command', 'double')
    class Double(messaging.Handler):
        def call(self):
            self.reply_func(messaging.MessageResult(self.data['parameters'] * 2))


handle(
    Classes,
    lambda producer: producer.message_echo(1),
    lambda producer: producer.message_greet(2),
    lambda producer: producer.message_whole(3),
)
with Answering(Classes):
    note(producer().rpc_double(21).body['content'])
