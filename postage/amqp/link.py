"""One socket to the broker, under pika: what is written to it and what is read from it.

pika's connection lives on an I/O thread: its loop, timers, heartbeats and channel methods. There are two ways through,
chosen by what is possible:

* **Direct**, with a plain socket on Linux. Any thread sends: ready frames go out by a handle of our own on the socket,
  under :attr:`Link.writing`, as long as nothing waits in pika's transport; all that pika sends passes the same lock,
  and so keeps its place. What the socket does not take is left to the I/O thread. And a thread that waits may read the
  socket in the I/O thread's place: see :class:`Turn`, and :mod:`postage.amqp.turns` for how they wait.
* **Through the I/O thread**, with TLS, where one thread alone may touch the connection, and elsewhere.

The seam: of pika's connection, the methods in :data:`SEAM` are overridden or called; of its transport, ``_sock`` is
used. The byte and frame counters that pika's heartbeats look at are kept. A test holds each of these names for every
release of pika that is supported; with another one the import fails and says so.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import pika
import pika.exceptions
from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

from postage.amqp.cutter import DEFAULT_BODY_MAX, Cutter, Lane, unreadable
from postage.amqp.frames import FRAME_HEAD, FRAME_MIN
from postage.amqp.server import UNKNOWN, Server, server_of

logger = logging.getLogger('postage.amqp')

READ_SIZE = 64 * 1024  # bytes that one read takes at most
PATIENCE = 1.0  # seconds that the end of a link waits for the thread that reads it
CAN_READ = hasattr(os, 'eventfd') and hasattr(select, 'poll')  # another thread than its own: on Linux
FRAMES_FOR_PIKA = 10_000  # that wait for the I/O thread at most; answers to operations, and there are never so many
WATCH_SHARE = 0.95  # of two heartbeats, so that a silent connection is given up within them

SEAM = (
    '_on_data_available',
    '_output_marshaled_frames',
    '_proto_connection_lost',
    '_proto_connection_made',
    '_proto_data_received',
    '_terminate_stream',
)
"""What has to be there of pika's connection."""


def check_pika(version: str, connection_class: type) -> None:
    """See that this release of pika is one that the way to the broker was tried with.

    :raises ImportError: where it is not
    """
    missing = [name for name in SEAM if not hasattr(connection_class, name)]
    if missing or tuple(map(int, version.split('.')[:2])) not in ((1, 4), (1, 5)):
        lacks = f', which has no {", ".join(missing)}' if missing else ''
        raise ImportError(f'Postage works with pika 1.4 and 1.5, and this is pika {version}{lacks}')


check_pika(pika.__version__, pika.SelectConnection)


class Services(SelectorIOServicesAdapter):
    """pika's way to sockets. Reports to pika every way in which an attempt to connect can end.

    A broker that is being started or stopped, and a proxy without one, take a connection and reset it at once. Where
    the reset comes before pika has asked for the peer's name, pika raises from its own callback and tells its
    connection nothing: the attempt would last until its time-out, 15 seconds by default.
    """

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: Any,
        on_done: Callable[[Any], None],
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> Any:
        """Return a handle with ``cancel()``; `on_done` gets the transport and the protocol, or what went wrong."""
        try:
            return super().create_streaming_connection(protocol_factory, sock, on_done, ssl_context, server_hostname)
        except ValueError as error:
            failure = ConnectionResetError(f'the connection was reset as soon as it was made: {error}')
            return self.call_later(0, lambda: on_done(failure))


class FrameMaxRefused(Exception):
    """Why a link is given up whose frames would be too small for the broker."""


class Reader(Protocol):
    """What a thread waits by that may read in the I/O thread's place."""

    def ring(self) -> None:
        """Have the thread return from its wait. Any thread."""


class Holder(enum.Enum):
    """Which thread has the turn to read a link."""

    IO_THREAD = 'the I/O thread: its loop watches the socket'
    ASKED = 'the I/O thread still; a waiting thread has asked it for the turn'
    LENT = 'a waiting thread: the loop does not watch the socket'


