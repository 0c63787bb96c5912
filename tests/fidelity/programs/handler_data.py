"""A subclass of ``MessageHandler`` sets ``handler_data``, or calls the constructor."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, handle, note


class EventHandler(messaging.MessageHandler):
    def __init__(self, name):
        self.handler_data = ('message', 'event', name, 'content')


class WholeEventHandler(messaging.MessageHandler):
    def __init__(self, name):
        self.handler_data = ('message', 'event', name, None)


class CommandHandler(messaging.MessageHandler):
    def __init__(self, name):
        super().__init__('command', name)


class Event(messaging.Message):
    type = 'event'

    def __init__(self, name):
        super().__init__()
        self.body['name'] = name


class EventProducer(Producer):
    def build_message_event(self, name):
        return Event(name)


class Watching(Processor):
    @EventHandler('door')
    def msg_door(self, content):
        note('door', content)

    @WholeEventHandler('door')
    def msg_whole_door(self, body):
        note('whole door', body['type'], body['name'])

    @CommandHandler('echo')
    def msg_echo(self, content):
        note('echo', content)


handle(
    Watching,
    lambda producer: EventProducer(FINGERPRINT).message_event('door'),
    lambda producer: producer.message_echo(1),
)
note(messaging.MessageHandler('command', 'echo').handler_data)
note(messaging.RpcHandler('command', 'echo').handler_data)
note(messaging.MessageHandlerFullBody('command', 'echo').handler_data)
