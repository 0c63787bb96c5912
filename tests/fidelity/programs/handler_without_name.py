"""A handler with a type and no name.

Better: it gets every message of that type that no other handler takes; it got none.
"""

from postage import messaging
from stage import Processor, handle, note


class Any(Processor):
    @messaging.MessageHandlerFullBody('command')
    def msg_any(self, body):
        note(body['name'])  # "surprise"


handle(Any, lambda producer: producer.message_surprise())
