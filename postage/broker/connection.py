"""A connection, from the client's first byte to the last one sent (AMQP 0-9-1 sections 2.2 and 4.2).

No sockets here. The owner of the transport

- calls :meth:`Connection.receive_bytes` with what has arrived,
- sends what :meth:`Connection.data_to_send` returns, and tells how much has left with :meth:`Connection.data_sent`,
- reads only while :attr:`Connection.wants_data` is true,
- closes the transport once :attr:`Connection.finished` is true,
- calls :meth:`Connection.lost` when the client is gone.

The states, and what leads on::

    EXPECTING_HEADER ── protocol header ──> STARTING ── StartOk ──> TUNING ── TuneOk ──> OPENING ── Open ──> RUNNING
    any ── Close from the client, or the end of the transport ──> CLOSED
    any ── a hard error, or the broker's wish ──> CLOSING ── CloseOk ──> CLOSED

In CLOSING everything but the client's Close and CloseOk is passed over.
"""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import enum
import logging
import struct
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final

from pika import amqp_object, spec

from postage.broker import wire
from postage.broker.channel import Channel
from postage.broker.channel import State as ChannelState
from postage.broker.channels import CHANNEL_MAX, Channels
from postage.broker.login import Login, login_of
from postage.broker.output import Output
from postage.broker.pulse import Pulse
from postage.broker.replies import (
    ACCESS_REFUSED,
    CHANNEL_ERROR,
    FRAME_ERROR,
    INTERNAL_ERROR,
    NOT_ALLOWED,
    UNEXPECTED_FRAME,
    Refusal,
)
from postage.broker.shared import Shared
from postage.broker.users import Grant
from postage.broker.virtual_host import VirtualHost
from postage.printable import shown_half_built

logger = logging.getLogger(__name__)

FRAME_MAX: Final = 131_072
HANDSHAKE_SECONDS: Final = 10
CLOSING_SECONDS: Final = 30

SERVER_PROPERTIES: Final[dict[str, Any]] = {
    'capabilities': {
        'publisher_confirms': True,
        'exchange_exchange_bindings': True,
        'basic.nack': True,
        'consumer_cancel_notify': True,
        'connection.blocked': True,
        'consumer_priorities': True,
        'authentication_failure_close': True,
        'per_consumer_qos': True,
        'direct_reply_to': True,
    },
    'product': 'Postage',
    'platform': 'Python',
    'cluster_name': 'postage@localhost',
    'information': 'For development and tests; behaves as the RabbitMQ of that version.',
}


