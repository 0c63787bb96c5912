"""A command whose name is not text travels as text."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, handle, note


class NumberProducer(Producer):
    def build_message_five(self):
        return messaging.MessageCommand(5, {'of': 'seven'})


class Counting(Processor):
    @messaging.MessageHandler('command', '5')
    def msg_five(self, content):
        note(content)


handle(Counting, lambda producer: NumberProducer(FINGERPRINT).message_five())
note(messaging.RpcCommand(None).body)
