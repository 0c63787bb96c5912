"""A producer overrides ``message``, ``forward``, ``message_NAME`` and the constructor."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, StageExchange, handle, note


class Own(Producer):
    def __init__(self, name):
        self.eks = [(StageExchange, 'stage-rk')]
        super().__init__({**FINGERPRINT, 'name': name})

    def message(self, *args, **kwds):
        note('message', args)
        super().message(*args, **kwds)

    def forward(self, body, *args, **kwds):
        note('forward')
        super().forward(body, *args, **kwds)

    def message_echo(self, text):
        self.message_repeat({'text': text})

    def build_message_repeat(self, parameters):
        return messaging.MessageCommand('echo', parameters)


class Listening(Processor):
    @messaging.MessageHandlerFullBody('command', 'echo')
    def msg_echo(self, body):
        note(body['content'], body['fingerprint']['name'])

    @messaging.MessageHandler('none', 'none')
    def msg_generic(self, content):
        note('generic', content)


own = Own('own')
handle(
    Listening,
    lambda producer: own.message_echo('text'),
    lambda producer: own.message('generic', k=1),
    lambda producer: own.forward(messaging.MessageCommand('echo', 'forwarded').body | {'fingerprint': FINGERPRINT}),
)
