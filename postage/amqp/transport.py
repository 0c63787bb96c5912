"""The fast lane's way through pika: who sends, who reads, and where pika's connection is opened up for it.

pika's connection lives on an I/O thread: its loop, timers, heartbeats and channel methods. Beside it

* **any thread sends**: ready frames go out by a handle of our own on the socket, under :attr:`WireConnection.writing`,
  as long as nothing waits in pika's transport; all that pika sends passes the same lock, and so keeps its place. What
  the socket does not take is left to the I/O thread.
* **a thread that waits reads**: while a scheduler, or the caller of an RPC, waits for what this connection brings, it
  may read the socket in the I/O thread's place, which saves the time it takes to wake one thread by another. It acts
  on what is the lanes', and hands every other frame to the I/O thread. See :mod:`postage.amqp.waiting`.

Neither is done with TLS, for which only one thread may touch the connection.

The seam: of pika's connection, ``_proto_connection_made``, ``_proto_connection_lost``, ``_proto_data_received``,
``_output_marshaled_frames`` and ``_terminate_stream`` are overridden, and ``_on_data_available`` is called; of its
transport, ``_sock`` is used. The byte and frame counters that pika's heartbeats look at are kept. A test holds each of
these names for every pika that is supported; where one is absent, :mod:`postage.amqp.fallback` does without.
"""

from __future__ import annotations

import functools
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import pika
import pika.channel
import pika.exceptions

from postage.amqp.fallback import PublicConnection
from postage.amqp.io_services import IOServices
from postage.amqp.wire import Cutter, Lane
from postage.settings import FastLane

logger = logging.getLogger('postage.amqp')

READ_SIZE = 64 * 1024  # bytes that one read takes at most
PATIENCE = 1.0  # seconds that the end of a connection waits for the thread that reads it


class Reader(Protocol):
    """A thread that may read in the I/O thread's place."""

    def ring(self) -> None:
        """Have it return from its wait. Any thread."""


SEAM = (
    '_on_data_available',
    '_output_marshaled_frames',
    '_proto_connection_lost',
    '_proto_connection_made',
    '_proto_data_received',
    '_terminate_stream',
)
"""What has to be there of pika's connection."""


@functools.lru_cache  # and so it is said once
def connection_class(fast_lane: FastLane) -> type[PublicConnection]:
    """The class of connection for that much of the fast lane, or for what this pika allows of it."""
    if fast_lane is FastLane.OFF:
        return PublicConnection
    missing = [name for name in SEAM if not hasattr(pika.SelectConnection, name)]
    if missing:
        logger.warning(
            "pika %s has no %s: messages take pika's own, slower way, and one whose headers pika cannot decode costs "
            'the connection; a newer Postage may know this pika',
            pika.__version__,
            ', '.join(missing),
        )
        return PublicConnection
    return WireConnection


