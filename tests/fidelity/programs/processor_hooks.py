"""A processor overrides its constructor, ``create()`` and ``start_consuming()``, and sets timers."""

from postage import messaging
from stage import EQK, FINGERPRINT, Consumer, loop, note, producer


class Own(messaging.MessageProcessor):
    consumer_class = Consumer

    def __init__(self, name):
        super().__init__({**FINGERPRINT, 'name': name}, [], None, None)
        self.add_eqk(EQK)
        self.add_timeout(0)
        self.add_timeout(0.2, self.on_timeout)

    def create(self):
        note('create')

    def start_consuming(self):
        note('start')
        super().start_consuming()

    def on_timeout(self):
        note('timeout')
        producer().message_quit()

    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note(self.fingerprint['name'], content)


own = Own('own')
producer().message_echo(1)
loop(own)
