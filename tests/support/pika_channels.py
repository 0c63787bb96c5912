"""What stands for pika's channels, and for the link and the connection round them, so that a test plays the broker."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pika.exceptions
import pika.frame
import pika.spec

from postage.amqp.channel import Channel
from postage.amqp.server import UNKNOWN
from postage.amqp.states import Standing
from postage.amqp.steps import Drive
from postage.amqp.tick import Tick
from support.loops import StepLoop


class Call:
    """A method that was called on a channel, and is to be answered.

    :ivar what: the method's name, with the arguments
    """

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.callback: Callable[..., Any] | None = arguments.pop('callback', None)
        self.arguments = arguments
        self.what = ' '.join([name, *(str(value) for value in arguments.values())])

    def answer(self, result: Any = 'ok') -> None:
        """Play the broker that answers it."""
        assert self.callback is not None
        self.callback(result)

    def __repr__(self) -> str:
        return self.what


class PikaChannel:
    """What stands for one of pika's channels.

    :ivar calls: what was called on it, oldest first
    """

    def __init__(self, number: int, on_open: Callable[[Any], Any]) -> None:
        self.channel_number = number
        self.is_open = False
        self._is_closing = False
        self.consumer_tags: list[str] = []
        self.calls: list[Call] = []
        self._on_open = on_open
        self._on_close: list[Callable[..., Any]] = []

    def opened(self) -> None:
        """Play the broker that has opened it."""
        self.is_open = True
        self._on_open(self)

    def closed(self, reason: BaseException) -> None:
        """Play the end of it."""
        self.is_open = False
        for callback in self._on_close:
            callback(self, reason)

    def refuse(self, code: int = 404, text: str = 'NOT_FOUND - refused') -> None:
        """Play the broker that refuses the method under way, which closes the channel."""
        self.closed(pika.exceptions.ChannelClosedByBroker(code, text))

    def add_on_close_callback(self, callback: Callable[..., Any]) -> None:
        self._on_close.append(callback)

    def add_on_cancel_callback(self, callback: Callable[..., Any]) -> None: ...
    def add_callback(self, callback: Callable[..., Any], replies: Any, one_shot: bool) -> None: ...

    def basic_cancel(self, consumer_tag: str, callback: Callable[..., Any] | None = None) -> None:
        self._call('basic_cancel', consumer_tag=consumer_tag, callback=callback)

    def close(self) -> None:
        self._is_closing = True
        self.calls.append(Call('close', {}))

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith('__'):
            raise AttributeError(name)
        return functools.partial(self._call, name)

    def _call(self, name: str, **arguments: Any) -> None:
        if self._is_closing:
            raise pika.exceptions.ChannelWrongStateError('Channel is closing.')
        self.calls.append(Call(name, arguments))


class Link:
    """What stands for a link: it gives channels.

    :ivar channels: all that it has given
    """

    is_open = True
    is_lost = False
    is_direct = True
    frame_max = 131072

    def __init__(self) -> None:
        self.channels: list[PikaChannel] = []
        self.lanes: dict[int, Any] = {}
        self.writing = threading.RLock()

    def channel(self, on_open_callback: Callable[[Any], Any]) -> PikaChannel:
        self.channels.append(PikaChannel(len(self.channels) + 1, on_open_callback))
        return self.channels[-1]

    def lose(self) -> None:
        """Play the loss of the connection."""
        self.is_open = False
        for channel in self.channels:
            if channel.is_open or not channel.calls:
                channel.closed(pika.exceptions.StreamLostError('cut'))


class Outbox:
    """What stands for an outbox, and never sends."""

    def submit(self, sender: Channel) -> None: ...
    def flush(self) -> None: ...


class Host:
    """What stands for a connection, of which the present thread is the I/O thread.

    :ivar told: the work that was told and not been done
    """

    heartbeat = 0.0
    server = UNKNOWN

    def __init__(self) -> None:
        self.link: Any = Link()
        self.outbox: Any = Outbox()
        self.told: list[Callable[[], Any]] = []
        loop = StepLoop()
        self.tick = Tick(loop, loop.add_callback_threadsafe)
        self.standing = Standing('here')

    def tell(self, work: Callable[[], Any]) -> None:
        self.told.append(work)

    def do_what_was_told(self) -> None:
        told, self.told = self.told, []
        for work in told:
            steps = work()
            if steps is not None:
                Drive(steps)

    def awaited(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @property
    def pika_channel(self) -> PikaChannel:
        """The channel that was asked for last."""
        channel: PikaChannel = self.link.channels[-1]
        return channel

    def pause(self, seconds: float) -> Future[None]:
        paused: Future[None] = Future()
        paused.set_result(None)
        return paused
