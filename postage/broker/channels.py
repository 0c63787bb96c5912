"""The channels of one connection: opened, found, closed, and their confirms gathered."""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pika import amqp_object, spec

from postage.broker.channel import Channel, State
from postage.broker.client import Client
from postage.broker.limits import Tally
from postage.broker.replies import CHANNEL_ERROR, NOT_ALLOWED, Refusal

CHANNEL_MAX: Final = 2047  # RabbitMQ's default


class Channels:
    """The channels of a connection, by number.

    :param send: sends a method on a channel
    :ivar most: how many there may be, as agreed with the client
    """

    def __init__(self, client: Client, send: Callable[[int, amqp_object.Method], None]) -> None:
        self.most = CHANNEL_MAX
        self._client = client
        self._send = send
        self._all: dict[int, Channel] = {}
        self._confirming: dict[int, None] = {}

    @property
    def open(self) -> list[Channel]:
        """Those that are open."""
        return [channel for channel in self._all.values() if channel.state is State.OPEN]

    def get(self, number: int) -> Channel | None:
        """Return the one of that number, which may be closing."""
        return self._all.get(number)

    def receive(self, number: int, method: Any) -> None:
        """Take a method that is about the life of a channel, or a frame (``None``) that finds no open one.

        :raises Refusal: 504 and 530
        """
        channel = self._all.get(number)
        if channel is None:
            self._open(number, method)
        elif isinstance(method, spec.Channel.Close):
            self._close(channel)
        elif isinstance(method, spec.Channel.CloseOk):
            # Without a Close before it, it is ignored.
            if channel.state is State.CLOSING:
                self._forget(number)
        elif isinstance(method, spec.Channel.Open) and channel.state is State.OPEN:
            raise Refusal(CHANNEL_ERROR, "second 'channel.open' seen")

    def _open(self, number: int, method: Any) -> None:
        if isinstance(method, spec.Channel.CloseOk):
            return
        if not isinstance(method, spec.Channel.Open):
            raise Refusal(CHANNEL_ERROR, "expected 'channel.open'")
        if len(self._all) >= self.most:
            opened = f'number of channels opened ({len(self._all)})'
            raise Refusal(NOT_ALLOWED, f'{opened} has reached the negotiated channel_max ({self.most})')
        tally, limit = self._tally, self._client.shared.limits.channels
        if tally.count >= limit:
            opened = f'number of channels opened on node ({tally.count})'
            raise Refusal(NOT_ALLOWED, f'{opened} has reached the maximum allowed limit of ({limit})')
        self._all[number] = Channel(self._client, number)
        tally.count += 1
        self._send(number, spec.Channel.OpenOk())

    @property
    def _tally(self) -> Tally:
        return self._client.shared.channels

    def _close(self, channel: Channel) -> None:
        """The client closes a channel; one that this side is closing waits for its CloseOk all the same."""
        if channel.state is State.OPEN:
            channel.flush_confirms()
            channel.end()
            self._forget(channel.number)
        self._send(channel.number, spec.Channel.CloseOk())

    def _forget(self, number: int) -> None:
        del self._all[number]
        self._tally.count -= 1

    def published(self, number: int) -> None:
        """Hear of a message; confirms are sent once all that arrived together is done, as one may stand for many."""
        self._confirming[number] = None

    def flush_confirms(self) -> None:
        """Confirm what was published since the last time."""
        if self._confirming:
            for number in self._confirming:
                if number in self._all:
                    self._all[number].flush_confirms()
            self._confirming.clear()

    def resume(self) -> None:
        """Deliver again, as there is room for it."""
        for channel in list(self._all.values()):
            channel.delivering.resume()

    def end(self) -> None:
        """Give back what they hold."""
        channels = list(self._all.values())
        self._all.clear()
        self._tally.count -= len(channels)
        for channel in channels:
            channel.end()
