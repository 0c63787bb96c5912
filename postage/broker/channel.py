"""A channel: methods and content in, deliveries and confirms out (AMQP 0-9-1 chapters 1.5 to 1.9).

A channel is open until it is closed by either side. An error closes it with a ``Channel.Close``; what arrives after
that and before the client's ``CloseOk`` is passed over.

    OPEN ── Channel.Close from the client ──> gone
    OPEN ── Refusal ──> CLOSING ── CloseOk ──> gone

Its parts answer the methods: ``declaring`` those about exchanges and queues, ``publisher`` and ``delivering`` those
about messages. The table at the end of the file tells which.
"""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Any, Final

from pika import amqp_object, spec

from postage.broker import wire
from postage.broker.client import Client, Outlet
from postage.broker.declaring import Declaring
from postage.broker.delivering import Delivering
from postage.broker.limits import LARGEST_METHOD
from postage.broker.publisher import Publisher
from postage.broker.publishing import Content, PublishReader
from postage.broker.replies import COMMAND_INVALID, NOT_IMPLEMENTED, PRECONDITION_FAILED, UNEXPECTED_FRAME, Refusal
from postage.broker.transactions import Transactions

_PUBLISH: Final = struct.pack('>I', spec.Basic.Publish.INDEX)
_ACK: Final = struct.pack('>I', spec.Basic.Ack.INDEX)
_unpack_ack = struct.Struct('>QB').unpack_from


class State(enum.Enum):
    """What a channel may still do."""

    OPEN = enum.auto()
    CLOSING = enum.auto()


class Channel:
    """One channel of a connection.

    :ivar state: whether it is open
    :ivar method_index: the class and method number of what was asked last
    """

    def __init__(self, client: Client, number: int) -> None:
        self.number = number
        self.state = State.OPEN
        self.method_index = 0
        self._client = client
        self._largest_message = client.shared.largest_message
        self._outlet = Outlet(client, number)
        self._transactions = Transactions()
        self._publishes = PublishReader()
        self._content: Content | None = None
        self.declaring = Declaring(client)
        self.publisher = Publisher(client, self._outlet, self._transactions)
        self.delivering = Delivering(
            client, self._outlet, self.declaring, self.publisher, self._transactions, self._refuse_late, number
        )

    # --- frames in ---

    def receive(self, kind: int, payload: bytes) -> None:
        """Take a frame that is meant for this channel.

        :raises Refusal: where it asks for what it cannot have
        """
        if self.state is State.CLOSING:
            return
        if self._content is not None:
            if self._content.receive(kind, payload):
                content, self._content = self._content, None
                self._client.published(self.number)
                self.publisher.publish(content)
            elif self._client.shared.blocked is not None:
                self._client.publish_begins()
        elif kind != wire.METHOD:
            raise Refusal(UNEXPECTED_FRAME, 'expected method frame, got non method frame instead')
        elif payload.startswith(_PUBLISH):
            self.method_index = spec.Basic.Publish.INDEX
            self._content = Content(self._publishes.read(payload), self._largest_message, self._client.shared.memory)
            self._client.publish_begins()
        elif payload.startswith(_ACK) and len(payload) == 13:
            self.method_index = spec.Basic.Ack.INDEX
            tag, multiple = _unpack_ack(payload, 4)
            self.delivering.acknowledge(tag, bool(multiple & 1))
        else:
            self.method_index = wire.method_index(payload)
            if len(payload) > LARGEST_METHOD:
                size = f'method size {len(payload)} is larger than max size {LARGEST_METHOD}'
                raise Refusal(PRECONDITION_FAILED, size)
            self._receive_method(wire.decode_method(payload))

    def _receive_method(self, method: Any) -> None:
        handler = _HANDLERS.get(type(method))
        if handler is None:
            raise Refusal(COMMAND_INVALID, 'unimplemented method')
        reply = handler(self, method)
        if reply is not None and not getattr(method, 'nowait', False):
            self._outlet.send(reply)

    def flush_confirms(self) -> None:
        """Acknowledge what was published since the last time."""
        self.publisher.flush_confirms()

    # --- the end ---

    def refuse(self, refusal: Refusal) -> None:
        """Close the channel because of an error, and wait for the client's CloseOk."""
        self.flush_confirms()
        self.end()
        index = self.method_index
        self._outlet.send(spec.Channel.Close(refusal.code, refusal.text, index >> 16, index & 0xFFFF))

    def _refuse_late(self, refusal: Refusal) -> None:
        """Close the channel because of what the client has not done."""
        self.method_index = 0
        self.refuse(refusal)

    def end(self) -> None:
        """Give back what the channel holds."""
        if self.state is State.CLOSING:
            return
        self.state = State.CLOSING
        self._content = None
        self.publisher.end()
        self._transactions.undo()
        self.delivering.end()

    # --- what none of the parts answers ---

    def _on_flow(self, method: spec.Channel.Flow) -> amqp_object.Method:
        if not method.active:
            raise Refusal(NOT_IMPLEMENTED, 'active=false')
        return spec.Channel.FlowOk(active=True)

    def _on_access_request(self, method: spec.Access.Request) -> amqp_object.Method:
        return spec.Access.RequestOk(ticket=1)

    def _on_confirm_select(self, method: spec.Confirm.Select) -> amqp_object.Method:
        return self.publisher.select()

    def _on_tx_select(self, method: spec.Tx.Select) -> amqp_object.Method:
        return self.publisher.select_transactions()

    def _on_tx_commit(self, method: spec.Tx.Commit) -> amqp_object.Method:
        self._transactions.commit()
        return spec.Tx.CommitOk()

    def _on_tx_rollback(self, method: spec.Tx.Rollback) -> amqp_object.Method:
        self._transactions.roll_back()
        return spec.Tx.RollbackOk()


