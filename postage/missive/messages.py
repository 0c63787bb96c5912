"""Messages as a handler sees them: the raw bytes, their ids, and the headers that came with them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from postage import errors
from postage.printable import shown_half_built


class Message:
    """One message. Subclasses add ways to read :attr:`raw_data`.

    Messages with the same id are equal, and hash alike.

    :param raw_data: the bytes that travelled
    :param message_id: its id; a new random one where the transport knows none
    :param headers: what the transport delivered with it, such as AMQP or HTTP headers

    :ivar delivery: the transport's own object for it, such as Postage's ``Delivery``; ``None`` where it has none
    """

    delivery: Any = None

    def __init__(
        self, raw_data: bytes, message_id: bytes | None = None, headers: Mapping[str, Any] | None = None
    ) -> None:
        self.raw_data = raw_data
        self.message_id = message_id or uuid.uuid4().bytes
        self.headers: dict[str, Any] = dict(headers or {})

    def __eq__(self, other: object) -> bool:
        return self.message_id == other.message_id if isinstance(other, Message) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.message_id)

    @shown_half_built
    def __repr__(self) -> str:
        data = self.raw_data if len(self.raw_data) <= 60 else self.raw_data[:60] + b'...'
        return f'<{type(self).__name__} {self.message_id.hex()} {data!r}>'


M = TypeVar('M', bound=Message)


class RawMessage(Message):
    """A message that is read as bytes."""


class DictMessage(Message):
    """A message that a function makes a dictionary of.

    An adapter makes messages from their bytes alone, so give it ``functools.partial(DictMessage, decoder=…)``, or a
    subclass whose constructor names the decoder.

    :param decoder: makes a dictionary out of the bytes
    """

    def __init__(
        self,
        raw_data: bytes,
        decoder: Callable[[bytes], dict[str, Any]],
        message_id: bytes | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(raw_data, message_id, headers)
        self.decoder = decoder
        self._contents: dict[str, Any] | None = None

    def contents(self) -> dict[str, Any]:
        """The decoded message. It is decoded once; several calls return the same dictionary.

        :raises Exception: whatever the decoder raises
        """
        if self._contents is None:
            self._contents = self.decoder(self.raw_data)
        return self._contents


_NOT_YET: Any = object()


class JSONMessage(Message):
    """A message that is JSON."""

    _json: Any = _NOT_YET

    def get_json(self) -> Any:
        """The decoded message. It is decoded once; several calls return the same object.

        :raises errors.DecodingError: where it is not JSON
        """
        if self._json is _NOT_YET:
            try:
                self._json = json.loads(self.raw_data)
            except (ValueError, RecursionError) as error:
                raise errors.DecodingError(f'{self!r} is not JSON: {error}') from error
        return self._json


class UnreadableMessage(RawMessage):
    """Stands for data of which no message could be made. Handling it fails with the reason.

    :ivar error: what the constructor of the message class raised
    """

    def __init__(self, raw_data: bytes, error: Exception) -> None:
        super().__init__(raw_data)
        self.error = error
