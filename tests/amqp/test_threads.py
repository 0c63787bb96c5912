"""What a thread gathers in a batch is sent at its end, and before the thread waits for anything."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

from postage.amqp.threads import Batch, check_may_block, flush_batch, this_thread
from support.messaging import TIMEOUT, Bench


class Sent:
    """What stands for an outbox in a batch."""

    def __init__(self) -> None:
        self.times = 0

    def flush(self) -> None:
        self.times += 1


def test_what_a_batch_gathers_is_sent_at_its_end() -> None:
    outbox: Any = Sent()
    with Batch():
        assert this_thread.batch == []
        this_thread.batch.append(outbox)
        assert outbox.times == 0
    assert outbox.times == 1
    assert this_thread.batch is None


def test_a_batch_inside_another_one_is_part_of_it() -> None:
    outbox: Any = Sent()
    with Batch():
        with Batch():
            assert this_thread.batch == []
            this_thread.batch.append(outbox)
        assert outbox.times == 0
    assert outbox.times == 1


def test_what_was_gathered_before_an_exception_is_sent_all_the_same() -> None:
    outbox: Any = Sent()
    with contextlib.suppress(ZeroDivisionError), Batch():
        assert this_thread.batch == []
        this_thread.batch.append(outbox)
        raise ZeroDivisionError
    assert outbox.times == 1


def test_a_failure_of_the_sending_does_not_leave_the_batch_open() -> None:
    class Failing(Sent):
        def flush(self) -> None:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), Batch():
        assert this_thread.batch == []
        this_thread.batch.append(Failing())
    assert this_thread.batch is None


def test_before_a_thread_waits_it_sends_what_it_has_gathered_and_the_batch_goes_on() -> None:
    outboxes: list[Any] = [Sent(), Sent()]
    with Batch():
        assert this_thread.batch == []
        this_thread.batch.extend(outboxes)
        flush_batch()
        assert [outbox.times for outbox in outboxes] == [1, 1]
        assert this_thread.batch == []
    assert [outbox.times for outbox in outboxes] == [1, 1]


def test_without_a_batch_there_is_nothing_to_send() -> None:
    flush_batch()
    assert this_thread.batch is None


def test_a_thread_that_reads_must_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    check_may_block()
    monkeypatch.setattr(this_thread, 'is_reading', True)
    with pytest.raises(RuntimeError, match='blocking call from a callback of a connection'):
        check_may_block()


def test_a_child_forked_in_a_batch_leaves_what_was_gathered_to_the_parent(bench: Bench) -> None:
    producer = bench.producer()
    with Batch():
        receipt = producer.message_echo()
        pid = os.fork()
        if not pid:
            os._exit(len(this_thread.batch or ()))
        assert os.waitpid(pid, 0)[1] == 0
        assert this_thread.batch
    receipt.wait(TIMEOUT)