class WireConnection(PublicConnection):
    """pika's connection with the fast lane in it. Created on the I/O thread.

    :param fast_lane: how much of it is used, see :class:`postage.settings.FastLane`
    :param services: pika's way to sockets, the ``custom_ioloop``
    :ivar reading: held by :attr:`reader` while it waits and reads
    :ivar reader: who reads in the I/O thread's place; changed by the I/O thread alone
    :ivar may_be_read_elsewhere: whether somebody may
    :ivar number: of our own handle on the socket, by which the reader waits
    :ivar read_at: when something was last read, on the monotonic clock
    """

    may_be_read_elsewhere = False
    returns_after_cancel = False

    def __init__(self, *args: Any, fast_lane: FastLane, services: IOServices, **kwds: Any) -> None:
        self.reading = threading.Lock()
        self.reader: Reader | None = None
        self._is_direct = fast_lane.sends_directly
        self._is_shareable = fast_lane.waiting_thread_reads
        self._stream: Any = None  # pika's transport
        self._socket: socket.socket | None = None  # our own handle; none with TLS
        self.number = -1
        self._number_in_loop = -1  # of pika's handle
        self._leftover: deque[bytes] = deque()  # what the socket did not take, on its way to pika's transport
        self._handed_over: deque[bytes] = deque()  # frames that the reader has met, on their way to pika
        self._is_ending = False
        self._is_spent = False  # whoever reads has met its end
        self._is_asked = False
        self.read_at = 0.0
        super().__init__(*args, services=services, **kwds)
        self._cutter = Cutter(self.lanes, self._pass_on)

    # Channels

    def open_lane(self, number: int, lane: Lane, channel: pika.channel.Channel) -> None:
        """Have what comes for a channel brought to its lane."""
        self.lanes[number] = lane

    def on_message(self, lane: Lane) -> Callable[..., None]:
        """What pika is to call with each delivery: it never gets one."""
        return _nothing

    def on_confirm(self, lane: Lane) -> Callable[[Any], None]:
        """What pika is to call with each confirm: it never gets one."""
        return _nothing

    # Coming and going, on the I/O thread

    def _proto_connection_made(self, transport: Any) -> None:
        self._stream = transport
        sock = getattr(transport, '_sock', None)
        if self._is_direct and isinstance(sock, socket.socket) and not isinstance(sock, ssl.SSLSocket):
            self._socket, self._number_in_loop = sock.dup(), sock.fileno()
            self.number = self._socket.fileno()
            self.sends_directly, self.may_be_read_elsewhere = True, self._is_shareable
            self._services.set_reader(self._number_in_loop, self._on_readable)
        super()._proto_connection_made(transport)

    def _proto_connection_lost(self, error: BaseException | None) -> None:
        with self.writing:
            self.is_lost = True
        self.may_be_read_elsewhere = False
        if self.reader is not None:
            self.reader.ring()
        # What is read from now on would be taken for the next connection's.
        has_left = self.reading.acquire(timeout=PATIENCE)
        self.reader = None
        self.lanes.clear()  # for a reader who is late all the same
        if has_left:
            self.reading.release()
        sock, self._socket = self._socket, None
        if sock is not None:
            self._services.remove_reader(self._number_in_loop)
            sock.close()
        self._stream = None
        super()._proto_connection_lost(error)

    def _terminate_stream(self, error: Exception | None) -> None:
        self._is_ending = True
        super()._terminate_stream(error)

    def fail(self, error: Exception) -> None:
        """Give up the connection without a word to the broker. On the I/O thread; the first reason counts."""
        if not self._is_ending and not self.is_lost:
            self._terminate_stream(error)

    def fail_soon(self, error: Exception) -> None:
        """The same from any thread. Nothing is read any more."""
        self.may_be_read_elsewhere, self._is_spent = False, True
        self.ioloop.add_callback_threadsafe(functools.partial(self.fail, error))

    def abandon(self) -> None:
        """Give up this process's share of the socket without a word to the broker: for a forked child."""
        for sock in (self._socket, getattr(self._stream, '_sock', None)):
            if sock is not None:
                sock.close()

    # Sending

    @property
    def backlog(self) -> int:
        """Bytes that wait here because the broker does not read them."""
        if self._stream is None:
            return 0
        leftover = sum(map(len, list(self._leftover))) if self._leftover else 0
        return int(self._stream.get_write_buffer_size()) + leftover

    def write(self, data: bytes) -> None:
        """Send ready frames, in order with whatever pika sends. By the holder of :attr:`writing`."""
        self.bytes_sent += len(data)
        self.frames_sent += 1
        if self._socket is None:
            self._stream.write(data)
            return
        if not self.backlog:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                lost = pika.exceptions.StreamLostError(f'Stream connection lost: {error!r}')
                self.ioloop.add_callback_threadsafe(functools.partial(self.fail, lost))
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._leftover.append(data)
        if len(self._leftover) == 1:
            self.ioloop.add_callback_threadsafe(self._write_leftover)

    def _write_leftover(self) -> None:
        with self.writing:
            while self._leftover:
                if self._stream is not None:
                    self._stream.write(self._leftover[0])
                self._leftover.popleft()

    def _output_marshaled_frames(self, marshaled_frames: Any) -> None:
        """Send what pika has to send."""
        with self.writing:
            if not self.is_lost:
                self.write(b''.join(marshaled_frames))

    # Reading

    def read(self) -> Exception | None:
        """Read what has come and act on it. By the I/O thread, or the reader. Returns why it is the end, if it is."""
        sock = self._socket
        if sock is None:
            return None  # it was lost in that very moment
        self.read_at = time.monotonic()
        try:
            data = sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            return pika.exceptions.StreamLostError(f'Stream connection lost: {error!r}')
        if not data:
            return pika.exceptions.StreamLostError('Transport indicated EOF')
        return self._cut(data)

    def _cut(self, data: bytes) -> Exception | None:
        try:
            taken, frames = self._cutter.cut(data)
        except Exception as error:  # it would end the loop, and with it the thread
            logger.exception('what the broker sent could not be read; the connection is given up')
            return error
        self.bytes_received += taken
        self.frames_received += frames
        return None

    def _on_readable(self) -> None:
        """There is something to be read, and nobody else to do it."""
        if not (self._is_ending or self._is_spent):
            error = self.read()
            if error is not None:
                self.fail(error)

    def _proto_data_received(self, data: bytes) -> None:
        """Cut what pika's transport has read, with TLS."""
        error = self._cut(data)
        if error is not None:
            self.fail(error)

    def _pass_on(self, data: bytes) -> None:
        """Give a frame to pika, which is at home on the I/O thread; after those that are on their way to it."""
        if self.is_lost:
            return  # to a late reader
        if self.reader is None and not self._handed_over:
            self._on_data_available(data)
        else:
            self._handed_over.append(data)
            self.ioloop.add_callback_threadsafe(self._feed)

    def _feed(self) -> None:
        """Give pika the next of the frames that were handed over."""
        data = self._handed_over.popleft()
        if self.is_lost:
            return
        try:
            self._on_data_available(data)
        except Exception as error:
            logger.exception('what the broker sent could not be read; the connection is given up')
            self.fail(error)

    # Who reads

    @property
    def is_lent(self) -> bool:
        """Whether somebody else reads, or will as soon as the I/O thread gets round to it."""
        return self.reader is not None or self._is_asked

    def ask_to_read(self, reader: Reader) -> None:
        """Ask the I/O thread to leave reading to somebody, who is rung when it does. Any thread."""
        if not self._is_asked:
            self._is_asked = True
            self.ioloop.add_callback_threadsafe(functools.partial(self._grant, reader))

    def _grant(self, reader: Reader) -> None:
        self._is_asked = False
        if self.reader is None and self.may_be_read_elsewhere and self.is_open and not self._is_ending:
            self._services.remove_reader(self._number_in_loop)
            self.reader = reader
            reader.ring()

    def take_back(self) -> None:
        """Read again, unless the reader is at it, who does this himself when he leaves. On the I/O thread."""
        if self.reader is not None and self.reading.acquire(blocking=False):
            self.reader = None
            self.reading.release()
            if self._socket is not None and not (self._is_ending or self._is_spent or self.is_lost):
                self._services.set_reader(self._number_in_loop, self._on_readable)


def _nothing(*_: object) -> None:
    """For what the lane does itself."""
