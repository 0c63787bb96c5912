"""A handler that is a class, but no ``messaging.Handler``.

Gone: derive it from ``messaging.Handler``; the error says so.
"""

from postage import messaging
from stage import note, raised


class Echo:
    def __init__(self, processor, data, reply_func=None):
        note(data)


note(raised(lambda: messaging.MessageHandler('command', 'echo')(Echo).__name__))  # "ConfigurationError"
