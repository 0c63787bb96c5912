"""``MessageHandler(message_type=…, message_name=…)``.

Gone: the names are those of the documentation: ``MessageHandler(type=…, name=…)``; most programs give none.
"""

from postage import messaging
from stage import note, raised

note(raised(lambda: messaging.MessageHandler(message_type='command', message_name='echo') and None))  # "TypeError"
