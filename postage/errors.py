"""Every exception that Postage raises, in one tree.

::

    PostageError
    ├── ConfigurationError            a setting, HUP, eks, eqk or attribute has the wrong shape
    ├── EncodingError                 a message cannot be encoded; nothing was sent
    ├── DecodingError                 a body or a header cannot be decoded
    │   └── EnvelopeError             it decodes, but it is not a Postage message
    ├── SignatureRefused              a message is unsigned, forged, stale or misdirected; has ``reason``
    ├── BrokerError                   the broker, or the way to it
    │   ├── BrokerUnavailable         no connection within the time given        (pika: AMQPConnectionError)
    │   ├── AuthenticationFailed      user or password refused          (pika: ProbableAuthenticationError)
    │   ├── CertificateRefused        unknown authority, expired, wrong name; or the broker refuses ours
    │   ├── VirtualHostRefused        virtual host missing or forbidden   (pika: ProbableAccessDeniedError)
    │   ├── ConnectionLost            the connection went in the middle of an operation
    │   ├── ChannelLost               another operation was refused, which closed the channel before this one began
    │   ├── Closed                    the object, or its connection, was closed by this program
    │   └── OperationRefused          the broker closed the channel; has ``reply_code`` and ``reply_text``
    │       ├── AccessRefused         403
    │       ├── NotFound              404
    │       ├── ResourceLocked        405: another connection owns the exclusive queue
    │       │   └── DuplicateApplication   … which is the uid of a GenericApplication that is alive
    │       └── DeclarationMismatch   406: it exists with other flags; has ``field``, ``wanted``, ``found``
    ├── PublishError                  a message was not taken over by the broker
    │   ├── Nacked                    the broker refused it
    │   ├── Unroutable                mandatory, and no queue is bound for its routing key
    │   └── PublishTimeout            not confirmed, or no room in the window, in the time given
    ├── TimeoutError                  no RPC result, or too few, in the time given; has ``results``
    ├── RemoteError                   the responder of an RPC answered with an error or an exception
    ├── HandlerTimeout                a handler was closed because its time was over
    ├── HandlingUnfinished            a message was delivered again and again, and never handled to its end
    ├── StoreError                    a store of dead letters cannot take a letter, or give it
    │   ├── LetterRefused             it can never take this one
    │   └── NoSuchLetter              it has no letter of that number
    ├── NoDelivery                    ``messaging.delivery()`` outside of a handler
    └── Deadlock                      a blocking RPC whose answer could only come from the thread that it blocks

Where an error is the counterpart of one of pika's or of Python's, it derives from that as well, so that
``except`` clauses written for either go on working.

Control flow is not failure and stands outside the tree: ``ExitScheduler`` in :mod:`postage.microthreads`,
``RejectMessage``, ``FilterError`` and ``AckAndRestart`` in :mod:`postage.messaging`.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pika.exceptions

E = TypeVar('E', bound='PostageError')


class PostageError(Exception):
    """Base of every error that Postage raises."""

    def again(self: E) -> E:
        """A copy of it, without its traceback, for an error that is kept and raised more than once.

        Each raise of one object makes its traceback longer, and what the frames in it hold stays alive with it.
        """
        kind = type(self)
        copied = kind.__new__(kind)
        copied.args = self.args
        copied.__dict__.update(self.__dict__)
        copied.__cause__ = self.__cause__
        return copied


class ConfigurationError(PostageError):
    """Raised where a setting, a HUP, an ``eks`` or ``eqk`` or another attribute has the wrong shape."""


class EncodingError(PostageError):
    """Raised by an encoder, before anything is sent, with the key of what cannot be encoded."""


class DecodingError(PostageError):
    """Raised where a body or its headers cannot be decoded."""


class EnvelopeError(DecodingError):
    """Raised where a decoded body lacks a field of a Postage message, or has one of the wrong type."""


class SignatureRefused(PostageError):
    """Told of a message that a consumer with keys refuses: in the log, and in its dead letter.

    :ivar reason: ``'unsigned'``; ``'forged'``: its signature is not right; ``'stale'``: older than ``max_age``;
        ``'misdirected'``: it was signed for an exchange and a routing key that do not lead here
    """

    def __init__(self, message: str, reason: str = 'forged') -> None:
        super().__init__(message)
        self.reason = reason


class BrokerError(PostageError):
    """Base of the errors that come from the broker or from the way to it."""

    # pika's counterparts bring texts of their own, which would hide ours.
    __str__ = Exception.__str__
    __repr__ = Exception.__repr__


class BrokerUnavailable(BrokerError, pika.exceptions.AMQPConnectionError):
    """Raised by a constructor that waited for the broker as long as it was told to."""


class AuthenticationFailed(BrokerError, pika.exceptions.ProbableAuthenticationError):
    """Raised where the broker refuses the user or the password; at once, or 5 s later if it took them before."""


class CertificateRefused(BrokerError, pika.exceptions.AMQPConnectionError):
    """Raised at once where the broker's certificate cannot be right, or the broker refuses that of this program."""


