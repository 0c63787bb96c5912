"""What an attempt to connect failed with: whether another one may succeed, and how to say it."""

from __future__ import annotations

import logging
import re
from typing import Any

from postage import errors
from postage.amqp.channel import describe
from postage.settings import BrokerSettings


def quieten_pika() -> None:
    """pika logs each loss as several errors, and ours tells the story; a program that wants pika's sets its level."""
    pika_logger = logging.getLogger('pika')
    if pika_logger.level == logging.NOTSET:
        pika_logger.setLevel(logging.CRITICAL)


def root_cause(error: BaseException) -> str:
    """The innermost cause of a failed attempt, in words: pika wraps it several times."""
    while True:
        inner: Any = getattr(error, 'exceptions', None) or getattr(error, 'exception', None) or error.args[:1]
        if isinstance(inner, (list, tuple)):
            inner = inner[-1] if inner else None
        if not isinstance(inner, BaseException):
            return describe(error)
        error = inner


_reply = re.compile(r'ConnectionClosedByBroker: \((\d{3})\) (.*)', re.DOTALL)


def permanent_error(error: BaseException, settings: BrokerSettings) -> errors.BrokerError | None:
    """The error to raise where trying again would not help.

    pika guesses the cause from the stage at which the connection went; only the broker's own reply code makes it
    certain, for a broker that is killed at that stage looks the same.
    """
    match = _reply.search(root_cause(error)) or _reply.search(repr(error))
    code = int(match.group(1)) if match else 0
    if code == 403:
        return errors.AuthenticationFailed(
            f'the broker at {settings} refused user {settings.user!r} or its password; '
            'see POSTAGE_USER and POSTAGE_PASSWORD'
        )
    if code == 530:
        return errors.VirtualHostRefused(
            f'the broker at {settings} has no virtual host {settings.vhost!r}, or user {settings.user!r} may not '
            'enter it; see POSTAGE_VHOST'
        )
    return None
