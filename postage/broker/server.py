"""The broker's sockets, plain or TLS: one thread, one selector, and the powers that tests have over it."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import selectors
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from postage.broker.connection import Connection
from postage.broker.limits import Limits
from postage.broker.messages import QueuedMessage
from postage.broker.node import Node
from postage.broker.observing import Observer
from postage.broker.queues import Queue
from postage.broker.replies import CONNECTION_FORCED, PRECONDITION_FAILED, Refusal
from postage.broker.rules import DEFAULT, Rules, rules_of
from postage.broker.users import Permissions
from postage.secret import Secret, revealed

logger = logging.getLogger(__name__)

T = TypeVar('T')
Server = TypeVar('Server', bound='BrokerServer')

_READ_SIZE: Final = 128 * 1024
_BACKLOG: Final = 128
_COMMAND_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 1.0  # between looks after clients that are blocked
_REST_SECONDS: Final = 0.2
_ESTABLISHED: Final = 1  # TCP_ESTABLISHED of Linux's tcp_info
# TLS may have to read before it can write, or the other way round; both come by themselves.
_NOT_NOW: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
_SHUTDOWN: Final = "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"


class QueueCounts(NamedTuple):
    """How many messages of a queue are ready, how many are unacknowledged, and how many consumers it has."""

    ready: int
    unacknowledged: int
    consumers: int


class BrokerServer:
    """A broker that listens.

    ``start()`` and ``stop()``, or a ``with`` statement, run it in a thread of this process; :meth:`serve_forever`
    runs it in the caller's. The methods that look into the broker or disturb it may be called from any thread
    while it runs.

    :param host: the address to listen on, or a name, of which every address is taken (``localhost`` has IPv4 and IPv6
        addresses on most machines); leave it on the loopback interface
    :param port: the port, 0 for any that is free
    :param users: passwords by user name, as text or as :class:`postage.secret.Secret`; by default ``guest`` with the
        password ``guest``
    :param virtual_hosts: the names of the virtual hosts that exist
    :param heartbeat: seconds that are proposed to clients, 0 for no heartbeats
    :param permissions: what users may do, by user name and virtual host: regular expressions for the names that they
        may configure, write and read. A user that is not in it may do everything everywhere.
    :param rules: the version of RabbitMQ to behave as, ``'3.10'`` or ``'4.3'``, see :mod:`postage.broker.rules`
    :param permit: names of deprecated features that are permitted although RabbitMQ denies them by default
    :param deny: names of deprecated features that are denied although RabbitMQ permits them by default
    :param tls: the server's side of TLS (``ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)`` with a certificate);
        the port then speaks nothing else
    :param limits: how much clients may take, see :class:`postage.broker.limits.Limits`
    :raises ValueError: for unknown rules or features
    """

    def __init__(
        self,
        host: str = '127.0.0.1',
        port: int = 0,
        users: Any = None,
        virtual_hosts: Iterable[str] = ('/',),
        heartbeat: int = 60,
        permissions: Mapping[str, Mapping[str, Permissions]] | None = None,
        rules: str = DEFAULT,
        permit: Collection[str] = (),
        deny: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        users = Secret({'guest': 'guest'} if users is None else revealed(users))
        self.host = host
        self._wanted_port = port
        self._users = users
        self._node = Node(self._users, virtual_hosts, heartbeat, permissions, rules_of(rules, permit, deny), limits)
        self._shared = self._node.shared
        self._tls = tls
        self._loop: _Loop | None = None
        self._thread: threading.Thread | None = None

    # --- life ---

    def start(self) -> None:
        """Listen, and serve in a daemon thread named ``postage-broker``. Returns once clients can connect.

        :raises OSError: where the address or the port cannot be had
        """
        loop = self._listen()
        self._thread = threading.Thread(target=loop.run, name='postage-broker', daemon=True)
        self._thread.start()

    def serve_forever(self) -> None:
        """Listen, unless :meth:`listen` was called before, and serve in this thread until :meth:`request_stop`.

        :raises OSError: where the address or the port cannot be had
        """
        (self._loop or self._listen()).run()

    def listen(self) -> None:
        """Take the port, so that it is known and clients may begin to connect; :meth:`serve_forever` serves them.

        :raises OSError: where the address or the port cannot be had
        """
        self._listen()

    def _listen(self) -> _Loop:
        if self._loop is not None and not self._loop.ended:
            raise RuntimeError('this broker is running already')
        self._loop = _Loop(self._node, self.host, self._wanted_port, self._tls)
        return self._loop

    def request_stop(self) -> None:
        """Have the broker end soon; safe in a signal handler."""
        if self._loop is not None:
            self._loop.request_stop()

    def stop(self) -> None:
        """Close all connections as a RabbitMQ that shuts down does, and join the thread. Harmless when not running."""
        self.request_stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self: Server) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port that it listens on; before it does, the one asked for."""
        return self._wanted_port if self._loop is None else self._loop.port

    @property
    def address(self) -> str:
        """Host and port as they stand in a URL."""
        return f'[{self.host}]:{self.port}' if ':' in self.host else f'{self.host}:{self.port}'

    @property
    def url(self) -> str:
        """An AMQP URL, with the first user's password and the first virtual host."""
        user = next(iter(self._users.reveal()))
        password = Secret(quote(revealed(self._users.reveal()[user]), safe=''))
        virtual_host = quote(next(iter(self._shared.virtual_hosts)), safe='')
        return f'{self.scheme}://{quote(user, safe="")}:{password.reveal()}@{self.address}/{virtual_host}'

    @property
    def scheme(self) -> str:
        """How its URLs begin: ``amqps`` with TLS, else ``amqp``."""
        return 'amqp' if self._tls is None else 'amqps'

    @property
    def rules(self) -> Rules:
        """What the version of RabbitMQ that it behaves as does."""
        return self._shared.rules

    # --- powers of a test ---

    def _call(self, function: Callable[[], T]) -> T:
        loop = self._loop
        if loop is None or loop.ended:
            raise RuntimeError('this broker is not running')
        return loop.call(function)

    def drop_connections(self) -> int:
        """Cut every client connection without a word, and return how many there were."""
        return self._call(self._drop_connections)

    def _drop_connections(self) -> int:
        connections = list(self._node.connections)
        for connection in connections:
            connection.lost()
        return len(connections)

    def close_connections(
        self, code: int = CONNECTION_FORCED, text: str = 'CONNECTION_FORCED - closed by the test'
    ) -> int:
        """Close every client connection with a ``Connection.Close``, and return how many there were.

        :param code: the AMQP reply code
        :param text: the whole reply text
        """

        def close_all() -> int:
            connections = list(self._node.connections)
            for connection in connections:
                connection.close(code, text)
            return len(connections)

        return self._call(close_all)

    def close_channels(
        self,
        code: int = PRECONDITION_FAILED,
        reason: str = 'forced by the test',
        queue: str | None = None,
    ) -> int:
        """Close open channels as after an error of the client, and return how many.

        :param code: the AMQP reply code, by default 406
        :param reason: the reply text without the name of the code, which is put before it
        :param queue: only channels that consume from this queue; by default all
        """

        def close_some() -> int:
            channels = [channel for connection in self._node.connections for channel in connection.channels]
            chosen = [channel for channel in channels if queue is None or queue in channel.delivering.consumed_queues]
            for channel in chosen:
                channel.refuse(Refusal(code, reason))
            return len(chosen)

        return self._call(close_some)

    def cut_connections(self, after: int) -> int:
        """Have every open connection cut once so many bytes more were sent to its client; return how many there were.

        What is cut may be in the middle of a frame. Connections to come are not concerned.

        :param after: bytes; 0 cuts at once
        """

        def cut_all() -> int:
            connections = list(self._node.connections)
            for connection in connections:
                connection.output.cut_after(after)
            return len(connections)

        return self._call(cut_all)

    def delay_confirms(self, seconds: float) -> None:
        """Send publisher confirms late by the broker's clock, which :meth:`advance` moves; 0 ends that."""
        self._call(lambda: setattr(self._shared, 'confirm_delay', seconds))

    def refuse_publishes(self, count: int = 1) -> None:
        """Answer the next messages on channels with publisher confirms by ``basic.nack``, and drop them.

        :param count: how many; 0 takes back what is left of an earlier call
        """
        self._call(lambda: setattr(self._shared, 'refusals_left', count))

    def set_consumer_timeout(self, seconds: float | None) -> None:
        """Set within which time deliveries have to be acknowledged; RabbitMQ's and the default are 30 minutes.

        :param seconds: for deliveries from now on, by the broker's clock; ``None`` for no limit
        """
        self._call(lambda: setattr(self._shared, 'consumer_timeout', seconds))

    def add_user(self, name: str, password: Any, permissions: Mapping[str, Permissions] | None = None) -> None:
        """Add a user, or change one for connections to come.

        :param permissions: by virtual host, regular expressions for the names that the user may configure, write and
            read; the user may enter no other. ``None`` for everything everywhere.
        :raises re.error: where one is not a regular expression
        """
        password = Secret.of(password)
        self._call(lambda: self._shared.users.add(name, password, permissions))

    def add_virtual_host(self, name: str) -> None:
        """Add an empty virtual host; one that exists stays as it is."""
        self._call(lambda: self._shared.add_virtual_host(name))

    def delete_virtual_host(self, name: str) -> None:
        """Remove a virtual host with all that is in it, and close the connections to it.

        :raises KeyError: where there is none of that name
        """
        self._call(lambda: self._node.delete_virtual_host(name))

    def queues(self, vhost: str = '/') -> dict[str, QueueCounts]:
        """Return what is in every queue of a virtual host, by the queue's name.

        :raises KeyError: where there is no such virtual host
        """
        return self._call(lambda: {name: _counts(queue) for name, queue in self._queues_of(vhost).items()})

    def ready_messages(self, queue: str, vhost: str = '/') -> list[QueuedMessage]:
        """Return the messages of a queue that wait to be delivered, the next one first, and leave them there.

        :raises KeyError: where there is no such queue or virtual host
        """
        return self._call(lambda: list(self._queues_of(vhost)[queue].ready))

    def _queues_of(self, vhost: str) -> dict[str, Queue]:
        return self._shared.virtual_hosts[vhost].queues

    def under_way(self) -> list[str]:
        """Return, in words, what the broker still has to do or waits for its clients to do; nothing, when all is done.

        That is: messages in queues with consumers, messages that are not acknowledged, messages on their way to a
        dead-letter exchange, and bytes that a client has not read. What lies in a queue without consumers is at
        its end.
        """

        def look() -> list[str]:
            queues = [queue for host in self._shared.virtual_hosts.values() for queue in host.queues.values()]
            unread = [
                f'{each.peer} has not read all that it was sent'
                for each in self._node.connections
                if each.output.unsent
            ]
            return [text for queue in queues for text in _under_way(queue)] + unread

        return self._call(look)

    def observe(self, observer: Observer) -> None:
        """Tell an observer of each message that is published, delivered or dead, in the broker's thread."""
        self._call(lambda: self._shared.observers.append(observer))

    def unobserve(self, observer: Observer) -> None:
        """End what :meth:`observe` began."""
        self._call(lambda: self._shared.observers.remove(observer))

    def advance(self, seconds: float) -> None:
        """Move the broker's clock forward: what falls due on the way happens, in its order, and no thread waits for it.

        That is the clock of messages and queues: lifetimes, ``x-expires``, acknowledgement time-outs, late confirms.
        Heartbeats go by the real time, as clients do. Time never goes back.

        :param seconds: how far
        """
        self._call(lambda: self._shared.clock.advance(seconds))

    def block(self, reason: str = 'low on memory') -> None:
        """Behave as under a memory alarm: a client that publishes is sent ``Connection.Blocked``, and read no more."""
        self._call(lambda: self._node.block(reason))

    def unblock(self) -> None:
        """End what :meth:`block` began."""
        self._call(self._node.unblock)


