"""A TCP proxy in front of a broker: a network that a test can disturb."""

from __future__ import annotations

import heapq
import itertools
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from support.brokers import Broker

T = TypeVar('T')

Side = Literal['client', 'broker']
Traffic = Literal['pass', 'hold', 'swallow']

READ_SIZE = 64 * 1024
COMMAND_TIMEOUT = 10.0
PORTION = 0.02
"""Seconds' worth of bytes that a limited direction passes on at a time."""


class Proxy:
    """Passes TCP connections on to a broker, until it is told otherwise. Use it in a ``with``.

    What a command says about connections holds for those of now and for those to come, unless it says
    otherwise. Its methods may be called from any thread; each has taken effect when it returns.

    :param host: where the broker listens
    :param port: its port
    :ivar host: where the proxy listens
    :ivar port: its port; it stays the same while connections are refused
    :ivar swallowed: how many bytes it has swallowed
    """

    host = '127.0.0.1'

    def __init__(self, host: str, port: int) -> None:
        # Bound and never listened to: while connections are refused, nobody else gets the port.
        self._reservation = self._bound_socket(0)
        self.port: int = self._reservation.getsockname()[1]
        self.swallowed = 0
        self._target = (host, port)
        self._listener: socket.socket | None = None
        self._links: list[_Link] = []
        self._traffic: Traffic = 'pass'
        self._delay = 0.0
        self._rates: dict[Side, float] = {}
        self._accepted = 0
        self._selector = selectors.DefaultSelector()
        self._commands: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._wake_in, self._wake_out = socket.socketpair()
        self._running = True
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._woken)
        self._listen()
        self._thread = threading.Thread(target=self._run, name='proxy', daemon=True)
        self._thread.start()

    @classmethod
    def before(cls, broker: Broker) -> Proxy:
        """A proxy in front of a broker."""
        return cls(broker.host, broker.port)

    def url(self, url: str, **query: object) -> str:
        """Return a broker's URL with the way led through the proxy, and query parameters such as ``heartbeat``."""
        parts = urlsplit(url)
        credentials, _, _ = parts.netloc.rpartition('@')
        text = '&'.join(f'{name}={value}' for name, value in query.items())
        return urlunsplit(parts._replace(netloc=f'{credentials}@{self.host}:{self.port}', query=text))

    # Commands

    def resume(self) -> None:
        """Pass everything on again at full speed, held-back bytes first; take new connections. A connection that has
        lost bytes, because they were swallowed, stays half open: what comes after a gap would be another fault."""
        self._command(self._resume)

    def delay(self, seconds: float) -> None:
        """Pass every byte on that much later, in both directions."""
        self._command(lambda: self._set('pass', seconds))

    def bandwidth(self, rate: float, towards: Side | None = None) -> None:
        """Pass on at most so many bytes a second, each connection for itself. What does not get through in time waits
        with its sender.

        :param rate: bytes per second
        :param towards: in this direction alone; by default in both, each for itself
        """
        self._command(lambda: self._limit(rate, [towards] if towards else ['client', 'broker']))

    def hold(self) -> None:
        """Read nothing: what is sent stays in the sender's buffers until they are full, and comes at :meth:`resume`."""
        self._command(lambda: self._set('hold', self._delay))

    def swallow(self, new_ones: bool = False) -> None:
        """Read everything and pass nothing on, ends included: the connections are half open from now on.

        :param new_ones: do so with connections to come as well; by default they work
        """
        self._command(lambda: self._set('swallow', self._delay, new_ones))

    def cut(self, reset: bool = True, side: Side | None = None) -> int:
        """Cut every connection that there is. New ones are taken.

        :param reset: end them with RST, as a crash does; otherwise with FIN, in good order
        :param side: cut this side of the proxy alone; the other side learns nothing of it
        :return: how many there were
        """
        return self._command(lambda: self._cut(reset, side))

    def cut_after(self, size: int, towards: Side = 'broker') -> None:
        """Cut each connection of now once that many more bytes have been passed on in one direction."""
        self._command(lambda: [link.cut_after(size, towards) for link in self._links])

    def refuse(self) -> None:
        """Refuse new connections. Those that there are go on."""
        self._command(self._stop_listening)

    def accept(self) -> None:
        """Take new connections again."""
        self._command(self._listen)

    @property
    def connections(self) -> int:
        """How many connections pass through it now."""
        return self._command(lambda: len(self._links))

    @property
    def accepted(self) -> int:
        """How many connections it has taken since it was made."""
        return self._accepted

    def close(self) -> None:
        """Cut everything and end. Does nothing the second time."""
        if self._thread.is_alive():
            self._command(self._stop)
            self._thread.join(COMMAND_TIMEOUT)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside: everything below runs on the proxy's thread

    def _command(self, function: Callable[[], T]) -> T:
        """Run a function on the proxy's thread, and return its result."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._commands.append(run)
        self._wake()
        return future.result(COMMAND_TIMEOUT)

    def _stop(self) -> None:
        self._running = False

    def _wake(self) -> None:
        self._wake_in.send(b'\0')

    def _woken(self, _events: int) -> None:
        self._wake_out.recv(4096)
        while self._commands:
            self._commands.popleft()()

    def _run(self) -> None:
        while self._running:
            for key, events in self._selector.select(self._seconds_to_wait()):
                if key.fileobj.fileno() >= 0:  # type: ignore[union-attr]
                    key.data(events)
            while self._timers and self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()
        self._stop_listening()
        self._cut(reset=True, side=None)
        self._selector.close()
        self._reservation.close()
        self._wake_in.close()
        self._wake_out.close()

    def _seconds_to_wait(self) -> float | None:
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), callback))

    def _listen(self) -> None:
        if self._listener is not None:
            return
        self._listener = self._bound_socket(self.port)
        self._listener.listen()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._on_client)

    def _bound_socket(self, port: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, port))
        return sock

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _on_client(self, _events: int) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        self._accepted += 1
        try:
            broker = socket.create_connection(self._target, timeout=COMMAND_TIMEOUT)
        except OSError:
            end(client, reset=True)
            return
        self._links.append(_Link(self, client, broker, self._traffic, self._delay))
        self._links[-1].limit(self._rates)

    def _set(self, traffic: Traffic, delay: float, new_ones: bool = True) -> None:
        if new_ones:
            self._traffic, self._delay = traffic, delay
        for link in list(self._links):
            link.set(traffic, delay)

    def _limit(self, rate: float, directions: list[Side]) -> None:
        for side in directions:
            self._rates[side] = rate
        for link in list(self._links):
            link.limit(self._rates)

    def _resume(self) -> None:
        self._rates.clear()
        for link in list(self._links):
            link.limit({})
        self._set('pass', 0.0)
        self._listen()

    def _cut(self, reset: bool, side: Side | None) -> int:
        links = list(self._links)
        for link in links:
            link.cut(reset, side)
        return len(links)

    def watch(self, sock: socket.socket, events: int, callback: Callable[[int], None]) -> None:
        """Have the selector call back for these events; for none of them, forget the socket."""
        known = sock in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(sock)
        elif known:
            self._selector.modify(sock, events, callback)
        else:
            self._selector.register(sock, events, callback)

    def forget(self, link: _Link) -> None:
        if link in self._links:
            self._links.remove(link)


class _Link:
    """One connection through the proxy: two sockets, and a pipe in each direction."""

    def __init__(
        self, proxy: Proxy, client: socket.socket, broker: socket.socket, traffic: Traffic, delay: float
    ) -> None:
        self._proxy = proxy
        self._sockets: dict[Side, socket.socket] = {'client': client, 'broker': broker}
        self.traffic = traffic
        self.delay = delay
        self._has_gaps = False
        for sock in self._sockets.values():
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pipes: dict[Side, _Pipe] = {'client': _Pipe(), 'broker': _Pipe()}  # by the side that they lead to
        self._watch()

    def set(self, traffic: Traffic, delay: float) -> None:
        if self._has_gaps:
            return
        self.traffic, self.delay = traffic, delay
        for side in list(self._sockets):  # a write may find that a side has gone
            self._write(side)
        self._watch()

    def cut(self, reset: bool, side: Side | None = None) -> None:
        for name in [side] if side else list(self._sockets):
            sock = self._sockets.pop(name, None)
            if sock is not None:
                self._proxy.watch(sock, 0, self._nothing)
                end(sock, reset)
        if not self._sockets:
            self._proxy.forget(self)

    def cut_after(self, size: int, towards: Side) -> None:
        self._pipes[towards].remaining = size

    def limit(self, rates: Mapping[Side, float]) -> None:
        for side, pipe in self._pipes.items():
            pipe.rate, pipe.free_at = rates.get(side), 0.0

    def _watch(self) -> None:
        """Tell the selector what each side waits for."""
        for side, sock in self._sockets.items():
            wants_data = self.traffic != 'hold' and self._pipes[other(side)].takes_more
            events = (selectors.EVENT_READ if wants_data else 0) | (
                selectors.EVENT_WRITE if self._pipes[side].is_stuck else 0
            )
            self._proxy.watch(sock, events, lambda events, side=side: self._on_ready(side, events))  # type: ignore[misc]

    def _on_ready(self, side: Side, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write(side)
        if events & selectors.EVENT_READ and side in self._sockets:
            self._read(side)
        self._watch()

    def _read(self, side: Side) -> None:
        pipe = self._pipes[other(side)]
        try:
            data = self._sockets[side].recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b''
        if self.traffic == 'swallow':
            self._proxy.swallowed += len(data)
            self._has_gaps = True
            if not data:
                self.cut(reset=False, side=side)
            return
        if not data and other(side) not in self._sockets:
            self.cut(reset=False)
            return
        pipe.received(data, time.monotonic() + self.delay)
        if self.delay:
            self._proxy.call_later(self.delay, lambda: self._later(other(side)))
        else:
            self._write(other(side))

    def _later(self, side: Side) -> None:
        self._write(side)
        self._watch()

    def _write(self, side: Side) -> None:
        """Pass on to a side what is due; an end, too."""
        pipe, now = self._pipes[side], time.monotonic()
        pipe.is_stuck = False
        while pipe.chunks and side in self._sockets and self.traffic == 'pass':
            due, data = pipe.chunks[0]
            if (due > now and self.delay) or pipe.free_at > now:
                return  # a timer runs
            if not data:
                self.cut(reset=False)
                return
            try:
                sent = self._sockets[side].send(data[: pipe.portion])
            except BlockingIOError:
                pipe.is_stuck = True
                return
            except OSError:
                self.cut(reset=True)
                return
            pipe.sent(sent)
            if pipe.remaining == 0:
                self.cut(reset=True)
            elif pipe.rate:
                pipe.free_at = now + sent / pipe.rate
                self._proxy.call_later(sent / pipe.rate, lambda: self._later(side))

    @staticmethod
    def _nothing(_events: int) -> None:
        pass


class _Pipe:
    """Bytes on their way to one side, each chunk with the time at which it is due; an empty chunk is the end.

    :ivar remaining: bytes until the connection is cut
    :ivar rate: bytes per second
    :ivar free_at: when the next portion may follow the last one
    """

    def __init__(self) -> None:
        self.chunks: deque[tuple[float, bytes]] = deque()
        self.is_stuck = False
        self.remaining: int | None = None
        self.rate: float | None = None
        self.free_at = 0.0
        self._ended = False
        self._size = 0

    @property
    def takes_more(self) -> bool:
        return not self._ended and not (self.rate and self._size > READ_SIZE)

    @property
    def portion(self) -> int | None:
        """How many bytes may be passed on at once; ``None`` for all."""
        bounds = [self.remaining, max(1, int(self.rate * PORTION)) if self.rate else None]
        return min((bound for bound in bounds if bound is not None), default=None)

    def received(self, data: bytes, due: float) -> None:
        self.chunks.append((due, data))
        self._size += len(data)
        self._ended = not data

    def sent(self, size: int) -> None:
        due, data = self.chunks.popleft()
        self._size -= size
        if size < len(data):
            self.chunks.appendleft((due, data[size:]))
        if self.remaining is not None:
            self.remaining -= size


def other(side: Side) -> Side:
    return 'broker' if side == 'client' else 'client'


def end(sock: socket.socket, reset: bool) -> None:
    """Close a socket, with RST or with FIN."""
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.close()
