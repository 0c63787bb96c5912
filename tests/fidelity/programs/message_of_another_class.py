"""A builder may return anything that has ``body`` and ``fingerprint``; an answer, anything that has ``body``."""

from postage import messaging
from stage import FINGERPRINT, Answering, Processor, Producer, handle, note


class Envelope:
    def __init__(self, content):
        self.body = {**messaging.MessageCommand('own').body, 'content': content}

    def fingerprint(self, **kwds):
        self.body['fingerprint'] = kwds


class Answer:
    body = messaging.MessageResult('from afar').body


class OwnProducer(Producer):
    def build_message_own(self):
        return Envelope({'a': 1})


class Own(Processor):
    @messaging.MessageHandlerFullBody('command', 'own')
    def msg_own(self, body):
        note(body)

    @messaging.RpcHandler('command', 'ask')
    def rpc_ask(self, content, reply_func):
        reply_func(Answer())


handle(Own, lambda producer: OwnProducer(FINGERPRINT).message_own())
with Answering(Own):
    note(OwnProducer(FINGERPRINT).rpc_ask().body['content'])
