"""``/ready`` tells every fault there is, soon, and none that there is not."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from postage import messaging
from postage.broker.users import Permissions
from postage.dead_letters.sqlite import SQLiteDeadLetters
from support.brokers import Broker, Embedded, RabbitMQ, connect, with_login
from support.canary import canary
from support.letters import letter
from support.programs import Module
from support.soak import IS_SOAK
from support.users import add_user, delete_user

HEARTBEAT = 2.0  # seconds
SOON = 2 * HEARTBEAT
PATIENCE = 30.0
AGAIN = 'another one begins'  # a worker whose connection is refused ends
ALLOWED = 1.0  # seconds for a confirm, and for a handler

GUARDED = """
import os, time
from postage import messaging
from postage.dead_letters.sqlite import SQLiteDeadLetters

class ShopExchange(messaging.Exchange):
    name = 'shop-exchange'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'tick-rk')]

class Guarded(messaging.MessageProcessor):
    dead_letters = SQLiteDeadLetters(os.environ['LETTERS'], max_bytes=100_000)

    def __init__(self):
        queue = {'name': 'prices', 'flags': {'passive': True}}  # what is gone is not declared again
        super().__init__({}, [(ShopExchange, [(queue, 'price-rk'), ({'name': 'ticks'}, 'tick-rk')])])
        self.producer = Producer()

    def before_processing(self):
        self.tick()

    def tick(self):
        self.producer.message_tick()
        self.add_timeout(0.2, self.tick)

    @messaging.MessageHandler('command', 'tick')
    def msg_tick(self, content):
        pass

    @messaging.MessageHandler('command', 'stick')
    def msg_stick(self, content):
        while not os.path.exists(os.environ['RELEASE']):
            time.sleep(0.05)

    @messaging.MessageHandler('command', 'fail')
    def msg_fail(self, content):
        raise KeyError('a price')
"""

SHORT_HEARTBEAT = 1  # seconds

ORDINARY = """
import time
from postage import messaging, microthreads

class ShopExchange(messaging.Exchange):
    name = 'shop-exchange'

class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'done-rk')]

class Orders(messaging.MessageProcessor):
    concurrency = 4

    def __init__(self):
        queues = [('orders', 'price-rk'), ('done', 'done-rk'), ('idle', 'idle-rk')]
        super().__init__({}, [(ShopExchange, queues)])
        self.producer = Producer()

    @messaging.MessageHandler('command', 'compute')
    def msg_compute(self, content):
        time.sleep(content['parameters'])
        self.producer.message_done()

    @messaging.MessageHandler('command', 'wait')
    def msg_wait(self, content):
        yield microthreads.sleep(content['parameters'])
        self.producer.message_done()

    @messaging.MessageHandler('command', 'done')
    def msg_done(self, content):
        pass
