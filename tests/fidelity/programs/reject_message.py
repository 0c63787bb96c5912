"""``raise RejectMessage``, or any exception: the message is rejected, and the consumer goes on."""

from postage import messaging
from stage import FINGERPRINT, Processor, StageExchange, loop, note, producer


class Dead(messaging.Exchange):
    name = 'dead-exchange'
    exchange_type = 'fanout'


class Refusing(Processor):
    @messaging.MessageHandler('command', 'refuse')
    def msg_refuse(self, content):
        note('refuse', content)
        raise messaging.RejectMessage('not me')

    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content):
        note('fail', content)
        raise KeyError('broken')

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note('echo', content)


guarded = {'name': 'stage-queue', 'flags': {'arguments': {'x-dead-letter-exchange': 'dead-exchange'}}}
refusing = Refusing(FINGERPRINT, [(StageExchange, [(guarded, 'stage-rk')])], None, None)
keeping = messaging.GenericConsumer([(Dead, [({'name': 'keep', 'flags': {'durable': True}}, '')])], None, None)
sending = producer()
sending.message_refuse(1)
sending.message_fail(2)
sending.message_echo(3)
sending.message_quit()
loop(refusing)
