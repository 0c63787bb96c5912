"""A command of one's own has a category, or a type, of its own."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, handle, note


class Ask(messaging.MessageCommand):
    type = 'question'


class Quiet(messaging.RpcCommand):
    category = 'message'


class Online(messaging.MessageStatus):
    type = 'presence'

    def __init__(self, status):
        super().__init__(status)
        self.body['content']['application'] = FINGERPRINT


class AskingProducer(Producer):
    def build_message_ask(self, text):
        return Ask('ask', {'text': text})

    def build_message_quiet(self):
        return Quiet('quiet')

    def build_message_online(self):
        return Online('online')


class Listening(Processor):
    @messaging.MessageHandler('question', 'ask')
    def msg_ask(self, content):
        note('ask', content)

    @messaging.MessageHandler('command', 'quiet')
    def msg_quiet(self, content):
        note('quiet', content)

    @messaging.MessageHandler('presence', 'online')
    def msg_online(self, content):
        note('online', content)


asking = AskingProducer(FINGERPRINT)
handle(
    Listening,
    lambda producer: asking.message_ask('who?'),
    lambda producer: asking.message_quiet(),
    lambda producer: asking.message_online(),
)
