"""``encoder_class`` that is set after the constructor.

Better: it counts from then on; it was ignored, unless ``encoder`` was set.
"""

from postage import messaging
from stage import FINGERPRINT, Producer, note


class Shouting(messaging.JsonEncoder):
    content_type = 'text/shouting'


late = Producer(FINGERPRINT)
late.message_echo()
late.encoder_class = Shouting
late.message_echo()
note(late.encoder.content_type)  # "text/shouting"
