"""``type``, ``name``, ``category`` and ``boolean_value`` of a message are class attributes."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, handle, note


class DoorEvent(messaging.Message):
    type = 'event'
    name = 'door'
    boolean_value = False


class EventProducer(Producer):
    def build_message_door(self, which):
        return DoorEvent(which)


class Watch(Processor):
    @messaging.MessageHandler('event', 'door')
    def msg_door(self, content):
        note('door', content)


handle(Watch, lambda producer: EventProducer(FINGERPRINT).message_door('front'))
event = DoorEvent('back', floor=3)
note(event.type, event.name, event.category, event.boolean_value, bool(event), event.body)
for message in (messaging.MessageCommand('x'), messaging.RpcCommand('x'), messaging.MessageStatus('x')):
    note(message.type, message.name, message.category, message.boolean_value)
