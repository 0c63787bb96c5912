"""Where the consumer of a stream is.

A stream keeps its messages; its consumer says from which one on, and the broker remembers nothing of it. So it is
remembered here, while the program runs: after a loss it goes on with the oldest message that is not handled.

https://www.rabbitmq.com/docs/streams
"""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any, Final

from postage.printable import shown

OFFSET: Final = 'x-stream-offset'
"""Of ``basic.consume``: where to begin. In the headers of a delivery: which message it is."""

WORDS: Final = ('first', 'last', 'next')


def check_offset(offset: Any) -> None:
    """Refuse what is no offset. Earlier versions of RabbitMQ end the whole connection for it (541).

    :raises ValueError: naming what there is
    """
    if isinstance(offset, datetime):
        if offset.tzinfo is None:
            raise ValueError(f'the time {offset} has no time zone')
    elif offset not in WORDS and (isinstance(offset, bool) or not isinstance(offset, int) or offset < 0):
        raise ValueError(f'an offset is {", ".join(map(repr, WORDS))}, a number or a time, not {shown(offset)}')


class Position:
    """How far a stream has been handled. Any thread."""

    def __init__(self) -> None:
        # Deliveries are noted by the thread that reads, settled by any, and the I/O thread asks where to go on.
        self._lock = threading.Lock()
        self._unhandled: set[int] = set()
        self._highest = -1
        self._is_anew = False

    def delivered(self, offset: int) -> None:
        """A message was delivered."""
        with self._lock:
            self._unhandled.add(offset)
            self._highest = max(self._highest, offset)

    def handled(self, offset: int) -> None:
        """It need not be delivered again."""
        with self._lock:
            self._unhandled.discard(offset)

    def start_over(self) -> None:
        """The stream is another one: all that is in it is new."""
        with self._lock:
            self._unhandled.clear()
            self._highest = -1
            self._is_anew = True

    def where_from(self, asked: Any) -> Any:
        """Where to begin now.

        :param asked: where to begin as long as nothing was delivered; ``None`` for the broker's choice
        """
        with self._lock:
            if self._unhandled:
                return min(self._unhandled)
            if self._highest >= 0:
                return self._highest + 1
            return 'first' if self._is_anew else asked