"""


class ShopExchange(messaging.Exchange):
    name = 'shop-exchange'


class Producer(messaging.GenericProducer):
    eks = [(ShopExchange, 'price-rk')]


class Guarded:
    """``postage run`` of a component that can suffer every fault.

    :ivar release: where a file lets the handler go on that is stuck
    :ivar letters: its store, with room for one letter
    """

    def __init__(self, broker: Broker, user: str | None, run_module: Callable[..., Module], tmp_path: Path) -> None:
        self.broker = broker
        self.release = tmp_path / 'release'
        self.letters = tmp_path / 'letters.db'
        self.make_queue()
        (tmp_path / 'shop.py').write_text(GUARDED)
        url = broker.url if user is None else with_login(broker.url, f'{user}:{canary(user)}')
        environment = {
            'POSTAGE_URL': f'{url}?heartbeat={HEARTBEAT:g}',
            'LETTERS': str(self.letters),
            'RELEASE': str(self.release),
        }
        times = ['--confirm-time', str(ALLOWED), '--handler-time', str(ALLOWED)]
        command = ['run', 'shop:Guarded', '--status', '127.0.0.1:0', *times]
        self.program = run_module('postage', command, environment)
        self.port = int(self.program.expect('status at').rpartition('/')[0].rpartition(':')[2])
        self.program.expect('is ready', 30)

    def make_queue(self) -> None:
        with connect(self.broker) as connection:
            connection.channel().queue_declare('prices', durable=True)

    def send(self, name: str) -> None:
        with Producer(hup=self.broker.url) as producer:
            getattr(producer, f'message_{name}')()

    def faults(self) -> list[str]:
        """What ``/ready`` says is wrong."""
        status, body = ask(self.port, '/ready')
        assert (status == 200) is body['ready']
        return list(body['faults'])

    def wait(self, ready: bool, timeout: float) -> tuple[float, list[str]]:
        """Wait until it is ready, or is not; return how long that took, and what it says."""
        began = time.monotonic()
        while bool(faults := self.faults()) is ready:
            assert time.monotonic() < began + timeout, f'{faults}\n{self.program.output}'
            time.sleep(0.05)  # it is asked, as a probe asks
        return time.monotonic() - began, faults

    def end(self) -> int:
        self.program.send_signal(signal.SIGTERM)
        return self.program.wait(30)


def ask(port: int, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=10)
    try:
        connection.request('GET', path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class Load:
    """Messages for ``ORDINARY``, quiet times between them, and new workers, for the length of a ``with``.

    :ivar sent: how many messages it has sent
    :ivar replaced: how often it had the workers replaced
    :ivar error: what went wrong with it
    """

    def __init__(self, broker: Broker, program: Module, source: Path) -> None:
        self.sent = self.replaced = 0
        self.error: BaseException | None = None
        self._url = broker.url
        self._program = program
        self._source = source
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name='load-of-a-test')

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with Producer(hup=self._url) as producer:
                while not self._is_over.is_set():
                    self._busy_time(producer)
                    if not self._is_over.is_set():
                        self._replace()
                    self._is_over.wait(4 * SHORT_HEARTBEAT)  # a quiet time
        except BaseException as error:
            self.error = error

    def _busy_time(self, producer: Producer) -> None:
        producer.message_compute(3.0 * SHORT_HEARTBEAT)
        producer.message_wait(3.0 * SHORT_HEARTBEAT)
        for number in range(500 if IS_SOAK else 100):
            producer.message_compute(0.0 if number % 10 else 0.05)
            producer.message_wait(0.0 if number % 10 else 0.5)
            self.sent += 2
            if self._is_over.wait(0.01):
                break
        producer.flush(30)

    def _replace(self) -> None:
        self.replaced += 1
        if self.replaced % 2:
            self._program.send_signal(signal.SIGHUP)
        else:
            self._source.write_text(f'{ORDINARY}\n# {self.replaced}\n')
        self._program.expect('in place of pid', 60, times=2 * self.replaced)


# Faults: each is there for the length of a `with`


@contextlib.contextmanager
def stopped_broker(guarded: Guarded) -> Iterator[None]:
    assert isinstance(guarded.broker, RabbitMQ)
    guarded.broker.node.suspend()
    try:
        yield
    finally:
        guarded.broker.node.resume()


@contextlib.contextmanager
def deleted_queue(guarded: Guarded) -> Iterator[None]:
    with connect(guarded.broker) as connection:
        connection.channel().queue_delete('prices')
    yield
    guarded.make_queue()


@contextlib.contextmanager
def memory_alarm(guarded: Guarded) -> Iterator[None]:
    if isinstance(guarded.broker, Embedded):
        guarded.broker.server.block()
        yield
        guarded.broker.server.unblock()
        return
    assert isinstance(guarded.broker, RabbitMQ)
    alarm = '{resource_limit, memory, node()}'
    guarded.broker.node.evaluate(f'rabbit_alarm:set_alarm({{{alarm}, []}}), ""')
    yield
    guarded.broker.node.evaluate(f'rabbit_alarm:clear_alarm({alarm}), ""')


@contextlib.contextmanager
def stuck_handler(guarded: Guarded) -> Iterator[None]:
    guarded.send('stick')
    yield
    guarded.release.touch()


@contextlib.contextmanager
def withheld_confirms(guarded: Guarded) -> Iterator[None]:
    assert isinstance(guarded.broker, Embedded)
    guarded.broker.server.delay_confirms(3.0)
    yield
    guarded.broker.server.delay_confirms(0)


@contextlib.contextmanager
def full_store(guarded: Guarded) -> Iterator[None]:
    with SQLiteDeadLetters(guarded.letters, max_bytes=100_000) as store:
        with contextlib.suppress(messaging.StoreError):
            while True:
                store.put(letter(body=b'x' * 1000))
        guarded.send('fail')
        yield
        store.delete()


@contextlib.contextmanager
def withdrawn_credentials(guarded: Guarded) -> Iterator[None]:
    ended = guarded.program.count(AGAIN)
    delete_user(guarded.broker, 'shop')
    yield
    guarded.program.expect(AGAIN, times=ended + 1)  # it was refused, too
    add_user(guarded.broker, 'shop', Permissions('.*', '.*', '.*'))


@contextlib.contextmanager
def deleted_virtual_host(guarded: Guarded) -> Iterator[None]:
    ended = guarded.program.count(AGAIN)
    guarded.broker.delete_vhost(guarded.broker.vhost)
    yield
    guarded.program.expect(AGAIN, times=ended + 1)
    guarded.broker.add_vhost(guarded.broker.vhost)
    delete_user(guarded.broker, 'shop')  # with it went what the user may do there
    add_user(guarded.broker, 'shop', Permissions('.*', '.*', '.*'))
    guarded.make_queue()


ON_RABBITMQ = [
    (stopped_broker, SOON),
    (deleted_queue, SOON),
    (memory_alarm, SOON),
    (stuck_handler, ALLOWED + SOON),
    (full_store, SOON),
    (withdrawn_credentials, SOON),
    (deleted_virtual_host, SOON),
]
EMBEDDED = [(withheld_confirms, ALLOWED + SOON), (memory_alarm, SOON), (stuck_handler, ALLOWED + SOON)]


def suffer(guarded: Guarded, faults: list[Any], record_note: Callable[[str], None]) -> None:
    """Have each fault in turn: it is seen soon, and gone after its cure."""
    said = []
    for fault, limit in faults:
        with fault(guarded):
            seen, words = guarded.wait(False, limit + 2)
        gone, _ = guarded.wait(True, PATIENCE)
        said.append(f'{fault.__name__} seen after {seen:.1f} s, gone {gone:.1f} s after the cure: {words[0]}')
        assert seen < limit, said[-1]
    record_note(f'/ready on {guarded.broker.name} {guarded.broker.rules}:\n' + '\n'.join(said))


@pytest.mark.timeout(240)
def test_every_fault_is_seen_and_gone_after_its_cure(
    private_rabbitmq: RabbitMQ, run_module: Callable[..., Module], tmp_path: Path, record_note: Callable[[str], None]
) -> None:
    add_user(private_rabbitmq, 'shop', Permissions('.*', '.*', '.*'))
    try:
        guarded = Guarded(private_rabbitmq, 'shop', run_module, tmp_path)
        guarded.wait(True, PATIENCE)
        suffer(guarded, ON_RABBITMQ, record_note)
        assert guarded.end() == 0
    finally:
        delete_user(private_rabbitmq, 'shop')


@pytest.mark.timeout(120)
def test_confirms_that_do_not_come_are_seen(
    embedded: Embedded, run_module: Callable[..., Module], tmp_path: Path, record_note: Callable[[str], None]
) -> None:
    guarded = Guarded(embedded, None, run_module, tmp_path)
    guarded.wait(True, PATIENCE)
    suffer(guarded, EMBEDDED, record_note)
    assert guarded.end() == 0


@pytest.mark.timeout(900)
def test_where_nothing_is_wrong_it_says_so(
    broker: Broker, run_module: Callable[..., Module], tmp_path: Path, record_note: Callable[[str], None]
) -> None:
    """Handlers are short and long, the times busy and quiet, workers are replaced, and to one queue nothing comes."""
    source = tmp_path / 'shop.py'
    source.write_text(ORDINARY)
    environment = {'POSTAGE_URL': f'{broker.url}?heartbeat={SHORT_HEARTBEAT}'}
    options = ['--workers', '2', '--reload', '--status', '127.0.0.1:0', '--confirm-time', '5', '--handler-time', '5']
    program = run_module('postage', ['run', 'shop:Orders', *options], environment)
    program.expect('is ready', 30, times=2)
    port = int(program.expect('status at').rpartition('/')[0].rpartition(':')[2])
    over = time.monotonic() + (600 if IS_SOAK else 3)
    asked, seconds = 0, 0.0
    with Load(broker, program, source) as load:
        while time.monotonic() < over and load.error is None:
            began = time.monotonic()
            status, body = ask(port, '/ready')
            asked, seconds = asked + 1, max(seconds, time.monotonic() - began)
            assert (status, body['faults']) == (200, []), f'{body} after {asked} times\n{program.output}'
            time.sleep(0.1)  # it is asked, as a probe asks
    assert load.error is None
    record_note(
        f'/ready on {broker.name} {broker.rules}: {asked} times ready, 0 times not, {seconds * 1000:.0f} ms at most; '
        f'{load.sent} messages, {load.replaced} times new workers'
    )
    program.send_signal(signal.SIGTERM)
    assert program.wait(30) == 0, program.output