class Turn:
    """Whose turn it is to read one link.

    ::

                    ask (waiting thread)           grant (I/O thread)
        IO_THREAD ───────────────────────▶ ASKED ────────────────────▶ LENT
            ▲                                                           │
            └───────────────────── take_back (I/O thread) ──────────────┘

    until :attr:`is_over` is set, by any thread and for good; in every state that stops the reading.

    What always holds, and why a look at a lock and a field is enough to know which thread reads:

    1. Bytes are read and cut by one thread at a time: in IO_THREAD and ASKED by the I/O thread; in LENT by the thread
       whose alarm is :attr:`reader`, and only while it holds :attr:`lock`.
    2. The I/O thread alone changes :attr:`reader`. It takes a reader away only while it holds :attr:`lock` itself, so
       never while that thread reads. The reading thread takes the lock first and looks at :attr:`reader` after that:
       what it sees holds until it lets go.
    3. In LENT no thread reads while the one with the turn works on what it has read. The tick bounds that: a turn whose
       thread did not come back between two ticks is taken back. A thread that waits for the same link has it taken
       back at once.
    4. Frames that the reading thread meets for pika are queued, and fed to pika by the I/O thread in order; the I/O
       thread itself feeds pika directly only when that queue is empty.
    5. Before the I/O thread forgets a lost link it waits for the lock, for :data:`PATIENCE`: what a thread still reads
       must not reach the channels of the next link.

    :param call_soon: calls back on the I/O thread
    :param set_loop_reads: has the loop watch the socket, or not; on the I/O thread
    :ivar lock: held by the reading thread while it waits and reads. It is re-entrant, so that a thread which Ctrl-C
        took out of its wait between the taking and the noting of it does not wait for itself.
    """

    def __init__(self, call_soon: Callable[[Callable[[], Any]], None], set_loop_reads: Callable[[bool], None]) -> None:
        self._call_soon = call_soon
        self._set_loop_reads = set_loop_reads
        self.lock = threading.RLock()
        self.holder = Holder.IO_THREAD
        self.reader: Reader | None = None
        self.is_over = False

    def ask(self, reader: Reader) -> None:
        """Ask the I/O thread to leave reading to a thread, whose alarm rings when it does. Any thread."""
        if self.holder is Holder.IO_THREAD:
            # Where two threads get here together, the I/O thread grants the first and passes over the second.
            self.holder = Holder.ASKED
            self._call_soon(functools.partial(self._grant, reader))

    def _grant(self, reader: Reader) -> None:
        if self.holder is Holder.ASKED and not self.is_over:
            self._set_loop_reads(False)
            self.reader = reader
            self.holder = Holder.LENT
            reader.ring()

    def take_back(self) -> None:
        """Have the I/O thread read again; where a thread reads at this moment, it asks for that as it ends its wait.

        On the I/O thread.
        """
        if self.holder is Holder.ASKED:
            self.holder = Holder.IO_THREAD  # Ctrl-C may have kept the question from being put; else it is passed over
        elif self.holder is Holder.LENT and not self.is_over and self.lock.acquire(blocking=False):
            self.reader = None
            self.holder = Holder.IO_THREAD
            self.lock.release()
            self._set_loop_reads(True)

    def await_end(self) -> None:
        """Have no thread read any more, and wait for the one that does. On the I/O thread."""
        self.is_over = True
        if self.reader is not None:
            self.reader.ring()
        if self.lock.acquire(timeout=PATIENCE):
            self.lock.release()
        self.reader = None


