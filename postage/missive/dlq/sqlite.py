"""A dead letter queue in a SQLite file."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Final, cast

from postage import errors
from postage.amqp.deliveries import Delivery
from postage.dead_letters import SQLiteDeadLetters
from postage.dead_letters.store import Selection, StoredLetter
from postage.messaging.letters import DeadLetter
from postage.messaging.properties import Properties, as_plain, from_plain, original
from postage.missive.messages import Message, RawMessage, UnreadableMessage
from postage.printable import class_path_of, shown_half_built

HEX: Final = 'hex:'  # before a message id that is not plain text


class SQLiteDLQ(MutableMapping[bytes, tuple[Message, str]]):
    """The SQLite store of ``postage.dead_letters`` as a mapping: ``dlq[message_id]`` is ``(message, reason)``.

    What was assigned is on the disk. Safe for several threads and processes; the command ``postage dead-letters`` reads
    the same file. Its order is that in which the letters came, oldest first.

    :param path: the file, which is made where it does not exist; ``connection_str`` is another name for it
    :param message_cls: makes the messages that are read, out of their bytes
    :param timeout: seconds to wait for another process that is writing
    :param max_bytes: how large the file may become; then it is full, and takes no more letters
    :raises errors.StoreError: by every operation, where the file is full, locked or no such store

    :ivar letters: the store behind it
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        message_cls: Callable[[bytes], Message] = RawMessage,
        timeout: float = 5.0,
        max_bytes: int | None = None,
        *,
        connection_str: str | os.PathLike[str] | None = None,
    ) -> None:
        if path is None:
            path, connection_str = connection_str, None
        if path is None or connection_str is not None:
            raise errors.ConfigurationError('SQLiteDLQ needs the path of its file, once')
        self.letters = SQLiteDeadLetters(path, timeout=timeout, max_bytes=max_bytes)
        self.message_cls = message_cls

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.letters.path}>'

    def __getitem__(self, message_id: bytes) -> tuple[Message, str]:
        found = list(self.letters.letters(_of(message_id)))
        if not found:
            raise KeyError(message_id)
        return self._value(found[-1])

    def __setitem__(self, message_id: bytes, value: tuple[Message, str]) -> None:
        message, reason = value
        self.letters.replace(_letter(message_id, message, reason))

    def __delitem__(self, message_id: bytes) -> None:
        if not self.letters.delete(_of(message_id)):
            raise KeyError(message_id)

    def __iter__(self) -> Iterator[bytes]:
        # A set in order: messages from several queues may share an id, in a file that has other letters, too.
        return iter(dict.fromkeys(_id(stored) for stored in self.letters.letters()))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, message_id: object) -> bool:
        return isinstance(message_id, bytes) and self.letters.count(_of(message_id)) > 0

    def clear(self) -> None:
        """Delete all letters."""
        self.letters.delete()

    def oldest(self) -> tuple[Message, str, datetime]:
        """The message that has been there longest, the reason, and since when. One that is stored again counts as new.

        :raises KeyError: there is none
        """
        for stored in self.letters.letters(limit=1):
            return *self._value(stored), datetime.fromtimestamp(stored.letter.died_at, timezone.utc)
        raise KeyError('there is no dead letter')

    def close(self) -> None:
        """Close the file. It is opened again where it is used after all."""
        self.letters.close()

    def __enter__(self) -> SQLiteDLQ:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _value(self, stored: StoredLetter) -> tuple[Message, str]:
        letter = stored.letter
        message: Any
        try:
            message = self.message_cls(letter.body)
        except Exception as error:  # it may be here because it cannot be read
            message = UnreadableMessage(letter.body, error)
        message.message_id = _id(stored)
        message.headers = dict(from_plain(letter.properties).headers or {})
        return message, letter.message


def _letter(message_id: bytes, message: Message, reason: str) -> DeadLetter:
    """A message as a dead letter, with all that a replay needs where it came from a broker."""
    now = time.time()
    delivery = message.delivery if isinstance(message.delivery, Delivery) else None
    # A message that is stored because of an exception is stored while that exception is handled.
    error = sys.exc_info()[1]
    return DeadLetter(
        body=message.raw_data,
        properties={**_properties(message, delivery), 'message_id': _as_text(message_id)},
        queue=delivery.queue if delivery is not None else '',
        exchange=delivery.exchange if delivery is not None else '',
        routing_key=delivery.routing_key if delivery is not None else '',
        reason='exception' if error is not None else 'rejected',
        exception='' if error is None else class_path_of(error),
        message=reason,
        traceback=''.join(traceback.format_exception(error)) if error is not None else '',
        attempts=1,
        first_attempt_at=now,
        died_at=now,
        is_repeated=delivery.redelivered if delivery is not None else False,
    )


def _properties(message: Message, delivery: Delivery | None) -> dict[str, Any]:
    try:
        if delivery is not None:
            return as_plain(original(delivery.properties))
        return as_plain(Properties(headers=_plain(message.headers)))  # type: ignore[no-untyped-call]
    except errors.DecodingError:
        return {}


def _plain(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers of any transport, so that JSON can hold them."""
    return cast('dict[str, Any]', json.loads(json.dumps(dict(headers), default=str)))


def _of(message_id: bytes) -> Selection:
    return Selection(message_id=_as_text(message_id))


def _as_text(message_id: bytes) -> str:
    """A message id as the text that AMQP and the store want; those of RabbitMQ stay as they are."""
    if message_id.isascii():
        text = message_id.decode('ascii')
        if text.isprintable() and not text.startswith(HEX):
            return text
    return HEX + message_id.hex()


def _id(stored: StoredLetter) -> bytes:
    text = stored.letter.message_id
    return bytes.fromhex(text[len(HEX) :]) if text.startswith(HEX) else text.encode()
