"""Filters run from the handler outwards, above and below its decorator, each on a copy."""

from postage import messaging
from stage import Processor, handle, note


def add(content, word):
    return {**content, 'way': [*content.get('way', []), word]}


class Filtering(Processor):
    @messaging.MessageFilter(add, 'outer')
    @messaging.MessageHandler('command', 'echo')
    @messaging.MessageFilter(add, word='middle')
    @messaging.MessageFilter(add, 'inner')
    def msg_echo(self, content):
        note(content)

    @messaging.MessageHandlerFullBody('command', 'echo')
    def msg_whole(self, body):
        note(body['content'])


handle(Filtering, lambda producer: producer.message_echo('text'))