class State(enum.Enum):
    """How far a connection has come."""

    EXPECTING_HEADER = enum.auto()
    STARTING = enum.auto()
    TUNING = enum.auto()
    OPENING = enum.auto()
    RUNNING = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """The broker's end of one connection.

    :param shared: what all connections share
    :param peer: the client's name in logs
    :param has_output: called with the connection when it has something to send, or has come to its end
    :param gone: called with the connection when it has come to its end
    :ivar output: what has still to be sent
    :ivar user: the user's name once it is known
    :ivar is_blocked: True while it is not read because it publishes under an alarm
    :ivar began_at: the time of the transport clock when it was made
    :ivar grant: what the user may do here; ``None`` stands for everything
    """

    virtual_host: VirtualHost

    def __init__(
        self,
        shared: Shared,
        peer: str,
        has_output: Callable[[Connection], None],
        gone: Callable[[Connection], None],
    ) -> None:
        self.shared = shared
        self.peer = peer
        self._has_output = has_output
        self._gone = gone
        self.output = Output(lambda: has_output(self), self.lost, shared.memory)
        self.state = State.EXPECTING_HEADER
        self.user = ''
        self.grant: Grant | None = None
        self.frame_max = FRAME_MAX
        self.wants_cancel_notifications = False
        self._capabilities: Mapping[str, Any] = {}
        self._channels = Channels(self, self._send)
        self._incoming = wire.FrameBuffer()
        self.is_blocked = False
        self._is_held = False  # until its login is looked at
        self._is_ending = False
        self._heartbeat = 0
        self._address = peer.rpartition(':')[0]
        self.began_at = shared.transport_clock.now()
        self._pulse = Pulse(shared.transport_clock, peer, self.output, lambda: self.is_blocked, self.lost)
        self._pulse.limit(HANDSHAKE_SECONDS, self._handshake_too_slow)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<Connection {self.peer} {self.state.name}>'

    @property
    def vhost_name(self) -> str | None:
        """The name of its virtual host, once it is open and as long as it is."""
        return self.virtual_host.name if self.state is State.RUNNING else None

    @property
    def takes_deliveries(self) -> bool:
        """False while too much is unsent, and at the end."""
        return self.output.has_room and not self._is_ending

    @property
    def is_open(self) -> bool:
        """True from the end of the handshake until either side closes."""
        return self.state is State.RUNNING

    @property
    def channels(self) -> list[Channel]:
        """The channels that are open."""
        return self._channels.open

    # --- receive ---

    def receive_bytes(self, received: bytes) -> None:
        """Take bytes from the client and do what they ask for. Never raises because of what they are."""
        self._pulse.heard()
        self._incoming.append(received)
        if self.state is State.EXPECTING_HEADER and not self._receive_protocol_header():
            return
        try:
            for kind, channel, payload in self._incoming.frames():
                self._receive_frame(kind, channel, payload)
                if self.state is State.CLOSED or not self._may_go_on:
                    break
        except Refusal as refusal:
            # The stream has lost its step, so that nothing after this can be read.
            self._refuse(refusal)
            if self.state is State.CLOSING:
                self._incoming = _DeafBuffer()
        self._channels.flush_confirms()

    def _receive_protocol_header(self) -> bool:
        """Tell whether frames may follow; a client of another protocol hears which one is spoken here."""
        if len(self._incoming) < len(wire.PROTOCOL_HEADER):
            return False
        header = self._incoming.take(len(wire.PROTOCOL_HEADER))
        version = self.shared.rules.protocol_headers.get(header)
        if version is None:
            # Those that begin like ours are of another version of this protocol.
            is_related = header.startswith(wire.PROTOCOL_HEADER[:7])
            self.send(wire.PROTOCOL_HEADER if is_related else self.shared.rules.other_protocol)
            self._finish()
            return False
        self.state = State.STARTING
        properties = {**SERVER_PROPERTIES, 'version': self.shared.rules.version}
        self._send(0, spec.Connection.Start(*version, properties, b'PLAIN AMQPLAIN', b'en_US'))
        return True

    def _receive_frame(self, kind: int, number: int, payload: bytes) -> None:
        channel = self._channels.get(number)
        try:
            if kind == wire.HEARTBEAT:
                _check_heartbeat(number, payload)
            elif channel is not None and channel.state is ChannelState.OPEN and not _is_closing(payload, kind):
                channel.receive(kind, payload)
            else:
                self._receive_control(kind, number, payload)
        except Refusal as refusal:
            self._refuse(refusal, channel, payload if kind == wire.METHOD else b'')
        except Exception:
            _log_own_error(self.peer, is_login=self.state is State.STARTING)
            failure = Refusal(INTERNAL_ERROR, '')
            failure.text = 'INTERNAL_ERROR'
            self._refuse(failure)

    def _receive_control(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame that is about the connection, or about the life of a channel."""
        if number == 0 or self.state is not State.RUNNING:
            self._receive_connection_method(kind, payload)
            return
        self._channels.receive(number, wire.decode_method(payload) if kind == wire.METHOD else None)

    def _receive_connection_method(self, kind: int, payload: bytes) -> None:
        if kind != wire.METHOD:
            if self.state is State.CLOSING:
                return
            raise Refusal(UNEXPECTED_FRAME, 'expected method frame, got non method frame instead')
        method = wire.decode_method(payload)
        handler = _HANDLERS[self.state].get(type(method)) or _ALWAYS.get(type(method))
        if handler is not None:
            handler(self, method)
        elif self.state is not State.CLOSING:
            state = self.state.name.lower()
            raise Refusal(CHANNEL_ERROR, f'unexpected method in connection state {state}')

    # --- the handshake ---

    def _on_start_ok(self, method: spec.Connection.StartOk) -> None:
        properties = method.client_properties
        capabilities = properties.get('capabilities') if isinstance(properties, dict) else None
        self._capabilities = capabilities if isinstance(capabilities, dict) else {}
        self.wants_cancel_notifications = bool(self._capabilities.get('consumer_cancel_notify'))
        login = login_of(method.mechanism, method.response)
        wait = self.shared.guard.seconds_to_wait(self._address, login.user)
        if wait is None:
            logger.warning('%s: dropped, because too many logins as %r wait already', self.peer, login.user)
            self._finish()
        elif wait:
            self._is_held = True
            self.shared.transport_clock.call_later(wait, lambda: self._go_on_with(login, method.mechanism))
        else:
            self._log_in(login, method.mechanism)

    def _go_on_with(self, login: Login, mechanism: str) -> None:
        if self.state is State.STARTING:
            self._is_held = False
            self._log_in(login, mechanism)
            self._has_output(self)
            self.receive_bytes(b'')

    def _log_in(self, login: Login, mechanism: str) -> None:
        if not self.shared.users.is_password(login.user, login.password):
            self.shared.guard.failed(self._address, login.user)
            self._refuse_login(mechanism)
            return
        self.user = login.user
        self.state = State.TUNING
        self._send(0, spec.Connection.Tune(CHANNEL_MAX, FRAME_MAX, self.shared.heartbeat))

    def _refuse_login(self, mechanism: str) -> None:
        logger.warning('%s: login refused', self.peer)
        if self._capabilities.get('authentication_failure_close'):
            text = f'Login was refused using authentication mechanism {mechanism}.'
            refusal = Refusal(ACCESS_REFUSED, f'{text} For details see the broker logfile.')
            self.close(refusal.code, refusal.text)
        else:
            self._finish()

    def _on_tune_ok(self, method: spec.Connection.TuneOk) -> None:
        _check_limit('frame_max', method.frame_max, self.shared.rules.smallest_frame, FRAME_MAX)
        _check_limit('channel_max', method.channel_max, 1, CHANNEL_MAX)
        self.frame_max = self._incoming.largest = method.frame_max
        self._channels.most = method.channel_max
        self._heartbeat = method.heartbeat
        self.state = State.OPENING

    def _on_open(self, method: spec.Connection.Open) -> None:
        host = self.shared.virtual_hosts.get(method.virtual_host)
        if host is None:
            raise Refusal(NOT_ALLOWED, f'vhost {method.virtual_host} not found')
        if not self.shared.users.may_enter(self.user, host.name):
            raise Refusal(NOT_ALLOWED, f"access to vhost '{host.name}' refused for user '{self.user}'")
        limit = self.shared.limits.connections
        if sum(each.is_open for each in self.shared.connections) >= limit:
            raise Refusal(NOT_ALLOWED, f'connection refused: node connection limit ({limit}) is reached')
        self.grant = self.shared.users.grant(self.user, host.name)
        self.virtual_host = host
        self.state = State.RUNNING
        self._pulse.beat_every(self._heartbeat)
        self._send(0, spec.Connection.OpenOk())
        logger.info('%s: user %r opened virtual host %r', self.peer, self.user, host.name)

    def _on_update_secret(self, method: spec.Connection.UpdateSecret) -> None:
        # A password does not expire, so that RabbitMQ takes any.
        self._send(0, spec.Connection.UpdateSecretOk())

    def published(self, number: int) -> None:
        """Hear of a message; confirms are sent once all that arrived together is done, as one may stand for many."""
        self._channels.published(number)

    # --- errors and the end ---

    def _refuse(self, refusal: Refusal, channel: Channel | None = None, payload: bytes = b'') -> None:
        """Answer an error: a soft one costs the channel, a hard one the connection."""
        if self.state in (State.CLOSING, State.CLOSED):
            return
        text = refusal.text
        if self.state is State.STARTING and refusal.code == FRAME_ERROR:
            text = 'FRAME_ERROR - at the login'  # it quotes the frame, in which there is a password
        logger.log(logging.WARNING if refusal.closes_connection else logging.INFO, '%s: %s', self.peer, text)
        if channel is not None and not refusal.closes_connection:
            channel.refuse(refusal)
        elif self.state in (State.EXPECTING_HEADER, State.STARTING, State.TUNING):
            # RabbitMQ hangs up on a client with which it could not agree.
            self._finish()
        else:
            index = int.from_bytes(payload[:4], 'big') if len(payload) >= 4 else 0
            if channel is not None and not index:
                index = channel.method_index
            self.close(refusal.code, refusal.text, index)

    def close(self, code: int, text: str, method_index: int = 0) -> None:
        """Ask the client to close, and give up all that belongs to it.

        :param text: the reply text as it travels
        :param method_index: the method that is to blame, 0 for none
        """
        if self.state in (State.CLOSING, State.CLOSED):
            return
        self._channels.flush_confirms()
        self._end()
        self.state = State.CLOSING
        self._pulse.limit(CLOSING_SECONDS, self.lost)
        self._send(0, spec.Connection.Close(code, text, method_index >> 16, method_index & 0xFFFF))

    def _on_close(self, method: spec.Connection.Close) -> None:
        self._channels.flush_confirms()
        self._end()
        self._send(0, spec.Connection.CloseOk())
        self._finish()

    def _on_close_ok(self, method: spec.Connection.CloseOk) -> None:
        self._finish()

    def lost(self) -> None:
        """Hear that the client is gone, or drop it without a word."""
        self.output.clear()
        self._finish()

    def _finish(self) -> None:
        """Come to the end; the transport closes when everything is sent."""
        if self.state is State.CLOSED:
            return
        self._end()
        self.state = State.CLOSED
        self._pulse.stop()
        self._gone(self)
        if not self.output:
            self._has_output(self)
        logger.info('%s: closed', self.peer)

    def _end(self) -> None:
        """Give back what the channels hold and remove the exclusive queues."""
        self._is_ending = True
        self._channels.end()
        if self.state is State.RUNNING:
            self.virtual_host.owner_gone(self)

    @property
    def finished(self) -> bool:
        """True where there is nothing left to do but to close the transport."""
        return self.state is State.CLOSED and not self.output

    # --- data to send ---

    def send(self, frames: bytes) -> None:
        """Queue bytes for the client."""
        self.output.send(frames)

    def _send(self, channel: int, method: amqp_object.Method) -> None:
        self.output.send(wire.encode_method(channel, method))

    def data_to_send(self) -> bytes:
        """Return and forget the bytes that are to be sent."""
        return self.output.take()

    def data_sent(self, count: int) -> None:
        """Hear how many bytes have left; deliveries go on when there is room again."""
        if self.output.sent(count) and self.state is State.RUNNING:
            self._channels.resume()

    @property
    def wants_data(self) -> bool:
        """False while the client must not be read: it does not read its answers, or it publishes while blocked."""
        return not self.output.is_stuck and self._may_go_on

    @property
    def _may_go_on(self) -> bool:
        return not self.is_blocked and not self._is_held

    # --- blocking ---

    def publish_begins(self) -> None:
        """Stop here under an alarm, as RabbitMQ does: what follows stays where it is until the alarm is over."""
        reason = self.shared.blocked
        if reason is None or self.is_blocked:
            return
        self.is_blocked = True
        if self._capabilities.get('connection.blocked'):
            self._send(0, spec.Connection.Blocked(reason))

    def unblock(self) -> None:
        """Go on with what has arrived, if an alarm stopped it."""
        if not self.is_blocked or self.state is not State.RUNNING:
            return
        self.is_blocked = False
        if self._capabilities.get('connection.blocked'):
            self._send(0, spec.Connection.Unblocked())
        # The transport looks again whether it may read, also where there is nothing to send.
        self._has_output(self)
        self.receive_bytes(b'')

    def _handshake_too_slow(self) -> None:
        logger.warning('%s: no handshake in %d seconds', self.peer, HANDSHAKE_SECONDS)
        self.lost()


class _DeafBuffer(wire.FrameBuffer):
    """Finds no frames: after a framing error nothing can be told apart any more, except that the client hangs up."""

    def append(self, data: bytes) -> None:
        """Drop the bytes."""


def _check_heartbeat(number: int, payload: bytes) -> None:
    if number or payload:
        code = UNEXPECTED_FRAME if number else FRAME_ERROR
        text = wire.describe(wire.HEARTBEAT, payload)
        raise Refusal(code, text if number else f'{text}: unknown_frame')


def _is_closing(payload: bytes, kind: int) -> bool:
    return kind == wire.METHOD and payload.startswith(_CLOSE_OR_OPEN)


def _log_own_error(peer: str, is_login: bool) -> None:
    if is_login:
        # As text: the frames have what the client sent, its password.
        logger.error('%s: an error of the broker itself, at a login: %s', peer, traceback.format_exc())
    else:
        logger.exception('%s: an error of the broker itself', peer)


def _check_limit(name: str, wanted: int, lowest: int, highest: int) -> None:
    """Make sure that a client's limit is within the proposed one; 0 would mean that there is none (section 4.2.2)."""
    if wanted == 0 or wanted > highest:
        text = 'no limit (0)' if wanted == 0 else str(wanted)
        raise Refusal(NOT_ALLOWED, f'negotiated {name} = {text} is greater than the maximum allowed value ({highest})')
    if wanted < lowest:
        raise Refusal(NOT_ALLOWED, f'negotiated {name} = {wanted} is lower than the minimum allowed value ({lowest})')


_Handler = Callable[[Connection, Any], None]
_CLOSE_OR_OPEN: Final = tuple(
    struct.pack('>I', method.INDEX) for method in (spec.Channel.Close, spec.Channel.CloseOk, spec.Channel.Open)
)
_ALWAYS: Final[dict[type, _Handler]] = {spec.Connection.Close: Connection._on_close}
_HANDLERS: Final[dict[State, dict[type, _Handler]]] = {
    State.EXPECTING_HEADER: {},
    State.STARTING: {spec.Connection.StartOk: Connection._on_start_ok},
    State.TUNING: {spec.Connection.TuneOk: Connection._on_tune_ok},
    State.OPENING: {spec.Connection.Open: Connection._on_open},
    State.RUNNING: {spec.Connection.UpdateSecret: Connection._on_update_secret},
    State.CLOSING: {spec.Connection.CloseOk: Connection._on_close_ok},
    State.CLOSED: {},
}
