"""When a connection sends: at once where it may, together what follows closely, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from postage import messaging
from postage.amqp import outbox as outbox_module
from postage.amqp.outbox import BACKLOG_MAX, BACKLOG_SECONDS, GATHER_SECONDS, GATHERED_MOST, Outbox
from postage.amqp.threads import Batch
from postage.amqp.tick import Tick
from support.loops import StepLoop
from support.messaging import TIMEOUT, Bench, Processor, eventually
from support.proxy import Proxy


class Link:
    """What stands for a link: it notes what is written, in one string for each write."""

    is_direct = True
    is_lost = False
    may_lag = True

    def __init__(self) -> None:
        self.writing = threading.Lock()
        self.written: list[bytes] = []
        self.failures: list[Exception] = []
        self.backlog = 0

    def write(self, data: bytes) -> None:
        assert self.writing.locked()
        self.written.append(data)

    def fail_soon(self, error: Exception) -> None:
        self.failures.append(error)


class Sender:
    """What stands for a channel."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = list(frames)
        self.needs_flush = False
        self.is_open = True
        self.drained_times = 0

    def drain(self, frames: list[bytes]) -> None:
        frames += self.frames
        self.frames.clear()

    def drained(self) -> None:
        self.drained_times += 1


class Setting:
    """An outbox with its link and its loop, of whose connection this thread is not the I/O thread."""

    def __init__(self) -> None:
        self.loop = StepLoop()
        self.tick = Tick(self.loop, self.loop.add_callback_threadsafe)
        self.outbox: Any = Outbox(self.loop, self.tick, self.loop.add_callback_threadsafe)
        self.link: Any = Link()
        self.outbox.link = self.link

    @property
    def written(self) -> list[bytes]:
        written: list[bytes] = self.link.written
        return written


@pytest.fixture
def on() -> Setting:
    return Setting()


