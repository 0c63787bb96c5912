"""A connection, from the client's first byte to the last one sent (AMQP 0-9-1 sections 2.2 and 4.2).

No sockets here. Whoever owns the transport

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
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pika import amqp_object, data, spec

from postage.broker import wire
from postage.broker.channel import Channel
from postage.broker.channel import State as ChannelState
from postage.broker.replies import (
    ACCESS_REFUSED,
    CHANNEL_ERROR,
    COMMAND_INVALID,
    FRAME_ERROR,
    INTERNAL_ERROR,
    NOT_ALLOWED,
    UNEXPECTED_FRAME,
    Refusal,
)
from postage.printable import shown_half_built

if TYPE_CHECKING:
    from postage.broker.clock import Timer
    from postage.broker.node import Node
    from postage.broker.users import Grant
    from postage.broker.virtual_host import VirtualHost

logger = logging.getLogger(__name__)

CHANNEL_MAX: Final = 2047
FRAME_MAX: Final = 131_072
HANDSHAKE_SECONDS: Final = 10
CLOSING_SECONDS: Final = 30
# Unsent bytes at which no more messages are delivered, at which they are again, and at which reading stops.
_FULL: Final = 512 * 1024
_ROOM: Final = 128 * 1024
_STUCK: Final = 2 * 1024 * 1024

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
    'version': '3.10',
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

    :ivar peer: the client's name in logs
    :ivar user: the user's name once it is known
    :ivar grant: what the user may do here; ``None`` stands for everything
    :ivar takes_deliveries: False while too much is unsent, and at the end
    """

    virtual_host: VirtualHost

    def __init__(self, node: Node, peer: str) -> None:
        self.node = node
        self.peer = peer
        self.state = State.EXPECTING_HEADER
        self.user = ''
        self.grant: Grant | None = None
        self.frame_max = FRAME_MAX
        self.takes_deliveries = True
        self.wants_cancel_notifications = False
        self._capabilities: Mapping[str, Any] = {}
        self._channel_max = CHANNEL_MAX
        self._channels: dict[int, Channel] = {}
        self._incoming = wire.FrameBuffer()
        self._outgoing: list[bytes] = []
        self._unsent = 0
        self._confirming: dict[Channel, None] = {}
        self._blocked = False
        self._cut_after: int | None = None
        self._heartbeat = 0
        self._heard_at = node.transport_clock.now()
        self._has_sent = False
        self._timer: Timer | None = node.transport_clock.call_later(HANDSHAKE_SECONDS, self._handshake_too_slow)

    @shown_half_built
    def __repr__(self) -> str:
        return f'<Connection {self.peer} {self.state.name}>'

    @property
    def vhost_name(self) -> str | None:
        """The name of its virtual host, once it is open and as long as it is."""
        return self.virtual_host.name if self.state is State.RUNNING else None

    @property
    def channels(self) -> list[Channel]:
        """The channels that are open."""
        return [channel for channel in self._channels.values() if channel.state is ChannelState.OPEN]

    # --- receive ---

    def receive_bytes(self, received: bytes) -> None:
        """Take bytes from the client and do what they ask for. Never raises because of what they are."""
        self._heard_at = self.node.transport_clock.now()
        self._incoming.append(received)
        if self.state is State.EXPECTING_HEADER and not self._receive_protocol_header():
            return
        try:
            for kind, channel, payload in self._incoming.frames():
                self._receive_frame(kind, channel, payload)
                if self.state is State.CLOSED or self._blocked:
                    break
        except Refusal as refusal:
            # The stream has lost its step, so that nothing after this can be read.
            self._refuse(refusal)
            if self.state is State.CLOSING:
                self._incoming = _DeafBuffer()
        self._flush_confirms()

    def _receive_protocol_header(self) -> bool:
        """Tell whether frames may follow; a client of another protocol hears which one is spoken here."""
        if len(self._incoming) < len(wire.PROTOCOL_HEADER):
            return False
        header = self._incoming.take(len(wire.PROTOCOL_HEADER))
        # RabbitMQ takes 0-9 and 0-8 headers for 0-9-1, as older clients send them.
        if header not in (
            wire.PROTOCOL_HEADER,
            b'AMQP\x00\x00\x09\x00',
            b'AMQP\x01\x01\x00\x09',
            b'AMQP\x01\x01\x08\x00',
        ):
            self.send(wire.PROTOCOL_HEADER)
            self._finish()
            return False
        self.state = State.STARTING
        self._send(0, spec.Connection.Start(0, 9, SERVER_PROPERTIES, b'PLAIN AMQPLAIN', b'en_US'))
        return True

    def _receive_frame(self, kind: int, number: int, payload: bytes) -> None:
        channel = self._channels.get(number)
        try:
            if kind == wire.HEARTBEAT:
                self._check_heartbeat(number, payload)
            elif channel is not None and channel.state is ChannelState.OPEN and not self._is_closing(payload, kind):
                channel.receive(kind, payload)
            else:
                self._receive_control(kind, number, payload)
        except Refusal as refusal:
            self._refuse(refusal, channel, payload if kind == wire.METHOD else b'')
        except Exception:
            logger.exception('%s: an error of the broker itself', self.peer)
            failure = Refusal(INTERNAL_ERROR, '')
            failure.text = 'INTERNAL_ERROR'
            self._refuse(failure)

    def _check_heartbeat(self, number: int, payload: bytes) -> None:
        if number or payload:
            code = UNEXPECTED_FRAME if number else FRAME_ERROR
            text = wire.describe(wire.HEARTBEAT, payload)
            raise Refusal(code, text if number else f'{text}: unknown_frame')

    @staticmethod
    def _is_closing(payload: bytes, kind: int) -> bool:
        return kind == wire.METHOD and payload.startswith(_CLOSE_OR_OPEN)

    def _receive_control(self, kind: int, number: int, payload: bytes) -> None:
        """Take a frame that is about the connection, or about the life of a channel."""
        if number == 0 or self.state is not State.RUNNING:
            self._receive_connection_method(kind, payload)
            return
        channel = self._channels.get(number)
        method = wire.decode_method(payload) if kind == wire.METHOD else None
        if channel is None:
            self._open_channel(number, method)
        elif isinstance(method, spec.Channel.Close):
            self._close_channel(channel)
        elif isinstance(method, spec.Channel.CloseOk):
            # Without a Close before it, it is ignored.
            if channel.state is ChannelState.CLOSING:
                del self._channels[number]
        elif isinstance(method, spec.Channel.Open) and channel.state is ChannelState.OPEN:
            raise Refusal(CHANNEL_ERROR, "second 'channel.open' seen")

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
        user = self._authenticated_user(method.mechanism, method.response)
        if user is None:
            self._refuse_login(method.mechanism)
            return
        self.user = user
        self.state = State.TUNING
        self._send(0, spec.Connection.Tune(CHANNEL_MAX, FRAME_MAX, self.node.heartbeat))

    def _authenticated_user(self, mechanism: str, response: str) -> str | None:
        """Return the name of the user who gave the right password, or ``None``."""
        raw = response.encode('utf-8', 'surrogateescape')
        if mechanism == 'PLAIN':
            _, _, rest = raw.partition(b'\0')
            name, _, password = rest.partition(b'\0')
        elif mechanism == 'AMQPLAIN':
            name, password = _read_amqplain(raw)
        else:
            raise Refusal(COMMAND_INVALID, f"unknown authentication mechanism '{mechanism}'")
        user = name.decode('utf-8', 'replace')
        return user if self.node.users.is_password(user, password) else None

    def _refuse_login(self, mechanism: str) -> None:
        logger.warning('%s: login refused', self.peer)
        if self._capabilities.get('authentication_failure_close'):
            text = f'Login was refused using authentication mechanism {mechanism}.'
            refusal = Refusal(ACCESS_REFUSED, f'{text} For details see the broker logfile.')
            self.close(refusal.code, refusal.text)
        else:
            self._finish()

    def _on_tune_ok(self, method: spec.Connection.TuneOk) -> None:
        _check_limit('frame_max', method.frame_max, wire.FRAME_MIN_SIZE, FRAME_MAX)
        _check_limit('channel_max', method.channel_max, 1, CHANNEL_MAX)
        self.frame_max = self._incoming.largest = method.frame_max
        self._channel_max = method.channel_max
        self._heartbeat = method.heartbeat
        self.state = State.OPENING

    def _on_open(self, method: spec.Connection.Open) -> None:
        host = self.node.virtual_hosts.get(method.virtual_host)
        if host is None:
            raise Refusal(NOT_ALLOWED, f'vhost {method.virtual_host} not found')
        if not self.node.users.may_enter(self.user, host.name):
            raise Refusal(NOT_ALLOWED, f"access to vhost '{host.name}' refused for user '{self.user}'")
        self.grant = self.node.users.grant(self.user, host.name)
        self.virtual_host = host
        self.state = State.RUNNING
        self._set_timer(self._heartbeat / 2 if self._heartbeat else None, self._beat)
        self._send(0, spec.Connection.OpenOk())
        logger.info('%s: user %r opened virtual host %r', self.peer, self.user, host.name)

    def _on_update_secret(self, method: spec.Connection.UpdateSecret) -> None:
        self._send(0, spec.Connection.UpdateSecretOk())

    # --- channels ---

    def _open_channel(self, number: int, method: Any) -> None:
        if isinstance(method, spec.Channel.CloseOk):
            return
        if not isinstance(method, spec.Channel.Open):
            raise Refusal(CHANNEL_ERROR, "expected 'channel.open'")
        if len(self._channels) >= self._channel_max:
            opened = f'number of channels opened ({len(self._channels)})'
            raise Refusal(NOT_ALLOWED, f'{opened} has reached the negotiated channel_max ({self._channel_max})')
        self._channels[number] = Channel(self, number)
        self._send(number, spec.Channel.OpenOk())

    def _close_channel(self, channel: Channel) -> None:
        """The client closes a channel; one that this side is closing waits for its CloseOk all the same."""
        if channel.state is ChannelState.OPEN:
            channel.flush_confirms()
            channel.end()
            del self._channels[channel.number]
        self._send(channel.number, spec.Channel.CloseOk())

    def published(self, channel: Channel) -> None:
        """Hear of a message; confirms are sent once all that arrived together is done, as one may stand for many."""
        self._confirming[channel] = None

    def _flush_confirms(self) -> None:
        if self._confirming:
            for channel in self._confirming:
                channel.flush_confirms()
            self._confirming.clear()

    # --- errors and the end ---

    def _refuse(self, refusal: Refusal, channel: Channel | None = None, payload: bytes = b'') -> None:
        """Answer an error: a soft one costs the channel, a hard one the connection."""
        if self.state in (State.CLOSING, State.CLOSED):
            return
        logger.log(logging.WARNING if refusal.closes_connection else logging.INFO, '%s: %s', self.peer, refusal.text)
        if channel is not None and not refusal.closes_connection:
            channel.refuse(refusal)
        elif self.state in (State.EXPECTING_HEADER, State.STARTING, State.TUNING):
            # RabbitMQ hangs up on those with whom it could not agree.
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
        self._flush_confirms()
        self._end()
        self.state = State.CLOSING
        self._set_timer(CLOSING_SECONDS, self.lost)
        self._send(0, spec.Connection.Close(code, text, method_index >> 16, method_index & 0xFFFF))

    def _on_close(self, method: spec.Connection.Close) -> None:
        self._flush_confirms()
        self._end()
        self._send(0, spec.Connection.CloseOk())
        self._finish()

    def _on_close_ok(self, method: spec.Connection.CloseOk) -> None:
        self._finish()

    def lost(self) -> None:
        """Hear that the client is gone, or drop it without a word."""
        self._outgoing.clear()
        self._unsent = 0
        self._finish()

    def _finish(self) -> None:
        """Come to the end; the transport closes when everything is sent."""
        if self.state is State.CLOSED:
            return
        self._end()
        self.state = State.CLOSED
        self._set_timer(None, self.lost)
        self.node.connections.discard(self)
        if not self._outgoing:
            self.node.has_output(self)
        logger.info('%s: closed', self.peer)

    def _end(self) -> None:
        """Give back what the channels hold and remove the exclusive queues."""
        self.takes_deliveries = False
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            channel.end()
        if self.state is State.RUNNING:
            self.virtual_host.owner_gone(self)

    @property
    def finished(self) -> bool:
        """True where there is nothing left to do but to close the transport."""
        return self.state is State.CLOSED and not self._outgoing

    # --- data to send ---

    def send(self, frames: bytes) -> None:
        """Queue bytes for the client."""
        if not self._outgoing:
            self.node.has_output(self)
        self._outgoing.append(frames)
        self._unsent += len(frames)
        self._has_sent = True
        if self._unsent > _FULL:
            self.takes_deliveries = False

    def _send(self, channel: int, method: amqp_object.Method) -> None:
        self.send(wire.encode_method(channel, method))

    @property
    def has_data_to_send(self) -> bool:
        """True where :meth:`data_to_send` would return something."""
        return bool(self._outgoing)

    @property
    def unsent(self) -> int:
        """How many bytes the client has still to take."""
        return self._unsent

    def data_to_send(self) -> bytes:
        """Return and forget the bytes that are to be sent."""
        joined = self._outgoing[0] if len(self._outgoing) == 1 else b''.join(self._outgoing)
        self._outgoing.clear()
        return joined if self._cut_after is None else self._cut(joined)

    def cut_after(self, count: int) -> None:
        """Send so many bytes more, in the middle of a frame or not, and then hang up. A fault that tests ask for."""
        self._cut_after = count
        if count == 0:
            self.lost()

    def _cut(self, data: bytes) -> bytes:
        assert self._cut_after is not None
        kept = data[: self._cut_after]
        self._cut_after -= len(kept)
        if self._cut_after == 0:
            self.lost()
        return kept

    def data_sent(self, count: int) -> None:
        """Hear how many bytes have left; deliveries go on when there is room again."""
        self._unsent -= count
        if not self.takes_deliveries and self._unsent <= _ROOM and self.state is State.RUNNING:
            self.takes_deliveries = True
            for channel in list(self._channels.values()):
                channel.resume_deliveries()

    @property
    def wants_data(self) -> bool:
        """False while the client must not be read: it does not read its answers, or it publishes while blocked."""
        return self._unsent < _STUCK and not self._blocked

    # --- blocking ---

    def publish_begins(self) -> None:
        """Stop here under an alarm, as RabbitMQ does: what follows stays where it is until the alarm is over."""
        reason = self.node.blocked
        if reason is None or self._blocked:
            return
        self._blocked = True
        if self._capabilities.get('connection.blocked'):
            self._send(0, spec.Connection.Blocked(reason))

    def unblock(self) -> None:
        """Go on with what has arrived, if an alarm stopped it."""
        if not self._blocked or self.state is not State.RUNNING:
            return
        self._blocked = False
        if self._capabilities.get('connection.blocked'):
            self._send(0, spec.Connection.Unblocked())
        # The transport looks again whether it may read, also where there is nothing to send.
        self.node.has_output(self)
        self.receive_bytes(b'')

    # --- time ---

    def _set_timer(self, seconds: float | None, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.node.transport_clock.call_later(seconds, callback)

    def _handshake_too_slow(self) -> None:
        logger.warning('%s: no handshake in %d seconds', self.peer, HANDSHAKE_SECONDS)
        self.lost()

    def _beat(self) -> None:
        """Show that the broker lives, and look whether the client does (section 4.2.7)."""
        silence = self.node.transport_clock.now() - self._heard_at
        if silence > 2 * self._heartbeat and not self._blocked:
            logger.warning('%s: missed heartbeats for %d seconds', self.peer, silence)
            self.lost()
            return
        if not self._has_sent:
            self.send(wire.HEARTBEAT_FRAME)
        self._has_sent = False
        self._set_timer(self._heartbeat / 2, self._beat)


class _DeafBuffer(wire.FrameBuffer):
    """Finds no frames: after a framing error nothing can be told apart any more, except that the client hangs up."""

    def append(self, data: bytes) -> None:
        """Drop the bytes."""


def _check_limit(name: str, wanted: int, lowest: int, highest: int) -> None:
    """Make sure that a client's limit is within the proposed one; 0 would mean that there is none (section 4.2.2)."""
    if wanted == 0 or wanted > highest:
        text = 'no limit (0)' if wanted == 0 else str(wanted)
        raise Refusal(NOT_ALLOWED, f'negotiated {name} = {text} is greater than the maximum allowed value ({highest})')
    if wanted < lowest:
        raise Refusal(NOT_ALLOWED, f'negotiated {name} = {wanted} is lower than the minimum allowed value ({lowest})')


def _read_amqplain(response: bytes) -> tuple[bytes, bytes]:
    """Return user and password of RabbitMQ's AMQPLAIN, a table without its length."""
    try:
        table = data.decode_table(struct.pack('>I', len(response)) + response, 0)[0]
        name, password = table['LOGIN'], table['PASSWORD']
        return _as_bytes(name), _as_bytes(password)
    except Exception:
        return b'', b''


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


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
