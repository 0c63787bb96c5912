"""Who may command a processor from afar, and how often a program runs itself again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from postage import errors
from postage.amqp.deliveries import Delivery, current
from postage.messaging.outcomes import FilterError
from postage.printable import shown

logger = logging.getLogger('postage')

RESTARTS: Final = 'POSTAGE_RESTARTS'
"""The variable in which a program tells the one that it becomes how often that happened of late, and when."""
FREE_RESTARTS: Final = 3  # one soon after the other, before there are pauses
CALM_SECONDS: Final = 60.0  # after which a restart is none of a loop
LONGEST_PAUSE: Final = 60.0

Decision = bool | Callable[[Delivery], bool]


def check_decision(where: str, decision: Any) -> None:
    """See that it can be decided by.

    :raises errors.ConfigurationError: it is neither ``True`` nor ``False`` nor a method
    """
    if decision is not True and decision is not False and not callable(decision):
        raise errors.ConfigurationError(f'{where} must be True, False or a method, not {shown(decision)}')


def authorise(command: str, decision: Decision, decode: Callable[[bytes], Any]) -> None:
    """See whether a command that has come in a message is to be obeyed, and log that. In the handler of that message.

    :param decision: ``True``, ``False``, or what decides from the delivery, and returns nothing but ``True`` to obey
    :param decode: decodes the body of the message
    :raises FilterError: it is not; the message is dropped
    :raises Exception: what the method has raised; it has decided for nothing
    """
    delivery = current.get()
    if delivery is None:
        return  # the program has called the handler itself
    is_authorised = False
    try:
        is_authorised = (decision(delivery) if callable(decision) else decision) is True
    finally:
        level = logging.INFO if is_authorised else logging.WARNING
        verdict = 'authorised' if is_authorised else 'not authorised'
        sender = f'fingerprint {shown(_fingerprint_of(delivery, decode), 300)}, user_id {shown(_user_of(delivery))}'
        logger.log(level, 'command %r is %s: it came from %s, exchange %r', command, verdict, sender, delivery.exchange)
    if not is_authorised:
        raise FilterError(f'dropped: command {command!r} is not authorised here')


def _fingerprint_of(delivery: Delivery, decode: Callable[[bytes], Any]) -> Any:
    """What the sender says of itself: a claim, and nothing more."""
    try:
        return decode(delivery.body).get('fingerprint')
    except Exception:
        return None


def _user_of(delivery: Delivery) -> str | None:
    """The user that the broker has checked, where it is named (https://www.rabbitmq.com/docs/validated-user-id)."""
    try:
        return delivery.properties.user_id  # type: ignore[no-any-return]
    except errors.DecodingError:
        return None


# Restarts


def pause_before_restart(environ: MutableMapping[str, str], now: float) -> float:
    """Count a restart, for the program that this one becomes, and return how many seconds to wait before it."""
    try:
        count, at = environ.get(RESTARTS, '0 0').split()
        recent = int(count) if 0 <= now - float(at) < CALM_SECONDS + LONGEST_PAUSE else 0
    except ValueError:
        recent = 0
    recent = min(recent + 1, 1000)
    environ[RESTARTS] = f'{recent} {now:.3f}'
    excess = recent - FREE_RESTARTS
    return min(2.0 ** min(excess - 1, 10), LONGEST_PAUSE) if excess > 0 else 0.0


def slow_down_restarts() -> None:
    """Wait, where this program runs itself again and again. Blocks; SIGTERM and Ctrl-C end it meanwhile."""
    pause = pause_before_restart(os.environ, time.time())
    if not pause:
        return
    logger.warning('restarted again and again: the next time is in %g s', pause)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
    time.sleep(pause)
