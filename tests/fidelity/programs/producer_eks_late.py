"""``eks`` is what it is at the call, on the instance or the class; ``default_exchange`` is the first."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, StageExchange, handle, note, settle


class Late(Producer):
    pass


class Listening(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note(content)


def send(producer):
    late = Late(FINGERPRINT)
    note(late.default_exchange is StageExchange)
    late.message_echo('class')
    late.eks = [(StageExchange, 'nobody')]
    late.message_echo('instance')
    late.forward({'any': 'body'})
    late.message('generic')
    late.eks = [(StageExchange, 'stage-rk'), (StageExchange, 'nobody')]
    late.message_echo('both')
    settle()
    other = Late(FINGERPRINT)
    Late.eks = [(StageExchange, 'nobody')]
    other.message_echo('class, later')
    other.message_echo('by key', _key='stage-rk')
    other.message_echo('by eks', _eks=[(StageExchange, 'stage-rk')])


handle(Listening, send)
