"""Attempts to connect: to which host, after which pause, and whether another one may succeed."""

from __future__ import annotations

import logging
import os
import random
import re
import ssl
import time
from collections.abc import Callable
from typing import Any

from postage import errors
from postage.amqp.channel import describe
from postage.amqp.link import FrameMaxRefused, Link, Services
from postage.printable import printable
from postage.settings import EXTERNAL, BrokerSettings
from postage.sparingly import Sparingly

logger = logging.getLogger('postage')

PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between rounds of attempts; the last one is the ceiling
REFUSED_SECONDS = 5.0  # for which a broker that let us in before is asked again though it refuses
SHORT_LIFE = 1.0  # seconds that a link has to last before the pauses are short again

# The pauses of forked processes differ, and the program's own random numbers stay as they are.
_random = random.SystemRandom()


class Attempts:
    """Each host in turn, and after a round of all of them a pause, which grows. For the I/O thread.

    :param role: of the connection, which the broker is told as part of its name
    :param is_direct: whether other threads may send and read, see :class:`Link`
    :param on_open: called with each link that is open
    :param on_lost: called with each of these when it has gone
    :param on_refused: called where no attempt can succeed, with why; none follows
    :ivar link: the attempt under way
    :ivar last_failure: in a few words
    """

    def __init__(
        self,
        settings: BrokerSettings,
        role: str,
        is_direct: bool,
        loop: Any,
        on_open: Callable[[Link], None],
        on_lost: Callable[[Link, BaseException], None],
        on_refused: Callable[[errors.BrokerError], None],
    ) -> None:
        self._settings = settings
        self._role = role
        self._is_direct = is_direct
        self._loop = loop
        self._on_open = on_open
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._hosts = len(settings.endpoints)
        self._host = 0
        self._round = 0
        self._failures: list[str] = []  # of this round
        self._refused_hosts: set[int] = set()  # for their certificates
        self._refused_since: float | None = None  # by brokers that let us in before
        self._was_open = self._is_over = False
        self._sparingly = Sparingly()
        self._opened_at = 0.0
        self.link: Link | None = None
        self.last_failure = 'no answer'

    def begin(self) -> None:
        """Make the first attempt at once, and after a loss almost at once: the processes of a host do not all crowd in.

        Where one link after the other is lost as soon as it was made, the pauses grow.
        """
        pause = 0.0
        if self._was_open:
            lived = time.monotonic() - self._opened_at
            self._round = 0 if lived > SHORT_LIFE else min(self._round + 1, len(PAUSES) - 1)
            pause = PAUSES[self._round] * _random.uniform(0.1, 1.0)
        self._loop.call_later(pause, self._connect)

    def end(self) -> None:
        """Make no further attempt."""
        self._is_over = True

    def _connect(self) -> None:
        if self._is_over:
            return
        parameters = self._settings.parameters()[self._host % self._hosts]
        parameters.client_properties = {'connection_name': f'postage {self._role}, pid {os.getpid()}'}
        self.link = Link(
            parameters,
            on_open_callback=self._on_link_open,
            on_open_error_callback=self._on_failed,
            on_close_callback=self._on_lost,
            services=Services(self._loop),
            is_direct=self._is_direct,
            body_max=self._settings.max_body,
        )

    def _on_link_open(self, link: Link) -> None:
        self.link = None
        if self._is_over:
            link.end()
            return
        link.note_agreement()
        link.watch_for_silence()
        self._failures.clear()
        self._opened_at = time.monotonic()
        self._refused_since = None
        self._on_open(link)
        self._was_open = True

    def _on_failed(self, link: Link, error: BaseException) -> None:
        self.link = None
        if self._is_over:
            self._loop.stop()
            return
        permanent = permanent_error(error, self._settings)
        if isinstance(permanent, errors.CertificateRefused) and (self._was_open or self._hosts > 1):
            # Another host may have a right one; and a server that pretends to be the broker must not end a program
            # that runs. Nothing was sent that is secret.
            self._sparingly.log(logging.ERROR, '%s', permanent)
            permanent = permanent if self._is_refused_everywhere() else None
        if permanent is not None and not self._may_pass(permanent):
            self._on_refused(permanent)  # before the log says so, for what reads that may go by it
            if self._was_open:
                logger.error('%s', permanent)
            return
        self.last_failure = describe(link.reason if link.reason is not None else root_cause(error))
        self._failures.append(self.last_failure)
        self._host += 1
        self._loop.call_later(self._pause(), self._connect)

    def _is_refused_everywhere(self) -> bool:
        """Whether each host has shown a certificate that cannot be right, and none was ever connected to."""
        self._refused_hosts.add(self._host % self._hosts)
        return not self._was_open and len(self._refused_hosts) == self._hosts

    def _may_pass(self, refusal: errors.BrokerError) -> bool:
        """Whether a login may be refused for a moment only: a broker that stops or starts may not know its users.

        Only a broker that has let us in before is given that time.
        """
        if not self._was_open or not isinstance(refusal, (errors.AuthenticationFailed, errors.VirtualHostRefused)):
            return False
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
            logger.warning('%s; it is asked again for %g s', refusal, REFUSED_SECONDS)
        return now - self._refused_since < REFUSED_SECONDS

    def _pause(self) -> float:
        """Seconds before the next attempt."""
        if self._host % self._hosts:
            return 0.0
        if not self._was_open and not self._round:
            logger.warning(
                'the broker at %s cannot be reached (%s); waiting for it up to %g s',
                self._settings,
                '; '.join(dict.fromkeys(self._failures)),
                self._settings.connect_timeout,
            )
        self._failures.clear()
        self._round += 1
        return PAUSES[min(self._round, len(PAUSES)) - 1] * _random.uniform(0.5, 1.0)


