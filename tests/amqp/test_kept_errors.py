"""An error that is kept and raised again and again is raised as a copy: nothing grows, and no frame is kept alive."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from postage import errors, messaging
from support.messaging import EQK, TIMEOUT, Bench, EchoProducer, eventually

TIMES = 5


def raised(act: Callable[[], Any]) -> BaseException:
    """What something raises."""
    with pytest.raises(messaging.PostageError) as caught:
        act()
    return caught.value


def lengths(act: Callable[[], Any]) -> list[int]:
    """How many frames the traceback has, each time that something is done which raises."""
    return [len(traceback.extract_tb(raised(act).__traceback__)) for _ in range(TIMES)]


@pytest.fixture
def short_lived(bench: Bench) -> str:
    """A virtual host, which the test has go."""
    bench.broker.add_vhost(f'{bench.broker.vhost}-gone')
    return bench.broker.url_of(f'{bench.broker.vhost}-gone')


def go(bench: Bench) -> None:
    bench.broker.delete_vhost(f'{bench.broker.vhost}-gone')
    bench.broker.close_all_connections()


def test_a_producer_whose_virtual_host_has_gone_raises_the_same_each_time(bench: Bench, short_lived: str) -> None:
    producer = bench.producer(EchoProducer, None, short_lived)
    producer.message_echo('hello').wait(TIMEOUT)
    go(bench)
    bench.log.expect('ERROR', '-gone')
    for act in (
        lambda: producer.message_echo('hello'),
        lambda: producer.rpc_echo('hello'),
        lambda: producer.channel.queue_purge('a-queue'),
    ):
        found = lengths(act)
        assert found == [found[0]] * TIMES
        assert raised(act) is not raised(act)


def test_a_consumer_whose_virtual_host_has_gone_raises_the_same_each_time(bench: Bench, short_lived: str) -> None:
    consumer = bench.closing(messaging.GenericConsumer(EQK, short_lived))
    source = consumer.delivery_source
    source.begin(lambda: None, 1)
    go(bench)
    eventually(lambda: source.channel.error is not None)
    found = lengths(source.next_delivery)
    assert found == [found[0]] * TIMES
    assert raised(source.next_delivery) is not raised(source.next_delivery)


def test_calls_that_end_together_have_an_error_each(bench: Bench) -> None:
    producer = bench.producer(EchoProducer)
    bench.collect()
    futures = [producer.rpc_future_echo('hello', _timeout=60) for _ in range(3)]
    producer.close()
    found = [raised(future.result) for future in futures]
    assert {type(error) for error in found} == {errors.Closed}
    assert len({str(error) for error in found}) == 1
    assert len({id(error) for error in found}) == 3


def test_a_result_that_failed_raises_the_same_each_time(bench: Bench) -> None:
    reply = bench.producer(EchoProducer).rpc_echo('hello')
    found = lengths(reply.unwrap)
    assert found == [found[0]] * TIMES


def test_a_receipt_that_failed_raises_the_same_each_time(bench: Bench) -> None:
    class Mandatory(EchoProducer):
        mandatory = True

    receipt = bench.producer(Mandatory).message_echo('hello', _key='nowhere')
    found = lengths(lambda: receipt.wait(TIMEOUT))
    # The first one waits: its way to the error is another.
    assert found[1:] == [found[1]] * (TIMES - 1)


ALL = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.PostageError)]


@pytest.mark.parametrize('kind', ALL)
def test_every_error_can_be_copied(kind: type[errors.PostageError]) -> None:
    error = kind('what was wrong')
    error.__cause__ = KeyError('why')
    error.noted = 1  # type: ignore[attr-defined]
    found = error.again()
    assert type(found) is kind
    assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))
    assert found.__cause__ is error.__cause__
    assert copy.copy(error).args == error.args
