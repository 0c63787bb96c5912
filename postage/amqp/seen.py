"""A message as a test sees it: decoded when it is looked at, not when it passes."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import pika

from postage.amqp import frames
from postage.printable import shown_half_built


class SeenMessage:
    """What was published, where to, and with which properties.

    :ivar exchange: the exchange that it was published to
    :ivar routing_key: the key that it was published with
    :ivar raw: the body's bytes
    """

    def __init__(self, exchange: str, routing_key: str, raw: bytes, properties: bytes) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.raw = raw
        self._encoded = properties

    @shown_half_built
    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.exchange!r} {self.routing_key!r} {self.body!r}>'

    @cached_property
    def body(self) -> Any:
        """The body: what its JSON stands for, or else its text, or else its bytes."""
        try:
            text = self.raw.decode()
        except UnicodeDecodeError:
            return self.raw
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    @cached_property
    def properties(self) -> pika.BasicProperties:
        """The AMQP properties.

        :raises postage.errors.DecodingError: where the publisher sent what cannot be decoded
        """
        return frames.decode_properties(self._encoded)

    @property
    def headers(self) -> dict[str, Any]:
        """The headers, empty where there are none.

        :raises postage.errors.DecodingError: as :attr:`properties` does
        """
        return self.properties.headers or {}