def quieten_pika() -> None:
    """Have pika log nothing, unless the program has set its level.

    It logs each loss as several errors, and ours tells the story; and a critical line for each frame of a channel that
    is not open, of which a server may send as many as it likes.
    """
    pika_logger = logging.getLogger('pika')
    if pika_logger.level == logging.NOTSET:
        pika_logger.setLevel(logging.CRITICAL + 1)


def root_cause(error: BaseException) -> BaseException:
    """The innermost cause of a failed attempt: pika wraps it several times."""
    while True:
        inner: Any = getattr(error, 'exceptions', None) or getattr(error, 'exception', None) or error.args[:1]
        if isinstance(inner, (list, tuple)):
            inner = inner[-1] if inner else None
        if not isinstance(inner, BaseException):
            return error
        error = inner


# What a server says of its client's certificate (RFC 8446, section 6.2).
# By TLS 1.3 it comes after the handshake, and pika has its text alone.
_alert = re.compile(
    'SSL.*alert.(bad.certificate|unsupported.certificate|certificate|unknown.ca|access.denied)', re.IGNORECASE
)

_is_full = re.compile(r'connection limit \(\d+\) is reached\W*$')
_reply = re.compile(r'ConnectionClosedByBroker: \((\d{3})\) (.*)', re.DOTALL)


def permanent_error(error: BaseException, settings: BrokerSettings) -> errors.BrokerError | None:
    """The error to raise where trying again would not help.

    pika guesses the cause from the stage at which the connection went; only the broker's own reply code makes it
    certain, for a broker that is killed at that stage looks the same.
    """
    cause = root_cause(error)
    text = printable(str(cause), 300)
    if isinstance(cause, FrameMaxRefused):
        return errors.BrokerError(f'the broker at {settings}, {cause}; see the query of its URL')
    if isinstance(cause, ssl.SSLCertVerificationError):
        return errors.CertificateRefused(f'the certificate of the broker at {settings} cannot be right: {text}')
    if _alert.search(text):
        return errors.CertificateRefused(f'the broker at {settings} refused the certificate of this program: {text}')
    match = _reply.search(describe(cause)) or _reply.search(repr(error))
    code = int(match.group(1)) if match else 0
    if code == 403:
        if settings.mechanism == EXTERNAL:
            return errors.AuthenticationFailed(f'the broker at {settings} has no user for the certificate it was shown')
        return errors.AuthenticationFailed(
            f'the broker at {settings} refused user {settings.user!r} or its password; '
            'see POSTAGE_USER and POSTAGE_PASSWORD'
        )
    # A broker that has too many connections will have fewer.
    if code == 530 and not _is_full.search(text):
        return errors.VirtualHostRefused(
            f'the broker at {settings} has no virtual host {settings.vhost!r}, or user {settings.user!r} may not '
            'enter it; see POSTAGE_VHOST'
        )
    return None
