"""The messages that come in on one channel: checked, routed, returned, confirmed."""

# pika.spec has no annotations.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

from pika import amqp_object, spec

from postage.broker import arguments as args
from postage.broker import wire
from postage.broker.client import Client, Outlet
from postage.broker.dead_letters import carbon_copies
from postage.broker.exchanges import Exchange
from postage.broker.messages import ContentHeader, Message, short_string
from postage.broker.publishing import Confirms, Content
from postage.broker.queues import Queue
from postage.broker.replies import ACCESS_REFUSED, NO_ROUTE, NOT_IMPLEMENTED, PRECONDITION_FAILED, Refusal
from postage.broker.transactions import Transactions
from postage.broker.virtual_host import REPLY_TO

logger = logging.getLogger(__name__)


class Publisher:
    """Does what a whole ``Basic.Publish`` asks for.

    :ivar reply_address: the direct reply-to address of the channel, while it consumes replies
    """

    def __init__(self, client: Client, outlet: Outlet, transactions: Transactions) -> None:
        self.reply_address: str | None = None
        self._client = client
        self._outlet = outlet
        self._transactions = transactions
        self._host = client.virtual_host
        self._shared = client.shared
        self._confirms: Confirms | None = None
        self._late_confirms: deque[amqp_object.Method] = deque()
        self._is_open = True

    def end(self) -> None:
        """Send no more confirms."""
        self._is_open = False

    # --- messages ---

    def publish(self, content: Content) -> None:
        """Take a message over, or hold it back for its transaction.

        :raises Refusal: where it is not one that may be published there
        """
        publish, header = content.publish, content.header
        assert header is not None
        if self._client.grant is not None:
            self._client.grant.check('write', 'exchange', publish.exchange)
        exchange = self._host.exchange(publish.exchange)
        if exchange.internal:
            where = f"exchange '{exchange.name}' in vhost '{self._host.name}'"
            raise Refusal(ACCESS_REFUSED, f'cannot publish to internal {where}')
        if publish.immediate:
            raise Refusal(NOT_IMPLEMENTED, 'immediate=true')
        self._check_user(header)
        expiration = header.text('expiration')
        lifetime = None if expiration is None else args.check_expiration(expiration)
        if header.text('reply_to') == REPLY_TO:
            header = self._with_reply_address(header)
        keys = (publish.routing_key, *carbon_copies(header, b'CC'))
        hidden = carbon_copies(header, b'BCC')
        if hidden:
            header = header.with_headers(BCC=None)
            keys += tuple(hidden)
        message = Message(
            exchange.name,
            publish.routing_key,
            header,
            content.body(),
            publish.address,
            keys,
            memory=self._shared.memory,
        )
        if self._transactions.is_selected:
            self._transactions.publish_later(lambda: self._hand_over(exchange, message, lifetime, publish.mandatory))
        else:
            self._hand_over(exchange, message, lifetime, publish.mandatory)

    def _check_user(self, header: ContentHeader) -> None:
        claimed = header.text('user_id')
        if claimed is not None and claimed != self._client.user:
            wrong = f"user_id property set to '{claimed}' but authenticated user was '{self._client.user}'"
            raise Refusal(PRECONDITION_FAILED, wrong)

    def _with_reply_address(self, header: ContentHeader) -> ContentHeader:
        if self.reply_address is None:
            raise Refusal(PRECONDITION_FAILED, 'fast reply consumer does not exist')
        return header.replace(reply_to=short_string(self.reply_address))

    def _hand_over(self, exchange: Exchange, message: Message, lifetime: int | None, mandatory: bool) -> None:
        """Route a message: to its queues, back to a publisher that insists, or nowhere."""
        confirms = self._confirms
        tag = confirms.publish() if confirms is not None else 0
        if confirms is not None and self._shared.refusals_left:
            self._shared.refusals_left -= 1
            self._refuse(confirms, tag)
            return
        is_reply = not exchange.name and self._host.reply(message)
        queues = self._host.route(exchange, message)
        accepted = self._host.put(queues, message, lifetime)
        self._tell(message, queues)
        if mandatory and not queues and not (is_reply and self._shared.rules.replies_are_routed):
            self._outlet.send_content(
                wire.return_payload(NO_ROUTE, 'NO_ROUTE', message.address), message, message.header.payload
            )
        if confirms is not None and not accepted:
            self._refuse(confirms, tag)

    def _tell(self, message: Message, queues: Sequence[Queue]) -> None:
        if not (self._host.observers or logger.isEnabledFor(logging.DEBUG)):
            return
        names = [queue.name for queue in queues]
        for observer in self._host.observers:
            observer.published(self._host.name, message, names)
        text = '%s: publish to %r with key %r, %d bytes, for %s'
        reached = ', '.join(map(repr, names)) or 'no queue'
        logger.debug(text, self._host.name, message.exchange, message.routing_key, len(message.body), reached)

    # --- confirms ---

    def select(self) -> amqp_object.Method:
        """Confirm messages from now on.

        :raises Refusal: 406, where the channel has transactions
        """
        if self._transactions.is_selected:
            raise Refusal(PRECONDITION_FAILED, 'cannot switch from tx to confirm mode')
        self._confirms = self._confirms or Confirms()
        return spec.Confirm.SelectOk()

    def select_transactions(self) -> amqp_object.Method:
        """Have messages and settlements wait for ``Tx.Commit`` from now on.

        :raises Refusal: 406, where the channel confirms
        """
        if self._confirms is not None:
            raise Refusal(PRECONDITION_FAILED, 'cannot switch from confirm to tx mode')
        self._transactions.is_selected = True
        return spec.Tx.SelectOk()

    def flush_confirms(self) -> None:
        """Acknowledge what was published since the last time."""
        if self._confirms is not None and self._is_open:
            acknowledgement = self._confirms.acknowledge()
            if acknowledgement is not None:
                self._send_confirm(acknowledgement)

    def _refuse(self, confirms: Confirms, tag: int) -> None:
        earlier = confirms.acknowledge(tag - 1)
        if earlier is not None:
            self._send_confirm(earlier)
        self._send_confirm(confirms.refuse(tag))

    def _send_confirm(self, confirm: amqp_object.Method) -> None:
        """Send an acknowledgement or a refusal to a publisher: at once, unless a test wants it late."""
        delay = self._shared.confirm_delay
        if delay:
            self._late_confirms.append(confirm)
            self._shared.clock.call_later(delay, self._send_late_confirm)
            return
        while self._late_confirms:
            self._send_late_confirm()
        self._outlet.send(confirm)

    def _send_late_confirm(self) -> None:
        if self._late_confirms and self._is_open:
            self._outlet.send(self._late_confirms.popleft())
