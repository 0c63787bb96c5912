"""Processors fed by matchers, over any transport: ``from postage import missive``.

::

    processor = missive.Processor()

    @processor.handle_for(lambda message: message.raw_data == b'Hello')
    def greet(message, ctx):
        print('Hello whoever you are')
        ctx.ack()

An adapter runs a processor on a transport: see :mod:`postage.missive.adapters`. A ``MessageProcessor`` of
``postage.messaging`` runs on them too, as a :class:`Component`.
"""

from postage.missive.adapters.base import Adapter
from postage.missive.adapters.for_tests import TestAdapter
from postage.missive.component import Component
from postage.missive.contexts import DLQ, Handler, HandlingContext, ProcessingContext
from postage.missive.errors import (
    DeadLetterError,
    DuplicateMatcher,
    MissingExtra,
    ProcessorEnded,
    UndecidedMessage,
    UnhandledMessage,
)
from postage.missive.messages import DictMessage, JSONMessage, M, Message, RawMessage, UnreadableMessage
from postage.missive.postage_message import PostageMessage
from postage.missive.processor import Matcher, Processor

__all__ = [
    'DLQ',
    'Adapter',
    'Component',
    'DeadLetterError',
    'DictMessage',
    'DuplicateMatcher',
    'Handler',
    'HandlingContext',
    'JSONMessage',
    'M',
    'Matcher',
    'Message',
    'MissingExtra',
    'PostageMessage',
    'ProcessingContext',
    'Processor',
    'ProcessorEnded',
    'RawMessage',
    'TestAdapter',
    'UndecidedMessage',
    'UnhandledMessage',
    'UnreadableMessage',
]
