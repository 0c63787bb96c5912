"""A message's ``fingerprint(**kwds)`` is called by the producer, overridden or not."""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, handle, note


class Signed(messaging.MessageCommand):
    def fingerprint(self, **kwds):
        kwds['name'] = kwds['name'].upper()
        super().fingerprint(signature='me', **kwds)


class SigningProducer(Producer):
    def build_message_signed(self):
        return Signed('signed')


class Reading(Processor):
    @messaging.MessageHandlerFullBody('command', 'signed')
    def msg_signed(self, body):
        note(body['fingerprint'])


handle(Reading, lambda producer: SigningProducer(FINGERPRINT).message_signed())
