"""``messaging.MessageHandlerType``, ``messaging.ExchangeType``.

Gone: no metaclass is needed: handlers of any class in a processor's bases count, and so do the attributes of an
exchange. The error says so.
"""

from postage import messaging
from stage import note, raised

note(raised(lambda: messaging.MessageHandlerType.__name__))  # "AttributeError"
note(raised(lambda: messaging.ExchangeType.__name__))  # "AttributeError"