class VirtualHostRefused(BrokerError, pika.exceptions.ProbableAccessDeniedError):
    """Raised where the virtual host does not exist or the user may not enter it; at once, or 5 s later if it did."""


class ConnectionLost(BrokerError, pika.exceptions.AMQPConnectionError):
    """Raised by an operation during which the connection went; it may or may not have taken place."""


class ChannelLost(BrokerError, pika.exceptions.AMQPChannelError):
    """Raised by an operation that waited on a channel which the broker closed because of another operation on it.

    It has not taken place. On ``producer.channel`` this is never seen: the operations that wait go on.
    """


class Closed(BrokerError):
    """Raised by an object that this program has closed."""


class OperationRefused(BrokerError, pika.exceptions.AMQPChannelError):
    """Raised where the broker answers an operation by closing its channel.

    :ivar reply_code: AMQP 0-9-1 reply code, such as 406
    :ivar reply_text: the broker's own words
    """

    def __init__(self, message: str, reply_code: int = 0, reply_text: str = '') -> None:
        super().__init__(message)
        self.reply_code = reply_code
        self.reply_text = reply_text


class AccessRefused(OperationRefused):
    """Raised where the user lacks the permission (403)."""


class NotFound(OperationRefused):
    """Raised where an exchange or a queue does not exist and may not be declared here (404)."""


class ResourceLocked(OperationRefused):
    """Raised where another connection owns an exclusive queue (405)."""


class DuplicateApplication(ResourceLocked):
    """Raised by a ``GenericApplication`` whose pid and host are those of another one that is alive."""


class DeclarationMismatch(OperationRefused):
    """Raised where an exchange or a queue exists with other flags than those asked for (406).

    :ivar field: the first flag that differs, such as ``durable`` or ``type``; ``None`` where none is named
    :ivar wanted: what this program asked for, in the broker's words
    :ivar found: what the broker has
    """

    def __init__(
        self,
        message: str,
        reply_code: int = 406,
        reply_text: str = '',
        field: str | None = None,
        wanted: str | None = None,
        found: str | None = None,
    ) -> None:
        super().__init__(message, reply_code, reply_text)
        self.field = field
        self.wanted = wanted
        self.found = found


class PublishError(PostageError):
    """Base of what can become of a message that the broker did not take over.

    :ivar failures: every failure that this error reports, itself the first of them
    """

    def __init__(self, message: str, failures: Sequence[PublishError] = ()) -> None:
        super().__init__(message)
        self.failures: tuple[PublishError, ...] = tuple(failures) or (self,)


class Nacked(PublishError):
    """Raised where the broker refused to take the message over (``basic.nack``, or a closed channel)."""


class Unroutable(PublishError):
    """Raised for a mandatory message whose routing key reaches no queue (``basic.return``)."""


class PublishTimeout(PublishError, builtins.TimeoutError):
    """Raised where a message was not confirmed, or found no room in the window, in the time given."""


class TimeoutError(PostageError, builtins.TimeoutError):
    """Raised by ``consume_rpc`` where too few results arrived in time, and in place of the value of one that did not.

    :ivar results: the results that did arrive
    """

    def __init__(self, message: str, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results: list[Any] = list(results)


class RemoteError(PostageError):
    """Raised in place of a value where the responder of an RPC answered with an error or an exception.

    :ivar name: of the exception's class there; ``None`` where it answered with an error
    :ivar text: what it said
    :ivar responder: its fingerprint; empty where it has none
    """

    def __init__(self, text: str, name: str | None = None, responder: Mapping[str, Any] | None = None) -> None:
        super().__init__(f'{name}: {text}' if name else text)
        self.name = name
        self.text = text
        self.responder = dict(responder or {})


class HandlerTimeout(PostageError, builtins.TimeoutError):
    """Raised in place of a handler's result where it was closed because its time was over."""


class HandlingUnfinished(PostageError):
    """Told of a message that was delivered too often without being handled to its end: to its caller, and in its
    dead letter; and of each delivery that is not handled to its end, in its span."""


class StoreError(PostageError):
    """Raised by a store of dead letters that cannot do what it is asked to: it is full, locked, or no such store."""


class LetterRefused(StoreError):
    """Raised by a store of dead letters that cannot take a letter, however often it is offered: it is too large."""


class NoSuchLetter(StoreError):
    """Raised where a store of dead letters has no letter of that number."""


class NoDelivery(PostageError, LookupError):
    """Raised by ``messaging.delivery()`` where no handler is running in this context, so there is no delivery."""


class Deadlock(PostageError):
    """Raised by a blocking RPC to a queue that only the scheduler serves whose thread it would block."""
