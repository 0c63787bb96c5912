"""``hup`` and ``vhost`` as an argument, of an instance before its constructor runs, and of a class, in this order."""

from postage import messaging
from stage import Consumer, Producer, note, raised

HUP = dict(messaging.global_hup)


class Wrong(Producer):
    hup = {**HUP, 'user': 'nobody'}


class Righted(Wrong):
    def __init__(self):
        self.hup = HUP
        self.vhost = messaging.global_vhost
        super().__init__({})


class Elsewhere(Consumer):
    vhost = 'nowhere'


note(raised(Wrong, {}))
note(type(Righted()).__name__)
note(type(Wrong({}, HUP)).__name__)
note(raised(Elsewhere) != 'Elsewhere')
note(type(Elsewhere([], None, messaging.global_vhost)).__name__)
Elsewhere.vhost = messaging.global_vhost
note(type(Elsewhere()).__name__)