@pytest.fixture
def busy(on: Setting, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """One in which a message has just been sent, so that the next ones are gathered."""
    monkeypatch.setattr(outbox_module, 'LULL_SECONDS', 3600.0)
    on.outbox._sent_at = time.monotonic()
    return on


# At once, and together


def test_after_a_lull_a_message_is_sent_at_once_by_the_thread_that_has_it(on: Setting) -> None:
    sender = Sender(b'a', b'b')
    on.outbox.submit(sender)
    assert on.written == [b'ab']
    assert sender.drained_times == 1
    assert not sender.needs_flush
    assert on.loop.is_idle


def test_messages_that_follow_closely_are_sent_in_one_write_a_moment_later(busy: Setting) -> None:
    first, second = Sender(b'a'), Sender(b'b')
    busy.outbox.submit(first)
    busy.outbox.submit(second)
    first.frames.append(b'c')
    busy.outbox.submit(first)
    assert busy.written == []
    busy.loop.run(GATHER_SECONDS)
    assert busy.written == [b'acb']
    assert (first.drained_times, second.drained_times) == (1, 1)
    assert busy.loop.is_idle


def test_however_many_are_gathered_the_i_o_thread_is_woken_once(busy: Setting) -> None:
    sender = Sender()
    for _ in range(GATHERED_MOST - 1):
        busy.outbox.submit(sender)
    assert busy.loop.asked == 1


def test_when_enough_have_come_together_the_thread_sends_them_itself(busy: Setting) -> None:
    sender = Sender()
    for number in range(GATHERED_MOST):
        assert busy.written == []
        sender.frames.append(bytes([number % 256]))
        busy.outbox.submit(sender)
    assert busy.written == [bytes(number % 256 for number in range(GATHERED_MOST))]
    assert busy.outbox.gathered == 0


def test_in_a_batch_everything_is_sent_at_its_end(on: Setting) -> None:
    senders = [Sender(b'a'), Sender(b'b')]
    with Batch():
        for sender in senders:
            on.outbox.submit(sender)
        assert on.written == []
        assert on.tick.is_ticking
    assert on.written == [b'ab']


def test_what_a_thread_with_a_batch_in_hand_does_not_send_leaves_at_a_tick(on: Setting) -> None:
    with Batch():
        on.outbox.submit(Sender(b'a'))
        assert on.written == []
        on.loop.run(0.02)
        assert on.written == [b'a']
    assert on.written == [b'a']


# Where the I/O thread sends


def test_a_link_that_is_not_direct_is_left_to_the_i_o_thread(on: Setting) -> None:
    on.link.is_direct = False
    on.outbox.submit(Sender(b'a'))
    assert on.written == []
    on.outbox.io_thread = threading.get_ident()
    on.loop.run(0.0)
    assert on.written == [b'a']


def test_without_a_link_nothing_is_sent_and_what_opens_the_channels_again_submits_them(on: Setting) -> None:
    on.outbox.link = None
    sender = Sender(b'a')
    on.outbox.submit(sender)
    on.loop.run(0.1)
    assert sender.frames == [b'a']
    on.outbox.lost()
    assert not sender.needs_flush
    on.outbox.link = on.link
    on.outbox.submit(sender)
    on.loop.run(0.1)
    assert on.written == [b'a']


def test_a_link_that_was_lost_in_that_very_moment_is_not_written_to(on: Setting) -> None:
    on.link.is_lost = True
    sender = Sender(b'a')
    on.outbox.submit(sender)
    assert (on.written, sender.frames, sender.drained_times) == ([], [b'a'], 0)


def test_a_channel_that_is_not_open_keeps_what_it_has_and_others_send(on: Setting) -> None:
    closed, opened = Sender(b'a'), Sender(b'b')
    closed.is_open = False
    with Batch():
        on.outbox.submit(closed)
        on.outbox.submit(opened)
    assert on.written == [b'b']
    assert (closed.frames, closed.drained_times, closed.needs_flush) == ([b'a'], 0, False)


def test_what_is_added_while_a_channel_is_drained_is_not_left_behind(on: Setting) -> None:
    """The flag is cleared before the drain, so what comes after that puts the channel into the queue again."""

    class Overtaken(Sender):
        def drain(self, frames: list[bytes]) -> None:
            super().drain(frames)
            if not others:
                self.frames.append(b' late')
                others.append(threading.Thread(target=on.outbox.submit, args=(self,)))
                others[0].start()
                eventually(lambda: self.needs_flush)

    others: list[threading.Thread] = []
    on.outbox.submit(Overtaken(b'first'))
    others[0].join(TIMEOUT)
    on.loop.run(0.1)
    assert b''.join(on.written) == b'first late'


def test_two_threads_that_submit_the_same_channel_send_nothing_twice(on: Setting) -> None:
    sender = Sender(b'a')
    sender.needs_flush = True
    on.outbox._ready.extend([sender, sender])  # both threads saw the flag down
    on.outbox.flush()
    assert on.written == [b'a']


# What goes wrong


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_an_interruption_while_something_is_sent_gives_up_the_link(on: Setting, error: type[BaseException]) -> None:
    class Interrupted(Sender):
        def drain(self, frames: list[bytes]) -> None:
            raise error

    with pytest.raises(error):
        on.outbox.submit(Interrupted())
    assert [str(failure) for failure in on.link.failures] == ['interrupted while sending']
    assert not on.link.writing.locked()


def test_ctrl_c_while_the_i_o_thread_is_asked_leaves_it_to_the_next_one_to_ask(busy: Setting) -> None:
    def interrupted(_callback: Callable[[], Any]) -> None:
        raise KeyboardInterrupt

    ask = busy.outbox._call_soon
    busy.outbox._call_soon = interrupted
    sender = Sender(b'a')
    with pytest.raises(KeyboardInterrupt):
        busy.outbox.submit(sender)
    busy.outbox._call_soon = ask
    busy.outbox.submit(Sender(b'b'))
    busy.loop.run(GATHER_SECONDS)
    assert busy.written == [b'ab']


def test_a_backlog_is_looked_at_again_at_its_own_pace_however_often_threads_want_to_send(on: Setting) -> None:
    on.link.backlog = BACKLOG_MAX + 1
    sender = Sender(b'a')
    for _ in range(100):
        on.outbox.submit(sender)
        on.outbox.flush()
    assert on.written == []
    assert on.loop.asked == 1
    on.link.backlog = 0
    on.loop.run(BACKLOG_SECONDS)
    assert on.written == [b'a']


# On a broker


def test_what_a_handler_publishes_leaves_while_it_runs_on(bench: Bench) -> None:
    class Talking(Processor):
        @messaging.MessageHandler('command', 'echo')
        def msg_echo(self, content: dict[str, Any]) -> None:
            producer.message_echo('out', _key='out')
            self.seen.put('published')
            released.wait(TIMEOUT)

    released = threading.Event()
    queue = bench.collect(key='out')
    producer = bench.producer()
    talking = Talking()
    bench.run(talking)
    try:
        bench.producer().message_echo()
        talking.seen.next()
        assert bench.await_message(queue).parameters == 'out'
    finally:
        released.set()


def test_a_broker_that_reads_nothing_costs_no_processor_time(bench: Bench, proxied: Proxy) -> None:
    """However often other threads would like to send meanwhile, the I/O thread looks again at its own pace."""
    producer = bench.producer()
    producer.message_echo().wait(TIMEOUT)
    connection: Any = producer.conn_broker
    outbox = connection.outbox
    looks: list[float] = []
    flush_again = outbox._flush_again
    outbox._flush_again = lambda: (looks.append(time.monotonic()), flush_again())
    proxied.hold()
    receipts = [producer.message_echo('x' * 10_000) for _ in range(1000)]
    eventually(lambda: outbox._is_backed_up)
    begin = time.monotonic()
    while time.monotonic() - begin < 0.3:
        connection.tick.stir()
        outbox.flush()
        threading.Event().wait(0.001)
    recent = [look for look in looks if look > begin]
    assert len(recent) <= 0.4 / 0.005
    proxied.resume()
    for receipt in receipts:
        receipt.wait(TIMEOUT)