class Link(pika.SelectConnection):
    """pika's connection over one socket. Made on the I/O thread.

    :param services: pika's way to sockets, the ``custom_ioloop``
    :param is_direct: whether other threads may send and read, where the socket allows it
    :param body_max: bytes that a body may have
    :ivar lanes: the channels for which frames are cut here, by number
    :ivar writing: held by the thread that sends
    :ivar turn: whose turn it is to read; ``None`` where the I/O thread alone does
    :ivar number: of our own handle on the socket, by which a reading thread waits
    :ivar is_lost: whether it has gone; nothing may be sent any more
    :ivar is_direct: whether any thread may send; else the I/O thread alone
    :ivar server: the broker, once it has introduced itself
    :ivar frame_max: bytes that a frame may have
    :ivar heartbeat: seconds between heartbeats; 0 where there are none
    :ivar may_lag: whether bytes may be waiting here; where it is false none are. Guarded by :attr:`writing`
    :ivar read_at: when something was last read, on the monotonic clock; 0 where pika's transport reads
    :ivar reason: why it was given up, where pika does not know
    """

    def __init__(
        self, *args: Any, services: Services, is_direct: bool, body_max: int = DEFAULT_BODY_MAX, **kwds: Any
    ) -> None:
        self.lanes: dict[int, Lane] = {}
        self.writing = threading.Lock()
        self.turn: Turn | None = None
        self.number = -1
        self.is_lost = False
        self.is_direct = False
        self.server: Server = UNKNOWN
        self.frame_max, self.heartbeat = FRAME_MIN, 0.0
        self.may_lag = True
        self.read_at = 0.0
        self.reason: Exception | None = None
        self._may_be_direct = is_direct and CAN_READ
        self._services = services
        self._stream: Any = None  # pika's transport
        self._socket: socket.socket | None = None  # our own handle; none where it is not direct
        self._number_in_loop = -1  # of pika's handle
        self._leftover: deque[bytes] = deque()  # what the socket did not take, on its way to pika's transport
        self._for_pika: deque[bytes] = deque()  # frames that a reading thread has met
        self._is_ending = False
        self._next_look: Any = None  # the timer of watch_for_silence
        self._cutter = Cutter(self.lanes, self._pass_on, body_max)
        super().__init__(*args, custom_ioloop=services, **kwds)  # type: ignore[misc]

    # Coming and going, on the I/O thread

    def note_agreement(self) -> None:
        """Note what was agreed with the broker, once the link is open."""
        self.frame_max = self._cutter.frame_max = int(self.params.frame_max)
        agreed = self.params.heartbeat
        self.heartbeat = float(agreed) if isinstance(agreed, int) else 0.0

    def _proto_connection_made(self, transport: Any) -> None:
        self._stream = transport
        sock = getattr(transport, '_sock', None)
        if self._may_be_direct and isinstance(sock, socket.socket) and not isinstance(sock, ssl.SSLSocket):
            self._socket, self._number_in_loop = sock.dup(), sock.fileno()
            self.number = self._socket.fileno()
            self.is_direct, self.may_lag = True, False
            self.turn = Turn(self.ioloop.add_callback_threadsafe, self._set_loop_reads)
            self._set_loop_reads(True)
        super()._proto_connection_made(transport)

    def _set_loop_reads(self, on: bool) -> None:
        if not on:
            self._services.remove_reader(self._number_in_loop)
        elif self._socket is not None:
            self._services.set_reader(self._number_in_loop, self._on_readable)

    def _proto_connection_lost(self, error: BaseException | None) -> None:
        with self.writing:
            self.is_lost = True
        if self.turn is not None:
            self.turn.await_end()
        self.lanes.clear()  # for a thread that reads late all the same
        if self._next_look is not None:
            # It would keep this object, and all that it has received, for as long as it pauses.
            self.ioloop.remove_timeout(self._next_look)
        sock, self._socket = self._socket, None
        if sock is not None:
            self._services.remove_reader(self._number_in_loop)
            sock.close()
        self._stream = None
        super()._proto_connection_lost(error)

    def _terminate_stream(self, error: Exception | None) -> None:
        self._is_ending = True
        if self.turn is not None:
            self.turn.is_over = True
        super()._terminate_stream(error)

    def fail(self, error: Exception) -> None:
        """Give up the connection without a word to the broker. On the I/O thread; the first reason counts."""
        if not self._is_ending and not self.is_lost:
            self._terminate_stream(error)

    def end(self) -> None:
        """Close it with a word to the broker; where it is not open yet, without. On the I/O thread."""
        if self.is_open or self._stream is None:
            self.close()
        else:
            # pika's own way out of a handshake fails at an assertion of pika's.
            self.fail(pika.exceptions.AMQPConnectionError('ended before it was open'))

    def fail_soon(self, error: Exception) -> None:
        """As :meth:`fail`, from any thread. Nothing is read any more."""
        if self.turn is not None:
            self.turn.is_over = True
        self.ioloop.add_callback_threadsafe(functools.partial(self.fail, error))

    def watch_for_silence(self, received: int = -1, since: float = 0.0) -> None:
        """Give up where nothing has come for two heartbeats; pika would wait for five seconds more. On the I/O thread.

        :param received: bytes at the look before
        :param since: when that number was first seen
        """
        self._next_look = None
        if not self.heartbeat or not self.is_open:
            return
        now = time.monotonic()
        if self.bytes_received != received or (self._socket is not None and self._has_unread(self._socket)):
            received, since = self.bytes_received, now
        patience = 2 * self.heartbeat * WATCH_SHARE - (now - since)
        if patience <= 0:
            self.fail(pika.exceptions.AMQPHeartbeatTimeout(f'nothing was received for {now - since:.3g} s'))
        else:
            pause = min(patience, self.heartbeat / 4)
            self._next_look = self.ioloop.call_later(pause, lambda: self.watch_for_silence(received, since))

    def abandon(self) -> None:
        """Give up this process's share of the socket without a word to the broker: for a forked child."""
        for sock in (self._socket, getattr(self._stream, '_sock', None)):
            if sock is not None:
                sock.close()

    # Sending

    @property
    def silence(self) -> float:
        """Seconds for which nothing has come; 0 where that is not known, or something waits to be read. Any thread."""
        sock = self._socket
        if sock is None or not self.read_at or self._has_unread(sock):
            return 0.0
        return time.monotonic() - self.read_at

    @staticmethod
    def _has_unread(sock: socket.socket) -> bool:
        """Whether something has come that no thread has read yet, its end included: then it is us who are late."""
        try:
            sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return False
        return True

    @property
    def backlog(self) -> int:
        """Bytes that wait here because the broker does not read them."""
        if self._stream is None:
            return 0
        leftover = sum(map(len, list(self._leftover))) if self._leftover else 0
        return int(self._stream.get_write_buffer_size()) + leftover

    def write(self, data: bytes) -> None:
        """Send ready frames, in order with all that pika sends. By the holder of :attr:`writing`."""
        self.bytes_sent += len(data)
        self.frames_sent += 1
        if self._socket is None:
            self._stream.write(data)
            return
        if not self.may_lag or not self.backlog:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                lost = pika.exceptions.StreamLostError(f'Stream connection lost: {error!r}')
                self.ioloop.add_callback_threadsafe(functools.partial(self.fail, lost))
                return
            if sent == len(data):
                self.may_lag = False
                return
            data = data[sent:]
        self.may_lag = True
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

    def read(self, data: bytes = b'') -> Exception | None:
        """Read what has come and act on it. By the thread that has the turn. Returns why it is the end, if it is.

        :param data: what pika's transport has read, where the link is not direct
        """
        if not data:
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
        try:
            taken, frames = self._cutter.cut(data)
        except Exception as error:  # it would end the loop, and with it the thread
            return self._unreadable(error)
        self.bytes_received += taken
        self.frames_received += frames
        return None

    def _unreadable(self, error: Exception) -> Exception:
        """Say that a frame cannot be read, and why the connection is given up."""
        self.reason = self.reason or error
        logger.error('the connection is given up: the broker sent %s', error)
        logger.debug('where that was found', exc_info=error)
        return error

    def _on_readable(self) -> None:
        """There is something to be read, and the I/O thread has the turn."""
        if self.turn is not None and not self.turn.is_over:
            error = self.read()
            if error is not None:
                self.fail(error)

    def _proto_data_received(self, data: bytes) -> None:
        """Cut what pika's transport has read, where the link is not direct."""
        error = self.read(data)
        if error is not None:
            self.fail(error)

    def _pass_on(self, data: bytes) -> None:
        """Give a frame to pika, which is at home on the I/O thread; after those that are on their way to it."""
        if self.is_lost:
            return  # met by a thread that reads late
        if data.startswith(b'AMQP'):
            spoken = '.'.join(map(str, data[5:8]))
            raise pika.exceptions.InvalidFrameError(f'the protocol header of AMQP {spoken}, for it speaks no 0-9-1')
        if (self.turn is None or self.turn.reader is None) and not self._for_pika:
            self._on_data_available(data)
            if self.server is UNKNOWN:
                self._meet()
        elif len(self._for_pika) >= FRAMES_FOR_PIKA:
            raise pika.exceptions.InvalidFrameError(f'{FRAMES_FOR_PIKA:,} frames wait for the I/O thread')
        else:
            self._for_pika.append(data)
            self.ioloop.add_callback_threadsafe(self._feed)

    def _meet(self) -> None:
        """Note which broker it is, once it has said so. That is before the two agree on anything."""
        if self.server_properties is None:
            return
        self.server = server_of(self.server_properties)
        wanted = self.params.frame_max
        if wanted < self.server.frame_min:
            self.fail(
                FrameMaxRefused(f'{self.server} takes no frame_max below {self.server.frame_min}, as {wanted} is')
            )

    def _feed(self) -> None:
        """Give pika the next of the frames that a reading thread has met."""
        data = self._for_pika.popleft()
        if self.is_lost:
            return
        try:
            self._on_data_available(data)
        except Exception as error:
            kind, channel, size = FRAME_HEAD.unpack_from(data)
            self.fail(self._unreadable(unreadable(error, kind, channel, size)))
