"""``encoder_class`` that is set after the constructor.

Better: it counts from then on; it was ignored, unless ``encoder`` was set.
"""

from postage import messaging
from stage import FINGERPRINT, Processor, Producer, note


class Shouting(messaging.JsonEncoder):
    content_type = 'text/shouting'


class Listening(Processor):
    @messaging.MessageHandler('command', 'echo')
    def msg_echo(self, content):
        note('echo')  # "echo"


late = Producer(FINGERPRINT)
late.message_echo()
late.encoder_class = Shouting
late.message_echo()
note(late.encoder.content_type)  # "text/shouting"
