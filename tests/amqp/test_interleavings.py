"""Where two threads meet: the moments at which one of them could harm the other, each forced.

A thread is stopped in the middle by a container that calls back, and the other one is let go at that moment. Where a
lock keeps it out, it is given :data:`PATIENCE` to show that it waits.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pika.exceptions
import pytest

from postage import errors
from postage.amqp import publishing
from postage.amqp.connection import Connection
from postage.amqp.consuming import ConsumingChannel
from postage.amqp.publishing import Ledger, Outgoing, PublishingChannel, Receipt
from postage.amqp.steps import Drive
from postage.amqp.topology import Queue, Topology
from postage.messaging.pace import Prefetch
from postage.settings import broker_settings
from support.interruptions import Interruption, at_each_moment
from support.messaging import TIMEOUT, Seen
from support.pika_channels import Host

PATIENCE = 0.2
"""Seconds for which a thread that should be kept out by a lock is watched."""


class Other:
    """What another thread does, once, when it is let go."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.error: BaseException | None = None
        self.was_kept_out = False
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._is_gone = False

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error

    def go(self) -> None:
        """Let it go, and see whether it comes to its end. Only the first call counts."""
        if not self._is_gone:
            self._is_gone = True
            self._thread.start()
            self._thread.join(PATIENCE)
            self.was_kept_out = self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end, and see that it was let go and did not fail."""
        assert self._is_gone, 'the moment never came'
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error


class Window:
    """A publishing channel that is open, with messages published on it.

    :ivar told: the numbers of the messages whose receipts have called back
    """

    def __init__(self, messages: int, confirms: bool = True) -> None:
        self.channel = PublishingChannel(Host(), confirms)  # type: ignore[arg-type]
        self.ledger = Ledger(self.channel)
        self.told = Seen()
        self.receipts = [Receipt(str(number), 1, True, self.ledger) for number in range(messages)]
        for number, receipt in enumerate(self.receipts):
            self.channel.publish(Outgoing('', 'queue', False, b'\0\0', b'body', receipt), TIMEOUT)
            receipt.add_done_callback(lambda number=number: self.told.put(number))  # type: ignore[misc]

    def check_settled(self, but: int = 0) -> None:
        """Each message is settled, and none was twice; all receipts but so many have called back, once."""
        channel = self.channel
        assert (channel.in_flight, channel._bytes, self.ledger.unsettled) == (0, 0, 0)
        assert not channel._pending
        assert not channel._unconfirmed
        assert [receipt.unsettled for receipt in self.receipts] == [0] * len(self.receipts)
        told = self.told.take(max(self.told.qsize(), len(self.receipts) - but))
        assert len(set(told)) == len(told)


# Failures are told


def failed_receipt() -> tuple[Window, Receipt]:
    window = Window(1)
    window.channel.drain([])
    window.channel.confirmed(1, False, False)
    (receipt,) = window.receipts
    assert isinstance(receipt.error, errors.Nacked)
    assert list(window.ledger.failures) == [receipt.error]
    return window, receipt


class Watched(deque[Any]):
    """Calls back before it removes something."""

    def __init__(self, content: Iterator[Any], other: Other) -> None:
        super().__init__(content)
        self._other = other

    def remove(self, value: Any) -> None:
        self._other.go()
        super().remove(value)


@pytest.mark.parametrize('by', ['wait', 'flush'])
def test_two_threads_that_are_told_of_one_failure_at_the_same_time_are_both_told(by: str) -> None:
    window, receipt = failed_receipt()

    def be_told() -> None:
        with pytest.raises(errors.Nacked):
            receipt.wait(0)

    def flush() -> None:
        window.channel.flush(window.ledger, 0)  # which finds that the first one has been told, or is told as well

    other = Other(be_told if by == 'wait' else flush)
    window.ledger.failures = Watched(iter(window.ledger.failures), other)
    with pytest.raises(errors.Nacked):
        receipt.wait(0)
    other.join()
    assert not window.ledger.failures
    assert other.was_kept_out


def test_one_that_waits_after_a_flush_was_told_is_told_all_the_same() -> None:
    window, receipt = failed_receipt()
    with pytest.raises(errors.Nacked):
        window.channel.flush(window.ledger, 0)
    for _ in range(2):
        with pytest.raises(errors.Nacked):
            receipt.wait(0)


# A connection that is closed


def test_a_close_while_another_thread_sends_settles_each_message_once() -> None:
    class Pending(deque[Any]):
        def __getitem__(self, index: Any) -> Any:
            closing.go()
            return super().__getitem__(index)

    window = Window(3)
    channel = window.channel
    closing = Other(lambda: channel.give_up(errors.Closed('closed')))
    channel._pending = Pending(channel._pending)
    frames: list[bytes] = []
    channel.drain(frames)
    closing.join()
    assert closing.was_kept_out
    assert len(frames) == 3
    window.check_settled()
    assert all(isinstance(receipt.error, errors.PublishTimeout) for receipt in window.receipts)


def test_a_confirm_that_another_thread_reads_during_a_close_settles_its_message_once() -> None:
    class Unconfirmed(dict[int, Any]):
        def values(self) -> Any:
            listed = list(super().values())
            confirming.go()
            return listed

    def confirm() -> None:
        channel.confirmed(2, True, True)
        channel.end_of_read()

    window = Window(3)
    channel = window.channel
    channel.drain([])
    channel._unconfirmed = Unconfirmed(channel._unconfirmed)
    confirming = Other(confirm)
    channel.give_up(errors.Closed('closed'))
    confirming.join()
    assert confirming.was_kept_out
    window.check_settled()


def test_a_confirm_during_a_loss_settles_its_message_once_and_the_others_are_sent_again() -> None:
    class Unconfirmed(dict[int, Any]):
        def values(self) -> Any:
            listed = list(super().values())
            confirming.go()
            return listed

    def confirm() -> None:
        channel.confirmed(1, False, True)
        channel.end_of_read()

    window = Window(3)
    channel = window.channel
    channel.drain([])
    channel._unconfirmed = Unconfirmed(channel._unconfirmed)
    confirming = Other(confirm)
    channel._on_lost(errors.ConnectionLost('cut'))
    confirming.join()
    again: list[bytes] = []
    channel._tag = 0
    channel._oldest = 1
    channel.drain(again)
    assert len(again) == 3  # the confirm came too late: which message it was about was already forgotten
    channel.confirmed(3, True, True)
    channel.end_of_read()
    window.check_settled()


def test_a_message_published_while_the_connection_is_closed_fails_or_is_refused() -> None:
    window = Window(1)
    channel = window.channel

    class Unconfirmed(dict[int, Any]):
        def values(self) -> Any:
            publishing.go()
            return super().values()

    def publish() -> None:
        receipt = Receipt('late', 1, True, window.ledger)
        with pytest.raises(errors.Closed):
            channel.publish(Outgoing('', 'queue', False, b'\0\0', b'late', receipt), TIMEOUT)

    channel._unconfirmed = Unconfirmed(channel._unconfirmed)
    publishing = Other(publish)
    channel.give_up(errors.Closed('closed'))
    publishing.join()
    window.check_settled()


# The channels of a connection, which any thread takes out


class OthersAreQuicker(list[Any]):
    """A list out of which another thread takes an item that was just found in it."""

    def __contains__(self, item: object) -> bool:
        found = super().__contains__(item)
        if found:
            super().remove(item)
        return found


def test_a_channel_that_another_thread_has_taken_out_meanwhile_is_closed_all_the_same() -> None:
    connection = Connection(broker_settings('amqp://nowhere'), 'consuming')
    channel = ConsumingChannel(connection, Topology(), 0)
    connection.channels = OthersAreQuicker([channel])
    connection.remove_channel(channel)
    assert not channel.is_wanted
    connection.close()


# The prefetch count, which two threads change


class Consuming:
    """A consuming channel of which a test plays the broker.

    :ivar wish: the prefetch count that is wanted
    """

    def __init__(self) -> None:
        self.host: Any = Host()
        self.wish = 8
        self.channel = ConsumingChannel(self.host, Topology(), 8)
        self.channel.consumers.wish = lambda: self.wish
        Drive(self.channel.consumers.begin_steps('queue'))
        self.opening = Drive(self.channel.ensure_open_steps())
        self.host.pika_channel.opened()

    def answer(self) -> str:
        """Answer the method under way, and return what it was."""
        call = self.host.pika_channel.calls.pop(0)
        if call.what.startswith('basic_consume'):
            self.host.pika_channel.consumer_tags.append(call.arguments['consumer_tag'])
        call.answer()
        return str(call.what.split()[0])

    def answer_all(self) -> int:
        """Answer all there is, and what follows. Returns the count with which the last consumer began."""
        told, of_the_last = 0, 0
        while self.host.pika_channel.calls or self.host.told:
            self.host.do_what_was_told()
            for call in self.host.pika_channel.calls[:1]:
                if call.what.startswith('basic_qos'):
                    told = call.arguments['prefetch_count']
                if call.what.startswith('basic_consume'):
                    of_the_last = told
                self.answer()
        return of_the_last

    def change(self, wish: int) -> None:
        self.wish = wish
        self.host.tell(self.channel.consumers.resize_steps)


@pytest.mark.parametrize('after', range(3))
def test_a_count_that_changes_while_the_channel_is_set_up_is_told_to_the_broker(after: int) -> None:
    """The broker was told the old one already, or the consumer has begun with it."""
    on = Consuming()
    for _ in range(after):
        assert on.answer() in ('basic_qos', 'basic_consume')
    on.change(64)
    if after < 2:
        on.host.do_what_was_told()
    assert on.answer_all() == on.channel.prefetch == 64
    assert on.opening.outcome.done()


def test_of_two_changes_at_the_same_time_the_last_one_counts_whichever_is_carried_out_first() -> None:
    on = Consuming()
    on.answer_all()
    on.change(1)
    on.change(64)
    on.host.told.reverse()
    assert on.answer_all() == on.channel.prefetch == 64


@pytest.mark.parametrize('answered', range(4))
def test_a_change_in_the_middle_of_another_one_counts(answered: int) -> None:
    on = Consuming()
    on.answer_all()
    on.change(64)
    on.host.do_what_was_told()
    for _ in range(answered):
        if on.host.pika_channel.calls:
            on.answer()
    on.change(1)
    on.host.do_what_was_told()
    on.answer_all()
    assert on.channel.prefetch == 1


@pytest.mark.parametrize('answered', range(4))
def test_a_change_that_the_loss_of_the_channel_cuts_short_is_made_up_for_when_it_is_open_again(answered: int) -> None:
    on = Consuming()
    on.answer_all()
    on.change(64)
    on.host.do_what_was_told()
    for _ in range(min(answered, 3)):
        if on.host.pika_channel.calls:
            on.answer()
    on.channel.is_wanted = False  # opened again by hand
    on.host.pika_channel.refuse(406, 'PRECONDITION_FAILED')
    on.channel.is_wanted = True
    Drive(on.channel.ensure_open_steps())
    on.host.pika_channel.opened()
    assert on.answer_all() == on.channel.prefetch == 64


@pytest.mark.parametrize('answered', range(4))
def test_a_change_in_the_middle_of_which_the_channel_is_closed_ends_without_a_word(answered: int) -> None:
    on = Consuming()
    on.channel.topology.queues['queue'] = Queue('queue', {})
    on.answer_all()
    on.wish = 1
    resizing = Drive(on.channel.consumers.resize_steps())
    for _ in range(answered):
        if on.host.pika_channel.calls:
            on.answer()
    closing = Drive(on.channel.close_steps())
    while not closing.outcome.done() and on.host.pika_channel.calls[-1].what != 'close':
        on.answer()
    on.host.pika_channel.closed(pika.exceptions.ChannelClosedByClient(200, 'closed'))
    assert closing.outcome.result(0) is None
    assert resizing.outcome.result(0) is None


def test_what_stays_when_others_are_handed_back_keeps_its_order_while_more_is_read() -> None:
    channel = Consuming().channel

    def come(queue: str) -> Any:
        channel.inbox.append(SimpleNamespace(queue=queue, number=next(numbers)))  # type: ignore[arg-type]
        return channel.inbox[-1]

    def hand_back(delivery: Any) -> None:
        handed_back.append(delivery)
        assert channel.inbox[0] is staying[0], 'the consuming thread would take another one'
        staying.append(come('own'))

    handed_back: list[Any] = []
    numbers = itertools.count()
    staying, shared = [come('own')], [come('shared'), come('shared')]
    channel.hand_back = hand_back  # type: ignore[method-assign]
    channel._return_inbox({'shared'})
    assert handed_back == shared[::-1]
    assert list(channel.inbox) == staying


def test_what_two_threads_ask_for_is_what_is_wanted_in_the_end() -> None:
    """One looks up what is wanted; before it says so, the other one changes it and says so."""
    prefetch = Prefetch(8, 'here')
    asked: list[int] = []

    def resize() -> None:
        if not asked:
            other.go()
        asked.append(prefetch.count)

    prefetch.begin(1, False, resize)
    other = Other(lambda: prefetch.set_aside(1))
    prefetch._base = 16
    prefetch.resize()
    other.join()
    assert other.was_kept_out
    assert asked[-1] == prefetch.count > 16


# Ctrl-C in the thread that sends or reads, after which the link is given up


def lose_and_send_again(window: Window) -> None:
    channel = window.channel
    channel._on_lost(errors.ConnectionLost('interrupted'))
    channel._tag, channel._oldest = 0, 1
    channel.drain([])
    channel.confirmed(channel._tag, True, True)
    channel.end_of_read()


def confirm_one_by_one(channel: PublishingChannel) -> None:
    for tag in (1, 2, 3):
        channel.confirmed(tag, False, True)
    channel.end_of_read()


def confirm_together(channel: PublishingChannel) -> None:
    channel.confirmed(3, True, True)
    channel.end_of_read()


def refuse_and_confirm(channel: PublishingChannel) -> None:
    channel.confirmed(1, False, False)
    channel.confirmed(3, True, True)
    channel.end_of_read()


@pytest.mark.parametrize('work', [confirm_one_by_one, confirm_together, refuse_and_confirm])
def test_after_ctrl_c_at_any_moment_of_reading_each_message_is_settled_once_and_but_one_callback_called(
    work: Callable[[PublishingChannel], None],
) -> None:
    def attempt(interruption: Interruption) -> None:
        window = Window(3)
        window.channel.drain([])
        with interruption, contextlib.suppress(KeyboardInterrupt):
            work(window.channel)
        lose_and_send_again(window)
        window.check_settled(but=interruption.has_come)  # Ctrl-C may have come in a callback
        failed = [receipt.error for receipt in window.receipts if receipt.error is not None]
        assert list(window.ledger.failures) == failed
        assert len(failed) <= (work is refuse_and_confirm)

    assert at_each_moment({publishing.__file__}, attempt) > 10


@pytest.mark.parametrize('confirms', [True, False])
def test_after_ctrl_c_at_any_moment_of_sending_each_message_is_sent_again_or_not_and_settled_once(
    confirms: bool,
) -> None:
    def attempt(interruption: Interruption) -> None:
        window = Window(3, confirms)
        with interruption, contextlib.suppress(KeyboardInterrupt):
            window.channel.drain([])
        if confirms:
            lose_and_send_again(window)
        else:
            window.channel._on_lost(errors.ConnectionLost('interrupted'))
            window.channel.drain([])
            window.channel.drained()
        window.check_settled()

    assert at_each_moment({publishing.__file__}, attempt) > 5
