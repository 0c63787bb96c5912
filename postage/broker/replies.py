"""What the broker says when it refuses something.

AMQP 0-9-1 section 1.2 names the reply codes and tells "soft" errors, which close a channel, from "hard" ones,
which close the connection. Code that cannot do what a client asked for raises :class:`Refusal`; the channel or the
connection that called turns it into a ``Channel.Close`` or a ``Connection.Close``. It never leaves the broker,
and so it stands outside Postage's exception tree.
"""

from __future__ import annotations

from typing import Final

NAMES: Final[dict[int, str]] = {
    311: 'CONTENT_TOO_LARGE',
    312: 'NO_ROUTE',
    313: 'NO_CONSUMERS',
    320: 'CONNECTION_FORCED',
    402: 'INVALID_PATH',
    403: 'ACCESS_REFUSED',
    404: 'NOT_FOUND',
    405: 'RESOURCE_LOCKED',
    406: 'PRECONDITION_FAILED',
    501: 'FRAME_ERROR',
    502: 'SYNTAX_ERROR',
    503: 'COMMAND_INVALID',
    504: 'CHANNEL_ERROR',
    505: 'UNEXPECTED_FRAME',
    506: 'RESOURCE_ERROR',
    530: 'NOT_ALLOWED',
    540: 'NOT_IMPLEMENTED',
    541: 'INTERNAL_ERROR',
}

NO_ROUTE: Final = 312
CONNECTION_FORCED: Final = 320
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
RESOURCE_LOCKED: Final = 405
PRECONDITION_FAILED: Final = 406
FRAME_ERROR: Final = 501
SYNTAX_ERROR: Final = 502
COMMAND_INVALID: Final = 503
CHANNEL_ERROR: Final = 504
UNEXPECTED_FRAME: Final = 505
NOT_ALLOWED: Final = 530
NOT_IMPLEMENTED: Final = 540
INTERNAL_ERROR: Final = 541

_SOFT: Final = frozenset((311, 312, 313, 403, 404, 405, 406))
_LONGEST_TEXT: Final = 255


class Refusal(Exception):
    """A client asked for what it cannot have.

    :ivar code: the reply code
    :ivar text: the reply text as it travels: the code's name, a dash, the reason
    """

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        self.text = shorten(f'{NAMES[code]} - {reason}')
        super().__init__(self.text)

    @property
    def closes_connection(self) -> bool:
        """True for a hard error, False for one that costs only the channel."""
        return self.code not in _SOFT


def shorten(text: str) -> str:
    """Return a text that fits into a short string, cut as RabbitMQ cuts it."""
    encoded = text.encode('utf-8', 'replace')
    if len(encoded) <= _LONGEST_TEXT:
        return encoded.decode()
    return encoded[: _LONGEST_TEXT - 3].decode('utf-8', 'ignore') + '...'