_Handler = Callable[[Channel, Any], 'amqp_object.Method | None']


def _declaring(answer: Callable[[Declaring, Any], amqp_object.Method | None]) -> _Handler:
    return lambda channel, method: answer(channel.declaring, method)


def _delivering(answer: Callable[[Delivering, Any], amqp_object.Method | None]) -> _Handler:
    return lambda channel, method: answer(channel.delivering, method)


_HANDLERS: Final[dict[type, _Handler]] = {
    spec.Channel.Flow: Channel._on_flow,
    spec.Access.Request: Channel._on_access_request,
    spec.Exchange.Declare: _declaring(Declaring.on_exchange_declare),
    spec.Exchange.Delete: _declaring(Declaring.on_exchange_delete),
    spec.Exchange.Bind: _declaring(Declaring.on_exchange_bind),
    spec.Exchange.Unbind: _declaring(Declaring.on_exchange_unbind),
    spec.Queue.Declare: _declaring(Declaring.on_queue_declare),
    spec.Queue.Bind: _declaring(Declaring.on_queue_bind),
    spec.Queue.Unbind: _declaring(Declaring.on_queue_unbind),
    spec.Queue.Purge: _declaring(Declaring.on_queue_purge),
    spec.Queue.Delete: _declaring(Declaring.on_queue_delete),
    spec.Basic.Qos: _delivering(Delivering.on_qos),
    spec.Basic.Consume: _delivering(Delivering.on_consume),
    spec.Basic.Cancel: _delivering(Delivering.on_cancel),
    spec.Basic.Get: _delivering(Delivering.on_get),
    spec.Basic.Ack: _delivering(Delivering.on_ack),
    spec.Basic.Nack: _delivering(Delivering.on_nack),
    spec.Basic.Reject: _delivering(Delivering.on_reject),
    spec.Basic.Recover: _delivering(Delivering.on_recover),
    spec.Basic.RecoverAsync: _delivering(Delivering.on_recover_async),
    spec.Confirm.Select: Channel._on_confirm_select,
    spec.Tx.Select: Channel._on_tx_select,
    spec.Tx.Commit: Channel._on_tx_commit,
    spec.Tx.Rollback: Channel._on_tx_rollback,
}