def _counts(queue: Queue) -> QueueCounts:
    return QueueCounts(len(queue.ready), queue.unacknowledged, len(queue.consumers))


def _under_way(queue: Queue) -> Iterator[str]:
    if queue.ready and queue.consumers:
        yield f'queue {queue.name!r} has {len(queue.ready)} ready messages and {len(queue.consumers)} consumers'
    elif queue.ready and queue.will_dead_letter:
        yield f'queue {queue.name!r} has messages that will expire into exchange {queue.dead_letter_exchange!r}'
    if queue.held_back:
        yield f'queue {queue.name!r} has {queue.held_back} messages that wait for a delayed retry'
    if queue.unacknowledged:
        yield f'queue {queue.name!r} has {queue.unacknowledged} unacknowledged messages'


class _Transport:
    """A client's socket and the connection behind it."""

    def __init__(self, sock: socket.socket, connection: Connection, selector: selectors.BaseSelector) -> None:
        self._socket = sock
        self._connection = connection
        self._selector = selector
        self._unsent = memoryview(b'')
        self._events = 0
        self.update()

    def ready(self, events: int) -> None:
        """Read or write, as the selector says that it is possible."""
        if events & selectors.EVENT_WRITE:
            self.flush()
        if events & selectors.EVENT_READ and not self.closed:
            self._read()

    def _read(self) -> None:
        try:
            received = self._socket.recv(_READ_SIZE)
        except _NOT_NOW:
            return
        except OSError:
            received = b''
        if received:
            self._connection.receive_bytes(received)
        else:
            self._connection.lost()
            self.close()

    def flush(self) -> None:
        """Send as much as the socket takes; close it where that was the last."""
        if self.closed:
            return
        try:
            if not self._unsent:
                self._unsent = memoryview(self._connection.data_to_send())
            if self._unsent:
                sent = self._socket.send(self._unsent)
                self._unsent = self._unsent[sent:]
                self._connection.data_sent(sent)
        except _NOT_NOW:
            pass
        except OSError:
            self._connection.lost()
            self.close()
            return
        if self._connection.finished and not self._unsent:
            self.close()
        else:
            self.update()

    def update(self) -> None:
        """Tell the selector what this socket waits for."""
        events = (selectors.EVENT_READ if self._connection.wants_data else 0) | (
            selectors.EVENT_WRITE if self._unsent or self._connection.output else 0
        )
        if events == self._events:
            return
        if not self._events:
            self._selector.register(self._socket, events, self.ready)
        elif not events:
            self._selector.unregister(self._socket)
        else:
            self._selector.modify(self._socket, events, self.ready)
        self._events = events

    @property
    def is_gone(self) -> bool:
        """True where the client has closed its end, as far as the system tells without a read."""
        if self.closed or not hasattr(socket, 'TCP_INFO'):
            return False
        return self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED

    @property
    def closed(self) -> bool:
        """True once the socket is closed."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Close the socket."""
        if self._events:
            self._selector.unregister(self._socket)
            self._events = 0
        if isinstance(self._socket, ssl.SSLSocket):
            # Tell the client that this is the end, and do not wait for its answer.
            with contextlib.suppress(OSError, ValueError):
                self._socket.unwrap()
        self._socket.close()


