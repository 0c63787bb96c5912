"""A result that is sent as a message has the name ``none``, and its handler gets it."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, handle, note


class ResultProducer(Producer):
    def build_message_result(self, value):
        return messaging.MessageResult(value)


class Collecting(Processor):
    @messaging.MessageHandler('result', 'none')
    def msg_result(self, content):
        note(content)


handle(Collecting, lambda producer: ResultProducer(FINGERPRINT).message_result(42))
