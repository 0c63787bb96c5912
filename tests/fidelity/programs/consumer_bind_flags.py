"""A queue is bound as a name, with flags in ``eqk``, and by ``queue_bind`` with flags; ``qk_list`` has them."""

from postage import messaging, microthreads
from stage import FINGERPRINT, Consumer, Processor, StageExchange, loop, note, producer

seen = []


class Listening(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        seen.append(content['parameters'])
        if len(seen) == 3:
            raise microthreads.ExitScheduler


flagged = {'name': 'flagged', 'flags': {'auto_delete': True}}
listening = Listening(FINGERPRINT, [(StageExchange, [('plain', 'a'), (flagged, 'b')])], None, None)
listening.consumer.queue_bind(StageExchange, 'bound', 'c', exclusive=True)
listening.add_eqk([(StageExchange, [('plain', 'd')])])
note(sorted(set(listening.consumer.qk_list)))
listening.consumer.queue_unbind(StageExchange, 'plain', 'a')
checking = Consumer([], None, None)
note(checking.channel.queue_declare(queue='flagged', passive=True).method.queue)
sending = producer()
for key in 'abcd':
    sending.message_echo(key, _key=key)
loop(listening)
note(sorted(seen))
