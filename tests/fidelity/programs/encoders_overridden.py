"""Encoders are overridden by class methods, static methods and methods."""

import json

from postage import messaging
from stage import FINGERPRINT, StageExchange, loop, note


def text(data):
    return data if isinstance(data, str) else data.decode()


class ByClassMethod(messaging.JsonEncoder):
    content_type = 'application/wrapped'

    @classmethod
    def encode(cls, data):
        return text(super().encode({'wrapped': data}))

    @classmethod
    def decode(cls, string):
        return super().decode(string)['wrapped']


class ByStaticMethod(messaging.Encoder):
    content_type = 'text/static'

    @staticmethod
    def encode(data):
        return json.dumps([data])

    @staticmethod
    def decode(string):
        return json.loads(text(string))[0]


class ByMethod(messaging.JsonEncoder):
    def encode(self, data):
        return text(super().encode(data)) + ' '

    def decode(self, string):
        return super().decode(text(string).rstrip())


class Listening(messaging.MessageProcessor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note(content)


for encoder in (ByClassMethod, ByStaticMethod, ByMethod):
    consumer_class = type('Consumer', (messaging.GenericConsumer,), {'encoder_class': encoder, 'durable_queues': False})
    processor_class = type('Processor', (Listening,), {'consumer_class': consumer_class})
    producer_class = type(
        'Producer', (messaging.GenericProducer,), {'eks': [(StageExchange, encoder.__name__)], 'encoder_class': encoder}
    )
    eqk = [(StageExchange, [(encoder.__name__, encoder.__name__)])]
    listening = processor_class(FINGERPRINT, eqk, None, None)
    sending = producer_class(FINGERPRINT)
    sending.message_echo(encoder.__name__)
    sending.message_quit()
    loop(listening)