class _Loop:
    """Waits for sockets, timers and other threads, and moves the bytes."""

    def __init__(self, node: Node, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._node = node
        self._tls = tls
        self._transports: dict[Connection, _Transport] = {}
        self._commands: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.ended = False
        self._listeners = _listening_sockets(host, port)
        self.port: int = self._listeners[0].getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        for sock in (self._wake_in, self._wake_out):
            sock.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._woken)
        self._listen()

    # --- from other threads ---

    def call(self, function: Callable[[], T]) -> T:
        """Run a function between two events of the loop, and return its result."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._commands.append(run)
        self._wake()
        return future.result(timeout=_COMMAND_SECONDS)

    def request_stop(self) -> None:
        """Have :meth:`run` return."""
        self._stopping = True
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b'\0')
        except OSError:
            # Full: the loop will wake anyway. Closed: it has ended.
            pass

    # --- the loop ---

    def run(self) -> None:
        """Serve until asked to stop."""
        self._thread = threading.current_thread()
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._end()

    def _turn(self) -> None:
        wait = self._node.seconds_to_wait()
        if self._node.shared.blocked is not None:
            wait = min(_LOOK_SECONDS, _LOOK_SECONDS if wait is None else wait)
        for key, events in self._selector.select(wait):
            key.data(events)
        if self._node.shared.blocked is not None:
            self._drop_the_gone()
        try:
            self._node.run_due()
        except Exception:
            logger.exception('an error of the broker itself, in a timer')
        self._flush()

    def _flush(self) -> None:
        for connection in self._node.take_connections_with_output():
            transport = self._transports.get(connection)
            if transport is not None:
                transport.flush()
                if transport.closed:
                    del self._transports[connection]

    def _drop_the_gone(self) -> None:
        """Drop clients that have gone while they are blocked: what they hold may be the reason for it."""
        for connection, transport in self._transports.items():
            if connection.is_blocked and transport.is_gone:
                connection.lost()

    def _rest(self) -> None:
        """Accept no connection for a moment: the process has all the files open that it may have."""
        logger.warning('no more files can be opened; new connections wait')
        for listener in self._listeners:
            self._selector.unregister(listener)
        self._node.shared.transport_clock.call_later(_REST_SECONDS, self._listen)

    def _listen(self) -> None:
        for listener in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ, functools.partial(self._accept, listener))

    def _accept(self, listener: socket.socket, events: int) -> None:
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._rest()
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                # The first reads will do the handshake, so that a client that is slow with it holds up no other.
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError:
            sock.close()
            return
        connection = self._node.connect(f'{address[0]}:{address[1]}')
        self._transports[connection] = _Transport(sock, connection, self._selector)

    def _woken(self, events: int) -> None:
        try:
            self._wake_out.recv(4096)
        except BlockingIOError:
            pass
        while self._commands:
            self._commands.popleft()()

    def _end(self) -> None:
        """Say goodbye, without waiting for an answer, and release everything."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self._node.connections):
            connection.close(CONNECTION_FORCED, _SHUTDOWN)
        self._flush()
        for connection, transport in self._transports.items():
            connection.lost()
            transport.close()
        self._transports.clear()
        self.ended = True
        while self._commands:
            self._commands.popleft()()
        self._selector.close()
        self._wake_in.close()
        self._wake_out.close()


def _listening_sockets(host: str, port: int) -> list[socket.socket]:
    """Return a socket for each address of a host, all on one port.

    :raises OSError: where the first of them cannot be had, or the port of another is taken
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # IPv4 first: it exists everywhere, and clients of a name try each of its addresses.
    families = sorted({(family, address[0]) for family, _, _, _, address in found})
    sockets: list[socket.socket] = []
    try:
        for family, address in families:
            try:
                sockets.append(_listening_socket(family, str(address), port))
            except OSError as error:
                # A machine may know the name of an address that none of its interfaces has.
                if not sockets or error.errno == errno.EADDRINUSE:
                    raise
            port = sockets[0].getsockname()[1]
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _listening_socket(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # A port whose last connections are still in TIME_WAIT can be had again; one that is in use cannot.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
