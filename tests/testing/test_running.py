"""``running``: components in a scheduler beside the test, for the length of a ``with``."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from typing import Any

import pytest

from postage import messaging
from postage.microthreads import MicroThread
from postage.testing import Broker, running, track


class Orders(messaging.Exchange):
    name = 'orders'


class Producer(messaging.GenericProducer):
    eks = [(Orders, 'order')]


class Shipper(messaging.MessageProcessor):
    def __init__(self) -> None:
        self.shipped: list[Any] = []
        self.entered, self.release = threading.Event(), threading.Event()
        super().__init__({'name': 'shipper'}, [(Orders, [('orders', 'order')])])

    @messaging.MessageHandler('command', 'order')
    def order(self, content: dict[str, Any]) -> None:
        self.shipped.append(content['parameters'])

    @messaging.MessageHandler('command', 'hold')
    def hold(self, content: dict[str, Any]) -> None:
        self.entered.set()
        self.release.wait(10)


class Ledger(Shipper):
    def __init__(self) -> None:
        super().__init__()
        self.database = sqlite3.connect(':memory:')
        self.database.execute('CREATE TABLE orders (name)')

    @messaging.MessageHandler('command', 'order')
    def order(self, content: dict[str, Any]) -> None:
        self.database.execute('INSERT INTO orders VALUES (?)', (content['parameters'],))
        self.shipped = self.database.execute('SELECT name FROM orders').fetchall()

    def close(self) -> None:
        super().close()
        self.database.close()


@pytest.mark.parametrize('given', ['class', 'object', 'function'])
def test_a_component_runs_for_the_length_of_the_with(given: str, postage_broker: Broker, postage_url: str) -> None:
    component: Any = {'class': Shipper, 'object': Shipper, 'function': lambda: Shipper()}[given]
    if given == 'object':
        component = component()
    with running(component) as shipper, Producer() as producer, track(postage_broker):
        assert postage_broker.queues()['orders'].consumers == 1
        producer.message_order('a book')
    assert shipper.shipped == ['a book']
    assert postage_broker.queues()['orders'].consumers == 0
    with pytest.raises(messaging.Closed):
        shipper.add_eqk([(Orders, [('others', 'order')])])


def test_several_run_in_one_scheduler(postage_broker: Broker, postage_url: str) -> None:
    with running(Shipper, Shipper) as (one, two), Producer() as producer:
        with track(postage_broker):
            for number in range(4):
                producer.message_order(number)
        assert sorted(one.shipped + two.shipped) == [0, 1, 2, 3]
        assert one.scheduler is two.scheduler


def test_handlers_run_in_the_thread_that_built_the_component(postage_broker: Broker, postage_url: str) -> None:
    with running(Ledger) as ledger, Producer() as producer, track(postage_broker):
        producer.message_order('a book')
    assert ledger.shipped == [('a book',)]


def test_what_a_constructor_raises_is_raised_at_the_beginning() -> None:
    def fail() -> MicroThread:
        raise KeyError('no such thing')

    with pytest.raises(KeyError, match='no such thing'), running(fail):
        pytest.fail('it began')


class Failing(MicroThread):
    def __init__(self) -> None:
        self.go, self.gone = threading.Event(), threading.Event()
        self.is_closed = False

    def main(self) -> Generator[Any, Any, None]:
        while not self.go.wait(0.01):
            yield
        self.gone.set()
        raise ArithmeticError('it went wrong')

    def close(self) -> None:
        self.is_closed = True


def test_what_a_component_raises_is_raised_at_the_end_which_closes_it() -> None:
    with pytest.raises(ArithmeticError, match='it went wrong'), running(Failing) as failing:  # noqa: PT012
        failing.go.set()
        assert failing.gone.wait(10)
    assert failing.is_closed


def test_what_the_test_raises_comes_first() -> None:
    with pytest.raises(AssertionError, match='no'), running(Failing) as failing:  # noqa: PT012
        failing.go.set()
        assert failing.gone.wait(10)
        raise AssertionError('no')


def test_a_handler_that_does_not_end_is_told(postage_broker: Broker, postage_url: str) -> None:
    shipper = Shipper()
    try:
        with (  # noqa: PT012
            pytest.raises(TimeoutError, match=r'a handler still runs after 0\.2 s, of <Shipper shipper'),
            running(shipper, timeout=0.2),
            Producer() as producer,
        ):
            producer.message_hold()
            assert shipper.entered.wait(10)
    finally:
        shipper.release.set()
    for thread in threading.enumerate():
        if thread.name == 'postage-running':
            thread.join(10)


def test_messages_that_wait_are_waited_for(postage_broker: Broker, postage_url: str) -> None:
    with pytest.raises(TimeoutError, match=r"queue 'orders' has 0 of 1 messages after 0\.05 s"):
        postage_broker.wait_for_messages('orders', timeout=0.05)
    messaging.GenericConsumer([(Orders, [('orders', 'order')])]).close()
    with Producer() as producer:
        producer.message_order()
        postage_broker.wait_for_messages('orders')
        assert len(postage_broker.messages('orders')) == 1


def test_what_is_no_component_and_makes_none_is_named(postage_url: str) -> None:
    with pytest.raises(TypeError, match=r'takes components, or what makes one, not 3$'), running(3):  # type: ignore[call-overload]
        pass
