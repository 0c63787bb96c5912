"""Names that begin with ``_``: ``_msg_consumer``, ``_build_message_properties``, ``_message_handlers`` and their like.

Gone: there are ``before_handling()`` and ``after_handling()`` for what is around a message; ``_headers``,
``_priority``, ``_expiration``, ``persistent`` and ``mandatory`` for what goes with it; decorators for the handlers.
"""

from stage import Processor, Producer, handle, note

seen = []


class Listening(Processor):
    def _msg_consumer(self, channel, method, header, body):
        seen.append('consumer')
        super()._msg_consumer(channel, method, header, body)


class Sending(Producer):
    def _build_message_properties(self):
        seen.append('properties')
        return super()._build_message_properties()


handle(Listening, lambda producer: Sending({}).message_echo())
note(seen)  # []
